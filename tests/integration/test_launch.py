"""Run the supervisor over real processes: order, restarts, giving up, and no orphans."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from adapter_store.errors import InputError
from server.jobs.link import RedisPlace
from server.launch.child import Program
from server.launch.ports import free_port, require_free_port
from server.launch.stack import Stack, StackOptions
from server.launch.supervisor import Event, LaunchFailed, RestartPolicy, Supervisor

QUICK = RestartPolicy(first_delay_seconds=0.05, longest_delay_seconds=0.1, give_up_after=3)
POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("up", flush=True)
time.sleep(600)
"""
STEADY = "import time; print('up', flush=True); time.sleep(600)"


def program(name: str, code: str, **options) -> Program:
    return Program(name, (sys.executable, "-c", textwrap.dedent(code)), **options)


class Recorder:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.events: list[Event] = []

    def line(self, name: str, text: str) -> None:
        self.lines.append((name, text))

    def event(self, event: Event) -> None:
        self.events.append(event)

    def kinds(self, name: str) -> list[str]:
        return [event.kind for event in self.events if event.program == name]


def wait_for(condition, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        with Path(f"/proc/{pid}/stat").open() as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def run_in_thread(supervisor: Supervisor, stop: threading.Event, hurry: threading.Event | None = None):
    failures: list[Exception] = []

    def run() -> None:
        try:
            supervisor.run(stop, hurry)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, failures


def test_lines_carry_the_name_and_the_stop_follows_the_ranks():
    recorder, stop = Recorder(), threading.Event()
    first, last = program("gateway", POLITE), program("redis", POLITE, stop_rank=1)
    thread, failures = run_in_thread(
        Supervisor([last, first], on_line=recorder.line, on_event=recorder.event), stop
    )
    wait_for(lambda: {("gateway", "up"), ("redis", "up")} <= set(recorder.lines))
    stop.set()
    thread.join(15)
    assert not failures
    ends = [(e.program, e.kind) for e in recorder.events if e.kind in {"stopping", "stopped"}]
    assert ends == [
        ("gateway", "stopping"),
        ("gateway", "stopped"),
        ("redis", "stopping"),
        ("redis", "stopped"),
    ]


def test_the_next_program_waits_until_the_one_before_is_ready(tmp_path: Path):
    recorder, stop = Recorder(), threading.Event()
    mark = tmp_path / "ready"
    code = f"import pathlib, time; time.sleep(0.4); pathlib.Path({str(mark)!r}).touch(); time.sleep(600)"
    store = program("store", code, is_ready=mark.exists)
    user = program(
        "user", f"import pathlib, time; print(pathlib.Path({str(mark)!r}).exists()); time.sleep(600)"
    )
    thread, failures = run_in_thread(
        Supervisor([store, user], on_line=recorder.line, on_event=recorder.event), stop
    )
    wait_for(lambda: bool(recorder.lines))
    stop.set()
    thread.join(15)
    assert recorder.lines == [("user", "True")]
    assert not failures


def test_a_crash_is_answered_with_a_restart_and_the_others_stay():
    recorder, stop = Recorder(), threading.Event()
    supervisor = Supervisor(
        [program("worker", STEADY), program("gateway", STEADY)],
        on_line=recorder.line,
        on_event=recorder.event,
        policy=QUICK,
    )
    thread, failures = run_in_thread(supervisor, stop)
    wait_for(lambda: len(recorder.lines) == 2)
    before = supervisor.pids()
    os.kill(before["worker"], signal.SIGKILL)
    wait_for(lambda: recorder.lines.count(("worker", "up")) == 2)
    after = supervisor.pids()
    stop.set()
    thread.join(15)
    assert not failures
    assert after["worker"] != before["worker"]
    assert after["gateway"] == before["gateway"]
    restart = next(event for event in recorder.events if event.kind == "restarting")
    assert "killed by SIGKILL" in restart.message


def test_it_gives_up_on_what_crashes_again_and_again_and_repeats_its_last_words():
    recorder = Recorder()
    broken = program("worker", "import sys; print('the disk is on fire'); sys.exit(1)")
    supervisor = Supervisor(
        [program("gateway", STEADY), broken], on_line=recorder.line, on_event=recorder.event, policy=QUICK
    )
    with pytest.raises(LaunchFailed, match=r"worker ended 3 times in a row.*\n.*the disk is on fire"):
        supervisor.run(threading.Event())
    assert recorder.kinds("gateway")[-1] == "stopped"


def test_a_refused_setting_is_not_retried():
    recorder = Recorder()
    refusing = program(
        "gateway", "import sys; sys.exit('STRATA_PORTT is not a setting') if 0 else sys.exit(2)"
    )
    supervisor = Supervisor([refusing], on_line=recorder.line, on_event=recorder.event, policy=QUICK)
    with pytest.raises(LaunchFailed, match="gateway refused to run"):
        supervisor.run(threading.Event())
    assert recorder.kinds("gateway") == ["started"]


@pytest.mark.parametrize("in_a_hurry", [False, True])
def test_what_ignores_the_polite_request_is_killed(in_a_hurry: bool):
    recorder, stop, hurry = Recorder(), threading.Event(), threading.Event()
    stubborn = program(
        "worker",
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
        grace_seconds=600 if in_a_hurry else 0.3,
    )
    thread, failures = run_in_thread(
        Supervisor([stubborn], on_line=recorder.line, on_event=recorder.event), stop, hurry
    )
    wait_for(lambda: bool(recorder.lines))
    stop.set()
    if in_a_hurry:
        hurry.set()
    thread.join(15)
    assert not thread.is_alive()
    assert not failures
    assert recorder.kinds("worker")[-1] == "killed"


def test_no_orphan_is_left_when_the_parent_is_killed(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, threading
            from server.launch.child import Program
            from server.launch.supervisor import Supervisor
            code = (
                "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
                "print(os.getpid(), flush=True); time.sleep(600)"
            )
            programs = [Program(name, (sys.executable, "-c", code)) for name in ("gateway", "worker")]

            def show(_, line):
                sys.stdout.write(f"{line}\\n")  # at once: print would let the other thread in between
                sys.stdout.flush()

            Supervisor(programs, on_line=show, on_event=repr).run(threading.Event())
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        try:
            pids = [int(parent.stdout.readline()) for _ in range(2)]
            assert all(alive(pid) for pid in pids)
        finally:
            parent.kill()
        parent.wait(10)
        wait_for(lambda: not any(alive(pid) for pid in pids), seconds=5)


def test_a_child_whose_parent_is_gone_already_does_not_start(tmp_path: Path):
    from server.launch import bound

    mark = tmp_path / "ran"
    command = [sys.executable, str(Path(bound.__file__)), "1", "9", "touch", str(mark)]
    done = subprocess.run(command, check=False)
    assert done.returncode == bound.PARENT_GONE_STATUS
    assert not mark.exists()


def test_a_redis_that_is_slow_is_still_ours_to_stop(tmp_path: Path):
    recorder = Recorder()

    def on_event(event: Event) -> None:
        recorder.event(event)
        if event.kind == "restarting":
            os.kill(pid, signal.SIGCONT)  # slow for one look, no longer

    stack = Stack(StackOptions(tmp_path), on_line=recorder.line, on_event=on_event)
    stack._start_redis()
    pid = stack.pids()["redis"]
    try:
        os.kill(pid, signal.SIGSTOP)
        stack._watch_redis()
    finally:
        os.kill(pid, signal.SIGCONT)
    stack._stop_redis()
    assert recorder.kinds("redis") == ["started", "stopping", "stopped"]
    assert not alive(pid)


def test_a_redis_that_ended_is_started_again(tmp_path: Path):
    recorder = Recorder()
    stack = Stack(StackOptions(tmp_path), on_line=recorder.line, on_event=recorder.event)
    stack._start_redis()
    pid = stack.pids()["redis"]
    os.kill(pid, signal.SIGKILL)
    assert stack._redis is not None
    wait_for(stack._redis.ended)
    stack._watch_redis()
    assert stack.pids()["redis"] != pid
    stack._stop_redis()
    assert recorder.kinds("redis") == ["started", "restarting", "started", "stopping", "stopped"]


def test_the_gateway_keeps_the_redis_that_it_started(tmp_path: Path):
    place = RedisPlace("", tmp_path)
    try:
        client = place.connect()
        pid = client.info("server")["process_id"]  # pyright: ignore[reportIndexIssue]
        os.kill(pid, signal.SIGSTOP)
        waking = threading.Timer(3, os.kill, (pid, signal.SIGCONT))  # a look gives up after two seconds
        waking.start()
        place.connect()
        waking.join()
    finally:
        place.close()
    assert not alive(pid)


def test_a_taken_port_is_named_with_the_flag_that_changes_it():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} on 127.0.0.1 is taken.*--port"):
            require_free_port("127.0.0.1", port, "--port")
        assert free_port(preferred=port) != port
