"""Text, pixels and time of one upload are bounded, each with a fault that says so."""

from __future__ import annotations

import io
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from adapter_store.datasets import DatasetStore, Limits, Report, read_upload
from adapter_store.datasets.held_out import HeldOut
from adapter_store.datasets.pixels import ROOM, PixelRoom
from adapter_store.errors import NotFoundError
from adapter_store.images import MAX_PIXELS
from tests.unit.adapter_store.uploads import lines, png, row, url, zip_of


def report_of(tmp_path: Path, content: bytes, limits: Limits | None = None) -> Report:
    (tmp_path / "upload").write_bytes(content)
    _, source, report = read_upload(tmp_path / "upload", limits=limits)
    source.close()
    return report


def reasons(report: Report) -> list[str]:
    return [fault.reason for fault in report.faults]


def flat(side: int, dot: int) -> bytes:
    """Return a PNG that has more than 1,000 pixels for each of its bytes."""
    out = io.BytesIO()
    picture = Image.new("P", (side, side))
    picture.putpixel((dot, 0), 1)
    picture.save(out, format="PNG")
    assert side * side > 1000 * len(out.getvalue())
    return out.getvalue()


def flat_zip(count: int, side: int = 3000) -> bytes:
    rows = [row(f"{n}.png") for n in range(count)]
    return zip_of({"d.json": json.dumps(rows).encode()} | {f"{n}.png": flat(side, n) for n in range(count)})


@pytest.mark.parametrize(("tail", "fits"), [("x", True), ("\u4e00", True), ("\U0001f600", False)])
def test_texts_are_counted_as_memory_holds_them(tmp_path: Path, tail: str, fits: bool) -> None:
    limits = Limits(max_text_bytes=1_000_000)
    rows = [row(question=f"{n}" + "a" * 996 + tail, answer="b") for n in range(300)]
    report = report_of(tmp_path, lines(rows), limits)
    assert report.ok is fits
    if not fits:
        assert reasons(report) == [
            "the texts take more than 1000000 bytes of memory together; split the data set"
        ]
        assert 200 < (report.faults[0].line or 0) < 300


def test_examples_of_one_call_are_bounded_as_a_file_is(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path, Limits(max_text_bytes=10_000, max_examples=50))
    few = [row(question="q" * 2000, answer=str(n)) for n in range(20)]
    assert "the texts take more than 10000 bytes" in reasons(store.validate_examples(few))[0]
    many = [row(answer=str(n)) for n in range(60)]
    assert reasons(store.validate_examples(many)) == ["more than 50 examples; split the data set"]


def test_pixels_of_an_upload_are_bounded_by_its_bytes(tmp_path: Path) -> None:
    content = flat_zip(4)
    assert report_of(tmp_path, content).ok
    report = report_of(tmp_path, content, Limits(free_pixels=20_000_000))
    assert len(report.faults) == 1
    assert reasons(report)[0].startswith("the pictures have more than 20000000 pixels together")
    assert report_of(tmp_path, content, Limits(free_pixels=20_000_000, max_pixels_per_byte=100_000)).ok
    report = report_of(tmp_path, content, Limits(max_total_pixels=35_000_000))
    assert reasons(report)[0].startswith("the pictures have more than 35000000 pixels together")


def test_pixels_of_pictures_in_a_call_are_bounded_too(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path, Limits(free_pixels=20_000_000))
    examples = [row(url(flat(3000, n))) for n in range(4)]
    assert "more than 20000000 pixels" in reasons(store.validate_examples(examples))[0]
    assert store.validate_examples(examples[:2]).ok


def test_what_becomes_of_other_formats_is_bounded_on_disk(tmp_path: Path) -> None:
    rows = []
    for shift in range(8):
        out = io.BytesIO()
        Image.linear_gradient("L").resize((600, 600)).rotate(shift).save(out, format="WEBP", quality=1)
        rows.append(row(url(out.getvalue())))
    content = lines(rows)
    assert report_of(tmp_path, content).ok
    report = report_of(tmp_path, content, Limits(max_total_bytes=8 * len(content)))
    assert len(report.faults) == 1
    assert reasons(report)[0].endswith(f"take more than {8 * len(content)} bytes as PNG; send fewer")


def test_a_server_for_large_uploads_takes_more_pixels_and_time() -> None:
    usual, large = Limits(), Limits.of_uploads(300 * 2**30)
    assert Limits.of_uploads(2 * 2**30) == usual
    assert Limits.of_uploads(1).max_seconds == usual.max_seconds
    assert large.max_total_pixels > 100_000 * 12_000_000
    assert large.max_seconds == 150 * usual.max_seconds
    assert large.max_text_bytes == usual.max_text_bytes


def test_room_lets_in_what_fits_and_one_that_never_fits() -> None:
    room, most, held, lock = PixelRoom(100), [0], [0], threading.Lock()

    def decode(pixels: int) -> None:
        with room.hold(pixels):
            with lock:
                held[0] += pixels
                most[0] = max(most[0], held[0])
            threading.Event().wait(0.002)
            with lock:
                held[0] -= pixels

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [40] * 40))
        assert (most[0], held[0]) == (80, 0)
        list(pool.map(decode, [40, 500, 40] * 5))
    assert (most[0], held[0]) == (500, 0)


def test_uploads_share_the_room(tmp_path: Path) -> None:
    begun, ended = threading.Event(), threading.Event()

    def check() -> None:
        begun.set()
        assert report_of(tmp_path, lines([row(url(png()))])).ok
        ended.set()

    with ROOM.hold(2 * MAX_PIXELS):
        thread = threading.Thread(target=check)
        thread.start()
        assert begun.wait(30)
        assert not ended.wait(1)
    thread.join(30)
    assert ended.is_set()


@pytest.mark.parametrize("content", [lines([row(answer="a")]), flat_zip(1), lines([row(url(png()))])])
def test_time_is_bounded(tmp_path: Path, content: bytes) -> None:
    report = report_of(tmp_path, content, Limits(max_seconds=-1))
    assert "checking takes more than -1 seconds; split the data set" in reasons(report)
    store = DatasetStore(tmp_path / "store", Limits(max_seconds=-1))
    assert "checking takes more" in reasons(store.validate_examples([row(answer="a")]))[0]


def test_a_count_that_ended_early_says_at_least(tmp_path: Path) -> None:
    def counted(different: int) -> Report:
        rows = [
            {"texts": [{"user": "q", "assistant": f"{n}-{t}"} for t in range(30)]} for n in range(different)
        ]
        return report_of(tmp_path, lines(rows))

    few = counted(1)
    assert (few.answers, few.answers_truncated) == (30, False)
    assert " 30 distinct answers" in few.summary()
    assert "at least" not in few.summary()
    many = counted(1667)
    assert (many.answers, many.answers_truncated) == (50_000, True)
    assert "at least 50,000 distinct answers" in many.summary()


def test_folders_and_system_files_take_no_place_of_files(tmp_path: Path) -> None:
    root = tmp_path / "birds"
    for number in range(30):
        (root / f"a{number}").mkdir(parents=True)
        (root / f"a{number}/.DS_Store").write_bytes(b"x")
    (root / "z").mkdir()
    (root / "z/1.png").write_bytes(png())
    (root / "z/data.jsonl").write_bytes(lines([row("1.png")]))
    for most, fits in ((2, True), (1, False)):
        _, source, report = read_upload(root, limits=Limits(max_members=most), work_folder=tmp_path / "w")
        source.close()
        assert report.ok is fits
    assert "the folder has more than 1 files" in reasons(report)


def test_data_sets_are_listed_in_pages(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path)
    assert store.page(5) == ([], False)
    ids = sorted(store.put_examples([row(answer=str(n))]).id for n in range(5))
    (tmp_path / "ds-0000000000000000").mkdir()  # without a manifest it does not count
    found, after = [], None
    for more in (True, True, False):
        page, has_more = store.page(2, after)
        assert has_more is more
        found += [ref.id for ref in page]
        after = found[-1]
    assert found == ids == store.ids()
    assert store.page(2, "ds-ffffffffffffffff") == ([], False)
    with pytest.raises(NotFoundError):
        store.page(2, "../etc")


def test_held_out_keys_are_read_again_only_when_they_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(task: str, keys: list[str]) -> None:
        (tmp_path / task).mkdir(exist_ok=True)
        (tmp_path / task / "new").write_text(json.dumps({"held_out": keys}))
        os.replace(tmp_path / task / "new", tmp_path / task / "split.json")

    read: list[str] = []
    read_bytes = Path.read_bytes

    def watched(path: Path) -> bytes:
        read.append(path.parent.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", watched)
    held = HeldOut(tmp_path)
    assert held.keys() == {}
    put("a", ["1"])
    put("b", ["2"])
    assert held.keys() == held.keys() == {"a": frozenset("1"), "b": frozenset("2")}
    assert read == ["a", "b"]
    put("b", ["3"])
    assert held.keys()["b"] == frozenset("3")
    assert read == ["a", "b", "b"]
    (tmp_path / "a/split.json").unlink()
    assert held.keys() == {"b": frozenset("3")}
