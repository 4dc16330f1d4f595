"""Find, check and hold the pictures of one upload.

Pictures lie in a work folder, so memory stays bounded. Each one is
decoded once, whatever the number of examples that use it.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_store.datasets.archive import Member, clean_name, name_fault
from adapter_store.datasets.pixels import ROOM, PixelBudget, TooManyPixels
from adapter_store.datasets.records import Limits, shown
from adapter_store.datasets.spool import Spool, Stretch
from adapter_store.errors import ImageError
from adapter_store.images import (
    count_pixels,
    decode_image,
    decode_inline,
    image_digest,
    looks_inline,
    picture_kind,
)

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A checked picture: its content-addressed file name and where its bytes lie now."""

    name: str
    place: Stretch

    @property
    def bytes(self) -> int:
        """Return the size of what is stored of it."""
        return self.place.bytes


class ImageSource:
    """The pictures of an upload by name, in a work folder that ``close`` removes."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder = folder
        self._limits = limits
        self._files: dict[str, Stretch] = {}
        self._by_last: dict[str, list[str]] = {}
        self._checked: dict[str, StoredImage] = {}
        self.pixels = PixelBudget(limits)
        self._spool = Spool(folder / "pictures")

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all pictures held."""
        return tuple(self._files)

    def add_members(self, members: Iterable[Member]) -> None:
        """Offer the unpacked files of an archive for look-up by path."""
        for member in members:
            self.add_picture(member.name, member.place)

    def add_picture(self, name: str, place: Stretch) -> None:
        """Offer one picture under a relative path."""
        self._files[name] = place
        self._by_last.setdefault(name.rsplit("/", 1)[-1], []).append(name)

    def add_bytes(self, data: bytes) -> str:
        """Keep bytes that came inside a record and return the name that they got."""
        name = f"inline:{hashlib.sha256(data).hexdigest()}"
        if name not in self._files:
            if len(data) > self._limits.max_image_bytes:
                raise ImageError(
                    f"the picture has {len(data)} bytes; at most {self._limits.max_image_bytes} are accepted"
                )
            self._files[name] = self.keep(data)
        return name

    def locate(self, reference: Any, beside: str = "") -> str:
        """Return the name of the picture that a record refers to.

        Args:
            reference: a relative path, data: URL or base64 text; ``{"url": ...}`` of
                OpenAI; ``{"bytes": ..., "path": ...}`` of Hugging Face; or bytes.
            beside: name of the data file, whose folder is searched too.

        Raises:
            ImageError: a web address, a path that is not in the upload, or bad base64.
        """
        if isinstance(reference, dict):
            known = next((reference[key] for key in ("bytes", "url", "path") if reference.get(key)), None)
            return self.locate(known, beside) if not isinstance(known, dict) else self.locate(None)
        if isinstance(reference, (bytes, bytearray)):
            return self.add_bytes(bytes(reference))
        if not isinstance(reference, str) or not reference:
            raise ImageError("a picture must be a relative path, a data: URL or base64 text")
        if looks_inline(reference):
            return self.add_bytes(decode_inline(reference, max_bytes=self._limits.max_image_bytes))
        return self._find(reference, beside)

    def keep(self, data: bytes) -> Stretch:
        """Write bytes into the work folder and return where."""
        return self._spool.append(data)

    def check(self, name: str) -> StoredImage:
        """Decode a picture once and return what to store of it; threads may check different ones at once.

        The whole picture is decoded, not its header only: a file that breaks off is found
        in no other way, and its pixels name it. PNG and JPEG keep their bytes; WEBP and
        GIF become PNG.

        Raises:
            TooManyPixels: this and those before have too many pixels together.
            ImageError: too large, not a picture, truncated or damaged.
        """
        if name in self._checked:
            return self._checked[name]
        place = self._files[name]
        if place.bytes > self._limits.max_image_bytes:
            raise ImageError(f"the picture has more than {self._limits.max_image_bytes} bytes")
        data = place.read()
        pixels = count_pixels(data, max_pixels=self._limits.max_image_pixels)
        self.pixels.spend(pixels)
        with ROOM.hold(pixels):
            checked = self._checked[name] = self._decoded(data, place)
        return checked

    def expect(self, names: Iterable[str]) -> None:
        """Say which pictures will be checked, before the first is."""
        for name in names:
            self.pixels.expect(self._files[name].bytes)

    def _decoded(self, data: bytes, place: Stretch) -> StoredImage:
        image = decode_image(
            data, max_pixels=self._limits.max_image_pixels, max_bytes=self._limits.max_image_bytes
        )
        kind = picture_kind(data[:12])
        if kind not in ("png", "jpg"):
            packed = io.BytesIO()
            image.save(packed, format="PNG")
            kind, place = "png", self._spool.append(packed.getvalue())
            if self._spool.bytes > self._limits.max_total_bytes:
                most = self._limits.max_total_bytes
                raise TooManyPixels(
                    f"the WEBP and GIF pictures take more than {most} bytes as PNG; send fewer"
                )
        return StoredImage(f"{image_digest(image)}.{kind}", place)

    def close(self) -> None:
        """Remove the work folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _find(self, reference: str, beside: str) -> str:
        if _SCHEME.match(reference) and reference[1:2] != ":":
            raise ImageError(
                f'"{shown(reference)}" is an address; pictures are never fetched: '
                "put the file into the archive or write it as a data: URL"
            )
        reason = name_fault(reference)
        if reason:
            raise ImageError(reason)
        name = clean_name(reference)
        folder = beside.rsplit("/", 1)[0] + "/" if "/" in beside else ""
        for candidate in (folder + name, name):
            if candidate in self._files:
                return candidate
        matches = [
            found for found in self._by_last.get(name.rsplit("/", 1)[-1], ()) if found.endswith("/" + name)
        ]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise ImageError(f'"{shown(reference)}" is the name of {len(matches)} files; write the path')
        where = "the archive" if self._by_last else "the upload; send a zip that holds it, or a data: URL"
        raise ImageError(f'"{shown(reference)}" is not in {where}')
