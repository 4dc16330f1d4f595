"""Structured logs: one JSON object a line, so that nothing a client sends can forge or color a line."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

LOGGER_NAME = "strata"


class JsonFormatter(logging.Formatter):
    """Write a record as one line of ASCII JSON; control characters come out escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for ``record``; ``extra={"fields": {...}}`` adds fields."""
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            entry.update(fields)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure_logs(level: str = "info") -> None:
    """Send all logs to standard error as JSON lines: ours, uvicorn's, and any library's warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    for name in (LOGGER_NAME, "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(level.upper())


def log(
    message: str, level: int = logging.INFO, *, error: BaseException | None = None, **fields: Any
) -> None:
    """Log ``message`` with fields; pass ``error`` to add its traceback."""
    logging.getLogger(LOGGER_NAME).log(level, message, extra={"fields": fields}, exc_info=error)
