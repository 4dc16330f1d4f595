"""Speak HTTP to a running Strata; turn what goes wrong into sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from adapter_store.errors import InputError, StrataError
from server.cli.wording import Words, as_it_is

DEFAULT_URL = "http://127.0.0.1:8000"
_SHOWN_FAULTS = 30
_AWAY = frozenset({502, 503, 504})
_CALLERS_FAULT = frozenset({400, 404, 405, 409, 412, 413, 415, 422})


class RequestFailed(StrataError):
    """Report an answer that is an error the caller cannot cure by asking differently, or no answer at all."""

    code = "request_failed"


class ServerAway(RequestFailed):
    """Report that no answer came, or 502 to 504: the same request may be answered once the server is back."""

    code = "server_away"


class RequestRefused(InputError):
    """Report an answer that blames the request."""

    code = "request_refused"


class Client:
    """Hold one connection pool to the gateway."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        timeout_seconds: float = 60.0,
        words: Words = as_it_is,
    ) -> None:
        _check_address(url)
        headers = {"Authorization": f"Bearer {_usable(api_key)}"} if api_key else {}
        self.url = url.rstrip("/")
        self._words = words
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=timeout_seconds, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request and return the answer.

        Args:
            method: HTTP method.
            path: Path below the server's address.
            options: Passed to httpx: params, json, files, data, headers, timeout.

        Raises:
            RequestRefused: If the server answers with a status that blames the request.
            ServerAway: If there is no answer, or none now.
            RequestFailed: If there is another error status.
        """
        try:
            response = self._http.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._no_answer(error) from None
        raise_for_error(response, self._words)
        return response

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON answer to a GET; parameters that are None are left out."""
        return self._json(self.request("GET", path, params=_present(params)))

    def post(self, path: str, **options: Any) -> Any:
        """Return the JSON answer to a POST."""
        return self._json(self.request("POST", path, **options))

    def put(self, path: str, **options: Any) -> Any:
        """Return the JSON answer to a PUT."""
        return self._json(self.request("PUT", path, **options))

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """POST a JSON body and yield the JSON of each server-sent event up to ``[DONE]``."""
        try:
            with self._http.stream("POST", path, json=body) as response:
                if response.is_error:
                    response.read()
                    raise_for_error(response, self._words)
                for line in response.iter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data:"):
                        yield _event(line.removeprefix("data:").strip(), self._words)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._no_answer(error) from None

    def events(self, path: str, after: str | None) -> Iterator[dict[str, Any]]:
        """Yield the events behind ``after`` as they come, and ``{}`` now and then while none comes.

        It ends with the stream; at once if the server lists events but does not stream them.

        Raises:
            StrataError: As `request` raises, and if the stream holds what is no event.
        """
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
        try:
            with self._http.stream("GET", path, headers=headers) as response:
                if response.is_error:
                    response.read()
                    raise_for_error(response, self._words)
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    return
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        event = _event(line.removeprefix("data:").strip(), self._words)
                        if not isinstance(event.get("id"), str):
                            raise RequestFailed(f"the stream holds an event without an id: {line[:80]!r}")
                        yield event
                    elif line.startswith(":"):
                        yield {}
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._no_answer(error) from None

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError:
            raise RequestFailed(
                f"{self.url} answered something that is not JSON: is it a Strata server?"
            ) from None

    def _no_answer(self, error: Exception) -> RequestFailed:
        if isinstance(error, httpx.ConnectError):
            return ServerAway(
                f"no server answers at {self.url}; start one with `strata up`, or name another with --url"
            )
        if isinstance(error, httpx.TimeoutException):
            return ServerAway(f"{self.url} did not answer in time; look at its log and at {self.url}/ready")
        kind = ServerAway if isinstance(error, httpx.TransportError) else RequestFailed
        return kind(f"the connection to {self.url} broke: {error}")


def _check_address(url: str) -> None:
    """Raise InputError unless this is an address that a server can have."""
    if not url.startswith(("http://", "https://")):
        raise InputError(f"--url {url!r} is not an http:// or https:// address", param="url")
    try:
        address = urlsplit(url)
        usable = bool(address.hostname) and address.port != 0
    except ValueError:  # brackets that do not close, or a port that cannot be
        usable = False
    if not usable:
        raise InputError(
            f"--url {url!r} names no host and port that exist: http://127.0.0.1:8000 is one that does",
            param="url",
        )


def _usable(api_key: str) -> str:
    """Return the key; raise InputError, which never shows it, if no header can carry it."""
    if not api_key.isascii() or not api_key.isprintable() or api_key != api_key.strip():
        raise InputError(
            "the key given with --api-key or STRATA_API_KEY cannot be sent: it holds a character that is not "
            "plain ASCII, a line break, or a space at an end; copy it again",
            param="api_key",
        )
    return api_key


def _present(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _event(text: str, words: Words) -> dict[str, Any]:
    try:
        event = json.loads(text)
    except ValueError:
        raise RequestFailed(f"the stream holds something that is not JSON: {text[:80]!r}") from None
    if not isinstance(event, dict):
        raise RequestFailed(f"the stream holds something that is no event: {text[:80]!r}")
    if "error" in event:
        error = event["error"] if isinstance(event["error"], dict) else {"message": event["error"]}
        raise RequestFailed(words(str(error.get("message", error)), error.get("param")))
    return event


def _faults(report: Any) -> str:
    """Return the faults of a data set report, one a line; empty without a report."""
    faults = report.get("faults", []) if isinstance(report, dict) else []
    lines = []
    for fault in faults[:_SHOWN_FAULTS]:
        line = None if fault.get("line") is None else f"line {fault['line']}"
        where = ", ".join(part for part in (fault.get("file"), line, fault.get("field")) if part)
        lines.append(f"\n  {where}: {fault.get('reason')}" if where else f"\n  {fault.get('reason')}")
    hidden = len(faults) - len(lines) + int(report.get("truncated_faults", 0)) if faults else 0
    return "".join(lines) + (f"\n  and {hidden} more" if hidden else "")


def raise_for_error(response: httpx.Response, words: Words = as_it_is) -> None:
    """Raise the fitting error if an answer is one; its message is the server's, in other ``words``."""
    if not response.is_error:
        return
    code = None
    try:
        error = response.json()["error"]
        message, code = str(error["message"]), error.get("code")
        if faults := _faults(error.get("report")):
            message = f"{message.partition(': ')[0]}:{faults}"
        message = words(message, error.get("param"))
    except (ValueError, KeyError, TypeError):
        message = f"{response.request.url} answered with status {response.status_code}"
    if response.status_code == 401 or code == "wrong_scope":
        message += "; give the key with --api-key or STRATA_API_KEY"
    if response.status_code in _AWAY:
        raise ServerAway(message)
    raise (RequestRefused if response.status_code in _CALLERS_FAULT else RequestFailed)(message)
