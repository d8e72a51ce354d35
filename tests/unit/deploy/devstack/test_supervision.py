"""Processes by identity, and the supervisor that restarts one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from deploy.devstack import stack
from deploy.devstack.config import StackConfig
from deploy.devstack.part import Launch
from deploy.devstack.supervision import records
from deploy.devstack.supervision.processes import ProcessIdentity, memory_bytes, stop
from shared.files import write_atomically
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
def config(tmp_path: Path) -> Iterator[StackConfig]:
    config = StackConfig.load(tmp_path, {})
    yield config
    for record in records.read_all(config).values():
        records.stop_part(config, record)


def start_sleeping() -> subprocess.Popen[bytes]:
    return subprocess.Popen(("sleep", "60"), start_new_session=True)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not true within {PATIENCE_SECONDS:.0f} s"
        time.sleep(0.05)


def start_part(config: StackConfig, *argv: str, **options: object) -> records.PartRecord:
    launch = Launch(argv=argv, cwd=str(config.home), grace_seconds=2.0, env={"SECRET": "x"})
    records.start_part(config, "part", launch, "nowhere", {})
    wait_until(lambda: (record := records.read(config, "part")) and record.running)
    return read_record(config)


def read_record(config: StackConfig) -> records.PartRecord:
    record = records.read(config, "part")
    assert record is not None
    return record


def test_a_reused_pid_is_another_process() -> None:
    own = ProcessIdentity.of(os.getpid())
    assert own.alive()
    assert not replace(own, started=own.started - 100).alive()
    assert not replace(own, boot="another").alive()


def test_a_clock_that_is_set_changes_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`psutil` derives when a process was started from the present time of the boot, which moves with the clock."""
    script = "import signal,time; signal.signal(15, lambda *_: exit(7)); print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"1\n", "it handles signals"
    identity = ProcessIdentity.of(process.pid)
    boot = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 3_600.0)
    monkeypatch.setattr(time, "time", lambda: boot + 1e6)
    assert identity.alive()
    reaper = threading.Thread(target=process.wait)
    reaper.start()
    stop(identity, signal.SIGTERM, PATIENCE_SECONDS)
    reaper.join()
    assert process.returncode == 7, "it was asked to stop, and not killed"


def test_a_signal_to_a_reused_pid_is_not_sent() -> None:
    process = start_sleeping()
    replace(ProcessIdentity.of(process.pid), started=1).signal(signal.SIGKILL)
    assert process.poll() is None
    process.kill()
    process.wait()


def test_a_process_that_ignores_its_stop_signal_is_killed() -> None:
    script = "import signal,time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(3_600)"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"1\n", "it ignores the signal"
    stop(ProcessIdentity.of(process.pid), signal.SIGTERM, 0.5)
    assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL


def test_memory_includes_the_process_itself() -> None:
    assert memory_bytes(ProcessIdentity.of(os.getpid())) > 1_000_000


def test_a_crashed_part_is_restarted(config: StackConfig) -> None:
    first = start_part(config, "sleep", "60")
    assert first.child is not None
    first.child.signal(signal.SIGKILL)
    wait_until(lambda: read_record(config).restarts == 1 and read_record(config).running)
    assert read_record(config).child != first.child


def test_a_part_that_exits_early_too_often_is_failed(config: StackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy.devstack.supervision import supervisor

    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 0.01)
    path = write_record(config, "false")
    supervisor.Supervisor(path).run()
    path.write_text(json.dumps({**json.loads(path.read_text()), "supervisor": None}))  # It was this process.
    assert read_record(config).state == "failed"
    assert read_record(config).last_exit == 1
    assert read_record(config).restarts == supervisor.MAX_EARLY_EXITS - 1


def write_record(config: StackConfig, *argv: str) -> Path:
    path = config.records / "part.json"
    path.parent.mkdir(parents=True)
    launch = {"argv": argv, "env": {}, "cwd": ".", "user": None, "stop_signal": 15, "grace_seconds": 1.0}
    record = {"part": "part", "log": str(config.home / "log"), "address": "", "environment": {}, "launch": launch}
    path.write_text(json.dumps(record))
    return path


@contextlib.contextmanager
def supervised(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from deploy.devstack.supervision import supervisor

    for name, seconds in {"FIRST_BACKOFF_SECONDS": 0.01, "EARLY_EXIT_SECONDS": 0.3, "POLL_SECONDS": 0.02}.items():
        monkeypatch.setattr(supervisor, name, seconds)
    running = supervisor.Supervisor(path)
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        yield
    finally:
        running.ask_to_stop(signal.SIGTERM, None)
        thread.join(PATIENCE_SECONDS)
        assert json.loads(path.read_text())["state"] == "stopped"
        path.unlink()  # Its supervisor is this process, which the fixture would stop.


def test_a_part_that_has_run_for_long_is_started_again_however_often(
    config: StackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that was away for five minutes had ended the services for good."""
    starts = config.home / "starts"
    script = (
        f"echo >> {starts}; n=$(wc -l < {starts}); [ $n = 1 ] && exec sleep 0.5; [ $n -gt 8 ] && exec sleep 60; exit 1"
    )
    with supervised(write_record(config, "sh", "-c", script), monkeypatch):
        wait_until(
            lambda: starts.exists() and len(starts.read_text().splitlines()) == 9 and read_record(config).running
        )


def test_the_pause_before_a_restart_is_bounded_after_a_night_of_them(
    config: StackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 to the power of 1,024 is no number of seconds: after a night of early exits the supervisor had ended."""
    from deploy.devstack.supervision import supervisor

    running = supervisor.Supervisor(write_record(config, "true"))
    paused = []

    def sleep(seconds: float) -> None:
        paused.append(seconds)
        running.ask_to_stop(signal.SIGTERM, None) if len(paused) == 1_100 else None

    monkeypatch.setattr(running, "_sleep", sleep)
    monkeypatch.setattr(running, "_run_once", lambda: 1)
    clock = iter([0.0, 1_000.0])  # The first run was long.
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: next(clock, 1_000.0))
    running.run()
    assert (paused[0], paused[-1], len(paused)) == (1.0, supervisor.MAX_BACKOFF_SECONDS, 1_100)
    (config.records / "part.json").unlink()


def test_a_full_disk_ends_no_supervisor(config: StackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had ended with an error, and what it had started could not be stopped any more."""
    from deploy.devstack.supervision import supervisor

    path = write_record(config, "sleep", "60")
    written = []

    def write(path: Path, data: bytes) -> None:
        written.append(data)
        if 2 <= len(written) <= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomically(path, data)

    monkeypatch.setattr(supervisor, "write_atomically", write)
    with supervised(path, monkeypatch):
        wait_until(lambda: len(written) >= 5 and read_record(config).running)


def test_stopping_a_part_stops_supervisor_and_child_and_deletes_the_record(config: StackConfig) -> None:
    record = start_part(config, "sleep", "60")
    records.stop_part(config, record)
    assert not record.supervised
    assert not record.running
    assert records.read(config, "part") is None


def test_a_child_without_supervisor_is_stopped_too(config: StackConfig) -> None:
    record = start_part(config, "sleep", "60")
    assert record.supervisor is not None
    record.supervisor.signal(signal.SIGKILL)
    wait_until(lambda: not record.supervised)
    assert record.running
    records.stop_part(config, record)
    assert not record.running


def test_a_record_is_readable_by_its_owner_only(config: StackConfig) -> None:
    start_part(config, "sleep", "60")
    assert stat.S_IMODE((config.records / "part.json").stat().st_mode) == 0o600


def test_the_address_of_a_part_that_died_with_its_supervisor_is_the_one_that_it_starts_with_next(
    config: StackConfig,
) -> None:
    launch = Launch(argv=("sleep", "60"), cwd=str(config.home), grace_seconds=2.0)
    records.start_part(config, "postgres", launch, "127.0.0.1:1", {"RATCHET_POSTGRES": "postgresql://127.0.0.1:1/"})
    wait_until(lambda: (record := records.read(config, "postgres")) and record.running)
    stack._write_stack_env(config, {"postgres"})
    assert "RATCHET_POSTGRES=postgresql://127.0.0.1:1/" in (config.home / "stack.env").read_text()
    record = records.read(config, "postgres")
    assert record and record.supervisor and record.child
    record.supervisor.signal(signal.SIGKILL)
    record.child.signal(signal.SIGKILL)
    wait_until(lambda: not record.supervised and not record.running)
    stack._write_stack_env(config, {"postgres"})
    assert f"@{config.address('postgres')}/ratchet" in (config.home / "stack.env").read_text()
