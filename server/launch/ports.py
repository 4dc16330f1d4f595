"""Find out whether a TCP port can be listened on."""

from __future__ import annotations

import errno
import socket

from adapter_store.errors import InputError


def require_free_port(host: str, port: int, flag: str) -> None:
    """Raise InputError, naming the flag to change, if nothing can listen on this address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(_explain(error, host, port, flag), param=flag) from None


def _explain(error: OSError, host: str, port: int, flag: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is taken by another program; stop it or choose another port with {flag}"
        )
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs more rights; choose a port above 1023 with {flag}"
    reason = error.strerror or str(error)
    return f"cannot listen on {host} port {port}: {reason}; choose others with --host and {flag}"


def free_port(host: str = "127.0.0.1", preferred: int | None = None) -> int:
    """Return `preferred` if it is free, else a port that was free a moment ago."""
    if preferred is not None:
        try:
            require_free_port(host, preferred, "--port")
        except InputError:
            pass
        else:
            return preferred
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
