"""A browser, and the whole gateway on the tiny base with two taught tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import RunningGateway, http, publisher
from tests.page.browser import Browser, Page, chromium

__all__ = ["http", "publisher"]  # the contract tests' fixtures, over the gateway below


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return a Chromium; where none is installed, the tests of the page are skipped."""
    program = chromium()
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[RunningGateway]:
    """Return an open gateway (no keys) that takes feedback and canaries."""
    settings = {"api_keys": "", "default_max_tokens": 200, "feedback_seconds": 60}
    with RunningGateway(tmp_path_factory.mktemp("home"), tiny_base, **settings) as gateway:
        yield gateway.wait_ready()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[RunningGateway]:
    """Return a gateway that wants keys; its base may still be loading."""
    with RunningGateway(tmp_path_factory.mktemp("locked"), tiny_base) as gateway:
        yield gateway


@pytest.fixture
def page(browser: Browser, running: RunningGateway) -> Iterator[Page]:
    """Return the page, opened; at the end it must not have complained or asked anybody else."""
    page = browser.page()
    page.open(f"{running.url}/")
    yield page
    assert page.complaints() == []
    strangers = [url for url in page.asked_for() if not url.startswith((f"{running.url}/", "data:", "blob:"))]
    assert strangers == []
    large = {url: size for url, size in page.received_bytes().items() if size > 300_000}
    assert large == {}
