"""Connect to Redis and turn every Redis fault into QueueUnavailable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from adapter_store.errors import InputError, QueueUnavailable

_SCHEMES = ("unix", "redis", "rediss")
_OLDEST = (6, 2)
_TIMEOUT_SECONDS = 10.0


def connect(url: str, *, check: bool = True) -> redis.Redis:
    """Return a client for ``unix:///path``, ``redis://host:port`` or ``rediss://``.

    Args:
        url: Address of the Redis; a password may be part of it and is never repeated in messages.
        check: Reach the server now and check its version. Without it the first use does.

    Raises:
        InputError: The URL has another form.
        QueueUnavailable: No Redis answers there, or it is older than 6.2.
    """
    if urlsplit(url).scheme not in _SCHEMES:
        raise InputError(
            "the Redis URL has to start with unix://, redis:// or rediss://, as in redis://localhost:6379/0",
            param="redis_url",
        )
    try:
        client = redis.Redis.from_url(
            url,
            decode_responses=True,
            encoding_errors="replace",
            socket_connect_timeout=2.0,
            socket_timeout=_TIMEOUT_SECONDS,
            health_check_interval=15,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 3),
        )
    except ValueError as error:
        raise InputError(f"the Redis URL cannot be read: {error}", param="redis_url") from None
    if check:
        _check_version(client, address(url))
    return client


def address(url: str) -> str:
    """Return a Redis URL without its password, for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Turn every Redis error inside into QueueUnavailable; ``what`` completes "could not ..."."""
    try:
        yield
    except redis.RedisError as error:
        raise QueueUnavailable(f"could not {what}: {_reason(error)}") from error


def _check_version(client: redis.Redis, where: str) -> None:
    with guarded(f"reach Redis at {where}"):
        info: dict[str, str] = client.info("server")  # pyright: ignore[reportAssignmentType]
    version = str(info.get("redis_version", "0.0"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _OLDEST:
        raise QueueUnavailable(f"Redis at {where} is version {version}; 6.2 or newer is needed")


def _reason(error: redis.RedisError) -> str:
    text = str(error) or type(error).__name__
    if "OOM " in text:
        return "Redis is full (maxmemory reached); raise maxmemory or remove old keys, then try again"
    if "MISCONF" in text:
        return f"Redis cannot write to its disk ({text}); free space there, then try again"
    if isinstance(error, redis.AuthenticationError | NoPermissionError):
        return f"Redis refused the credentials ({text}); check the user and password in the Redis URL"
    if isinstance(error, redis.BusyLoadingError):
        return "Redis is still loading its data; try again in a moment"
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return f"Redis does not answer ({text}); check that it runs and that the Redis URL is right"
    return f"Redis answered: {text}"
