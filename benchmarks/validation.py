"""Measure how fast data sets with pictures are validated.

    python -m benchmarks.validation [--examples 4000] [--repeats 3] [--cases 28 112 224 640] [--json OUT]

Each case is a zip with one JSONL file and one picture for each example, read as an upload is: unpacked,
parsed, every picture decoded in full and hashed. Beside it stands the floor: the same pictures decoded and
hashed from memory on all cores, and nothing else. The rest, on one core, is unpacking, parsing, bookkeeping.

On a machine that others use, clocks say little; computing time does. From it comes what free cores would do:
the part without decoding on one of them, then decoding on all.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
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
from benchmarks.live.quiet import OtherLoad
from benchmarks.program import NotMeasured, program_parser, run_program, write_figures
from benchmarks.telling import console, told

GOAL = 2000
SHAPES = {28: (28, 28, "PNG"), 112: (112, 112, "JPEG"), 224: (224, 224, "JPEG"), 640: (640, 480, "JPEG")}
_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Row:
    """Examples a second of one case, medians.

    ``validated`` is the whole by the clock, ``computed`` and ``floor`` are what computing time allows on free
    cores, of the whole and of decoding and hashing alone. ``bare`` is the whole, by computing time, where no
    example uses its picture. ``others`` is how many cores other programs used meanwhile.
    """

    case: str
    kilobytes: float
    validated: float
    computed: float
    floor: float
    bare: float
    cores: int
    others: float


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


def validate(path: Path) -> tuple[float, float]:
    """Return the seconds that the validation of an upload takes, by the clock and of computing time."""
    began, computed = time.perf_counter(), time.process_time()
    _, source, report = read_upload(path)
    seconds = time.perf_counter() - began, time.process_time() - computed
    source.close()
    if not report.ok:
        raise NotMeasured(report.summary())
    return seconds


def decode_all(pictures: Sequence[bytes], threads: int) -> float:
    """Return the computing time that decoding and hashing alone take, in seconds."""
    groups = [pictures[start : start + _AT_ONCE] for start in range(0, len(pictures), _AT_ONCE)]

    def work(group: Sequence[bytes]) -> None:
        for data in group:
            image_digest(decode_image(data))

    began = time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, groups))
    return time.process_time() - began


def measure(case: int, examples: int, repeats: int, folder: Path) -> Row:
    """Time one case; the three kinds of runs take turns."""
    width, height, kind = SHAPES[case]
    rng = np.random.default_rng(case)
    pictures = [picture((width, height), kind, rng) for _ in range(examples)]
    whole, bare = folder / "whole.zip", folder / "bare.zip"
    write_case(whole, pictures, refer=True)
    write_case(bare, pictures, refer=False)
    cores = os.cpu_count() or 1
    seconds: dict[str, list[float]] = {name: [] for name in ("clock", "whole", "bare", "decoding")}
    load = OtherLoad(lambda: [os.getpid()])
    for _ in range(repeats):
        clock, computed = validate(whole)
        seconds["clock"].append(clock)
        seconds["whole"].append(computed)
        seconds["bare"].append(validate(bare)[1])
        seconds["decoding"].append(decode_all(pictures, cores))
    took = {name: statistics.median(values) for name, values in seconds.items()}
    return Row(
        f"{kind} {width}x{height}",
        kilobytes=sum(map(len, pictures)) / examples / 1000,
        validated=examples / took["clock"],
        computed=examples / (took["bare"] + max(0.0, took["whole"] - took["bare"]) / cores),
        floor=examples * cores / took["decoding"],
        bare=examples / took["bare"],
        cores=cores,
        others=load.cores(),
    )


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    titles = (
        "by the clock",
        f"by computing time (goal {GOAL:,})",
        "floor",
        "nothing decoded",
        "others' cores",
    )
    table = Table("case", "kB", *titles, title="examples validated a second")
    for row in rows:
        figures = (row.validated, row.computed, row.floor, row.bare)
        shown = (f"{row.kilobytes:.1f}", *(f"{figure:,.0f}" for figure in figures), f"{row.others:.1f}")
        table.add_row(row.case, *shown)
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases and print what was measured."""
    parser = program_parser("benchmarks.validation", "Measure how fast data sets are validated.")
    parser.add_argument("--examples", type=int, default=4000, help="in each case; a fifth of it at 640x480")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", type=int, nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES))
    given = parser.parse_args(argv)
    return run_program(lambda folder: _report(given, folder))


def _report(given: argparse.Namespace, folder: Path) -> None:
    rows: list[Row] = []
    with told(len(given.cases)) as teller:
        for case in given.cases:
            teller.at(f"{SHAPES[case][0]}x{SHAPES[case][1]}")
            examples = given.examples // 5 if case == 640 else given.examples
            rows.append(measure(case, max(1, examples), given.repeats, folder))
            teller.step()
    show(rows)
    write_figures(given.json, {"settings": vars(given), "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    sys.exit(main())
