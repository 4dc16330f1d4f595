"""Picture URLs: hosts by list, public addresses, no redirects, connected to the address that was checked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from adapter_store.errors import ImageError
from server import pictures
from server.pictures import PictureLoader, is_public, parse_hosts
from tests.contract.pictures import data_url, png
from tests.scripted_http import Asked, Reply, ScriptedServer


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
    loader = PictureLoader()
    async with loader.decoded([await loader.fetch(data_url(png("red", 5)))]) as (image,):
        assert (image.mode, image.size) == ("RGB", (5, 5))


async def test_the_pictures_of_one_request_share_a_budget():
    loader = PictureLoader(max_request_pixels=49)
    with pytest.raises(ImageError, match="have 50 pixels together; at most 49"):
        async with loader.decoded([png("red", 5), png("blue", 5)]):
            raise AssertionError("decoded")


async def test_requests_wait_for_room_and_give_it_back_even_after_a_damaged_picture():
    loader = PictureLoader(max_pixels=30)
    order: list[str] = []

    async def ask(name: str, data: bytes) -> None:
        async with loader.decoded([data]):
            order.append(f"{name} in")
            await asyncio.sleep(0.01)
            order.append(f"{name} out")

    whole = png("red", 5)
    results = await asyncio.gather(
        ask("a", whole),
        ask("b", whole[: len(whole) // 2]),
        ask("c", whole),
        ask("d", whole),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), ImageError, type(None), type(None)]
    assert [event.split()[1] for event in order] == ["in", "out"] * 3


async def test_a_picture_larger_than_all_room_is_still_decoded_alone():
    async with PictureLoader(max_pixels=10).decoded([png("red", 5)]) as (image,):
        assert image.size == (5, 5)


async def test_fetched_files_wait_for_room_until_those_before_are_decoded(monkeypatch: pytest.MonkeyPatch):
    started: list[str] = []
    held = 0

    class Counting(PictureLoader):
        async def fetch(self, url: str) -> bytes:
            started.append(url)
            return png("red", 5)

    loader = Counting(max_bytes=1000, max_fetched_bytes=2000)
    one, two = asyncio.Event(), asyncio.Event()

    async def ask(urls: list[str], decode: asyncio.Event) -> None:
        nonlocal held
        async with loader.fetched(urls) as files:
            held = max(held, sum(map(len, files.files)))
            await decode.wait()
            async with loader.decoded_once(files) as images:
                assert len(images) == len(urls)
                assert files.files == []
                await asyncio.sleep(0.01)

    first = asyncio.create_task(ask(["http://a", "http://b"], one))
    second = asyncio.create_task(ask(["http://c", "http://d"], two))
    inline = asyncio.create_task(ask(["data:,"], one))
    await asyncio.sleep(0.01)
    assert started == ["http://a", "http://b", "data:,"]
    one.set()
    two.set()
    await asyncio.gather(first, second, inline)
    assert started[3:] == ["http://c", "http://d"]


async def test_room_comes_back_when_a_fetch_fails():
    loader = PictureLoader(max_bytes=10, max_fetched_bytes=10)
    for _ in range(2):
        with pytest.raises(ImageError):
            async with loader.fetched(["http://not-listed/x.png"]):
                raise AssertionError("fetched")


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
        await PictureLoader(parse_hosts("ok.com"), resolve=never).fetch(url)


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1"], ["93.184.216.34", "10.0.0.1"]])
async def test_every_address_of_a_listed_host_must_be_public(addresses: list[str]):
    async def resolve(host: str, port: int) -> list[str]:
        return addresses

    with pytest.raises(ImageError, match="no public address"):
        await PictureLoader(parse_hosts("ok.com"), resolve=resolve).fetch("https://ok.com/x.png")


@pytest.fixture
def site() -> Iterator[tuple[int, list[str | None]]]:
    """Return the port of a site, and the hosts that it is asked by."""
    seen: list[str | None] = []
    pages = {
        "/away": Reply(302, "text/plain", b"", {"location": "http://127.0.0.1/"}),
        "/x.png": Reply(200, "image/png", png("blue", 7)),
        "/big": Reply(200, "image/png", b"x" * 200_000),
    }

    def answer(asked: Asked) -> Reply:
        seen.append(asked.headers["host"])
        return pages[asked.path]

    server = ScriptedServer(answer)
    yield server.server_port, seen
    server.stop()


async def test_a_listed_host_is_fetched_at_the_checked_address(
    site: tuple[int, list[str | None]], monkeypatch: pytest.MonkeyPatch
):
    port, seen = site
    looked_up: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"]

    monkeypatch.setattr(pictures, "is_public", lambda address: True)
    loader = PictureLoader(parse_hosts(f"ok.test:{port}"), resolve=resolve, max_bytes=100_000)
    async with loader.decoded([await loader.fetch(f"http://ok.test:{port}/x.png")]) as (image,):
        assert image.size == (7, 7)
    assert looked_up == ["ok.test"]
    assert seen == [f"ok.test:{port}"]
    with pytest.raises(ImageError, match="redirects are not followed"):
        await loader.fetch(f"http://ok.test:{port}/away")
    with pytest.raises(ImageError, match="larger"):
        await loader.fetch(f"http://ok.test:{port}/big")
