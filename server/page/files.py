"""The files of the page: a fixed list, read once, each with its type and a tag of its content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX = "index.html"
NAMES = (
    INDEX,
    "answers.js",
    "api.js",
    "canary.js",
    "charts.js",
    "chat.css",
    "chat.js",
    "dialogs.js",
    "dom.js",
    "feedback.js",
    "heat.js",
    "icon.svg",
    "job.js",
    "jobs.js",
    "main.js",
    "memory.css",
    "memory.js",
    "outcome.js",
    "pictures.js",
    "report.js",
    "style.css",
    "tabs.js",
    "teach.css",
    "teach.js",
    "versions.js",
)
"""Nothing else is served: a name that is not listed is no file of the page, whatever lies in the folder."""

PREFIX = "/page/"
PAGE_PATHS = frozenset(PREFIX + name for name in NAMES if name != INDEX)


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page as it is sent."""

    content: bytes
    media_type: str
    etag: str


@cache
def page_file(name: str) -> PageFile:
    """Return a listed file; raise KeyError for any other name."""
    if name not in NAMES:
        raise KeyError(name)
    content = (_FOLDER / name).read_bytes()
    return PageFile(content, _TYPES[Path(name).suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
