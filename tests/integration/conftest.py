"""A real Redis for the integration tests, one per run, emptied before each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import redis

from adapter_store.jobs import JobQueue, connect
from adapter_store.redis_server import RedisServer
from tests.integration.working import Site


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Return a running redis-server, as ``strata up`` starts it."""
    with TemporaryDirectory(prefix="strata-test-") as home, RedisServer.start(Path(home)) as server:
        yield server


@pytest.fixture
def redis_client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """Return a client of the empty Redis."""
    client = connect(redis_server.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def redis_url(redis_server: RedisServer, redis_client: redis.Redis) -> str:
    """Return the address of the empty Redis."""
    return redis_server.url


@pytest.fixture
def queue(redis_client: redis.Redis) -> JobQueue:
    return JobQueue(redis_client, "strata", lease_seconds=60)


@pytest.fixture
def site(tmp_path: Path, tiny_base: Path, redis_client: redis.Redis, redis_url: str) -> Iterator[Site]:
    assert redis_client.ping()
    here = Site(tmp_path, tiny_base, redis_url)
    yield here
    here.client.close()
