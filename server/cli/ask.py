"""``strata chat | explain``: ask about pictures, and see which increments answer."""

from __future__ import annotations

import argparse
import base64
import math
import sys
from pathlib import Path
from typing import Any

from adapter_store.errors import InputError
from adapter_store.names import BASE_VERSION
from server.cli.arguments import add_verb, client_of
from server.cli.client import Client
from server.cli.output import clean, percent, print_json, stderr, stdout, table

_SHOWN = ("cosine", "intrinsic", "contextual", "coefficient")
_MAX_IMAGE_BYTES = 20 * 1024 * 1024
_TYPES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif"}


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module."""
    parser = add_verb(verbs, "chat", "ask about a picture or talk; the answer streams", _chat, client=True)
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="without it: a conversation")
    parser.add_argument(
        "--image", action="append", default=[], type=Path, metavar="FILE", help="a picture, repeatable"
    )
    parser.add_argument("--model", help="what answers: NAME, NAME@canary, NAME@v3, NAME@base (default: NAME)")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="longest answer")
    parser.add_argument(
        "--temperature", type=finite, default=0.0, metavar="T", help="0 is the most likely answer"
    )
    parser = add_verb(
        verbs, "explain", "show which increments answer a question, and why", _explain, client=True
    )
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("--image", type=Path, metavar="FILE", help="the picture asked about")
    parser.add_argument("--model", help="as of chat")


def finite(text: str) -> float:
    """Return the number that a flag's text means; what is none, or not finite, is a wrong command line."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return number


def image_part(path: Path) -> dict[str, Any]:
    """Return the message part that carries a picture file.

    Raises:
        InputError: If the file cannot be read or is too large.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the picture {path}: {error.strerror}", param="image") from None
    if len(content) > _MAX_IMAGE_BYTES:
        raise InputError(
            f"{path} has {len(content)} bytes; at most {_MAX_IMAGE_BYTES} are sent", param="image"
        )
    kind = _TYPES.get(path.suffix.lower(), "png")
    url = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _explain(args: argparse.Namespace) -> int:
    body = {"question": args.question, "model": args.model or args.name}
    if args.image is not None:
        body["image"] = image_part(args.image)["image_url"]["url"]
    with client_of(args) as client:
        found = client.post("/v1/routing:explain", json=body)
    if args.json:
        print_json(found)
        return 0
    if found["version"] == BASE_VERSION:
        stdout.print(f"{clean(str(found['model']))} is the plain base now: no increments, nothing to explain")
        stdout.print(
            "teach a task: strata submit DATA --task NAME --wait; or name a version of strata versions: "
            f"--model {clean(args.name)}@v1"
        )
        return 0
    who = "the base alone" if found["answered_by_base"] else f"the increments of {found['answered_by']}"
    bar = f"best cosine {found['best_cosine']:.3f}, the base answers under {found['tau']:.3f}"
    stdout.print(f"{clean(found['version'])}: {clean(who)} ({bar})")
    rows = [(str(r["row"]), r["task"], *(f"{r[name]:.3f}" for name in _SHOWN)) for r in found["increments"]]
    if rows:
        names = ("increment", "task", *_SHOWN)
        stdout.print(table(f"contextual share {percent(found['contextual_share'])}", names, rows))
    return 0


def _chat(args: argparse.Namespace) -> int:
    conversation = _Conversation(args)
    with client_of(args, timeout_seconds=300.0) as client:
        if args.question is not None:
            conversation.say(client, args.question, args.image)
        elif not sys.stdin.isatty():
            conversation.say(client, sys.stdin.read().strip(), args.image)
        else:
            _converse(conversation, client, args.image)
    return 0


def _converse(conversation: _Conversation, client: Client, images: list[Path]) -> None:
    stderr.print("[dim]/image FILE shows a picture, /new starts over, an empty line or Ctrl-D ends[/]")
    while True:
        try:
            line = stderr.input("[bold]you >[/] ").strip()
        except EOFError:
            return
        if not line:
            return
        if line == "/new":
            conversation.forget()
        elif line.startswith("/image "):
            images = [*images, Path(line.removeprefix("/image ").strip())]
        else:
            try:
                conversation.say(client, line, images)
                images = []
            except InputError as error:
                stderr.print(f"[red]{clean(error.message)}[/]")


class _Conversation:
    """Keep the turns so far and add one at a time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._settings = {
            "model": args.model or args.name,
            "max_tokens": args.max_tokens,
            "temperature": args.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        self._as_json = args.json
        self._messages: list[dict[str, Any]] = []

    def forget(self) -> None:
        """Start over."""
        self._messages = []

    def say(self, client: Client, text: str, images: list[Path]) -> None:
        """Ask, and write the answer as it comes."""
        if not text:
            raise InputError("the question is empty", param="question")
        content = [*(image_part(path) for path in images), {"type": "text", "text": text}]
        asked = [*self._messages, {"role": "user", "content": content}]
        answer, last = self._receive(client, asked)
        self._messages = [*asked, {"role": "assistant", "content": answer}]
        if self._as_json:
            print_json({"answer": answer, **last})
        else:
            stdout.print()
            stderr.print(f"[dim]{clean(str(last['model']))} · {clean(str(last['version']))}[/]")

    def _receive(self, client: Client, messages: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
        answer = ""
        last: dict[str, Any] = {"model": None, "version": None, "finish_reason": None, "usage": None}
        for event in client.stream("/v1/chat/completions", {**self._settings, "messages": messages}):
            last["model"] = event.get("model", last["model"])
            last["version"] = event.get("system_fingerprint") or last["version"]
            last["usage"] = event.get("usage") or last["usage"]
            for choice in event.get("choices", []):
                piece = choice.get("delta", {}).get("content") or ""
                last["finish_reason"] = choice.get("finish_reason") or last["finish_reason"]
                answer += piece
                if piece and not self._as_json:
                    stdout.print(clean(piece), end="")
        return answer, last
