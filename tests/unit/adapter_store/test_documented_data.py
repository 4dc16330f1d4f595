"""Every example of docs/data.md is built as it is printed and passes the check that is printed with it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from server.cli.main import main

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "data.md"
BLOCK = re.compile(r"^```(\w*)(?: (\S+))?\n(.*?)^```", re.DOTALL | re.MULTILINE)


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)\n", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {title: body for title, body in zip(parts[1::2], parts[2::2], strict=True) if BLOCK.search(body)}


def build(body: str, folder: Path) -> list[list[str]]:
    """Write the files of a section below ``folder`` and return its commands."""
    commands: list[list[str]] = []
    for number, (language, name, text) in enumerate(BLOCK.findall(body)):
        if name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        elif not language:
            commands += [shlex.split(line, comments=True) for line in text.splitlines()]
        beside = (folder / name).parent if name else folder
        for place, picture in enumerate(dict.fromkeys(re.findall(r"[\w/]+\.png", text))):
            (beside / picture).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (40 * place, 90, 20 * number)).save(beside / picture)
        if language == "python":
            subprocess.run([sys.executable, name], cwd=folder, check=True)
    return commands


@pytest.mark.parametrize("title", sections())
def test_an_example_passes_the_check_beside_it(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STRATA_HOME", str(tmp_path / "home"))
    commands = build(sections()[title], tmp_path)
    assert commands
    for command in commands:
        assert command[:3] == ["strata", "dataset", "check"]
        status = main([*command[1:], "--json"])
        report = json.loads(capsys.readouterr().out)
        assert (status, report["ok"]) == (0, True), report["summary"]
        few = re.compile("the gate (can hold it back by luck|holds back what it cannot measure)")
        reasons = [warning["reason"] for warning in report["warnings"]]  # an example has three pictures
        assert all(map(few.search, reasons)), reasons
        assert report["examples"] == report["images"] > 0
        assert report["split"]["given"] == (title == "Pictures that are for measuring only")


def test_every_format_has_an_example() -> None:
    names = " ".join(sections())
    for word in ("table", "folder", "LLaVA", "OpenAI", "ShareGPT", "Plain", "parquet"):
        assert word in names
