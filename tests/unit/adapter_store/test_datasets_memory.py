"""An archive many times larger than the bound on memory is read within the bound."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MIB = 1024 * 1024
PICTURES = 80
BOUND_BYTES = 80 * MIB

PROGRAM = """
import json, resource, sys
from pathlib import Path
from adapter_store.datasets import read_upload

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
_, source, report = read_upload(Path(sys.argv[1]), work_folder=Path(sys.argv[2]))
source.close()
print(json.dumps({"grown": peak() - before, "ok": report.ok, "examples": report.examples}))
"""


def noise() -> bytes:
    """Return a PNG of 4.3 MB that cannot be packed smaller."""
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=0)
    return out.getvalue()


def pack(path: Path, kind: str) -> None:
    rows = [{"image": f"{n}.png", "question": "What?", "answer": str(n)} for n in range(PICTURES)]
    data, picture = json.dumps(rows).encode(), noise()
    files = [("data.json", data), *((f"{n}.png", picture) for n in range(PICTURES))]
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, content in files:
                archive.writestr(name, content)
        return
    mode = "w" if kind == "tar" else "w:gz"
    packing = {} if kind == "tar" else {"compresslevel": 0}
    with tarfile.open(path, mode, **packing) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_large_archive_never_sits_in_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "upload"
    pack(path, kind)
    assert path.stat().st_size > 4 * BOUND_BYTES
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-c", PROGRAM, str(path), str(tmp_path / "work")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seen = json.loads(done.stdout)
    assert (seen["ok"], seen["examples"]) == (True, PICTURES)
    assert seen["grown"] < BOUND_BYTES
