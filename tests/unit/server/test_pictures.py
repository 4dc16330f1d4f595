"""Picture URLs: hosts by list, public addresses, no redirects, connected to the address that was checked."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest

from adapter_store.errors import ImageError
from server import pictures
from server.pictures import PictureLoader, is_public, parse_hosts
from tests.contract.pictures import data_url, png


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 10.1.2.3 192.168.0.1 172.16.0.1 169.254.169.254 0.0.0.0 100.64.0.1 ::1 fe80::1 fc00::1"
    " ::ffff:127.0.0.1 ::ffff:8.8.8.8 2002:7f00:1:: 224.0.0.1 255.255.255.255 nonsense".split(),
)
def test_addresses_that_are_not_public(address: str):
    assert not is_public(address)


def test_public_addresses():
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1:248:1893:25c8:1946")


async def test_inline_pictures_need_no_host():
    image = await PictureLoader().load(data_url(png("red", 5)))
    assert (image.mode, image.size) == ("RGB", (5, 5))


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.com/x.png",
        "http://ok.com.evil.com/x.png",
        "http://ok.com\\@127.0.0.1/",
        "http://ok.com@127.0.0.1/",
        "http://user@ok.com/",
        "http://ok.com:8080/x.png",
        "http://ok.com:x/",
        "http:///x.png",
        "//ok.com/x.png",
        "gopher://ok.com/",
        "http://ok.com/\r\nhost: evil",
        "http://оk.com/",
    ],
)
async def test_urls_that_are_refused_before_any_look_up(url: str):
    async def never(host: str, port: int) -> list[str]:
        raise AssertionError("looked up")

    with pytest.raises(ImageError):
        await PictureLoader(parse_hosts("ok.com"), resolve=never).load(url)


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1"], ["93.184.216.34", "10.0.0.1"]])
async def test_every_address_of_a_listed_host_must_be_public(addresses: list[str]):
    async def resolve(host: str, port: int) -> list[str]:
        return addresses

    with pytest.raises(ImageError, match="no public address"):
        await PictureLoader(parse_hosts("ok.com"), resolve=resolve).load("https://ok.com/x.png")


class Site(http.server.BaseHTTPRequestHandler):
    seen: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.seen.append(self.headers["host"])
        if self.path == "/away":
            self.send_response(302)
            self.send_header("location", "http://127.0.0.1/")
            self.end_headers()
            return
        body = png("blue", 7) if self.path == "/x.png" else b"x" * 200_000
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def site() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


async def test_a_listed_host_is_fetched_at_the_checked_address(site: int, monkeypatch: pytest.MonkeyPatch):
    looked_up: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"]

    monkeypatch.setattr(pictures, "is_public", lambda address: True)
    loader = PictureLoader(parse_hosts(f"ok.test:{site}"), resolve=resolve, max_bytes=100_000)
    assert (await loader.load(f"http://ok.test:{site}/x.png")).size == (7, 7)
    assert looked_up == ["ok.test"]
    assert Site.seen == [f"ok.test:{site}"]
    with pytest.raises(ImageError, match="redirects are not followed"):
        await loader.load(f"http://ok.test:{site}/away")
    with pytest.raises(ImageError, match="larger"):
        await loader.load(f"http://ok.test:{site}/big")
