"""Fetch pinned wheels with pip and verify them.

The package index is whatever pip is configured to use; this module knows no host.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from zipfile import ZipFile

from rich.progress import Progress

from adapter_store.base.packages import Package
from adapter_store.errors import StrataError

_CHUNK_BYTES = 1 << 20


class DownloadFailed(StrataError):
    """Report that a pinned package could not be fetched or has other bytes than expected."""


def default_cache_dir() -> Path:
    """Return the cache folder: `STRATA_CACHE` if set, else `~/.cache/strata`."""
    configured = os.environ.get("STRATA_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "strata"


def file_sha256(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fetch(package: Package, cache_dir: Path, progress: Progress | None = None) -> Path:
    """Return the verified wheel of a package, downloading it only if it is not there yet.

    Args:
        package: What to fetch.
        cache_dir: Root of the cache; wheels lie in its `downloads` folder.
        progress: Bar to report on, if any.

    Raises:
        DownloadFailed: If pip cannot fetch it, or the bytes are not the pinned ones.
    """
    target = cache_dir / "downloads" / package.wheel
    if target.is_file() and file_sha256(target) == package.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        _pip_download(package, Path(scratch), progress)
        fetched = Path(scratch) / package.wheel
        if not fetched.is_file() or file_sha256(fetched) != package.sha256:
            raise DownloadFailed(
                f"{package.name}=={package.version} did not arrive as {package.wheel} "
                f"with sha256 {package.sha256}; remove any mirror that rewrites packages and try again"
            )
        os.replace(fetched, target)
    return target


def fetch_all(packages: Sequence[Package], cache_dir: Path, progress: Progress | None = None) -> list[Path]:
    """Fetch several packages, one after the other, and return their wheels in the same order."""
    return [fetch(package, cache_dir, progress) for package in packages]


def _pip_download(package: Package, folder: Path, progress: Progress | None) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(package.requirement + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "-r", str(requirements)]
    command += package.pip_platform
    task = progress.add_task(f"download {package.name} {package.version}", total=None) if progress else None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if progress is not None and task is not None:
        progress.update(task, total=1, completed=1)
    if done.returncode != 0:
        raise DownloadFailed(
            f"pip could not download {package.name}=={package.version}: {done.stderr.strip()[-600:]}; "
            f"check the package index that pip uses, or put {package.wheel} into {folder.parent}"
        )


def read_member(wheel: Path, suffix: str) -> bytes:
    """Return the bytes of the only member of a wheel whose path ends with a suffix."""
    with ZipFile(wheel) as archive:
        return archive.read(_only_member(archive, wheel, suffix))


def extract_member(wheel: Path, suffix: str, target: Path) -> None:
    """Write the only member of a wheel whose path ends with a suffix to a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        ZipFile(wheel) as archive,
        archive.open(_only_member(archive, wheel, suffix)) as source,
        target.open("wb") as stream,
    ):
        shutil.copyfileobj(source, stream, _CHUNK_BYTES)


def iter_members(wheel: Path, prefix: str) -> Iterator[tuple[str, bytes]]:
    """Yield `(path, bytes)` of every file of a wheel under a prefix."""
    with ZipFile(wheel) as archive:
        for info in archive.infolist():
            if info.filename.startswith(prefix) and not info.is_dir():
                yield info.filename, archive.read(info)


def _only_member(archive: ZipFile, wheel: Path, suffix: str) -> str:
    names = [name for name in archive.namelist() if name.endswith(suffix)]
    if len(names) != 1:
        raise DownloadFailed(
            f"{wheel.name} holds {len(names)} files ending in {suffix!r}; expected exactly one"
        )
    return names[0]
