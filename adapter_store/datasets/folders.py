"""Read pictures that lie in one folder for each answer, with one question asked of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from adapter_store.datasets.archive import Member
from adapter_store.datasets.json_stream import Record
from adapter_store.datasets.splits import part_of_folders
from adapter_store.images import picture_kind

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")


def holds_classes(members: Iterable[Member]) -> bool:
    """Say whether some picture lies in a folder that could be its answer."""
    return any(_is_picture(member) and _answer(member.name) is not None for member in members)


def class_records(members: Iterable[Member], question: str) -> Iterator[tuple[Record, str]]:
    """Yield a record and its file for each picture: ``train/robin/1.png`` is answered with "robin".

    A folder further up that is named train, test or val says which part it belongs to.
    """
    for member in sorted(members, key=lambda member: member.name):
        if not _is_picture(member):
            continue
        answer = _answer(member.name)
        if answer is None:
            reason = "the picture lies in no folder of its own answer, as robin/1.png does"
            yield Record(None, None, reason=reason), member.name
            continue
        split = part_of_folders(member.name.split("/")[:-2])
        row = {"image": member.name, "question": question, "answer": answer, "split": split}
        yield Record(None, None, row), member.name


def _is_picture(member: Member) -> bool:
    """Say whether a file is a picture, or says by its name that it should be one."""
    return picture_kind(member.head[:12]) is not None or member.name.lower().endswith(_SUFFIXES)


def _answer(name: str) -> str | None:
    parts = name.split("/")
    return parts[-2] if len(parts) > 1 and part_of_folders(parts[-2:-1]) is None else None
