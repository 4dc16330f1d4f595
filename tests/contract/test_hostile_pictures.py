"""Hostile pictures over HTTP, and URLs that must never be fetched: the unit tests' claims, from outside."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.contract.conftest import RunningGateway, chat_body
from tests.contract.pictures import data_url, png

CHAT = "/v1/chat/completions"


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def bomb(side: int) -> bytes:
    """Return a PNG of some kilobytes that says it has ``side`` times ``side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(20 * (50_000 // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def answered(http: httpx.Client, picture: bytes, kind: str = "png") -> httpx.Response:
    body = chat_body()
    body["messages"][0]["content"][1]["image_url"]["url"] = data_url(picture, kind)
    return http.post(CHAT, json=body)


RED = Image.new("RGB", (24, 24), (200, 30, 30))
FRAMES = [Image.new("RGB", (24, 24), color) for color in ("blue", "lime")] * 40
HOSTS = ("127.0.0.1", "localhost", "0.0.0.0", "127.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]")


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        (png("red", 1), "png"),
        (saved(Image.new("RGB", (1, 900), "red"), "PNG"), "png"),
        (saved(RED, "JPEG"), "jpeg"),
        (saved(RED, "WEBP"), "webp"),
        (saved(RED, "GIF", save_all=True, append_images=FRAMES), "gif"),
        (saved(Image.new("RGBA", (24, 24), (200, 30, 30, 90)), "PNG"), "png"),
        (saved(RED, "PNG"), "jpeg"),
    ],
    ids=["pixel", "line", "jpeg", "webp", "many-frames", "transparent", "wrong-name"],
)
def test_odd_but_good_pictures_are_answered(http: httpx.Client, picture: bytes, kind: str):
    assert answered(http, picture, kind).status_code == 200


def test_only_the_first_frame_counts(http: httpx.Client):
    frames = [Image.new("P", (24, 24), index) for index in (1, 2)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 200, 30, 30, 20, 30, 220])
    moving = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    still = saved(frames[0], "GIF")
    one, two = (answered(http, data, "gif").json()["choices"][0]["message"] for data in (moving, still))
    assert one == two


@pytest.mark.parametrize(
    "picture",
    [
        bomb(50_000),
        bomb(2**31 - 1),
        saved(RED, "PNG")[:60],
        saved(RED, "JPEG")[:-200],
        saved(RED, "BMP"),
        saved(RED, "TIFF"),
        saved(RED, "ICO"),
        b"%PDF-1.7\n",
        b"GIF89a" + bytes(7),
        b"\x89PNG\r\n\x1a\n",
        bytes(1000),
    ],
    ids=["bomb", "largest", "png-cut", "jpeg-cut", "bmp", "tiff", "ico", "pdf", "gif", "head", "zeros"],
)
def test_bad_pictures_are_refused_and_say_nothing_of_the_inside(
    running: RunningGateway, http: httpx.Client, picture: bytes
):
    form = {"files": {"image": ("a.png", picture)}, "data": {"question": "What?"}}
    for answer in (answered(http, picture), http.post("/v1/vqa", **form)):
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert not any(inside in answer.text for inside in ("0x", str(running.home), "PIL", "BytesIO"))
    assert answered(http, png("red")).status_code == 200


class Listener:
    """Accept connections on a port of this machine and count them."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.heard = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.heard += 1
            connection.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listening = Listener()
    yield listening
    listening.socket.close()


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[RunningGateway]:
    """Return a gateway whose operator listed this very machine, which must not help."""
    hosts = "127.0.0.1,localhost,0.0.0.0,[::1],127.1"
    with RunningGateway(tmp_path_factory.mktemp("home"), tiny_base, image_url_hosts=hosts) as gateway:
        yield gateway.wait_ready()


@pytest.mark.parametrize("host", [*HOSTS, "ok.com\\@127.0.0.1"])
def test_no_spelling_of_this_machine_is_fetched(lenient: RunningGateway, listener: Listener, host: str):
    url = f"http://{host}:{listener.port}/x.png"
    body = chat_body()
    body["messages"][0]["content"][1]["image_url"]["url"] = url
    requests = (
        lenient.http.post(CHAT, json=body),
        lenient.http.post("/v1/vqa", json={"question": "What?", "image": url}),
        lenient.http.get("/v1/routing:explain", params={"question": "What?", "image": url}),
    )
    for answer in requests:
        assert answer.status_code == 400, answer.text
    assert listener.heard == 0


def test_a_url_in_a_text_or_in_a_data_set_is_never_fetched(lenient: RunningGateway, listener: Listener):
    url = f"http://127.0.0.1:{listener.port}/x.png"
    said = chat_body(f"![a picture]({url}) <img src='{url}'> {url}")
    assert lenient.http.post(CHAT, json=said).status_code == 200
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    lines = (
        [{"image": url, "question": "What?", "answer": "red"}],
        [{"id": "1", "image": url, "conversations": turns}],
        [{"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "red"}]}],
    )
    for line in lines:
        report = lenient.http.post(
            "/v1/datasets:validate", files={"file": ("d.json", json.dumps(line))}
        ).json()
        assert report["ok"] is False, report
    assert listener.heard == 0
