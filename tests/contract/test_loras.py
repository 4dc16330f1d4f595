"""Tasks and requests leave as LoRAs and come in as such: over HTTP and by the command line."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapter_store.increments import attach
from adapter_store.lora import ABOUT_FILE, CONFIG_FILE, TENSORS_FILE
from adapter_store.lora.export import lora_tensors, task_coefficients
from adapter_store.routing import coefficients, intrinsic
from adapter_store.state import AdapterState
from server.cli.main import main
from tests.contract.conftest import ASK_KEY, KEY, RunningGateway
from tests.contract.pictures import llava_zip
from tests.contract.publishing import PICTURE, QUESTION, Publisher
from tests.lora_folders import peft_folder, with_config, zipped

URL = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
IMPORT = "/v1/tasks/birds/lora"


@pytest.fixture(scope="module")
def state(publisher: Publisher) -> AdapterState:
    state = publisher.state(31)
    query = publisher.queries.encode([QUESTION], None, state.routing)
    return state.with_usage("digits", intrinsic(state, query)[0])


@pytest.fixture(scope="module")
def version(running: RunningGateway, publisher: Publisher, state: AdapterState) -> str:
    version = publisher.publish(state).version
    moved = running.http.put(
        "/v1/adapters/strata/aliases/stable", json={"version": version, "reason": "test"}
    )
    assert moved.status_code == 200, moved.text
    while running.http.get("/v1/adapters/strata/aliases/stable").json()["served"] != version:
        pass
    return version


@pytest.fixture(scope="module")
def expected(publisher: Publisher, state: AdapterState) -> Callable[[Tensor], dict[str, Tensor]]:
    increments = attach(publisher.base.model, ("o_proj",))
    increments.detach()
    return lambda c: lora_tensors(state, c, increments.paths)


@pytest.fixture(scope="module")
def lora(publisher: Publisher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peft_folder(publisher.base, tmp_path_factory.mktemp("peft") / "lora")


def unpacked(content: bytes, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
    return load_file(folder / TENSORS_FILE), json.loads((folder / ABOUT_FILE).read_text())


def export_url(version: str) -> str:
    return f"/v1/adapters/strata/versions/{version}/lora"


def test_a_task_is_exported(
    http: httpx.Client, version: str, state: AdapterState, expected: Callable, tmp_path: Path
):
    answer = http.get(export_url(version), params={"task": "digits"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["x-adapter-version"] == version
    assert f"digits-{version}-lora.zip" in answer.headers["content-disposition"]
    tensors, about = unpacked(answer.content, tmp_path)
    torch.testing.assert_close(tensors, expected(task_coefficients(state, "digits")[0]))
    assert (about["task"], about["version"], about["question"]) == ("digits", version, None)
    assert about["exact"] is False  # four increments, of which two answer
    assert len(about["notes"]) == 2


def test_what_answers_a_request_is_exported(
    http: httpx.Client,
    version: str,
    publisher: Publisher,
    state: AdapterState,
    expected: Callable,
    tmp_path: Path,
):
    answer = http.post("/v1/routing:export", json={"question": QUESTION, "image": URL})
    assert answer.status_code == 200, answer.text
    tensors, about = unpacked(answer.content, tmp_path)
    query = publisher.queries.encode([QUESTION], None, state.routing)
    torch.testing.assert_close(tensors, expected(coefficients(state, query)[0]))
    assert (about["exact"], about["question"], about["rank"]) == (True, QUESTION, 8)
    form = http.post(
        "/v1/routing:export", data={"question": QUESTION}, files={"image": ("p.png", PICTURE, "image/png")}
    )
    (tmp_path / "form").mkdir()
    torch.testing.assert_close(unpacked(form.content, tmp_path / "form")[0], tensors)


def test_what_cannot_be_exported_is_refused(http: httpx.Client, version: str):
    for path, task, status, said in (
        (export_url(version), "birds", 404, "known tasks: digits"),
        (export_url(version), "Not A Name", 400, "task"),
        (export_url(version), None, 400, "task"),
        (export_url("base"), "digits", 400, "the base has no increments"),
        (export_url("v99"), "digits", 404, "v99"),
        (export_url("latest"), "digits", 400, "version"),
        (export_url(version).replace("strata", "other"), "digits", 404, "no adapters named"),
    ):
        answer = http.get(path, params={} if task is None else {"task": task})
        assert answer.status_code == status, answer.text
        assert said in answer.json()["error"]["message"]
    answer = http.post("/v1/routing:export", json={"question": QUESTION, "model": "strata@base"})
    assert answer.status_code == 400
    assert "plain base" in answer.json()["error"]["message"]


def test_a_question_that_the_base_answers_has_nothing_to_export(
    http: httpx.Client, publisher: Publisher, state: AdapterState, version: str
):
    silent = publisher.publish(state.with_routing(tau=1.0)).version
    answer = http.post("/v1/routing:export", json={"question": "Who?", "model": f"strata@{silent}"})
    assert answer.status_code == 400
    assert "the plain base answers this request" in answer.json()["error"]["message"]


def test_weights_leave_only_for_those_who_operate(running: RunningGateway, version: str):
    headers = {"authorization": f"Bearer {ASK_KEY}"}
    for answer in (
        running.http.get(export_url(version), params={"task": "digits"}, headers=headers),
        running.http.post("/v1/routing:export", json={"question": QUESTION}, headers=headers),
    ):
        assert answer.status_code == 403


def parts(lora: bytes, data: bytes | None = None) -> dict[str, tuple[str, bytes]]:
    return {"adapter": ("lora.zip", lora), "file": ("c.zip", llava_zip() if data is None else data)}


def test_a_lora_becomes_a_job_whose_files_are_on_disk(
    running: RunningGateway, http: httpx.Client, version: str, lora: Path
):
    headers = {"Idempotency-Key": "one-import"}
    answer = http.post(IMPORT, files=parts(zipped(lora)), headers=headers)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["task"], job["status"]) == ("birds", "queued")
    kept = running.gateway.loras.open(job["adapter"])
    assert (kept / TENSORS_FILE).read_bytes() == (lora / TENSORS_FILE).read_bytes()
    assert kept.parent == running.home / "loras"
    for record in (running.gateway.link.journal.get(job["id"]), running.gateway.link.queue().get(job["id"])):
        assert record is not None
        assert record.adapter == job["adapter"]
    assert list((running.home / "uploads").iterdir()) == []
    again = http.post(IMPORT, files=parts(zipped(lora)), headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, job["id"])
    batch = {"file": parts(b"")["file"]}
    assert http.post("/v1/tasks/birds/batches", files=batch, headers=headers).status_code == 409


def test_a_lora_that_does_not_fit_is_refused_with_every_fault(
    running: RunningGateway,
    http: httpx.Client,
    version: str,
    lora: Path,
    publisher: Publisher,
    tmp_path: Path,
):
    before = len(running.gateway.link.journal.all())
    other = peft_folder(publisher.base, tmp_path / "lora", r=9, target_modules=["q_proj", "fc1"])
    answer = http.post("/v1/tasks/digits/lora", files=parts(zipped(with_config(other, use_dora=True))))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_lora", "adapter")
    said = ("'digits' exists already", "DoRA", "--rank 5", "vision_tower", "q_proj (layers 0, 1, 2)")
    for part in said:
        assert part in error["message"]
    assert {fault["file"] for fault in error["report"]["faults"]} == {None, CONFIG_FILE}
    assert len(running.gateway.link.journal.all()) == before


def test_unusable_forms_are_refused(http: httpx.Client, version: str, lora: Path):
    good = parts(zipped(lora))
    for files, data, said in (
        ({"file": good["file"]}, {}, "adapter"),
        ({"adapter": good["adapter"]}, {}, "file"),
        (good, {"n_epochs": "3"}, "an import trains nothing"),
        (parts(b"hello"), {}, "no archive"),
        (parts(zipped(lora), b"[]"), {}, "no examples"),
    ):
        answer = http.post(IMPORT, files=files, data=data)
        assert answer.status_code == 400, answer.text
        assert said in answer.json()["error"]["message"]
    assert http.post(IMPORT, json={}).status_code == 400
    assert http.post("/v1/tasks/BAD NAME/lora", files=good).status_code == 400


def run(running: RunningGateway, *words: str) -> int:
    return main([*words, "--url", running.url, "--api-key", KEY])


def test_the_command_line_exports_a_task_and_a_request(
    running: RunningGateway, version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(running, "export", "--task", "digits", "--out", str(tmp_path / "task")) == 0
    said = capsys.readouterr()
    assert f"task digits of {version}" in said.out
    assert "tokens after the picture" in " ".join(said.err.split())
    picture = tmp_path / "p.png"
    picture.write_bytes(PICTURE)
    words = ["export", "--image", str(picture), QUESTION, "--out", str(tmp_path / "asked"), "--json"]
    assert run(running, *words, "--version", version) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["folder"], about["version"], about["exact"]) == (str(tmp_path / "asked"), version, True)
    assert (tmp_path / "asked" / CONFIG_FILE).is_file()
    assert run(running, *words) == 2
    assert "is not an empty folder" in capsys.readouterr().out
    for wrong in (["--task", "digits", "What?"], [], ["--task", "digits", "--image", str(picture)]):
        assert run(running, "export", *wrong, "--out", str(tmp_path / "new")) == 2
    assert not (tmp_path / "new").exists()


def test_the_command_line_imports_a_folder(
    running: RunningGateway, version: str, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    examples = tmp_path / "c.zip"
    examples.write_bytes(llava_zip())
    words = ["import", str(lora), "--task", "birds", "--examples", str(examples)]
    assert run(running, *words, "--json") == 0
    job = json.loads(capsys.readouterr().out)
    assert running.gateway.link.queue().get(job["id"]).adapter == job["adapter"]
    assert run(running, "import", str(tmp_path), "--task", "birds", "--examples", str(examples)) == 2
    assert capsys.readouterr().err.count("the file is missing") == 2
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    assert run(running, "import", str(tmp_path), "--task", "birds", "--examples", str(examples)) == 2
    assert "a pickle can run code" in " ".join(capsys.readouterr().err.split())
    assert run(running, "import", str(examples), "--task", "birds", "--examples", str(examples)) == 2
    assert run(running, "import", str(lora), "--task", "birds", "--examples", str(tmp_path / "none")) == 2
    assert "cannot read" in capsys.readouterr().err
