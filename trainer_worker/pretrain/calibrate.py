"""Calibrate a base's picture queries on ordinary pictures that belong to no task.

    python -m trainer_worker.pretrain.calibrate --base FOLDER

The embedded base ships with its calibration. For a LLaVA of your own, run this once before the first task: it
writes ``calibration.safetensors`` into the folder, which is part of the base from then on.
"""

from __future__ import annotations

from adapter_store.base.allocator import tune_allocator

tune_allocator()

import argparse  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from rich.progress import track  # noqa: E402

from adapter_store.base.load import load_base  # noqa: E402
from adapter_store.calibration import CALIBRATION_FILE, ImageCalibration  # noqa: E402
from adapter_store.errors import StrataError  # noqa: E402
from adapter_store.settings import EMBEDDED_BASE  # noqa: E402
from adapter_store.vision import VisionEncoder  # noqa: E402
from trainer_worker.pretrain.scenes import generic_probe  # noqa: E402

PICTURES = 3000
SEED = 77
"""Other pictures than those that retention and tau are measured on."""
_AT_ONCE = 64


def calibrate(vision: VisionEncoder, pictures: int = PICTURES) -> ImageCalibration:
    """Return the calibration that generated scenes give."""
    images = [image for image, _, _ in generic_probe(pictures, SEED)]
    starts = track(range(0, pictures, _AT_ONCE), description="encoding pictures")
    pooled = [one.pooled for start in starts for one in vision.encode(images[start : start + _AT_ONCE])]
    return ImageCalibration.of(torch.stack(pooled))


def _at_least_two(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{number} pictures do not differ: use at least 2")
    return number


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, calibrate and write."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer_worker.pretrain.calibrate", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--base", required=True, help="a LLaVA folder, a hub id, or embedded (with --out)")
    parser.add_argument("--out", type=Path, help=f"folder for {CALIBRATION_FILE} (default: the base's)")
    parser.add_argument(
        "--pictures", type=_at_least_two, default=PICTURES, help=f"how many (default {PICTURES})"
    )
    given = parser.parse_args(arguments)
    if given.base == EMBEDDED_BASE and given.out is None:
        parser.error("the embedded base has its calibration, which belongs to its digest: name --out")
    try:
        base = load_base(given.base)
        path = (given.out or base.path) / CALIBRATION_FILE
        calibrate(VisionEncoder(base), given.pictures).save(path)
    except StrataError as error:
        sys.stderr.write(error.message + "\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error.filename} cannot be written: {error.strerror}\n")
        return 1
    sys.stdout.write(f"wrote {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
