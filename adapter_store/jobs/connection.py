"""Connect to Redis and turn every Redis fault into QueueUnavailable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import SplitResult, urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.connection import parse_url
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
        InputError: The URL cannot be read.
        QueueUnavailable: No Redis answers there, or it is older than 6.2.
    """
    client = redis.Redis.from_url(
        check_url(url),
        decode_responses=True,
        encoding_errors="replace",
        socket_connect_timeout=2.0,
        socket_timeout=_TIMEOUT_SECONDS,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 3),
    )
    if check:
        _check_version(client, address(url))
    return client


def check_url(url: str) -> str:
    """Return ``url`` if it can be read as the address of a Redis.

    Raises:
        InputError: It cannot; the message repeats nothing of it, because any part may be of the password.
    """
    if url.partition("://")[0] not in _SCHEMES:
        text = "has to start with unix://, redis:// or rediss://, as in redis://localhost:6379/0"
        raise InputError(f"the Redis URL {text}", param="redis_url")
    try:
        parse_url(url)
        readable = not _has_stray_password(urlsplit(url))
    except ValueError:  # its text repeats the part that could not be read
        readable = False
    if not readable:
        text = "percent-encode / ? # @ in its password, and check its port and options"
        raise InputError(f"the Redis URL cannot be read: {text}", param="redis_url")
    return url


def address(url: str) -> str:
    """Return a Redis URL that ``check_url`` let pass without its password and options, for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _has_stray_password(parts: SplitResult) -> bool:
    """Tell whether a / ? or # within the password ended the host early: the @ is in what follows."""
    if parts.scheme == "unix":  # a socket's path may have any character, but no host stands before it
        return "@" in parts.query + parts.fragment or ("@" not in parts.netloc and bool(parts.netloc))
    return "@" in parts.path + parts.query + parts.fragment


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
