"""The small parts: files, hyperparameters, metadata, keys, metrics, logs."""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.types import Message

from adapter_store.datasets import DatasetStore
from adapter_store.errors import InputError, NotFoundError
from adapter_store.matrix import AccuracyMatrix
from adapter_store.versions import Manifest, MeasuredOn
from server.adaptation import show_quality
from server.adapters.service import expected_revision
from server.files.store import FileStore, StoredFile, no_file
from server.jobs.hyperparameters import checked_hyperparameters, from_text
from server.jobs.submission import checked_metadata, scoped_key
from server.logs import JsonFormatter
from server.metrics import Metrics
from server.pools import FILES
from server.uploads import received_form, safe_filename


def test_files_are_kept_listed_and_deleted(tmp_path: Path):
    store = FileStore(tmp_path / "files")
    records = []
    for number in range(3):
        source = tmp_path / f"part-{number}"
        source.write_bytes(bytes([number]) * (number + 1))
        records.append(store.put(source, f"{number}.zip", "fine-tune"))
        assert not source.exists()
    assert store.list() == records[::-1]
    assert store.content(records[2].id).read_bytes() == b"\x02\x02\x02"
    store.delete(records[1].id)
    assert FileStore(tmp_path / "files").list() == [records[2], records[0]]
    for bad in (records[1].id, "file-../x", "", "file-" + "0" * 32, "file-" + "A" * 32):
        with pytest.raises(NotFoundError):
            store.get(bad)


@contextmanager
def a_full_disk(room_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``room_bytes``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_be_kept_leaves_nothing(tmp_path: Path):
    store = FileStore(tmp_path / "files")
    source = tmp_path / "part"
    source.write_bytes(b"x")
    with a_full_disk(16), pytest.raises(OSError, match="too large"):
        store.put(source, "a.zip", "fine-tune")
    assert list((tmp_path / "files").iterdir()) == []


def test_what_a_killed_upload_left_is_swept_and_whole_files_stay(tmp_path: Path):
    store = FileStore(tmp_path / "files")
    source = tmp_path / "part"
    source.write_bytes(b"x")
    kept = store.put(source, "a.zip", "fine-tune")
    left = tmp_path / "files" / ("file-" + "0" * 32)
    left.mkdir()
    (left / "content").write_bytes(b"x")
    store.sweep()
    assert left.exists(), "an upload may be under way"
    store.sweep(older_than_seconds=-1)
    assert not left.exists()
    assert store.list() == [kept]


def test_pages_of_files_go_on_behind_a_deleted_one(tmp_path: Path):
    store = FileStore(tmp_path / "files")
    records = []
    for number in range(4):
        source = tmp_path / f"part-{number}"
        source.write_bytes(b"x")
        records.append(store.put(source, "a.zip", "fine-tune"))
    records.sort(key=lambda record: record.id)
    store.delete(records[2].id)
    assert store.list(records[2].id) == [records[1], records[0]]
    assert store.list(records[2].id, newest_first=False) == [records[3]]
    assert store.list(records[0].id) == []
    with pytest.raises(NotFoundError):
        store.list("nonsense")


def test_examples_that_cannot_be_written_leave_nothing(tmp_path: Path):
    store = DatasetStore(tmp_path / "datasets")
    with a_full_disk(64), pytest.raises(OSError, match="too large"):
        store.put_examples([{"question": "?" * 5000, "answer": "!"}])
    assert list((tmp_path / "datasets").iterdir()) == []


def test_a_half_written_file_does_not_count(tmp_path: Path):
    store = FileStore(tmp_path)
    folder = tmp_path / ("file-" + "0" * 32)
    folder.mkdir()
    (folder / "content").write_bytes(b"x")
    assert store.list() == []


def test_hyperparameters():
    given = {"n_epochs": "auto", "batch_size": None, "learning_rate": 0.1, "aimed": True, "ema_mode": "fixed"}
    assert checked_hyperparameters(given) == {"learning_rate": 0.1, "aimed": True, "ema_mode": "fixed"}
    with pytest.raises(InputError) as caught:
        checked_hyperparameters({"a": float("nan"), "B": 1, "c": [1], "d": "x" * 500})
    assert all(name in caught.value.message for name in ("a must", "'B'", "c must", "d is longer"))
    with pytest.raises(InputError):
        checked_hyperparameters({f"p{n}": n for n in range(40)})


def test_unknown_and_impossible_settings_are_refused_together_before_a_job_exists():
    with pytest.raises(InputError) as caught:
        checked_hyperparameters({"n_epochs": -1, "learning_rat": 0.1, "batch_size": 2.5})
    message = caught.value.message
    assert "n_epochs: Input should be greater than or equal to 0" in message
    assert "learning_rat: there is no such setting, did you mean learning_rate?" in message
    assert "batch_size: Input should be a valid integer" in message
    assert [from_text(text) for text in ("3", "0.5", "true", "fixed")] == [3, 0.5, True, "fixed"]


def test_metadata_and_idempotency_keys():
    assert checked_metadata({"a": "b"}) == {"a": "b"}
    for bad in ({str(n): "x" for n in range(17)}, {"k" * 65: "x"}, {"k": "x" * 513}):
        with pytest.raises(InputError):
            checked_metadata(bad)
    assert scoped_key(None, "a") is None
    assert scoped_key("k", "a") != scoped_key("k", "b") != scoped_key("k", None)
    for bad in ("", "x" * 256, "a b", "a\n"):
        with pytest.raises(InputError):
            scoped_key(bad, None)


def test_etags():
    assert expected_revision('"7"', None) == 7
    assert expected_revision('W/"7"', None) == 7
    assert expected_revision("*", None) is None
    assert expected_revision(None, "*") == 0
    for bad in (("7", None), ('"x"', None), (None, '"3"'), ('"1"', "*")):
        with pytest.raises(InputError):
            expected_revision(*bad)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a.zip", "a.zip"),
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\y.json", "y.json"),
        ("a\x00\nb", "ab"),
        ("..", "upload"),
    ],
)
def test_client_file_names_are_tamed(name: str, kept: str):
    assert safe_filename(name) == kept


async def test_uploads_are_removed_off_the_event_loop(tmp_path: Path):
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n--x--\r\n'

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    removed_in: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("os.remove", "os.rmdir", "shutil.rmtree") and str(tmp_path) in str(arguments):
            removed_in.append(threading.current_thread().name)

    sys.addaudithook(watch)
    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    async with received_form(request, tmp_path / "up", FILES.run) as form:
        assert form.file("file").path.read_bytes() == b"abc"
    assert list((tmp_path / "up").iterdir()) == []
    assert removed_in
    assert all(name.startswith("files") for name in removed_in)


def test_a_log_line_cannot_be_forged():
    record = logging.LogRecord("strata", logging.INFO, "x", 1, "got %s", ("a\r\nb\x1b[31m\u2028",), None)
    record.fields = {"name": "x\ny\x9b"}
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == "got a\r\nb\x1b[31m\u2028"


def test_every_log_line_is_json_whoever_writes_it():
    code = """
import logging, warnings
from server.logs import configure_logs, log
configure_logs()
log("ours")
logging.getLogger("python_multipart.multipart").warning("Expected boundary character %r, got %r", 45, 46)
logging.getLogger("uvicorn.error").info("uvicorn's")
logging.getLogger("library").info("chatter")
warnings.warn("odd")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    loggers = [line["logger"] for line in lines]
    assert loggers == ["strata", "python_multipart.multipart", "uvicorn.error", "py.warnings"]
    assert lines[1]["message"] == "Expected boundary character 45, got 46"


def test_metrics_show_and_forget():
    metrics = Metrics()
    metrics.show_aliases({"stable": "v1"})
    metrics.show_aliases({"stable": "v2"})
    metrics.observe_http("/v1/vqa", "BREW", 200, 0.1)
    metrics.show_queue(None, None)
    text = metrics.render().decode()
    assert 'strata_adapter_alias_info{alias="stable",version="v2"} 1.0' in text
    assert 'version="v1"' not in text
    assert 'method="other"' in text
    assert "strata_queue_up 0.0" in text
    assert "strata_queue_depth NaN" in text


def test_a_file_deleted_while_it_is_listed_or_read_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = FileStore(tmp_path / "files")
    records = []
    for number in range(3):
        (tmp_path / "sent").write_bytes(b"x" * (number + 1))
        records.append(store.put(tmp_path / "sent", "a.json", "fine-tune"))
    with store.open(records[0].id) as stream:
        store.delete(records[0].id)
        assert stream.read() == b"x"
    with pytest.raises(NotFoundError):
        store.open(records[0].id)
    get = store.get

    def deleted_meanwhile(file_id: str) -> StoredFile:
        if file_id == records[1].id:
            raise no_file(file_id)
        return get(file_id)

    monkeypatch.setattr(store, "get", deleted_meanwhile)
    assert store.list() == [records[2]]


def test_shown_forgetting_compares_scores_of_one_held_out_set_only():
    matrix = AccuracyMatrix(
        tasks=("a", "b"), base=(0.1, 0.1), rows=((0.9, None), (0.6, 0.8), (0.5, 0.8)), trained=("a", "b", "b")
    )
    manifest = Manifest(
        version="v3",
        lineage="strata",
        fence=1,
        files={},
        base_id="b",
        base_digest="0" * 64,
        job_id="job-1",
        dataset_id="ds-1",
        task="b",
        decision="retrain",
        tasks=("a", "b"),
        accuracy=matrix,
        splits={"a": MeasuredOn(dataset_id="ds-2", since=1)},
    )
    metrics = Metrics()
    show_quality(metrics, manifest)
    lost = metrics.registry.get_sample_value("strata_task_forgetting_ratio", {"task": "a"})
    assert lost == pytest.approx(0.1)
    assert metrics.registry.get_sample_value("strata_backward_transfer_ratio") == pytest.approx(-0.1)
