"""Tell which files of an upload hold records; all others are there to be referred to."""

from __future__ import annotations

from adapter_store.datasets.archive import Member
from adapter_store.datasets.json_stream import looks_like_json
from adapter_store.datasets.table import TABLE_SUFFIXES, looks_like_table
from adapter_store.images import picture_kind

_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_DATA_SUFFIXES = (".parquet", "")


def data_members(members: list[Member]) -> list[Member]:
    """Return the files that hold records; tables beside them only if their first line names known columns."""
    alone = len(members) == 1
    data = [member for member in members if _is_data(member, alone=alone)]
    tables = [member for member in members if is_table_name(member.name)]
    readable = [member for member in tables if looks_like_table(member.path)]
    return data + (readable if data or readable else tables)


def is_table_name(name: str) -> bool:
    """Say whether a file is a table by its name."""
    return name.lower().endswith(TABLE_SUFFIXES) and not name.rsplit("/", 1)[-1].startswith(".")


def _is_data(member: Member, *, alone: bool) -> bool:
    last = member.name.rsplit("/", 1)[-1]
    if last in _NOT_DATA or last.startswith(".") or is_table_name(last):
        return False
    suffix = "." + last.rsplit(".", 1)[-1].lower() if "." in last else ""
    if suffix in _JSON_SUFFIXES:
        return True  # what it says it is: if its content is no JSON, that is a fault to report
    if picture_kind(member.head[:12]) is not None:
        return False  # it lies among the others and is no file to look into
    return (alone or suffix in _DATA_SUFFIXES) and (
        member.head.startswith(b"PAR1") or looks_like_json(member.path) or looks_like_table(member.path)
    )
