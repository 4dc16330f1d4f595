"""Check the rules of the house that no linter knows: sizes, names, and documents that say what is true."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from adapter_store.settings import PREFIX, known_names
from server.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("server", "adapter_store", "trainer_worker", "benchmarks", "examples")
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "DECISIONS.md",
    "LOG.md",
    "SECURITY.md",
    "docs/data.md",
    "docs/gpu.md",
    "docs/monitoring.md",
    "docs/open-webui.md",
)
MAX_LINES = 400
MAX_TEST_LINES = 400
FORBIDDEN_NAMES = re.compile(r"(^|_)(utils?|helpers?|manager|misc|common)(_|\.|$)")
BRITISH = re.compile(
    r"\b((colour|behaviour|favour|centre|licence|catalogue|cancell(?=ing)|labell|modell|travell)\w*"
    r"|(initial|normal|serial|optim|organ|recogn|summar)is(e|ed|es|ing|ation)\b|analyse[drs]?\b)",
    re.IGNORECASE,
)
SPELLED_BY_METHOD = {"normalised"}
"""The mode of the update is named as its authors spell it."""


def python_files() -> list[Path]:
    return [path for top in (*PACKAGES, "tests") for path in sorted((ROOT / top).rglob("*.py"))]


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_named_for_what_they_are(path: Path):
    limit = MAX_TEST_LINES if "tests" in path.relative_to(ROOT).parts else MAX_LINES
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= limit
    assert not FORBIDDEN_NAMES.search(path.name)


@pytest.mark.parametrize("top", ["server", "adapter_store", "trainer_worker"])
def test_every_module_says_what_it_is(top: str):
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / top).rglob("*.py")
        if not path.read_text(encoding="utf-8").lstrip().startswith('"""')
    ]
    assert silent == []


def test_spelling_is_american():
    files = [*python_files(), *(ROOT / name for name in DOCUMENTS)]
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in files
        if path != Path(__file__).resolve()
        for match in BRITISH.finditer(path.read_text(encoding="utf-8"))
        if match.group().lower() not in SPELLED_BY_METHOD
    ]
    assert found == []


def shell_lines(document: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|sh|console)?\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`((?:strata|make) [^`]+)`", text)
    return [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()] + inline


def flags_of(parser, verb: str) -> set[str]:
    verbs = next(action for action in parser._actions if action.dest == "verb")
    return {flag for action in verbs.choices[verb]._actions for flag in action.option_strings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_only_commands_that_exist(document: str):
    parser = build_parser()
    verbs: Any = next(action for action in parser._actions if action.dest == "verb").choices
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    settings = {f"--{name.replace('_', '-')}" for name in known_names()}
    for line in shell_lines(document):
        command = re.search(r"(?:^|\s|/)strata ([a-z]+)((?:\s.*)?)$", line)
        if command:
            verb, rest = command.groups()
            assert verb in verbs, f"{document}: {line}"
            flags = set(re.findall(r"(?<!\S)(--[a-z-]+)", rest.split("#")[0]))
            passes_on = verbs[verb].get_default("passes_on")
            known = flags_of(parser, verb) | (settings | {"--help"} if passes_on else set())
            assert flags <= known, f"{document}: {line}"
        make = re.match(r"(?:[A-Z_]+=\S+ )*make ([a-z]+)", line)
        if make:
            assert make.group(1) in targets, f"{document}: {line}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_only_settings_that_exist(document: str):
    known = {PREFIX + name.upper() for name in known_names()}
    named = set(re.findall(r"\bSTRATA_[A-Z_]+[A-Z]\b", (ROOT / document).read_text(encoding="utf-8")))
    assert named - known == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_within_the_repository_lead_somewhere(document: str):
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)\)", text):
        assert (ROOT / target).exists(), f"{document}: {target}"


def tree_of_readme() -> dict[str, str]:
    """Return path -> description from the README's file tree (two spaces of indentation per level)."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## File tree\n.*?```\n(.*?)```", text, re.DOTALL)
    assert block is not None, "the README has no file tree"
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block.group(1).splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, words = line.strip().partition(" ")
        folders = [*folders[:depth], name.rstrip("/")]
        found["/".join(folders)] = words.strip()
    return found


def test_the_tree_in_the_readme_is_the_tree():
    tree = tree_of_readme()
    missing = [path for path in tree if not (ROOT / path).exists()]
    assert missing == []
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    files = [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).is_file()]
    code = [f for f in files if f.suffix == ".py" and f.name not in {"__init__.py", "__main__.py"}]
    unsaid = [str(f) for f in code if f.parts[0] in PACKAGES and str(f) not in tree]
    assert unsaid == []


def test_the_tree_spends_few_words_on_a_file():
    wordy = [path for path, words in tree_of_readme().items() if not 1 <= len(words.split()) <= 8]
    assert wordy == []
