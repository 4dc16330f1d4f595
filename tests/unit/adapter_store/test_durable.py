"""A file is there with all of its content, or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from adapter_store.durable import create_durably, write_durably

Fault = Callable[..., None]


def failing(number: int) -> Fault:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_creates_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    monkeypatch.setattr(os, "link", failing(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        create_durably(tmp_path / "name", b"content")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EXDEV])
def test_without_hard_links_names_are_exclusive_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    monkeypatch.setattr(os, "link", failing(number))
    create_durably(tmp_path / "name", b"first")
    with pytest.raises(FileExistsError):
        create_durably(tmp_path / "name", b"second")
    assert (tmp_path / "name").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_without_hard_links_a_failed_write_takes_the_name_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = os.fsync

    def fsync(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().name == "name":
            failing(errno.ENOSPC)()
        real(handle)

    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space"):
        create_durably(tmp_path / "name", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_somebody_cleared_away_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, cleared = os.link, []

    def link(part: Path, path: Path) -> None:
        if not cleared:
            cleared.append(part)
            part.unlink()
        real(part, path)

    monkeypatch.setattr(os, "link", link)
    create_durably(tmp_path / "name", b"content")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("name", b"content")]
    cleared.clear()
    with pytest.raises(FileExistsError):
        create_durably(tmp_path / "name", b"other")


def test_a_failed_replacement_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_durably(tmp_path / "name", b"old")
    monkeypatch.setattr(os, "replace", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        write_durably(tmp_path / "name", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("name", b"old")]
