"""Know the names that people give to the columns of a table and to the fields of a plain record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adapter_store.datasets.records import shown

COLUMNS: dict[str, tuple[str, ...]] = {
    "image": (
        "image",
        "file_name",
        "filename",
        "image_path",
        "path",
        "file",
        "filepath",
        "img_path",
        "img",
        "picture",
    ),
    "question": ("question", "query", "prompt", "instruction"),
    "answer": ("answer", "label", "caption", "response", "output", "text", "class", "class_name", "target"),
    "id": ("id",),
    "split": ("split",),
}
"""What a column is for, and the names it may have; of two that are there the earlier counts."""
NEEDED = "a picture ({}), a question ({}) and an answer ({})".format(
    *(", ".join(COLUMNS[use][:4]) for use in ("image", "question", "answer"))
)
"""The columns that data without conversations has, by their commonest names."""


def columns_of(names: Iterable[str]) -> dict[str, str]:
    """Return which of the names serves as image, question, answer, id and split; case does not matter."""
    given: dict[str, str] = {}
    for name in names:
        given.setdefault(_plain(name), name)
    return {
        use: next(given[name] for name in known if name in given)
        for use, known in COLUMNS.items()
        if any(name in given for name in known)
    }


def missing_answer(names: Sequence[str]) -> str:
    """Return what is said of columns that are known but for one that serves as the answer."""
    found = shown(", ".join(names[:6]))
    *most, last = COLUMNS["answer"]
    return f"the answer is missing: call its column {', '.join(most)} or {last} (found: {found})"


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
