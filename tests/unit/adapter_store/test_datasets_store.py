"""Data sets are stored once, whole or not at all, and read back as they were."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from adapter_store.datasets import DatasetStore, Example, Turn
from adapter_store.datasets import store as module
from adapter_store.errors import DatasetError, NotFoundError, StoreError
from adapter_store.images import image_digest


def picture(shade: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (5, 7), (shade, shade, 0)).save(out, format=kind)
    return out.getvalue()


def upload(path: Path, count: int = 6, kind: str = "PNG") -> Path:
    rows = []
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            archive.writestr(f"images/{number}", picture(number * 20, kind))
            turns = [
                {"from": "human", "value": "<image>\nHow bright?"},
                {"from": "gpt", "value": str(number)},
            ]
            rows.append({"id": f"x{number}", "image": f"images/{number}", "conversations": turns})
        archive.writestr("data.json", json.dumps(rows))
    return path


def visible(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir())


def test_the_same_upload_twice_is_one_data_set(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path / "datasets")
    first = store.put(upload(tmp_path / "a.zip"), filename="a.zip")
    again = store.put(upload(tmp_path / "b.zip"), filename="renamed.zip")
    other = store.put(upload(tmp_path / "c.zip", count=5), filename="a.zip")
    assert first == again != other
    assert first.id == f"ds-{first.digest[:16]}"
    assert visible(store.root) == store.ids() == sorted([first.id, other.id])


def test_examples_pictures_and_report_come_back(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path)
    ref = store.put(upload(tmp_path / "a.zip"), filename="a.zip")
    dataset = store.open(ref.id)
    assert dataset.ref == ref
    assert (ref.examples, ref.images) == (6, 6)
    assert [example.turns for example in dataset.examples] == [
        (Turn("How bright?", str(n)),) for n in range(6)
    ]
    for number, example in enumerate(dataset.examples):
        assert example.image is not None
        image = dataset.image(example.image)
        assert image.getpixel((0, 0)) == (number * 20, number * 20, 0)
        assert example.image == f"{image_digest(image)}.png"
    assert dataset.report()["examples"] == 6


def test_web_and_gif_pictures_are_stored_as_png(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path)
    for kind in ("WEBP", "GIF", "JPEG"):
        dataset = store.open(store.put(upload(tmp_path / f"{kind}.zip", kind=kind), filename="a.zip").id)
        suffix = ".jpg" if kind == "JPEG" else ".png"
        assert all((example.image or "").endswith(suffix) for example in dataset.examples)
        assert all(dataset.image(example.image or "").size == (5, 7) for example in dataset.examples)


def test_faults_store_nothing_and_carry_the_report(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path / "datasets")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "", "answer": ""}\n')
    with pytest.raises(DatasetError, match="2 faults") as caught:
        store.put(bad, filename="bad.jsonl")
    assert [fault.field for fault in caught.value.report.faults] == ["question", "answer"]
    assert visible(store.root) == []
    assert store.validate(bad).faults == caught.value.report.faults
    assert store.validate(upload(tmp_path / "a.zip")).ok
    assert visible(store.root) == []


def test_a_small_batch_of_one_call(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path)
    rows = [{"image": f"p{n}.png", "question": "How bright?", "answer": str(n)} for n in range(3)]
    images = {f"p{n}.png": picture(n * 50) for n in range(3)}
    ref = store.put_examples(rows, images)
    assert store.put_examples(rows, images) == ref
    records = [
        Example("", f"p{n}.png", (Turn("How bright?", str(n)), Turn("Sure?", "yes"))) for n in range(3)
    ]
    two_turns = store.open(store.put_examples(records, images).id)
    assert two_turns.examples[2].turns == records[2].turns
    assert two_turns.examples[2].image == store.open(ref.id).examples[2].image
    rows[1]["answer"] = ""
    rows[2]["image"] = "gone.png"
    with pytest.raises(DatasetError) as caught:
        store.put_examples(rows, images)
    assert [fault.field for fault in caught.value.report.faults] == ["[1].answer", "[2].image"]
    with pytest.raises(DatasetError, match="empty"):
        store.put_examples([])
    with pytest.raises(DatasetError, match="must be an object"):
        store.put_examples(["hello"])  # pyright: ignore[reportArgumentType]


def test_unknown_and_crafted_names_are_not_found(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path / "datasets")
    ref = store.put(upload(tmp_path / "a.zip"), filename="a.zip")
    for name in ("ds-0000000000000000", "../datasets", f"../datasets/{ref.id}", "", "ds-x\n"):
        assert not store.exists(name)
        with pytest.raises(NotFoundError):
            store.open(name)
    dataset = store.open(ref.id)
    for name in ("../manifest.json", "0" * 64 + ".png", "manifest.json", ""):
        with pytest.raises(NotFoundError):
            dataset.image(name)


def test_changed_examples_are_noticed(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path)
    ref = store.put(upload(tmp_path / "a.zip"), filename="a.zip")
    file = tmp_path / ref.id / "examples.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"5"', b'"6"'))
    with pytest.raises(StoreError, match="damaged"):
        store.open(ref.id)


CRASH = """
import os, sys
from pathlib import Path
from adapter_store.datasets import DatasetStore
from adapter_store.datasets import store as module
steps, real = [0], os.fsync
def fsync(handle):
    steps[0] += 1
    if steps[0] == int(sys.argv[3]):
        os._exit(9)
    real(handle)
os.fsync = fsync
DatasetStore(Path(sys.argv[2])).put(Path(sys.argv[1]), filename="a.zip")
"""


def test_a_crash_at_any_sync_leaves_all_or_nothing(tmp_path: Path) -> None:
    source = upload(tmp_path / "a.zip", count=2)
    wanted = DatasetStore(tmp_path / "good").put(source, filename="a.zip")
    outcomes = []
    for step in range(1, 20):
        root = tmp_path / f"crash{step}"
        command = [sys.executable, "-c", CRASH, str(source), str(root), str(step)]
        code = subprocess.run(command, check=False, cwd=Path(__file__).parents[3]).returncode
        store = DatasetStore(root)
        for name in store.ids():
            assert len([store.open(name).image(e.image or "") for e in store.open(name).examples]) == 2
        outcomes.append((code, store.ids()))
        assert store.put(source, filename="a.zip") == wanted
        assert store.ids() == [wanted.id]
        if code == 0:
            break
    assert outcomes[0] == (9, [])
    assert outcomes[-1] == (0, [wanted.id])
    assert len(outcomes) > 6


def test_old_leftovers_are_removed_and_young_ones_are_not(tmp_path: Path) -> None:
    old, young = tmp_path / ".incoming-old", tmp_path / ".incoming-young"
    for folder in (old, young):
        (folder / "raw").mkdir(parents=True)
    os.utime(old, (1, 1))
    DatasetStore(tmp_path).put_examples([{"question": "a", "answer": "b"}])
    assert not old.exists()
    assert young.exists()


def test_the_store_imports_no_torch() -> None:
    command = f"import sys, {module.__name__}; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", command], check=False, cwd=Path(__file__).parents[3]).returncode
        == 0
    )


@pytest.mark.parametrize("harm", ["examples.jsonl", "picture", "missing picture"])
def test_sending_a_damaged_data_set_again_repairs_it(tmp_path: Path, harm: str) -> None:
    store = DatasetStore(tmp_path / "datasets")
    ref = store.put(upload(tmp_path / "a.zip"), filename="a.zip")
    folder = store.root / ref.id
    one = next((folder / "images").iterdir())
    if harm == "missing picture":
        one.unlink()
    else:
        (one if harm == "picture" else folder / harm).write_bytes(b"damaged")
    assert store.put(upload(tmp_path / "b.zip"), filename="a.zip") == ref
    dataset = store.open(ref.id)
    assert all(dataset.image(example.image or "") for example in dataset.examples)
    assert store.ids() == [ref.id]
