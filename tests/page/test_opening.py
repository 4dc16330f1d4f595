"""The page opens at once, works by keyboard alone, asks for a key, and fits a narrow screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import KEY, RunningGateway
from tests.page.browser import SHIFT, Browser, Page

PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
ANSWERED = "document.querySelector('.answer[aria-busy=\"false\"]')"


def test_the_first_paint_takes_less_than_a_second(browser: Browser, running: RunningGateway):
    page = browser.page()
    page.open(f"{running.url}/")
    page.wait(PAINT)
    assert page.js(PAINT) < 1000
    assert sum(page.received_bytes().values()) < 300_000
    assert page.complaints() == []


def test_a_reload_brings_nothing_twice(browser: Browser, running: RunningGateway):
    page = browser.page().open(f"{running.url}/")
    before = len(page.told("Network.responseReceived"))
    page.open(f"{running.url}/#memory")
    page.js("window.before = true; location.reload()")
    page.wait("!window.before && document.querySelector('#model option')")
    page.wait("document.querySelector('#memory')?.hidden === false")
    answers = page.told("Network.responseReceived")[before:]
    again = [each["response"] for each in answers if "/page/" in each["response"]["url"]]
    assert again
    whole = [each["url"] for each in again if each["encodedDataLength"] > 2_000]
    assert whole == []


def test_the_keyboard_alone_is_enough(page: Page):
    page.tab_to(lambda at: at == "Skip to the content")
    page.tab_to(lambda at: at == "tab-chat")
    outline = page.js("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.press("ArrowRight")
    assert (page.focused(), page.shown("#teach"), page.shown("#chat")) == ("tab-teach", True, False)
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert (page.focused(), page.shown("#chat")) == ("tab-chat", True)
    page.tab_to(lambda at: at == "question")
    page.type("Which digit is it?")
    page.press("Enter")
    page.wait(ANSWERED)
    page.press("Tab", SHIFT)
    page.tab_to(lambda at: at == "question")
    page.js("document.querySelector('.answer-foot button').focus()")
    page.press("Enter")
    page.wait_text(".why", "base")


def test_those_who_listen_are_told(page: Page):
    roles = page.js("document.querySelector('#conversation').getAttribute('role')")
    assert roles == "log"
    unnamed = """[...document.querySelectorAll('button, input, select, textarea')].filter((each) =>
        !each.closest('[hidden]') && !each.closest('dialog') && !(each.innerText || each.ariaLabel
        || each.labels?.length)).map((each) => each.outerHTML)"""
    for tab in ("chat", "teach", "memory"):
        page.click(f"#tab-{tab}")
        page.wait(f"!document.querySelector('#{tab}').hidden")
        assert page.js(unnamed) == []
    assert page.js("document.querySelectorAll('main, header, footer, h1').length") == 4
    assert page.js("document.documentElement.lang") == "en"


@pytest.mark.parametrize("tab", ["chat", "teach", "memory"])
def test_a_narrow_screen_needs_no_sideways_scrolling(browser: Browser, running: RunningGateway, tab: str):
    page = browser.page(width=360, height=740).open(f"{running.url}/#{tab}")
    assert page.js("document.documentElement.scrollWidth") <= 360
    assert page.shown(f"#{tab}")


def test_dark_is_dark(browser: Browser, running: RunningGateway):
    def brightness(page: Page) -> int:
        color = page.js("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in color[4:-1].split(","))

    light = browser.page().open(f"{running.url}/")
    dark = browser.page(dark=True).open(f"{running.url}/")
    assert brightness(light) > 600
    assert brightness(dark) < 150


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[RunningGateway]:
    """Return a gateway that wants keys and has neither feedback nor canaries."""
    gateway = RunningGateway(tmp_path_factory.mktemp("locked"), tiny_base)
    routes = gateway.app.router.routes
    lacking = ("/v1/feedback", "/v1/adapters/{name}/canary")
    routes[:] = [route for route in routes if not getattr(route, "path", "").startswith(lacking)]
    yield gateway.wait_ready()
    gateway.stop()


def test_a_key_is_asked_for_and_stays_in_the_tab(browser: Browser, locked: RunningGateway):
    page = browser.page()
    page.call("Page.navigate", url=f"{locked.url}/")
    page.wait("document.querySelector('#key-dialog')?.open")
    assert page.focused() == "key"
    page.type(KEY)
    page.press("Enter")
    page.wait("document.querySelector('#model option')")
    page.click("#question")
    page.type("Which digit is it?")
    page.press("Enter")
    page.wait(ANSWERED)
    assert page.js("document.querySelectorAll('.fault').length") == 0
    assert page.js("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    other = browser.page()
    other.call("Page.navigate", url=f"{locked.url}/")
    other.wait("document.querySelector('#key-dialog')?.open")


def test_without_feedback_and_canary_their_controls_are_hidden(browser: Browser, locked: RunningGateway):
    page = browser.page()
    page.call("Page.navigate", url=f"{locked.url}/")
    page.wait("document.querySelector('#key-dialog')?.open")
    page.type(KEY)
    page.press("Enter")
    page.wait("document.querySelector('#model option')")
    page.click("#question")
    page.type("Which digit is it?")
    page.press("Enter")
    page.wait(ANSWERED)
    assert page.js("document.querySelectorAll('.thumb').length") == 0
    page.click("#tab-memory")
    page.wait_text("#matrix", "Nothing was taught yet")
    assert not page.shown("#canary")
