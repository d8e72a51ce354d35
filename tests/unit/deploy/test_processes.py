"""Processes by identity, and the supervisor that keeps one alive."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.devstack.config import StackConfig
from deploy.devstack.part import Launch
from deploy.devstack.supervision import records
from deploy.devstack.supervision.processes import ProcessIdentity, memory_bytes, stop

Config = StackConfig


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    made = StackConfig.load(tmp_path, {})
    yield made
    for record in records.read_all(made).values():
        records.stop_part(made, record)


def sleeper(*argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv or ("sleep", "60"), start_new_session=True)


def until(true: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def started(config: Config, *argv: str, **options: object) -> records.PartRecord:
    launch = Launch(argv=argv, cwd=str(config.home), grace_seconds=2.0, env={"SECRET": "x"})
    records.start_part(config, "part", launch, "nowhere", {})
    until(lambda: (found := records.read(config, "part")) and found.running)
    return current(config)


def current(config: Config) -> records.PartRecord:
    found = records.read(config, "part")
    assert found is not None
    return found


def test_a_reused_pid_is_not_taken_for_ours() -> None:
    mine = ProcessIdentity.of(os.getpid())
    assert mine.alive()
    assert not ProcessIdentity(mine.pid, mine.started - 100).alive()


def test_a_signal_to_a_reused_pid_is_not_sent() -> None:
    process = sleeper()
    ProcessIdentity(process.pid, time.time() - 1000).signal(signal.SIGKILL)
    assert process.poll() is None
    process.kill()
    process.wait()


def test_stopping_ends_what_ignores_the_polite_signal() -> None:
    process = sleeper(sys.executable, "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(60)")
    time.sleep(0.3)
    stop(ProcessIdentity.of(process.pid), signal.SIGTERM, 0.5)
    assert process.wait(5) == -signal.SIGKILL


def test_memory_counts_the_process() -> None:
    assert memory_bytes(ProcessIdentity.of(os.getpid())) > 1_000_000


def test_a_crashed_part_is_started_again(config: Config) -> None:
    first = started(config, "sleep", "60")
    assert first.child is not None
    first.child.signal(signal.SIGKILL)
    until(lambda: current(config).restarts == 1 and current(config).running)
    assert current(config).child != first.child


def test_a_part_that_keeps_ending_is_called_failed(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy.devstack.supervision import supervisor

    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 0.01)
    path = config.records / "part.json"
    path.parent.mkdir(parents=True)
    launch = {"argv": ["false"], "env": {}, "cwd": ".", "user": None, "stop_signal": 15, "grace_seconds": 1.0}
    record = {"part": "part", "log": str(config.home / "log"), "address": "", "environment": {}, "launch": launch}
    path.write_text(json.dumps(record))
    supervisor.Supervisor(path).run()
    path.write_text(json.dumps({**json.loads(path.read_text()), "supervisor": None}))  # it was this test itself
    assert current(config).state == "failed"
    assert current(config).last_exit == 1
    assert current(config).restarts == supervisor.MAX_EARLY_EXITS - 1


def test_stopping_a_part_stops_supervisor_and_child_and_forgets_them(config: Config) -> None:
    record = started(config, "sleep", "60")
    records.stop_part(config, record)
    assert not record.supervised
    assert not record.running
    assert records.read(config, "part") is None


def test_a_child_whose_supervisor_was_killed_is_stopped_too(config: Config) -> None:
    record = started(config, "sleep", "60")
    assert record.supervisor is not None
    record.supervisor.signal(signal.SIGKILL)
    until(lambda: not record.supervised)
    assert record.running
    records.stop_part(config, record)
    assert not record.running


def test_a_record_is_for_its_owner_only(config: Config) -> None:
    started(config, "sleep", "60")
    assert stat.S_IMODE((config.records / "part.json").stat().st_mode) == 0o600
