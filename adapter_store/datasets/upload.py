"""Read one uploaded file: tell its format by content and report every fault at once."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapter_store.datasets.archive import Member, unpack
from adapter_store.datasets.archive_members import archive_kind
from adapter_store.datasets.formats import ACCEPTED, Draft, Note, normalize
from adapter_store.datasets.json_stream import Record, looks_like_json, read_records
from adapter_store.datasets.parquet import read_parquet
from adapter_store.datasets.records import Example, FaultList, Limits, Report, shown
from adapter_store.datasets.sources import ImageSource
from adapter_store.errors import ImageError
from adapter_store.images import picture_kind

_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_DATA_SUFFIXES = (".parquet", "")
_LAYOUT_ORDER = ("examples", "llava", "openai", "sharegpt")
_NO_DATA_FILE = (
    f"the archive holds no data file (JSON, JSONL or parquet) beside its pictures; accepted are {ACCEPTED}. "
    "From one subfolder of pictures per answer, examples/teach.py makes and sends one"
)
_HISTOGRAM = 20
_MAX_ANSWERS_COUNTED = 50_000


def read_upload(
    path: Path, *, limits: Limits | None = None, work_folder: Path | None = None
) -> tuple[list[Example], ImageSource, Report]:
    """Read an upload of any accepted format.

    Args:
        path: a JSON, JSONL or parquet file, or a zip, tar or tar.gz of one with pictures.
        limits: bounds on size; the defaults suit one machine.
        work_folder: an empty folder for unpacked files; a temporary one if None.

    Returns:
        The examples, whose ``image`` names a picture of the source; the source, which
        the caller closes; and the report. With faults the examples are not complete.
    """
    limits = limits or Limits()
    folder = work_folder or Path(tempfile.mkdtemp(prefix="strata-upload-"))
    source = ImageSource(folder, limits)
    try:
        reading = Reading(limits, source)
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


@dataclass(slots=True)
class Reading:
    """The growing outcome of reading one upload."""

    limits: Limits
    source: ImageSource
    examples: list[Example] = field(default_factory=list)
    format: str = "unknown"
    faults: FaultList = field(init=False)
    warnings: FaultList = field(init=False)
    _layouts: frozenset[str] = frozenset(_LAYOUT_ORDER)
    _ids: dict[str, int] = field(default_factory=dict)
    _used: dict[str, Place] = field(default_factory=dict)
    _systems: int = 0
    _records: int = 0
    _stored: dict[str, str] = field(default_factory=dict)
    _pictures: set[str] = field(default_factory=set)
    _stored_bytes: int = 0

    def __post_init__(self) -> None:
        self.faults = FaultList(self.limits.max_faults)
        self.warnings = FaultList(self.limits.max_faults)

    def read(self, path: Path) -> None:
        """Read one file, packed or not, then check every picture that it uses."""
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
        kind = archive_kind(head)
        if kind:
            self._read_archive(path, kind)
        else:
            self._read_data_file(None, path, head)
        if self._records == 0 and not self.faults:
            self.faults.add(None, "file", "the data set holds no examples")
        self.check_images()

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
            self.faults.add(line, (prefix + name).rstrip("."), reason, file)

        draft = normalize(record.value, self.limits, note)
        if draft is None:
            return
        self._check_layout(draft, note)
        image = None
        if draft.image is not None:
            try:
                image = self.source.locate(draft.image.value, file or "")
                self._used.setdefault(image, Place(line, prefix + draft.image.field, file))
            except ImageError as error:
                note(draft.image.field, error.message)
        self._systems += draft.has_system
        identity = draft.id or f"e{len(self.examples) + 1:06d}"
        earlier = self._ids.setdefault(identity, line)
        if len(self._ids) == len(self.examples):
            note("id", f'the id "{shown(identity)}" is used before, on line {earlier}')
            identity = f"{identity}#{len(self.examples)}"
            self._ids[identity] = line
        self.examples.append(Example(identity, image, draft.turns))

    def check_images(self) -> None:
        """Decode every picture that an example uses, once."""
        for name, place in self._used.items():
            try:
                stored = self.source.check(name)
            except ImageError as error:
                self.faults.add(place.line, place.field, error.message, place.file)
                continue
            if stored.name not in self._pictures:
                self._pictures.add(stored.name)
                self._stored_bytes += stored.bytes
            self._stored[name] = stored.name

    def report(self) -> Report:
        """Count what was read and add the warnings about the whole."""
        answers: Counter[str] = Counter()
        for example in self.examples:
            for turn in example.turns:
                if len(answers) < _MAX_ANSWERS_COUNTED or turn.answer in answers:
                    answers[turn.answer] += 1
        duplicates = self._count_repeats()
        self._warn(answers, duplicates)
        common = sorted(answers.items(), key=lambda pair: (-pair[1], pair[0]))[:_HISTOGRAM]
        return Report(
            format=self._format_name(),
            faults=tuple(self.faults.faults),
            truncated_faults=self.faults.truncated,
            warnings=tuple(self.warnings.faults),
            examples=len(self.examples),
            turns=sum(len(example.turns) for example in self.examples),
            images=len(self._pictures),
            image_bytes=self._stored_bytes,
            answers=len(answers),
            answer_histogram=tuple((shown(text, 120), count) for text, count in common),
            duplicates=duplicates,
        )

    def _read_archive(self, path: Path, kind: str) -> None:
        members = unpack(path, kind, self.source.folder, self.limits, self.faults)
        self.format = kind
        data = [member for member in members if _is_data(member, alone=len(members) == 1)]
        data_names = {member.name for member in data}
        self.source.add_members(member for member in members if member.name not in data_names)
        if not data and not self.faults:
            self.faults.add(None, "file", _NO_DATA_FILE)
        for member in sorted(data, key=lambda member: member.name):
            self._read_data_file(member.name, member.path, member.head)
        unused = sum(name not in self._used for name in self.source.names if not name.startswith("inline:"))
        if unused and data:
            self.warnings.add(None, "file", f"{unused} files of the archive are not used by any example")

    def _read_data_file(self, name: str | None, path: Path, head: bytes) -> None:
        if head.startswith(b"PAR1"):
            self.format = "parquet"
            records: Iterator[Record] = read_parquet(path, self.limits)
        elif looks_like_json(path):
            records = read_records(path, self.limits.max_record_bytes)
        else:
            what = "a picture alone" if picture_kind(head) else "this file"
            self.faults.add(None, "file", f"{what} is not a data set; accepted as JSON, JSONL, parquet, zip "
                            f"or tar.gz are {ACCEPTED}", name)  # fmt: skip
            return
        for record in records:
            if len(self.examples) >= self.limits.max_examples:
                most = self.limits.max_examples
                reason = f"more than {most} examples; split the data set"
                self.faults.add(record.line, record.prefix.rstrip("."), reason, name)
                return
            self.take(record, name)

    def _check_layout(self, draft: Draft, note: Note) -> None:
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

    def _count_repeats(self) -> int:
        seen: set[int] = set()
        answers: dict[int, int] = {}
        repeats = conflicts = 0
        for example in self.examples:
            picture = self._stored.get(example.image or "", example.image)
            whole = hash((picture, example.turns))
            asked = hash((picture, tuple(turn.question for turn in example.turns)))
            repeats += whole in seen
            conflicts += answers.setdefault(asked, whole) != whole
            seen.add(whole)
        if conflicts:
            reason = f"{conflicts} examples ask the same of the same picture but answer otherwise"
            self.warnings.add(None, "answer", reason)
        return repeats

    def _warn(self, answers: Counter[str], duplicates: int) -> None:
        if len(answers) == 1 and len(self.examples) > 1:
            reason = f'all answers are "{shown(next(iter(answers)))}"; nothing can be told apart by them'
            self.warnings.add(None, "answer", reason)
        if duplicates:
            self.warnings.add(None, "", f"{duplicates} examples repeat an earlier one word for word")
        if self._systems:
            self.warnings.add(None, "system", f"the system text of {self._systems} examples is left out")


def with_stored_names(reading_examples: list[Example], source: ImageSource) -> list[Example]:
    """Return the examples with content-addressed picture names in place of upload names."""
    return [
        example if example.image is None else replace(example, image=source.check(example.image).name)
        for example in reading_examples
    ]


def _layout_name(layouts: frozenset[str]) -> str:
    return next((name for name in _LAYOUT_ORDER if name in layouts), "unknown")


def _is_data(member: Member, *, alone: bool) -> bool:
    last = member.name.rsplit("/", 1)[-1]
    if last in _NOT_DATA or last.startswith("."):
        return False
    suffix = "." + last.rsplit(".", 1)[-1].lower() if "." in last else ""
    if suffix in _JSON_SUFFIXES:
        return True  # what it says it is: if its content is no JSON, that is a fault to report
    return (alone or suffix in _DATA_SUFFIXES) and (
        member.head.startswith(b"PAR1") or looks_like_json(member.path)
    )
