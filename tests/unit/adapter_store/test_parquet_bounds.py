"""A parquet file takes bounded memory, whatever it says of itself and however often it names one value."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapter_store.datasets import Limits, parquet
from adapter_store.datasets.parquet import read_parquet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

MIB = 1024 * 1024
BOUND_BYTES = 350 * MIB
OVERHEAD_BYTES = 192 * MIB
ONE_DICTIONARY: dict[str, Any] = {"dictionary_pagesize_limit": 1 << 30, "row_group_size": 1 << 20}
PROGRAM = """
import json, re, sys
from pathlib import Path
import numpy, pyarrow.parquet
from adapter_store.datasets import read_upload

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
_, source, report = read_upload(Path(sys.argv[1]), work_folder=Path(sys.argv[2]))
source.close()
print(json.dumps({"grown": peak() - before, "reason": report.faults[0].reason}))
"""

ROWS = """
import json, re, sys
from pathlib import Path
import numpy, pyarrow.parquet
from adapter_store.datasets import Limits
from adapter_store.datasets.parquet import read_parquet

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
rows = sum(record.reason is None for record in read_parquet(Path(sys.argv[1]), Limits()))
print(json.dumps({"grown": peak() - before, "rows": rows}))
"""


def write(path: Path, columns: dict[str, Any], **how: Any) -> Path:
    """Write without Arrow's own schema, as others than pyarrow do."""
    pq.write_table(pa.table(columns), path, **{"store_schema": False, "compression": "zstd", **how})
    return path


def repeated(value: bytes, count: int) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))


def in_one_row(values: Any) -> Any:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def reason_of(path: Path, limits: Limits | None = None) -> str:
    """Return the reason of the first faulty record."""
    found = next(record.reason for record in read_parquet(path, limits or Limits()) if record.reason)
    assert found is not None
    return found


def many_rows(path: Path) -> None:
    rows = 64
    large = dict.fromkeys(("question", "answer"), ["a"] * rows)
    write(path, {"image": repeated(bytes(40 * MIB), rows), **large}, dictionary_pagesize_limit=1 << 30)


def one_long_list(path: Path) -> None:
    pictures = in_one_row(repeated(bytes(10 * MIB), 80))
    columns = {"images": pictures, "question": ["q"], "answer": ["a"]}
    write(path, columns, dictionary_pagesize_limit=1 << 30)


def one_list_of_different_ones(path: Path) -> None:
    pictures = in_one_row(pa.array([bytes([n]) * (10 * MIB) for n in range(28)]))
    write(path, {"images": pictures, "question": ["q"], "answer": ["a"]}, use_dictionary=False)


def lying_footer(path: Path) -> None:
    write(path, {"answer": [bytes(MIB)] * 100, "question": ["q"] * 100}, use_dictionary=False)
    understate(path, int(pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size))
    understate(path, int(pq.ParquetFile(path).metadata.row_group(0).total_byte_size))
    assert pq.ParquetFile(path).metadata.row_group(0).total_byte_size < MIB


def understate(path: Path, size: int) -> None:
    """Write a small number in place of a size in the footer, in as many bytes."""
    code, left = bytearray(), 2 * size
    while left:
        code.append(left & 127 | (128 if left > 127 else 0))
        left >>= 7
    data = path.read_bytes()
    head, found, tail = data.rpartition(bytes(code))
    assert found
    path.write_bytes(head + bytes([0x80 | 100, *[0x80] * (len(code) - 2), 0]) + tail)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (many_rows, "the row has 419"),
        (one_long_list, "the row has 838"),
        (one_list_of_different_ones, "in one piece; at most 268435456 are accepted: write it with smaller"),
        (lying_footer, "the rows unpack to 104"),
    ],
)
def test_a_few_bytes_never_fill_the_memory(tmp_path: Path, make: Any, reason: str) -> None:
    make(tmp_path / "upload")
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "upload"), str(tmp_path / "work")]
    seen = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert reason in seen["reason"]
    assert seen["grown"] < BOUND_BYTES


def photos(count: int, size: int) -> Any:
    """Return pictures as Hugging Face writes them; none can be packed smaller."""
    draw = random.Random(0)
    return pa.array([{"bytes": draw.randbytes(size), "path": f"{n}.jpg"} for n in range(count)])


def in_many_pages(path: Path) -> None:
    columns = {"image": photos(75, 4 * MIB), "question": ["q"] * 75, "answer": ["a"] * 75}
    write(path, columns, use_dictionary=False, write_batch_size=2)


def in_one_page(path: Path) -> None:
    columns = {"image": photos(30, 4 * MIB), "question": ["q"] * 30, "answer": ["a"] * 30}
    write(path, columns, use_dictionary=False)


def in_one_dictionary(path: Path) -> None:
    columns = {"image": photos(30, 4 * MIB), "question": ["q"] * 30, "answer": ["a"] * 30}
    write(path, columns)


def texts_in_one_dictionary(path: Path) -> None:
    draw = random.Random(0)
    texts = [draw.randbytes(500).hex() for _ in range(150_000)]
    write(path, {"question": texts, "answer": ["a"] * len(texts)}, **ONE_DICTIONARY)


def small_and_huge_in_one_dictionary(path: Path) -> None:
    draw = random.Random(0)
    texts = [str(n).encode() for n in range(60_000)] + [draw.randbytes(31 * MIB) for _ in range(5)]
    write(path, {"question": texts, "answer": ["a"] * len(texts)}, **ONE_DICTIONARY)


@pytest.mark.parametrize(
    ("make", "rows", "piece_bytes"),
    [
        (in_many_pages, 75, 8 * MIB),
        (in_one_page, 30, 120 * MIB),
        (in_one_dictionary, 30, 120 * MIB),
        (texts_in_one_dictionary, 150_000, 144 * MIB),
        (small_and_huge_in_one_dictionary, 60_005, 156 * MIB),
    ],
)
def test_a_file_takes_two_pages_and_a_batch(tmp_path: Path, make: Any, rows: int, piece_bytes: int) -> None:
    """A row group's values are never in memory together, unless its writer put them into one page."""
    make(tmp_path / "d.parquet")
    command = [sys.executable, "-c", ROWS, str(tmp_path / "d.parquet")]
    seen = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert seen["rows"] == rows
    assert seen["grown"] < 2 * piece_bytes + OVERHEAD_BYTES, seen["grown"] / MIB


@pytest.mark.parametrize("is_category", [False, True], ids=["values", "category"])
def test_rows_of_a_large_dictionary_are_not_converted_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_category: bool
) -> None:
    """Photos that rows share are read one by one, as nobody knows their sizes, but measured together."""
    draw = random.Random(0)
    shared = [draw.randbytes(4200) for _ in range(5000)]
    named = pa.array([n % 5000 for n in range(6400)], pa.int32())
    column = pa.DictionaryArray.from_arrays(named, pa.array(shared))
    columns = {"question": column if is_category else column.cast(pa.binary()), "answer": ["a"] * 6400}
    path = write(tmp_path / "d.parquet", columns, store_schema=True, **ONE_DICTIONARY)
    measured: list[int] = []
    measure = parquet.row_bytes
    monkeypatch.setattr(parquet, "row_bytes", lambda batch: measured.append(len(batch)) or measure(batch))
    assert [record.value for record in read_parquet(path, Limits())] == pa.table(columns).to_pylist()
    assert sum(measured) == 6400
    assert len(measured) <= 6400 / 16


def test_values_that_rows_share_are_read_and_counted(tmp_path: Path) -> None:
    columns = {"image": repeated(b"x" * 1000, 40), "question": ["q"] * 40, "answer": ["a"] * 40}
    path = write(tmp_path / "d.parquet", columns)
    records = list(read_parquet(path, Limits()))
    assert [record.value for record in records] == pa.table(columns).to_pylist()
    assert "at most 900 are accepted" in reason_of(path, Limits(max_record_bytes=900))
    assert "the rows up to 27 have more than" in reason_of(path, Limits(max_total_bytes=32_000))


def table_of_everything(rows: int) -> Any:
    draw = random.Random(0)
    texts = [draw.randbytes(draw.randrange(300)).hex() if n % 7 else None for n in range(rows)]
    return pa.table(
        {
            "images": pa.array([[{"bytes": b"x" * (n % 3), "path": None}] * (n % 4) for n in range(rows)]),
            "question": pa.array(texts),
            "answer": pa.array(["a", "b", None, "c"] * (rows // 4)).cast(
                pa.dictionary(pa.int8(), pa.string())
            ),
            "history": pa.array([[["a", texts[n]]] if n % 5 else None for n in range(rows)]),
            "messages": pa.array([text or "" for text in texts], pa.string_view()),
            "conversations": pa.array([[("k", "v")]] * rows, pa.map_(pa.string(), pa.string())),
            "texts": pa.array([[1.0, 2.0]] * rows, pa.list_(pa.float32(), 2)),
            "system": pa.array([b"1234"] * rows, pa.binary(4)),
            "input": pa.array(["x"] * rows, pa.large_string()),
            "id": pa.array(range(rows)),
        }
    )


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"store_schema": False, "row_group_size": 333},
        {"dictionary_pagesize_limit": 4096, "data_page_size": 4096},
        {"use_dictionary": False, "column_encoding": {"question": "DELTA_LENGTH_BYTE_ARRAY"}},
        {"data_page_version": "2.0", "compression": "gzip"},
    ],
)
def test_every_type_comes_as_it_was_written(tmp_path: Path, how: dict[str, Any]) -> None:
    table = table_of_everything(2000)
    path = tmp_path / "d.parquet"
    pq.write_table(table, path, **how)
    records = list(read_parquet(path, Limits()))
    assert [record.line for record in records] == list(range(1, 2001))
    assert [record.value for record in records] == table.to_pylist()


def test_lists_of_nothing_are_not_for_nothing(tmp_path: Path) -> None:
    nulls = in_one_row(pa.nulls(1_000_000, pa.binary()))
    path = write(tmp_path / "d.parquet", {"images": nulls, "question": ["q"], "answer": ["a"]})
    assert path.stat().st_size < 2000
    assert "the row has 64000" in reason_of(path)
    assert "brings the values to 1000000; at most 64000" in reason_of(path, Limits(max_examples=1000))


def test_what_has_no_bound_is_refused_with_what_to_do(tmp_path: Path) -> None:
    columns = {"question": ["a" * 1000 + str(n) for n in range(50)], "answer": ["a"] * 50}
    encoding = {"use_dictionary": False, "column_encoding": {"question": "DELTA_BYTE_ARRAY"}}
    path = write(tmp_path / "prefixes", columns, **encoding)
    assert "DELTA_BYTE_ARRAY" in reason_of(path)
    wide = {"question": pa.array([bytes(65)] * 2, pa.binary(65)), "answer": ["a"] * 2}
    assert "65 fixed bytes" in reason_of(write(tmp_path / "wide", wide))
    short = [str(n) for n in range(1_000_001)]
    path = write(tmp_path / "dictionary", {"answer": short}, dictionary_pagesize_limit=1 << 30)
    assert "values; at most 1000000" in reason_of(path, Limits(max_examples=2_000_000))
    path = tmp_path / "footer"
    path.write_bytes(b"PAR1" + bytes(100) + (5 * MIB).to_bytes(4, "little") + b"PAR1")
    assert "the parquet footer has 5242880 bytes" in reason_of(path)


def test_columns_that_are_there_twice_or_not_at_all_are_faults(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, ["question", "answer", "answer"]), path)
    assert reason_of(path) == 'the column "answer" is there twice; nothing was read'
    root, leaf = b"\x48\x01s\x15\x02\x00", b"\x15\x0c\x25\x00\x18\x06answer\x00"
    group = b"\x19\x0c\x16\x00\x16\x02\x00"  # one row and no columns
    footer = b"\x15\x02\x19\x2c" + root + leaf + b"\x16\x02\x19\x1c" + group + b"\x00"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    assert "damaged" in reason_of(path)


SPOILED = """
import random, sys
from pathlib import Path
from adapter_store.datasets import Limits
from adapter_store.datasets.parquet import read_parquet

path, draw = Path(sys.argv[1]), random.Random(1)
data = path.read_bytes()
for _ in range(2000):
    spoiled = bytearray(data)
    spoiled[draw.randrange(4, len(data) - 4)] = draw.randrange(256)
    path.write_bytes(spoiled)
    for record in read_parquet(path, Limits()):
        assert (record.reason is None) == isinstance(record.value, dict)
"""


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_no_spoiled_byte_is_more_than_a_fault(tmp_path: Path, version: str) -> None:
    """In a process of its own: where pyarrow's C++ part throws unseen, the whole process ends."""
    columns = {"images": [[{"bytes": b"x" * n, "path": None}] * 2 for n in range(20)], "answer": ["a"] * 20}
    path = write(tmp_path / "d.parquet", columns, data_page_version=version)
    done = subprocess.run([sys.executable, "-c", SPOILED, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
