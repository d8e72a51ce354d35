"""Shared by the benchmarks of the event log: a private broker, service processes, a producer, and a table's commits.

Commits are read from the Delta log's own files, without any code of the services.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from shared.kafka.topics import create_topics
from shared.settings import Settings
from tests.conftest import ROOT, TestStack

TASK = "bench"


@contextlib.contextmanager
def private_broker(name: str) -> Iterator[tuple[Settings, dict[str, str]]]:
    """Start a broker with all topics in a new home; yields its settings and environment."""
    with private_stack(name, ("kafka",)) as stack:
        yield stack


@contextlib.contextmanager
def private_stack(name: str, parts: Sequence[str]) -> Iterator[tuple[Settings, dict[str, str]]]:
    """Start these parts of the stack, the broker among them, in a new home; yields its settings and environment."""
    home = ROOT / ".ratchet" / "bench" / name
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    running = TestStack(home)
    try:
        settings = running.start(parts)
        create_topics(settings)
        yield settings, running.env
    finally:
        running.stop()
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def process(arguments: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python process for the length of a `with`, with its output in `log`; SIGTERM ends it."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, *arguments], env={**env, "OMP_NUM_THREADS": "1"}, stdout=output, stderr=output, cwd=ROOT
        )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()


def produce(settings: Settings, topic: str, count: int, rate: float = 0.0) -> float:
    """Send `count` events of 1 KB from a process of its own; returns when it started (Unix seconds).

    `rate`: events/s; 0: as fast as possible.
    """
    arguments = ["-m", "tests.benchmarks.producer", settings.kafka, topic, str(count), str(rate)]
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, cwd=ROOT)
    return float(done.stdout.split()[-1])


@dataclass(frozen=True)
class Commit:
    """A commit of a Delta table: its time (Unix seconds), the number of rows added, and their files."""

    at: float
    rows: int
    files: tuple[str, ...]


class DeltaLog:
    """The commits of a table, each read once from its log."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self.commits: list[Commit] = []
        self._next = 0

    def refresh(self) -> None:
        """Read the commits since the last call. Rewrites (compaction) add no rows and are skipped."""
        while (path := self.table / "_delta_log" / f"{self._next:020d}.json").exists():
            actions = [json.loads(line) for line in path.read_text().splitlines()]
            adds = [action["add"] for action in actions if "add" in action and action["add"].get("dataChange", True)]
            at = next((a["commitInfo"]["timestamp"] for a in actions if "commitInfo" in a), 0) / 1000
            rows = sum(json.loads(add["stats"])["numRecords"] for add in adds)
            if rows:
                self.commits.append(Commit(at, rows, tuple(add["path"] for add in adds)))
            self._next += 1

    @property
    def rows(self) -> int:
        return sum(commit.rows for commit in self.commits)

    def wait_for(self, rows: int, seconds: float) -> float:
        """Wait for `rows` rows; returns the time of the commit (Unix seconds). Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while True:
            self.refresh()
            if self.rows >= rows:
                return self.commits[-1].at
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.rows} of {rows} rows after {seconds:.0f} s")
            time.sleep(0.05)


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    return float(psutil.Process(pid).memory_info().rss / 2**20)
