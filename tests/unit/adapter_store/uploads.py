"""Uploads as the tests of data sets make them: pictures, rows, archives, and the report on one."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

from adapter_store.datasets import Limits, Report, read_upload
from tests.contract.pictures import data_url as url

__all__ = ["lines", "png", "report_of", "row", "talk", "tar_of", "url", "zip_of"]


def png(color: str = "red", size: tuple[int, int] = (4, 4)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, format="PNG")
    return out.getvalue()


def row(image: Any = None, question: Any = "What?", answer: Any = "red", **more: Any) -> dict[str, Any]:
    return {"image": image, "question": question, "answer": answer, **more}


def talk(question: str, answer: str = "red", image: Any = None, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **({"image": image} if image else {}), **more}


def lines(rows: list[Any]) -> bytes:
    return "".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in rows).encode()


def report_of(tmp_path: Path, content: bytes, limits: Limits | None = None) -> Report:
    path = tmp_path / "upload"
    path.write_bytes(content)
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    _, source, report = read_upload(path, limits=limits, work_folder=work)
    source.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["upload"]
    assert str(tmp_path) not in json.dumps(report.to_dict())
    return report


def zip_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tar_of(*infos: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for info, data in infos:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()
