"""Measure how fast data sets with pictures are validated.

    python -m benchmarks.validation [--examples 4000] [--repeats 3] [--cases 28 112 224 640] [--json OUT]

Each case is a zip with one JSONL file and one picture for each example, read as an upload is: unpacked,
parsed, every picture decoded in full and hashed. Beside it stands the floor: the same pictures decoded and
hashed from memory on all cores, and nothing else. The rest is unpacking, parsing and bookkeeping.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Table

from adapter_store.datasets import read_upload
from adapter_store.images import decode_image, image_digest
from benchmarks.telling import console, told

GOAL = 2000
SHAPES = {28: (28, 28, "PNG"), 112: (112, 112, "JPEG"), 224: (224, 224, "JPEG"), 640: (640, 480, "JPEG")}
_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Row:
    """Examples a second of one case, medians.

    ``validated`` is the whole; ``floor`` and ``one_core`` decode and hash only, on all cores and on one;
    ``bare`` is the whole where no example uses its picture.
    """

    case: str
    kilobytes: float
    validated: float
    floor: float
    one_core: float
    bare: float
    cores: int


def picture(size: tuple[int, int], kind: str, rng: np.random.Generator) -> bytes:
    """Return a picture with large shapes and some grain, as photos have."""
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (size[1], size[0], 3))
    pixels = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=kind, quality=90)
    return out.getvalue()


def write_case(path: Path, pictures: Sequence[bytes], *, refer: bool) -> None:
    """Write the zip; without ``refer`` no example uses its picture."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        rows = []
        for number, data in enumerate(pictures):
            name = f"images/{number}.jpg"
            archive.writestr(name, data)
            talk = [
                {"from": "human", "value": "<image>\nWhat is shown?" if refer else f"What is {number}?"},
                {"from": "gpt", "value": f"thing {number % 50}"},
            ]
            rows.append({"id": str(number), "conversations": talk, **({"image": name} if refer else {})})
        archive.writestr("data.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def validate(path: Path) -> float:
    """Return the seconds that the validation of an upload takes."""
    began = time.perf_counter()
    _, source, report = read_upload(path)
    seconds = time.perf_counter() - began
    source.close()
    if not report.ok:
        raise SystemExit(report.summary())
    return seconds


def decode_all(pictures: Sequence[bytes], threads: int) -> float:
    """Return the seconds that decoding and hashing alone take."""
    groups = [pictures[start : start + _AT_ONCE] for start in range(0, len(pictures), _AT_ONCE)]

    def work(group: Sequence[bytes]) -> None:
        for data in group:
            image_digest(decode_image(data))

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, groups))
    return time.perf_counter() - began


def measure(case: int, examples: int, repeats: int, folder: Path) -> Row:
    """Time one case; the three kinds of runs take turns."""
    width, height, kind = SHAPES[case]
    rng = np.random.default_rng(case)
    pictures = [picture((width, height), kind, rng) for _ in range(examples)]
    whole, bare = folder / "whole.zip", folder / "bare.zip"
    write_case(whole, pictures, refer=True)
    write_case(bare, pictures, refer=False)
    cores = os.cpu_count() or 1
    seconds: dict[str, list[float]] = {name: [] for name in ("validated", "floor", "one_core", "bare")}
    for _ in range(repeats):
        seconds["validated"].append(validate(whole))
        seconds["floor"].append(decode_all(pictures, cores))
        seconds["one_core"].append(decode_all(pictures, 1))
        seconds["bare"].append(validate(bare))
    rates = {name: examples / statistics.median(values) for name, values in seconds.items()}
    kilobytes = sum(map(len, pictures)) / examples / 1000
    return Row(f"{kind} {width}x{height}", kilobytes, cores=cores, **rates)


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table(
        "case",
        "kB a picture",
        f"validated/s (goal {GOAL:,})",
        "floor/s",
        "floor on one core/s",
        "nothing decoded/s",
    )
    for row in rows:
        figures = (row.validated, row.floor, row.one_core, row.bare)
        table.add_row(row.case, f"{row.kilobytes:.1f}", *(f"{figure:,.0f}" for figure in figures))
    console.print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases and print what was measured."""
    parser = argparse.ArgumentParser(description="how fast data sets with pictures are validated")
    parser.add_argument("--examples", type=int, default=4000, help="in each case; a fifth of it at 640x480")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", type=int, nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES))
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    given = parser.parse_args(argv)
    rows: list[Row] = []
    with told(len(given.cases)) as teller:
        for case in given.cases:
            teller.at(f"{SHAPES[case][0]}x{SHAPES[case][1]}")
            examples = given.examples // 5 if case == 640 else given.examples
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(case, max(1, examples), given.repeats, Path(folder)))
            teller.step()
    show(rows)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
