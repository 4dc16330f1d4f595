"""The embedded redis-server: starts, is found, keeps its data, and never outlives its parent."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adapter_store.errors import QueueUnavailable
from adapter_store.jobs import connect
from adapter_store.redis_server import RedisServer, find_executable

# Starts a Redis, prints its pid and address, and waits to be killed.
OWNER = """
import sys, time
from pathlib import Path
from adapter_store.redis_server import RedisServer
server = RedisServer.start(Path(sys.argv[1]))
print(server.pid, server.url, server.owned, flush=True)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def owner(home: Path) -> tuple[subprocess.Popen[str], int, str, bool]:
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(home)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid, url, owned = process.stdout.readline().split()
    return process, int(pid), url, owned == "True"


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def test_it_is_private_durable_and_never_evicts(tmp_path: Path) -> None:
    with RedisServer.start(tmp_path, max_memory_bytes=64 << 20) as server:
        client = connect(server.url)
        config = client.config_get("*")
        assert config["port"] == "0"
        assert config["appendonly"] == "yes"
        assert config["appendfsync"] == "everysec"
        assert config["save"] == ""
        assert config["maxmemory-policy"] == "noeviction"
        assert config["maxmemory"] == str(64 << 20)
        assert server.owned
        assert server.is_running()
        assert stat.S_IMODE((tmp_path / "run/redis.sock").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
        client.close()
    assert gone(server.pid)
    assert not server.is_running()
    assert (tmp_path / "logs/redis.log").read_text().strip()


def test_a_clean_stop_keeps_the_data(tmp_path: Path) -> None:
    for expected in (None, "1", "2"):
        with RedisServer.start(tmp_path) as server:
            client = connect(server.url)
            assert client.get("count") == expected
            client.incr("count")
            client.close()
    server.stop()


def test_a_killed_server_keeps_the_data(tmp_path: Path) -> None:
    server = RedisServer.start(tmp_path)
    client = connect(server.url)
    client.set("key", "value")
    os.kill(server.pid, signal.SIGKILL)
    assert wait_until(lambda: not server.is_running())
    with RedisServer.start(tmp_path) as again:
        assert again.owned
        assert client.get("key") == "value", "the stale socket was not replaced"
    client.close()


def test_a_second_start_finds_the_running_one(tmp_path: Path) -> None:
    process, pid, url, owned = owner(tmp_path)
    try:
        assert owned
        second = RedisServer.start(tmp_path)
        assert (second.pid, second.url, second.owned) == (pid, url, False)
        second.stop()
        assert second.is_running(), "only its owner may stop it"
    finally:
        end(process)


def test_starts_at_the_same_moment_share_one_server(tmp_path: Path) -> None:
    found: list[tuple[subprocess.Popen[str], int, str, bool]] = []
    threads = [threading.Thread(target=lambda: found.append(owner(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process, *_ in found:
        end(process)
    assert len({pid for _, pid, _, _ in found}) == 1
    assert sorted(owned for *_, owned in found) == [False, False, False, True]


def test_it_dies_when_its_parent_is_killed_and_the_next_start_has_the_data(tmp_path: Path) -> None:
    process, pid, url, _ = owner(tmp_path)
    client = connect(url)
    client.set("key", "value")
    client.close()
    end(process)
    # Start at once, while the old server may still be shutting down.
    with RedisServer.start(tmp_path) as server:
        assert server.owned
        assert server.pid != pid
        client = connect(server.url)
        assert client.get("key") == "value"
        client.close()
        assert wait_until(lambda: gone(pid))


def test_an_orphan_that_was_not_told_is_ended(tmp_path: Path) -> None:
    """Without the kernel's signal (other systems) the next start ends the orphan itself."""
    process, pid, _, _ = owner(tmp_path)
    os.kill(pid, signal.SIGSTOP)
    end(process)
    threading.Timer(0.3, os.kill, (pid, signal.SIGCONT)).start()
    with RedisServer.start(tmp_path) as server:
        assert server.owned
        assert gone(pid)


def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    started: list[RedisServer] = []
    thread = threading.Thread(target=lambda: started.append(RedisServer.start(tmp_path)))
    thread.start()
    thread.join()
    time.sleep(0.5)
    assert started[0].is_running()
    started[0].stop()
    assert gone(started[0].pid)


def test_a_long_home_gets_a_short_private_socket(tmp_path: Path) -> None:
    home = tmp_path / ("deep " * 12).strip() / ("x" * 80)
    with RedisServer.start(home) as server, RedisServer.start(home) as same:
        socket = Path(server.url.removeprefix("unix://"))
        assert len(os.fsencode(socket)) <= 100
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert same.pid == server.pid
        connect(server.url).close()
        assert list((home / "redis").glob("*.aof"))
    shutil.rmtree(socket.parent)


def test_a_socket_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / ("x" * 120)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with RedisServer.start(home) as server:
        folder = Path(server.url.removeprefix("unix://")).parent
    folder.chmod(0o777)
    with pytest.raises(QueueUnavailable, match="not a private folder"):
        RedisServer.start(home)
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path)
    with pytest.raises(QueueUnavailable, match="not a private folder"):
        RedisServer.start(home)


def test_damaged_data_is_reported_with_the_log(tmp_path: Path) -> None:
    with RedisServer.start(tmp_path) as server:
        client = connect(server.url)
        for number in range(20):
            client.set(f"key{number}", "x" * 50)
        client.close()
    file = next((tmp_path / "redis").glob("*.aof"))
    data = bytearray(file.read_bytes())
    data[200:260] = b"\xff" * 60
    file.write_bytes(data)
    with pytest.raises(QueueUnavailable, match=r"ended at once.*redis\.log"):
        RedisServer.start(tmp_path)


def test_a_cut_off_last_write_is_no_damage(tmp_path: Path) -> None:
    with RedisServer.start(tmp_path) as server:
        client = connect(server.url)
        client.set("first", "1")
        client.set("second", "2")
        client.close()
    file = next((tmp_path / "redis").glob("*.aof"))
    file.write_bytes(file.read_bytes()[:-7])
    with RedisServer.start(tmp_path) as server:
        client = connect(server.url)
        assert client.get("first") == "1"
        client.close()


def test_a_program_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(QueueUnavailable, match="ended at once"):
        RedisServer.start(tmp_path, executable=tmp_path / "missing")
    with pytest.raises(QueueUnavailable, match="ended at once"):
        RedisServer.start(tmp_path, executable=Path("/bin/true"))
    with RedisServer.start(tmp_path, executable=find_executable()) as server:
        assert server.is_running()
