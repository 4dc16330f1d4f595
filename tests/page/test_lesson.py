"""A whole lesson through the page, with a real worker: taught, watched, learned, looked at, asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapter_store.redis_server import RedisServer
from tests.contract.conftest import RunningGateway
from tests.contract.pictures import llava_zip
from tests.integration.working import Site
from tests.page.browser import Browser


@pytest.fixture
def site(tmp_path: Path, tiny_base: Path) -> Iterator[tuple[RunningGateway, Site]]:
    """Return a gateway, and a worker's place on the same home and queue."""
    redis = RedisServer.start(tmp_path / "redis")
    home = tmp_path / "home"
    gateway = RunningGateway(home, tiny_base, redis_url=redis.url, api_keys="", default_max_tokens=8)
    try:
        yield gateway.wait_ready(), Site(home, tiny_base, redis.url)
    finally:
        gateway.stop()
        redis.stop()


def test_a_lesson_from_file_to_memory(browser: Browser, site: tuple[RunningGateway, Site], tmp_path: Path):
    gateway, worker = site
    archive = tmp_path / "colors.zip"
    archive.write_bytes(llava_zip(18))
    page = browser.page().open(f"{gateway.url}/#teach")
    page.choose("#data-file", archive)
    page.wait_text("#report", "18 examples")
    page.click("#task")
    page.type("colors")
    page.press("Enter")
    page.wait_text(".job", "queued")
    job = worker.queue.list()[0]
    done = threading.Thread(target=worker.finish, args=(job,))
    done.start()
    page.wait("document.querySelector('.job .curve')", 120)
    done.join(120)
    assert not done.is_alive()
    ended = worker.queue.get(job.id)
    assert ended.result_version == "v1"
    assert ended.gate is not None
    page.wait_text(".job", "v1 learned" if ended.gate["passed"] else "v1 held back")
    page.click("#tab-memory")
    page.wait_text("#versions", "colors, a new layer of 4 increments")
    page.click('[data-version="v1"] button')
    page.wait("document.querySelectorAll('.heat tbody tr').length === 2")
    accuracy = worker.versions.manifest("v1").accuracy.rows[0][0]
    assert accuracy is not None
    assert f"{round(accuracy * 100)} %" in page.text(".heat tbody tr:last-child")
    page.click("#tab-chat")
    page.wait("[...document.querySelectorAll('#model option')].some((each) => each.value === 'strata@v1')")
    assert page.complaints() == []
