"""Read one uploaded file: tell its format by content and report every fault at once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapter_store.datasets.archive import Member, folder_members, unpack
from adapter_store.datasets.archive_members import archive_kind
from adapter_store.datasets.data_files import data_members, is_table_name
from adapter_store.datasets.decoding import check_all
from adapter_store.datasets.folders import class_records, holds_classes
from adapter_store.datasets.formats import ACCEPTED, Draft, normalize
from adapter_store.datasets.json_stream import Record, looks_like_json, read_records
from adapter_store.datasets.parquet import read_parquet
from adapter_store.datasets.pixels import TooManyPixels
from adapter_store.datasets.plain import NO_QUESTION, Note
from adapter_store.datasets.records import (
    Context,
    Example,
    FaultList,
    Limits,
    Part,
    Report,
    bytes_held,
    distinct_images,
    shown,
)
from adapter_store.datasets.sources import ImageSource
from adapter_store.datasets.splits import part_of_path
from adapter_store.datasets.statistics import (
    count_answers,
    count_repeats,
    divide,
    find_overlap,
    keys_of,
    measure_lengths,
    warn_of_luck,
)
from adapter_store.datasets.table import lacks_answer, looks_like_table, read_table
from adapter_store.errors import ImageError
from adapter_store.images import picture_kind
from adapter_store.texts import counted

_FOLDERS = "folders"
_LAYOUT_ORDER = ("examples", "llava", "openai", "sharegpt")
_NO_DATA_FILE = (
    f"there is no data file (JSON, JSONL, CSV or parquet) beside the pictures; accepted are {ACCEPTED}, "
    "or one subfolder of pictures for each answer with one question for all"
)
NO_QUESTION_OF_FOLDERS = (
    "the pictures lie in one subfolder for each answer, but there is no question: give one for all of them "
    '(a form field "question", or --question), or send a data file as examples/teach.py makes one'
)
_NOTHING_TO_LEARN = (
    "every example is in the test part; leave at least one picture in the train part to learn from"
)
_CONTAINERS = "JSON, JSONL, CSV, parquet, zip, tar or tar.gz"
_TOLD_EVERY = 500


def read_upload(
    path: Path,
    *,
    limits: Limits | None = None,
    work_folder: Path | None = None,
    context: Context | None = None,
) -> tuple[list[Example], ImageSource, Report]:
    """Read an upload of any accepted format.

    Args:
        path: a JSON, JSONL, CSV or parquet file; a zip, tar or tar.gz of one with pictures,
            or of one folder of pictures for each answer; or a folder of the same.
        limits: bounds on size; the defaults suit one machine.
        work_folder: an empty folder for unpacked files; a temporary one if None.
        context: what is known beside the upload.

    Returns:
        The examples, whose ``image`` names a picture of the source; the source, which
        the caller closes; and the report. With faults the examples are not complete.
    """
    limits = limits or Limits()
    folder = work_folder or Path(tempfile.mkdtemp(prefix="strata-upload-"))
    source = ImageSource(folder, limits)
    try:
        reading = Reading(limits, source, context or Context())
        reading.read(path)
        return reading.examples, source, reading.report()
    except BaseException:
        source.close()
        raise


@dataclass(slots=True)
class Place:
    """Where a picture is first used: line, field and archive member."""

    line: int | None
    field: str
    file: str | None


class _TooSlow(Exception):
    """Say that the time of an upload is over."""


@dataclass(slots=True)
class Reading:
    """The growing outcome of reading one upload."""

    limits: Limits
    source: ImageSource
    context: Context = field(default_factory=Context)
    examples: list[Example] = field(default_factory=list)
    format: str = "unknown"
    faults: FaultList = field(init=False)
    warnings: FaultList = field(init=False)
    _layouts: frozenset[str] = frozenset(_LAYOUT_ORDER)
    _part: Part | None = None
    _ids: dict[str, int | None] = field(default_factory=dict)
    _used: dict[str, Place] = field(default_factory=dict)
    _systems: int = 0
    _records: int = 0
    _stored: dict[str, str] = field(default_factory=dict)
    _pictures: set[str] = field(default_factory=set)
    _stored_bytes: int = 0
    _text_bytes: int = 0
    _ended_early: bool = False
    _began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.faults = FaultList(self.limits.max_faults)
        self.warnings = FaultList(self.limits.max_faults)

    def read(self, path: Path) -> None:
        """Read one file, packed or not, or a folder where it lies; then check every picture that is used."""
        with self._in_time():
            self._read(path)

    def read_examples(self, records: Iterable[Record]) -> None:
        """Take records that came in one call; then check every picture that is used."""
        with self._in_time():
            for record in records:
                if not self.take_bounded(record):
                    break
            self.check_images()

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        try:
            yield
        except _TooSlow:
            self._ended_early = True
            most = self.limits.max_seconds
            self.faults.add(None, "file", f"checking takes more than {most:g} seconds; split the data set")

    def _read(self, path: Path) -> None:
        if path.is_dir():
            self.format = "folder"
            self._read_members(folder_members(path, self.limits, self.faults))
        else:
            self._read_file(path)
        if self._records == 0 and not self.faults:
            self.faults.add(None, "file", "the data set holds no examples")
        self.check_images()

    def _read_file(self, path: Path) -> None:
        size = path.stat().st_size
        if size == 0:
            self.faults.add(None, "file", "the file is empty (0 bytes)")
            return
        if size > self.limits.max_upload_bytes:
            most = self.limits.max_upload_bytes
            self.faults.add(None, "file", f"the file has {size} bytes; at most {most} are accepted")
            return
        with path.open("rb") as stream:
            head = stream.read(512)
        self.source.pixels.packed_bytes = size
        kind = archive_kind(head)
        if kind:
            self._read_archive(path, kind, size)
        else:
            self._read_data_file(None, path, head)

    def take(self, record: Record, file: str | None = None) -> None:
        """Normalize one record into an example, or note its faults."""
        try:
            self._take(record, file)
        except RecursionError:
            reason = "the record is nested too deeply"
            self.faults.add(record.line, record.prefix.rstrip("."), reason, file)

    def _take(self, record: Record, file: str | None) -> None:
        self._records += 1
        line, prefix = record.line, record.prefix
        if record.reason is not None:
            self.faults.add(line, prefix.rstrip("."), record.reason, file)
            return

        def note(name: str, reason: str) -> None:
            add = self.faults.add_of_row if record.is_row and reason == NO_QUESTION else self.faults.add
            add(line, (prefix + name).rstrip("."), reason, file)

        draft, picture = normalize(record.value, self.limits, note, self.context.question)
        image = None
        if picture is not None:
            try:
                image = self.source.locate(picture.value, file or "")
                self._used.setdefault(image, Place(line, prefix + picture.field, file))
            except ImageError as error:
                note(picture.field, error.message)
                image = self._stand_in(picture.value)
        if draft is None:
            return
        self._check_layout(draft, note)
        self._systems += draft.has_system
        identity = draft.id or f"e{len(self.examples) + 1:06d}"
        earlier = self._ids.setdefault(identity, line)
        if len(self._ids) == len(self.examples):
            note("id", f'the id "{shown(identity)}" is used before, on line {earlier}')
            identity = f"{identity}#{len(self.examples)}"
            self._ids[identity] = line
        example = Example(identity, image, draft.turns, draft.split or self._part)
        self._text_bytes += bytes_held(example)
        self.examples.append(example)

    def _stand_in(self, reference: object) -> str:
        """Return a name for a picture that is not there: examples of different ones are no repeats."""
        return f"missing:{hash(reference) if isinstance(reference, str) else self._records}"

    def check_images(self) -> None:
        """Decode every picture that a record names, once; count those of examples."""
        of_examples = distinct_images(self.examples)
        self.source.expect(self._used)
        for done, (name, stored) in enumerate(check_all(self.source, list(self._used)), start=1):
            self._tell("checking pictures", done, len(self._used))
            if isinstance(stored, TooManyPixels):
                self.faults.add(None, "image", stored.message)
                return
            if isinstance(stored, ImageError):
                place = self._used[name]
                self.faults.add(place.line, place.field, stored.message, place.file)
                continue
            if name in of_examples and stored.name not in self._pictures:
                self._pictures.add(stored.name)
                self._stored_bytes += stored.bytes
            self._stored[name] = stored.name

    @property
    def _is_whole(self) -> bool:
        """Whether no record is left out: what one would have added is not known."""
        return len(self.examples) == self._records and not self._ended_early

    def report(self) -> Report:
        """Count what was read and add the warnings about the whole, unless a record is left out."""
        examples, context = self.examples, self.context
        keys = keys_of(examples, self._stored)
        of_whole = self.warnings if self._is_whole else FaultList(0)
        answers = count_answers(examples, of_whole)
        duplicates = count_repeats(examples, self._stored, self.warnings)
        division = divide(examples, keys, self.warnings)
        warn_of_luck(examples, keys, context, of_whole)
        overlap = find_overlap(keys, context, self.warnings)
        question_lengths, answer_lengths = measure_lengths(examples, context)
        if examples and self._is_whole and not division.train_examples:
            self.faults.add(None, "split", _NOTHING_TO_LEARN)
        if self._systems:
            reason = f"the system text of {counted(self._systems, 'example')} is left out"
            self.warnings.add(None, "system", reason)
        return Report(
            format=self._format_name(),
            faults=self.faults.in_order(),
            truncated_faults=self.faults.truncated,
            warnings=tuple(self.warnings.faults),
            examples=len(examples),
            turns=sum(len(example.turns) for example in examples),
            images=len(self._pictures),
            image_bytes=self._stored_bytes,
            answers=answers.distinct,
            answers_truncated=answers.truncated,
            answer_histogram=answers.histogram,
            duplicates=duplicates,
            length_unit="tokens" if context.count_tokens else "characters",
            question_lengths=question_lengths,
            answer_lengths=answer_lengths,
            split=division,
            overlap=overlap,
        )

    def _read_archive(self, path: Path, kind: str, packed_bytes: int) -> None:
        def reached(position: int) -> None:
            self._tell("unpacking", position, packed_bytes)

        self.format = kind
        self._read_members(unpack(path, kind, self.source.folder, self.limits, self.faults, reached))

    def _read_members(self, members: list[Member]) -> None:
        data = data_members(members)
        data_names = {member.name for member in data}
        self.source.add_members(member for member in members if member.name not in data_names)
        if data:
            parts: dict[str, Part | None] = {member.name: part_of_path(member.name) for member in data}
            are_tests = {part == "test" for part in parts.values()}
            for member in sorted(data, key=lambda member: member.name):
                self._part = parts[member.name] if are_tests == {True, False} else None
                self._read_data_file(member.name, member.path, member.head)
        elif not holds_classes(members):
            if not self.faults:
                self.faults.add(None, "file", _NO_DATA_FILE)
        elif self.context.question is None:
            self.faults.add(None, "question", NO_QUESTION_OF_FOLDERS)
        else:
            self._layouts = frozenset({_FOLDERS})
            for record, name in class_records(members, self.context.question):
                if not self.take_bounded(record, name):
                    break
        unused = sum(name not in self._used for name in self.source.names if not name.startswith("inline:"))
        if unused and self.examples and self._is_whole:
            what = "folder" if self.format == "folder" else "archive"
            verb = "is" if unused == 1 else "are"
            reason = f"{counted(unused, 'file')} of the {what} {verb} not used by any example"
            self.warnings.add(None, "file", reason)

    def _read_data_file(self, name: str | None, path: Path, head: bytes) -> None:
        packing = self.format
        if head.startswith(b"PAR1"):
            self.format = "parquet"
            records: Iterator[Record] = read_parquet(path, self.limits)
        elif is_table_name(name or "") or not looks_like_json(path):
            is_table = is_table_name(name or "") or (name is None and lacks_answer(path))
            if not is_table and not looks_like_table(path):
                self._records += 1  # what it holds is left out
                what = "a picture alone" if picture_kind(head) else "this file"
                reason = f"{what} is not a data set; accepted as {_CONTAINERS} are {ACCEPTED}"
                self.faults.add(None, "file", reason, name)
                return
            self.format = "table" if packing == "unknown" else packing
            records = read_table(path, self.limits, lambda reason: self.warnings.add(1, "", reason, name))
        else:
            records = read_records(path, self.limits.max_record_bytes)
        for record in records:
            if not self.take_bounded(record, name):
                return

    def take_bounded(self, record: Record, name: str | None = None) -> bool:
        """Take a record unless there are too many already, or too much text; say whether to go on."""
        if self._records % _TOLD_EVERY == 0:
            self._tell("reading", self._records, 0)
        reason = None
        if len(self.examples) >= self.limits.max_examples:
            reason = f"more than {self.limits.max_examples} examples"
        elif self._text_bytes > self.limits.max_text_bytes:
            reason = f"the texts take more than {self.limits.max_text_bytes} bytes of memory together"
        if reason is not None:
            self._ended_early = True
            place = record.prefix.rstrip(".")
            self.faults.add(record.line, place, f"{reason}; split the data set", name)
            return False
        self.take(record, name)
        return True

    def _tell(self, title: str, done: int, total: int) -> None:
        """Say how far it is; raise _TooSlow if the time is over."""
        if time.monotonic() - self._began > self.limits.max_seconds:
            raise _TooSlow
        self.context.tell(title, done, total)

    def _check_layout(self, draft: Draft, note: Note) -> None:
        if _FOLDERS in self._layouts:
            return
        common = self._layouts & draft.layouts
        if common:
            self._layouts = common
            return
        before, here = _layout_name(self._layouts), _layout_name(draft.layouts)
        note("", f"the record is in {here} layout, those before it are {before}; one layout per data set")

    def _format_name(self) -> str:
        if not self.examples:
            return self.format
        layout = _layout_name(self._layouts)
        return layout if self.format == "unknown" else f"{layout} ({self.format})"


def with_stored_names(reading_examples: list[Example], source: ImageSource) -> list[Example]:
    """Return the examples with content-addressed picture names in place of upload names."""
    return [
        example if example.image is None else replace(example, image=source.check(example.image).name)
        for example in reading_examples
    ]


def _layout_name(layouts: frozenset[str]) -> str:
    return next((name for name in (_FOLDERS, *_LAYOUT_ORDER) if name in layouts), "unknown")
