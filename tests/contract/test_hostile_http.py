"""Hostile HTTP: heads and bodies that are huge, endless, slow, cut off or no HTTP; the server stays well."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any, Self

import httpx
import pytest

from tests.contract.conftest import KEY, RunningGateway, chat_body, wait_for
from tests.contract.pictures import llava_zip

CHAT = "/v1/chat/completions"
PATIENCE_SECONDS = 5.0
"""As long as an idle connection is kept in these tests, so long may a head take."""


@pytest.fixture(autouse=True)
def the_next_good_request_succeeds(running: RunningGateway, http: httpx.Client) -> Iterator[None]:
    yield
    assert http.post(CHAT, json=chat_body()).status_code == 200
    wait_for(
        lambda: not (running.home / "uploads").exists() or not list((running.home / "uploads").iterdir())
    )


class Line:
    """A connection on which anything can be said."""

    def __init__(self, running: RunningGateway) -> None:
        host, port = running.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError:
            pass  # the server has heard enough; what it answered is still to be read

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of all that comes until the server hangs up."""
        data = b""
        while True:
            try:
                more = self.socket.recv(65536)
            except ConnectionResetError:
                break
            if not more:
                break
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        return int(first.split(" ")[1]), headers, body

    def refused(self, status: int, code: str) -> dict[str, Any]:
        """Check that the answer is an error in the one shape."""
        found, headers, body = self.answer()
        assert (found, headers["content-type"]) == (status, "application/json"), body
        assert headers["x-request-id"]
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == code
        return error


def head(path: str = CHAT, method: str = "POST", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x", f"authorization: Bearer {KEY}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize(
    "bomb",
    [
        b"x-one: " + b"y" * 200_000,
        b"\r\n".join(b"x-%d: y" % number for number in range(20_000)),
        b"cookie: " + b"a=b; " * 30_000,
    ],
    ids=["one", "many", "cookies"],
)
def test_header_bombs(running: RunningGateway, bomb: bytes):
    with Line(running) as line:
        line.say(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + bomb + b"\r\n\r\n")
        assert "send fewer" in line.refused(431, "headers_too_large")["message"]


def test_a_head_is_bounded_to_the_byte_however_it_comes(running: RunningGateway):
    """The limit of these tests is 16 KiB; what comes in one piece is measured as well."""
    limit = 16 * 1024
    bare = head("/v1/models", "GET", connection="close", x_fill="")
    for size, pieces in ((limit, 1), (limit, 2), (limit + 1, 1), (limit + 1, 2), (2 * limit, 1)):
        whole = bare.replace(b"x-fill: ", b"x-fill: " + b"y" * (size - len(bare)))
        assert len(whole) == size
        with Line(running) as line:
            line.say(whole[: len(whole) // pieces])
            line.say(whole[len(whole) // pieces :])
            if size == limit:
                assert line.answer()[0] == 200
            else:
                assert str(limit) in line.refused(431, "headers_too_large")["message"]


def test_a_body_and_a_next_request_do_not_count_as_head(running: RunningGateway):
    body = json.dumps({"rating": "up", "answer": "y" * 20_000}).encode()
    first = head("/v1/feedback", content_type="application/json", content_length=str(len(body))) + body
    with Line(running) as line:
        line.say(first + head("/v1/models", "GET", connection="close"))
        status, _, answers = line.answer()
    assert status == 200
    assert b"HTTP/1.1 200" in answers
    assert b"strata@base" in answers


def test_a_request_line_without_end(running: RunningGateway):
    with Line(running) as line:
        line.say(b"GET /" + b"a" * 300_000)
        line.refused(431, "headers_too_large")


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
        b"hello there\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nbad header: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: \x00\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\nhello",
    ],
    ids=["tls", "words", "no-host", "two-hosts", "name", "nul", "lengths", "negative", "encoding"],
)
def test_what_is_no_http(running: RunningGateway, said: bytes):
    with Line(running) as line:
        line.say(said)
        line.refused(400, "invalid_http")


def test_a_broken_chunk_ends_the_request(running: RunningGateway):
    with Line(running) as line:
        line.say(head(content_type="application/json", transfer_encoding="chunked") + b"ZZ\r\nx\r\n")
        line.refused(400, "invalid_http")


def test_length_and_chunks_together_do_not_smuggle_a_request(running: RunningGateway):
    """What a proxy may take for the next request is never answered as one."""
    inner = head("/v1/models", "GET").decode()
    with Line(running) as line:
        body = f"0\r\n\r\n{inner}"
        line.say(
            head(content_type="application/json", content_length=str(len(body)), transfer_encoding="chunked")
            + body.encode()
        )
        line.socket.settimeout(2)
        try:
            said = line.answer()[2]
        except TimeoutError:
            pytest.fail("the server keeps a connection whose framing is in doubt")
    assert b"strata@base" not in said


def test_an_upgrade_is_not_taken(running: RunningGateway):
    wanted = {"upgrade": "websocket", "sec_websocket_version": "13", "sec_websocket_key": "x3JJHMbDL1EzLkh9"}
    with Line(running) as line:
        line.say(head("/v1/models", "GET", connection="Upgrade, close", **wanted))
        status, _, body = line.answer()
    assert status == 200
    assert b"strata@base" in body


def test_heads_that_never_end_are_given_up(running: RunningGateway, http: httpx.Client):
    """Twenty slow-loris connections cost nobody anything, and each is ended with the reason."""
    lines = [Line(running) for _ in range(20)]
    began = time.monotonic()
    try:
        for line in lines:
            line.say(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        assert http.post(CHAT, json=chat_body()).status_code == 200
        for number in range(4):
            time.sleep(PATIENCE_SECONDS / 5)
            for line in lines:
                line.say(b"x-%d: slow\r\n" % number)
        for line in lines:
            assert "too slowly" in line.refused(408, "head_timeout")["message"]
    finally:
        for line in lines:
            line.socket.close()
    assert time.monotonic() - began < 2 * PATIENCE_SECONDS


def test_a_connection_that_says_nothing_is_closed(running: RunningGateway):
    with Line(running) as line:
        assert line.socket.recv(1) == b""


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
def test_bodies_that_drip_are_given_up(running: RunningGateway, kind: str):
    """A byte now and then keeps no connection: the whole body has a least speed, too."""
    path = "/v1/files" if kind.startswith("multipart") else CHAT
    began = time.monotonic()
    with Line(running) as line:
        line.say(head(path, content_type=kind, content_length="100000"))
        line.socket.settimeout(0.5)
        answered = b""
        while time.monotonic() - began < 30 and not answered:
            line.say(b"-")
            try:
                answered = line.socket.recv(65536)
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
    assert answered.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 15


def endless_parts() -> Iterator[bytes]:
    for number in range(1_000_000):
        yield b'--b\r\nContent-Disposition: form-data; name="p%d"\r\n\r\nx\r\n' % number


def endless_files() -> Iterator[bytes]:
    for number in range(1_000_000):
        name = b'name="f%d"; filename="f%d"' % (number, number)
        yield b"--b\r\nContent-Disposition: form-data; " + name + b"\r\n\r\nx\r\n"


def endless_field() -> Iterator[bytes]:
    yield b'--b\r\nContent-Disposition: form-data; name="question"\r\n\r\n'
    for _ in range(1_000_000):
        yield b"y" * 4096


def endless_preamble() -> Iterator[bytes]:
    for _ in range(1_000_000):
        yield b"no boundary here\r\n" * 200


@pytest.mark.parametrize("parts", [endless_parts, endless_files, endless_field, endless_preamble])
@pytest.mark.parametrize("path", ["/v1/files", "/v1/vqa"])
def test_forms_without_end(http: httpx.Client, path: str, parts: Any):
    kind = {"content-type": "multipart/form-data; boundary=b"}
    try:
        answer = http.post(path, content=parts(), headers=kind, timeout=60)
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        return  # hung up on, which is an answer to what never ends
    assert answer.status_code in (400, 413), answer.text
    assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/v1/files", "/v1/tasks/colors/batches", "/v1/datasets", "/v1/vqa"])
def test_a_client_that_goes_in_mid_upload_leaves_nothing(running: RunningGateway, path: str):
    kept = len(list((running.home / "files").glob("*"))), len(running.gateway.datasets.ids())
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="c.zip"\r\n\r\n' + llava_zip(6)
    with Line(running) as line:
        kind = "multipart/form-data; boundary=b"
        line.say(head(path, content_type=kind, content_length=str(10 * len(body))) + body)
        wait_for(lambda: any((running.home / "uploads").iterdir()), 20)
    wait_for(lambda: not any((running.home / "uploads").iterdir()), 20)
    assert (len(list((running.home / "files").glob("*"))), len(running.gateway.datasets.ids())) == kept


def test_range_storms_get_the_whole_file_once(http: httpx.Client):
    data = llava_zip(6)
    sent = http.post("/v1/files", files={"file": ("c.zip", data)}, data={"purpose": "fine-tune"}).json()
    storms = (
        "bytes=" + ",".join(f"{n}-{n}" for n in range(1000)),
        "bytes=" + ",".join(["0-"] * 1000),
        "bytes=-1",
        "bytes=99999999999999-",
        "bytes=5-1",
        "lines=0-5",
    )
    for storm in storms:
        answer = http.get(f"/v1/files/{sent['id']}/content", headers={"range": storm})
        assert (answer.status_code, answer.content) == (200, data)
        assert "content-range" not in answer.headers


def test_a_compressed_body_is_not_unpacked(http: httpx.Client):
    """No decompression, no decompression bomb: the bytes are simply no JSON."""
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = http.post(CHAT, content=b"\x1f\x8b\x08" + bytes(100), headers=headers)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
