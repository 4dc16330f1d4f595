"""The whole gateway, as it is: real uvicorn, real engine on the tiny base, real Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI

from server.app import create_app
from server.connections import GuardedConnection
from server.gateway import Gateway
from server.settings import GatewaySettings
from server.stopping import GracefulServer
from tests.contract.pictures import png

if TYPE_CHECKING:
    from adapter_store.versions import Manifest
    from tests.contract.publishing import Publisher

KEY = "sk-test-everything"
ASK_KEY = "sk-test-ask-only"
START_SECONDS = 900.0


class RunningGateway:
    """Run an application on a free port in a thread of its own."""

    def __init__(self, home: Path, base: Path, *, answer_seconds: float = 3.0, **settings: Any) -> None:
        self.home = home
        wanted = {"max_request_bytes": 256 * 1024, "alias_poll_seconds": 0.05, "body_timeout_seconds": 2.0}
        wanted |= {"device": "cpu", "dtype": "float32", "frozen_share": 0.0}
        wanted |= {"api_keys": f"{KEY},{ASK_KEY}:ask", **settings}
        self.app: FastAPI = create_app(GatewaySettings(home=home, base=str(base), **wanted))
        self._server = GracefulServer(
            uvicorn.Config(
                self.app,
                loop="asyncio",
                http=GuardedConnection,
                ws="none",
                port=0,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=5,
            ),
            self.gateway,
            answer_seconds,
        )
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {KEY}"}, timeout=300, trust_env=False
        )

    @property
    def gateway(self) -> Gateway:
        return self.app.state.gateway

    def wait_ready(self) -> RunningGateway:
        wait_for(lambda: self.http.get("/ready").status_code == 200, START_SECONDS)
        return self

    def metric(self, name: str, **labels: str) -> float | None:
        """Return one sample of /metrics, None if it is not there."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        for line in self.http.get("/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            base, _, rest = series.partition("{")
            if base == name and wanted <= set(rest.rstrip("}").split(",")):
                return float(value)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def begin_to_stop(self) -> None:
        """Do what a first SIGINT or SIGTERM does."""
        self._server.should_exit = True

    def stop(self) -> None:
        self.http.close()
        self.begin_to_stop()
        self._thread.join(60)
        assert not self._thread.is_alive()


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Poll until ``condition`` holds; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[RunningGateway]:
    """Return a ready gateway with an embedded Redis, one for each test file."""
    with RunningGateway(tmp_path_factory.mktemp("home"), tiny_base) as gateway:
        yield gateway.wait_ready()


@pytest.fixture(scope="module")
def publisher(running: RunningGateway, loaded_tiny_base):
    """Return what publishes random versions into the running gateway's store."""
    from tests.contract.publishing import Publisher

    return Publisher(loaded_tiny_base, running.gateway.store)


@pytest.fixture(scope="module")
def first(publisher: Publisher) -> Manifest:
    """Return a published version that ``stable`` does not name yet."""
    return publisher.publish(publisher.state(1))


@pytest.fixture(scope="module")
def client(running: RunningGateway) -> Iterator[openai.OpenAI]:
    """Return the ``openai`` client of the running gateway; it asks each request once."""
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def http(running: RunningGateway) -> httpx.Client:
    return running.http


def chat_body(text: str = "Which digit is it?", *, image: bytes | None = None, **more: Any) -> dict[str, Any]:
    """Return a chat request about a picture (a red one if None is given)."""
    from tests.contract.pictures import data_url

    content = [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": data_url(image or png("red"))}},
    ]
    return {"model": "strata", "messages": [{"role": "user", "content": content}], "max_tokens": 6, **more}
