"""Keep data sets as immutable folders named by their content.

::

    <root>/ds-<16 hex digits>/
        examples.jsonl      one normalized example per line; its sha256 is the digest
        images/<sha>.png    pictures named by the sha256 of their pixels (or .jpg)
        report.json         what validation found
        manifest.json       written last: a folder without it does not count

A data set is built in a hidden folder beside the others, synced, and renamed
into place, so a crash leaves either the whole of it or nothing.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from adapter_store.datasets.archive import clean_name
from adapter_store.datasets.formats import MARK
from adapter_store.datasets.held_out import HeldOut
from adapter_store.datasets.json_stream import Record
from adapter_store.datasets.luck import Measuring
from adapter_store.datasets.records import (
    Context,
    CountTokens,
    DatasetRef,
    Example,
    Limits,
    Report,
    Tell,
    distinct_images,
    example_line,
    shown,
)
from adapter_store.datasets.sources import ImageSource
from adapter_store.datasets.upload import Reading, read_upload, with_stored_names
from adapter_store.durable import make_folder, sync_file, sync_folder, write_durably
from adapter_store.errors import DatasetError, ImageError, NotFoundError, StoreError
from adapter_store.images import decode_image, image_digest

_ID = re.compile(r"ds-[0-9a-f]{16}")
_IMAGE = re.compile(r"[0-9a-f]{64}\.(png|jpg)")
_INCOMING = ".incoming-"
_LEFTOVER_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Dataset:
    """One stored data set, its examples in memory and its pictures on disk."""

    ref: DatasetRef
    folder: Path
    examples: tuple[Example, ...]
    limits: Limits

    def image(self, name: str) -> Image.Image:
        """Return a picture as RGB.

        Raises:
            NotFoundError: the data set has no picture of this name.
            ImageError: the stored file was damaged.
        """
        data = self.image_bytes(name)
        return decode_image(data, max_pixels=self.limits.max_image_pixels, max_bytes=max(len(data), 1))

    def image_bytes(self, name: str) -> bytes:
        """Return the stored bytes of a picture, PNG or JPEG."""
        if not _IMAGE.fullmatch(name):
            raise NotFoundError(f'"{shown(name)}" is not the name of a stored picture')
        try:
            return (self.folder / "images" / name).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"data set {self.ref.id} has no picture {name}") from None

    def report(self) -> dict[str, Any]:
        """Return the validation report as it was written."""
        return json.loads((self.folder / "report.json").read_text(encoding="utf-8"))


class DatasetStore:
    """The data sets under one folder; safe to use from several processes."""

    def __init__(
        self,
        root: Path,
        limits: Limits | None = None,
        *,
        held_out: Path | None = None,
        count_tokens: CountTokens | None = None,
        measuring: Measuring | None = None,
    ) -> None:
        """Create a view of the data sets under ``root``.

        Args:
            root: the folder.
            limits: bounds on uploads.
            held_out: where the trainer keeps what its tasks are measured on; uploads are compared with it.
            count_tokens: counts lengths for the report; None: in characters.
            measuring: how the worker measures new tasks; None: as it does by default.
        """
        self.root = root
        self.limits = limits or Limits()
        self._held_out = None if held_out is None else HeldOut(held_out)
        self._count_tokens = count_tokens
        self._measuring = measuring or Measuring()

    def put(
        self, path: Path, *, filename: str, question: str | None = None, task: str | None = None
    ) -> DatasetRef:
        """Validate an uploaded file and store it; the same content gives the same id.

        Args:
            path: the upload on disk; it is only read.
            filename: the name that the sender gave it, kept for people.
            question: asked where the data has none.
            task: the task that the data is for, if that is known.

        Raises:
            DatasetError: the upload has faults; ``report`` lists them.
        """
        with self._incoming() as work:
            raw = work / "raw"
            raw.mkdir()
            examples, source, report = read_upload(
                path, limits=self.limits, work_folder=raw, context=self._context(question, task)
            )
            return self._keep(work, examples, source, report, filename)

    def put_examples(
        self,
        examples: Sequence[Example | Mapping[str, Any]],
        images: Mapping[str, bytes] | None = None,
        *,
        filename: str = "examples.json",
        task: str | None = None,
    ) -> DatasetRef:
        """Validate and store examples that came in one call.

        Args:
            examples: ``Example`` records, or objects of any accepted layout, such as
                ``{"image": ..., "question": ..., "answer": ...}`` with a data: URL,
                base64 text or a key of ``images``.
            images: picture bytes by the name that the examples use.
            filename: kept for people.
            task: the task that they are for, if that is known.

        Raises:
            DatasetError: faults; their fields begin with the index, as in "[3].answer".
        """
        with self._incoming() as work:
            reading = self._read_examples(work, examples, images or {}, self._context(task=task))
            return self._keep(work, reading.examples, reading.source, reading.report(), filename)

    def validate_examples(
        self, examples: Sequence[Example | Mapping[str, Any]], *, task: str | None = None
    ) -> Report:
        """Return the report on examples, as ``put_examples`` takes them, and store nothing."""
        with self._incoming() as work:
            return self._read_examples(work, examples, {}, self._context(task=task)).report()

    def _read_examples(
        self,
        work: Path,
        examples: Sequence[Example | Mapping[str, Any]],
        images: Mapping[str, bytes],
        context: Context,
    ) -> Reading:
        source = ImageSource(work, self.limits)
        reading = Reading(self.limits, source, context)
        for name, data in images.items():
            source.add_picture(clean_name(name), source.keep(data))
        if not examples:
            reading.faults.add(None, "examples", "the list of examples is empty")
        reading.read_examples(
            Record(index + 1, index, _as_record(example)) for index, example in enumerate(examples)
        )
        return reading

    def validate(
        self, path: Path, *, question: str | None = None, task: str | None = None, tell: Tell | None = None
    ) -> Report:
        """Return the report on a file or a folder and store nothing; ``tell`` hears how far it is."""
        context = self._context(question, task)
        if tell is not None:
            context = replace(context, tell=tell)
        with self._incoming() as work:
            return read_upload(path, limits=self.limits, work_folder=work, context=context)[2]

    def _context(self, question: str | None = None, task: str | None = None) -> Context:
        held_out = {} if self._held_out is None else self._held_out.keys()
        return Context(
            question=question or None,
            task=task,
            held_out=held_out,
            count_tokens=self._count_tokens,
            measuring=self._measuring,
        )

    def exists(self, dataset_id: str) -> bool:
        """Say whether a complete data set of this id is stored."""
        return bool(_ID.fullmatch(dataset_id)) and (self.root / dataset_id / "manifest.json").is_file()

    def ids(self) -> list[str]:
        """Return the ids of all complete data sets."""
        return list(self._ids_behind(None))

    def page(self, limit: int, after: str | None = None) -> tuple[list[DatasetRef], bool]:
        """Return up to ``limit`` data sets in the order of their ids, and whether there are more.

        Args:
            limit: how many at most.
            after: only those whose ids come behind this one, which may be gone meanwhile.

        Raises:
            NotFoundError: ``after`` is no id of a data set.
        """
        if after is not None and not _ID.fullmatch(after):
            raise _no_dataset(after)
        found = list(islice(self._ids_behind(after), limit + 1))
        return [self.ref(name) for name in found[:limit]], len(found) > limit

    def _ids_behind(self, after: str | None) -> Iterator[str]:
        names = [entry.name for entry in os.scandir(self.root)] if self.root.is_dir() else []
        return (name for name in sorted(names) if (after is None or name > after) and self.exists(name))

    def open(self, dataset_id: str) -> Dataset:
        """Load a stored data set; its examples must match their digest.

        Raises:
            NotFoundError: no such data set.
            StoreError: its files were changed or damaged.
        """
        kept = self._undamaged(dataset_id)
        with (kept.folder / "examples.jsonl").open("rb") as lines:
            return replace(kept, examples=tuple(Example.from_dict(json.loads(line)) for line in lines))

    def _undamaged(self, dataset_id: str) -> Dataset:
        """Return a data set whose examples match their digest, without them; raises as ``open``."""
        ref = self.ref(dataset_id)
        folder = self.root / dataset_id
        with (folder / "examples.jsonl").open("rb") as lines:
            if hashlib.file_digest(lines, "sha256").hexdigest() != ref.digest:
                raise StoreError(f"data set {dataset_id} is damaged (digest differs); upload it again")
        return Dataset(ref, folder, (), self.limits)

    def ref(self, dataset_id: str) -> DatasetRef:
        """Return the reference of a stored data set.

        Raises:
            NotFoundError: no such data set.
        """
        if not self.exists(dataset_id):
            raise _no_dataset(dataset_id)
        data = json.loads((self.root / dataset_id / "manifest.json").read_text(encoding="utf-8"))
        return DatasetRef(**{name: data[name] for name in ("id", "examples", "images", "digest")})

    def _keep(
        self, work: Path, examples: Sequence[Example], source: ImageSource, report: Report, filename: str
    ) -> DatasetRef:
        if not report.ok:
            raise DatasetError(report.summary(), report=report, param="file")
        stored = with_stored_names(list(examples), source)
        target = _new_folder(work)
        for example in examples:
            if example.image is not None:
                picture = source.check(example.image)
                place = target / "images" / picture.name
                if not place.exists():
                    place.write_bytes(picture.place.read())
        return self._finish(work, target, stored, report, filename)

    def _finish(
        self, work: Path, target: Path, examples: Sequence[Example], report: Report, filename: str
    ) -> DatasetRef:
        digest = _write_examples(target / "examples.jsonl", examples)
        ref = DatasetRef(f"ds-{digest[:16]}", len(examples), len(distinct_images(examples)), digest)
        names = distinct_images(examples)
        if self._is_whole(ref, target, names):
            return self.ref(ref.id)
        write_durably(target / "report.json", _json(report.to_dict()))
        for picture in (target / "images").iterdir():
            sync_file(picture)
        sync_folder(target / "images")
        manifest = {**asdict(ref), "filename": shown(filename, 200), "created_at": time.time()}
        write_durably(target / "manifest.json", _json(manifest))
        self._rename(work, target, ref, names)
        return ref

    def _is_whole(self, ref: DatasetRef, again: Path, names: set[str]) -> bool:
        """Say whether a data set that came again is stored undamaged; else it is replaced, hence repaired."""
        try:
            kept = self._undamaged(ref.id)
            return all(
                filecmp.cmp(kept.folder / "images" / name, again / "images" / name, shallow=False)
                or image_digest(kept.image(name)) == Path(name).stem
                for name in names
            )
        except (NotFoundError, StoreError, ImageError, OSError):
            return False

    def _rename(self, work: Path, target: Path, ref: DatasetRef, names: set[str]) -> None:
        final = self.root / ref.id
        try:
            target.rename(final)
        except OSError:
            if self._is_whole(ref, target, names):
                return  # another process stored the same content meanwhile
            if not final.exists():
                raise
            final.rename(work / "incomplete")
            target.rename(final)
        sync_folder(self.root)

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        make_folder(self.root)
        self._remove_leftovers()
        work = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.root))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        for entry in self.root.glob(f"{_INCOMING}*"):
            try:
                old = time.time() - entry.stat().st_mtime > _LEFTOVER_SECONDS
            except FileNotFoundError:
                continue
            if old:
                shutil.rmtree(entry, ignore_errors=True)


def _as_record(example: Example | Mapping[str, Any]) -> Any:
    if not isinstance(example, Example):
        return dict(example) if isinstance(example, Mapping) else example
    messages: list[dict[str, str]] = []
    for turn in example.turns:
        messages += [{"from": "human", "value": turn.question}, {"from": "gpt", "value": turn.answer}]
    if example.image is not None and messages:
        messages[0]["value"] = f"{MARK}\n{messages[0]['value']}"
    record = {"id": example.id, "image": example.image, "conversations": messages}
    return record if example.split is None else {**record, "split": example.split}


def _no_dataset(dataset_id: str) -> NotFoundError:
    return NotFoundError(f'there is no data set "{shown(dataset_id)}"', param="dataset")


def _new_folder(work: Path) -> Path:
    target = work / "data"
    (target / "images").mkdir(parents=True)
    return target


def _write_examples(path: Path, examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for example in examples:
            line = example_line(example)
            digest.update(line)
            out.write(line)
    sync_file(path)
    return digest.hexdigest()


def _json(data: dict[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, indent=1).encode()
