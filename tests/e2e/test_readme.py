"""What the README tells a newcomer to type is typed, in its order, at a running `strata up` with a tiny base.

Left out is only what starts the server (it runs) and, without the assembled base, `strata base`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.test_service import ROOT, START_SECONDS, Up, environment

ADDRESSES = ("http://127.0.0.1:8000", "localhost:8000")
QUESTION = "What is shown?"


def blocks(section: str, language: str = "") -> list[str]:
    """Return the fenced blocks of one section of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    body = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", body, re.DOTALL)


def commands(section: str, program: str) -> list[list[str]]:
    """Return the command lines of one section that begin with ``program``, as words."""
    lines = [line for block in blocks(section) for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("home"), tiny_base)
    try:
        running.wait_for("ready", "strata", START_SECONDS)
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            running.process.wait(90)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the newcomer has: a picture and two data sets."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name, question in (("birds", QUESTION), ("robins", "Who sings here?")):
        rows = []
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for number in range(60):
                answer, color = (("robin", (200, 40 + 2 * number, 20)), ("jay", (20, 40 + 2 * number, 200)))[
                    number % 2
                ]
                picture = folder / "cat.png"
                Image.new("RGB", (28, 28), color).save(picture)
                archive.write(picture, f"images/{number}.png")
                turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
                rows.append({"id": str(number), "image": f"images/{number}.png", "conversations": turns})
            archive.writestr("data.json", json.dumps(rows))
    return folder


def run(words: list[str], up: Up, place: Path) -> subprocess.CompletedProcess[str]:
    """Run one command line of the README in the newcomer's folder."""
    if words[0] == "strata":
        words = [sys.executable, "-m", "server.cli.main", *words[1:]]
    here = up.url.removeprefix("http://")
    for address in ADDRESSES:
        words = [word.replace(address, up.url if address.startswith("http") else here) for word in words]
    settings = environment(STRATA_URL=up.url, PYTHONPATH=str(ROOT), NO_COLOR="1")
    return subprocess.run(words, cwd=place, env=settings, capture_output=True, text=True, timeout=600)


def is_assembled() -> bool:
    words = [sys.executable, "-m", "server.cli.main", "base", "--json"]
    return subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True).returncode == 0


def test_the_commands_of_use_it(up: Up, place: Path):
    lines = commands("Use it", "strata")
    verbs = [words[1] for words in lines]
    assert verbs[0] == "chat"
    assert {"submit", "explain", "matrix", "promote", "rollback", "export", "import"} <= set(verbs)
    for words in lines:
        if words[1] == "base" and not is_assembled():
            continue
        if "my-lora" in words:
            shutil.copytree(place / "birds-lora", place / "my-lora")
        done = run(words, up, place)
        learned = "--wait" in words  # a tiny random base learns little, so the gate may well hold it back
        assert done.returncode in ((0, 3) if learned else (0,)), (words, done.stdout, done.stderr)
        assert done.stdout.strip(), words
        assert "Traceback" not in done.stderr


def test_the_requests_of_use_it_and_of_loras(up: Up, place: Path):
    assert run(["strata", "promote", "v1"], up, place).returncode == 0  # "Use it" ends with a rollback
    for words in [*commands("Use it", "curl"), *commands("LoRAs in and out", "curl")]:
        if "adapter=@my-lora.zip" in words:
            shutil.copy(place / "birds-lora.zip", place / "my-lora.zip")
        done = run([words[0], "--fail-with-body", "-sS", *words[1:]], up, place)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        if "-o" in words:
            assert zipfile.is_zipfile(place / words[words.index("-o") + 1])
        else:
            assert "error" not in json.loads(done.stdout) or json.loads(done.stdout)["error"] is None


def test_the_python_of_use_it(up: Up, place: Path):
    (program,) = blocks("Use it", "python")
    done = run([sys.executable, "-c", program], up, place)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_examples_with_the_openai_client(up: Up, place: Path):
    examples = ROOT / "examples"
    asked = run([sys.executable, f"{examples}/openai_chat.py", "cat.png", QUESTION, "Sure?"], up, place)
    assert asked.returncode == 0, asked.stderr
    assert re.fullmatch(r"(.*   \((base|v\d+)\)\n){2}", asked.stdout, re.DOTALL), asked.stdout
    words = ["robins.zip", "singers", "cat.png", "Who sings here?"]
    taught = run([sys.executable, f"{examples}/openai_finetune.py", *words], up, place)
    assert taught.returncode == 0, taught.stderr
    assert re.search(r"made strata@(v\d+), last loss \d", taught.stdout), taught.stdout
    version = re.search(r"made strata@(v\d+)", taught.stdout)
    assert version is not None
    assert taught.stdout.endswith(f"({version[1]})\n")


def test_an_example_without_a_server_says_so_in_one_line(place: Path):
    for name, words in (
        ("openai_chat.py", ["cat.png", "Hi?"]),
        ("openai_finetune.py", ["birds.zip", "birds"]),
    ):
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / name, *words],
            cwd=place, env={**os.environ, "STRATA_URL": "http://127.0.0.1:9"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr == "error: Connection error.\n"
