"""A real HTTP server on this machine that answers as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Asked(NamedTuple):
    """One request; its path without the query."""

    method: str
    path: str
    headers: Message


class Reply(NamedTuple):
    """What is answered; ``headers`` beside the type and the length of the body."""

    status: int
    kind: str
    body: bytes
    headers: Mapping[str, str] = {}


def reply(status: int, value: object) -> Reply:
    """Return a value as JSON."""
    return Reply(status, "application/json", json.dumps(value).encode())


class ScriptedServer(ThreadingHTTPServer):
    """Answer each request with what a function returns for it; None hangs up without a word."""

    allow_reuse_address = True

    def __init__(self, answer: Callable[[Asked], Reply | None], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.answer = answer
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        """Answer nobody any more; calling it again does nothing."""
        if self._thread.is_alive():
            self.shutdown()
            self.server_close()
            self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer  # type: ignore[assignment]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        answer = self.server.answer(Asked(self.command, self.path.partition("?")[0], self.headers))
        if answer is None:
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        return None
