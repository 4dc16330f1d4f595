"""What the server refuses is told in the words of the command line: its options and commands, no HTTP."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from adapter_store.datasets.plain import NO_QUESTION
from adapter_store.datasets.upload import NO_QUESTION_OF_FOLDERS
from server.cli.main import build_parser, main
from server.cli.wording import words_of
from tests.contract.conftest import ASK_KEY, KEY, RunningGateway
from tests.contract.pictures import llava_zip, png

HTTP = re.compile(
    r"/v1/|\b(GET|POST|PUT|DELETE|header|field|form|Input|String|request|data: URL)\b|/docs"
    r"|(^|[ ;])[a-z]+_tokens\b|(^|; )[a-z_]+: it "
)
LONG = "x" * 9000


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: RunningGateway) -> Path:
    (tmp_path / "cat.png").write_bytes(png("red"))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "birds.zip").write_bytes(llava_zip(6))
    for bird in ("robin", "wren"):
        (tmp_path / "classes" / bird).mkdir(parents=True)
        (tmp_path / "classes" / bird / "1.png").write_bytes(png("blue"))
    (tmp_path / "alone.csv").write_text("image,question,answer\na.png,What?,x\nb.png,What?,y\n")
    (tmp_path / "mute.csv").write_text("image,answer\ncat.png,x\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STRATA_URL", running.url)
    monkeypatch.setenv("STRATA_API_KEY", KEY)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chat", "hi", "--model", "strata@v99"], "strata versions lists them"),
        (["chat", "hi", "--max-tokens", "0"], "--max-tokens: it should be greater than or equal to 1"),
        (["chat", "hi", "--max-tokens", "99999999"], "--max-tokens is 99999999"),
        (["chat", "hi", "--temperature", "-1"], "--temperature: it should be"),
        (["chat", "hi", "--image", "bad.png"], "--image: the bytes are not"),
        (["chat", "x" * 300_000], "send a shorter text"),
        (["explain", ""], "give it as QUESTION"),
        (["versions", "v99"], "strata versions lists them"),
        (["versions", "--name", "other"], "--name: there are no adapters named 'other'"),
        (["versions", "--name", "a/b"], "look at --name and --url"),
        (["promote", "v99"], "strata versions lists them"),
        (["promote", "base", "--reason", ""], "--reason: it should have at least 1 character"),
        (["rollback", "--reason", LONG], "--reason: it should have at most 500 characters"),
        (["canary", "promote"], "strata canary set VERSION --weight SHARE"),
        (["canary", "set", "v99"], "strata versions lists them"),
        (["shadow", "end"], "there is no"),
        (["jobs", "nope"], "strata jobs lists them"),
        (["jobs", "job-0193f2a4c0de1f2e3d4c5b6a7980", "--cancel"], "strata jobs lists them"),
        (["jobs", "--limit", "100000"], "--limit: it should be"),
        (["submit", "birds.zip", "--task", "birds", "--set", "nope=1"], "--set cannot be used: nope:"),
        (["submit", "birds.zip", "--set", "epochs=many"], "--set cannot be used: epochs: it should be a"),
        (["submit", "birds.zip", "--task", "birds", "--set", "x=nan"], "--set: x must be a finite number"),
        (["submit", "classes", "--task", "birds"], "give one for all of them (--question TEXT)"),
        (["submit", "mute.csv", "--task", "birds"], "give one for all of them with --question"),
        (["submit", "alone.csv"], "name a folder or a zip that holds both"),
        (["dataset", "check", "alone.csv"], "name a folder or a zip that holds both"),
        (["dataset", "check", "mute.csv"], "give one for all of them with --question"),
        (["correct", "--image", "bad.png", "hi", "cat"], "learned from: --image: the bytes are not"),
        (["correct", "--image", "cat.png", "hi", ""], "ANSWER: it is empty; write the right answer"),
        (["correct", "--image", "cat.png", LONG, "cat"], "QUESTION: it should have at most 8000"),
        (["export", "hi", "--out", "new"], "there are no increments to export"),
        (["export", "--task", "birds", "--out", "new"], "strata versions lists those that have"),
    ],
    ids=lambda part: " ".join(part)[:40] if isinstance(part, list) else "",
)
def test_a_refusal_speaks_of_the_command_line(
    words: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(words) == 2
    shown = capsys.readouterr()
    told = (shown.err + shown.out).removeprefix("error: ").strip()
    assert said in told
    assert not (found := HTTP.search(told)), (found, told)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (NO_QUESTION, "there is no question; write one in each record"),
        (
            NO_QUESTION_OF_FOLDERS,
            (
                "the pictures lie in one subfolder for each answer, but there is no question: "
                "send a data file as examples/teach.py makes one"
            ),
        ),
    ],
)
def test_a_verb_that_takes_no_question_tells_of_none_and_ends_its_sentence(reason: str, said: str):
    words = words_of(build_parser().parse_args(["import", "x", "--task", "t", "--examples", "y"]).parser)
    assert words(reason, None) == said
    assert words(f"{reason}; and 3 more", None) == f"{said}; and 3 more"


@pytest.mark.parametrize("word", ["url", "json", "debug", "api_key", "help"])
def test_a_word_of_a_sentence_that_is_called_like_an_option_of_every_verb_is_none(word: str):
    words = words_of(build_parser().parse_args(["chat", "hi"]).parser)
    assert words(f"image: {word} is not allowed", "image") == f"--image: {word} is not allowed"


@pytest.mark.parametrize("key", [None, "sk-nobody-knows-it", ASK_KEY])
def test_a_missing_key_is_told_as_an_option(
    key: str | None, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("STRATA_API_KEY")
    assert main(["promote", "base", *(["--api-key", key] if key else [])]) == 1
    told = capsys.readouterr().err
    assert "give the key with --api-key or STRATA_API_KEY" in told
    assert not HTTP.search(told.replace("error: ", ""))


@pytest.mark.parametrize("name", ["question", "dataset", "answer", "file", "hyperparameters"])
def test_a_setting_that_is_called_like_a_part_of_the_form_is_no_part_of_it(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["submit", "birds.zip", "--task", "birds", "--set", f"{name}=1"]) == 2
    assert f"--set cannot be used: {name}: there is no such setting" in capsys.readouterr().err


def test_who_names_no_task_is_told_that_the_service_chooses_one(
    place: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["submit", "birds.zip"]) == 0
    shown = capsys.readouterr()
    job = re.search(r"accepted as (job-\w+)", shown.out)
    assert job
    assert "the service chooses the known task that they are most like, or opens a new one" in shown.err
    assert f"which one tells: strata jobs {job[1]}" in shown.err
    assert main(["submit", "birds.zip", "--task", "birds"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["submit", "birds.zip", "--json"]) == 0
    assert capsys.readouterr().err == ""


def test_the_description_of_the_api_says_how_a_task_is_chosen(running: RunningGateway):
    paths = running.http.get("/openapi.json").json()["paths"]
    said = " ".join(paths["/v1/fine_tuning/jobs"]["post"]["description"].split())
    assert "Without it the service chooses by the questions and pictures" in said
    assert "`suffix`" in said
