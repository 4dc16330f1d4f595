"""The store of one lineage's versions: immutable directories, verified on every fetch."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import uuid
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from adapter_store.errors import InputError, NotFoundError, VersionCorrupt
from adapter_store.names import BASE_VERSION, check_lineage, check_version_id
from adapter_store.versions.aliases import AliasTable
from adapter_store.versions.manifest import Manifest, ManifestDraft
from adapter_store.versions.publication import MANIFEST, RESERVATION, Fences, Publication, is_abandoned
from adapter_store.versions.storage import check_file_name, open_storage

logger = logging.getLogger(__name__)

Manifests = list[Manifest]
_MEND = "restore it from a backup, which needs no restart, then promote it if stable left it; or roll back"


class VersionStore:
    """Publish, list and fetch the versions of one lineage.

    Args:
        url: A folder, a ``file://`` URL, or any fsspec URL.
        lineage: The model name.
        cache_dir: Where versions from elsewhere are copied to; a folder or ``file://``
            needs none. Default: a folder of its own for this process.
        settle_seconds: How long to wait for another publisher with the same token.

    Attributes:
        aliases: The movable names of the lineage.
    """

    def __init__(
        self, url: str | Path, lineage: str, cache_dir: Path | None = None, *, settle_seconds: float = 10
    ) -> None:
        self.lineage = check_lineage(lineage)
        self._storage = open_storage(url)
        self._cache_dir = cache_dir
        self._fences = Fences(self._storage, self.lineage)
        self._publication = Publication(
            self._storage, self.lineage, self._fences, settle_seconds=settle_seconds
        )
        self._known: dict[str, Manifest | None] = {}
        self.aliases = AliasTable(self._storage, self.lineage, self.exists)

    def list(self) -> Manifests:
        """Return all complete versions, oldest first; a damaged manifest is logged and left out."""
        found: Manifests = []
        for number in self._publication.numbers():
            try:
                manifest = self._load(f"v{number}")
            except VersionCorrupt as error:
                logger.warning("%s", error.message)
                continue
            if manifest is not None:
                found.append(manifest)
        return found

    def manifest(self, version: str) -> Manifest:
        """Return one manifest.

        Raises:
            InputError: ``version`` is no version id.
            NotFoundError: The version does not exist, or is ``base``, which has no files.
            VersionCorrupt: The manifest is damaged or belongs to another version.
        """
        check_version_id(version)
        if version == BASE_VERSION:
            raise NotFoundError("base is the untouched model: it has no manifest and no files")
        manifest = self._load(version)
        if manifest is None:
            raise NotFoundError(
                f"there is no version {version} of {self.lineage}; list the versions to see all"
            )
        return manifest

    def exists(self, version: str) -> bool:
        """Tell whether a version can be served: ``base``, or published."""
        if check_version_id(version) == BASE_VERSION:
            return True
        try:
            return self._load(version) is not None
        except VersionCorrupt:
            return False

    def of_job(self, job_id: str) -> Manifest | None:
        """Return the version that a job has published, or None."""
        return next((manifest for manifest in self.list() if manifest.job_id == job_id), None)

    def fetch(self, version: str) -> Path:
        """Return a local folder with the version's files, every one checked against its sha256.

        In a folder store it is the version itself: read it, never write to it.

        Raises:
            NotFoundError: There is no such version.
            VersionCorrupt: A file is missing or does not match.
        """
        manifest = self.manifest(version)
        local = self._storage.local_path(f"{self.lineage}/{version}")
        if local is not None:
            _verify(local, manifest)
            return local
        cached = self._cache() / self.lineage / version
        if cached.is_dir():
            try:
                _verify(cached, manifest)
            except VersionCorrupt:
                shutil.rmtree(cached)
            else:
                return cached
        return self._download(manifest, cached)

    def verify(self, version: str) -> None:
        """Read a version's manifest and files anew and check them; raises as ``fetch``."""
        if check_version_id(version) != BASE_VERSION:
            self._known.pop(version, None)
            self._publication.forget(int(version[1:]))
        self.fetch(version)

    def stamps(self, version: str) -> tuple[str, ...]:
        """Return what differs once a file of a version was written, removed or restored; reads no content."""
        try:
            names = list(self.manifest(version).files)
        except (VersionCorrupt, NotFoundError):
            names = []
        paths = [PurePosixPath(self.lineage, version, name) for name in (MANIFEST, *names)]
        folders = sorted({path.parent for path in paths})
        listed = {folder: self._storage.stamps(folder.as_posix()) for folder in folders}
        return tuple(listed[path.parent].get(path.name, "") for path in paths)

    def publish(self, folder: Path, draft: ManifestDraft, *, fence: int) -> Manifest:
        """Publish all files of ``folder`` as the next version and return its manifest.

        All of it appears or nothing, whenever the publisher is killed. If the job has
        published already, that version is returned and nothing is written.

        Args:
            folder: Plain files, also in sub-folders; links are refused. It is not changed.
            draft: The manifest without number and hashes.
            fence: The token of the claim.

        Raises:
            FencedOut: A higher token is recorded.
            InputError: A file name that is not allowed, or an empty folder.
        """
        sources = _files_of(folder)
        self._fences.raise_to(fence)
        if (earlier := self.of_job(draft.job_id)) is not None:
            return earlier
        hashes = {name: sha256_of(path) for name, path in sources.items()}
        if draft.probe is not None and draft.probe.image is not None and draft.probe.image not in hashes:
            raise InputError(f"the probe's image {draft.probe.image!r} is not among the files", param="probe")
        return self._publication.publish(sources, hashes, draft, fence)

    def raise_fence(self, fence: int) -> None:
        """Record a token, so that older workers cannot publish; raise FencedOut if it is old itself."""
        self._fences.raise_to(fence)

    def _load(self, version: str) -> Manifest | None:
        """Return a manifest, None if the version is not (or never will be) published."""
        if version in self._known:
            return self._known[version]
        data = self._publication.decided(int(version[1:]))
        if data is None:
            return None
        try:
            manifest = None if is_abandoned(data) else self._parse(version, data)
        except VersionCorrupt:
            self._publication.forget(int(version[1:]))
            raise
        self._known[version] = manifest
        return manifest

    def _parse(self, version: str, data: bytes) -> Manifest:
        try:
            manifest = Manifest.model_validate_json(data)
            for name in manifest.files:
                check_file_name(name)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise VersionCorrupt(
                f"the manifest of {version} is damaged: {where or 'content'}: {first['msg']}"
            ) from None
        except InputError as error:
            raise VersionCorrupt(f"the manifest of {version} is damaged: {error.message}") from None
        if manifest.version != version or manifest.lineage != self.lineage:
            raise VersionCorrupt(
                f"the manifest of {version} of {self.lineage} says {manifest.version} of {manifest.lineage}:"
                " the directory was copied or renamed"
            )
        return manifest

    def _download(self, manifest: Manifest, target: Path) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.parent / f".{target.name}-{uuid.uuid4().hex}"
        try:
            for name in (*manifest.files, MANIFEST):
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._storage.fetch(f"{self.lineage}/{manifest.version}/{name}", part / name)
                except NotFoundError:
                    raise VersionCorrupt(f"version {manifest.version} lacks its file {name!r}") from None
            _verify(part, manifest)
            try:
                os.rename(part, target)
            except OSError:
                _verify(target, manifest)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return target

    def _cache(self) -> Path:
        if self._cache_dir is None:
            self._cache_dir = Path(tempfile.mkdtemp(prefix="strata-versions-"))
        return self._cache_dir


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits."""
    with path.open("rb") as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()


def _files_of(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder.name!r} to publish", param="folder")
    sources: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = check_file_name(path.relative_to(folder).as_posix())
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InputError(
                f"{name!r} is a link or no plain file: only plain files are published", param="files"
            )
        if name in (MANIFEST, RESERVATION):
            raise InputError(f"{name!r} is written by the store: leave it out", param="files")
        if path.is_file():
            sources[name] = path
    if not sources:
        raise InputError("the folder to publish is empty", param="folder")
    return sources


def _verify(folder: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise VersionCorrupt(f"version {manifest.version} lacks its file {name!r}: {_MEND}")
        if sha256_of(path) != expected:
            raise VersionCorrupt(
                f"file {name!r} of version {manifest.version} does not match its recorded sha256: {_MEND}"
            )
