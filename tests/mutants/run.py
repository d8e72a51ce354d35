"""Plants faults in copies of the checkout and runs the tests that must see them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from importlib.util import cache_from_source
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

from tests.conftest import shared_home
from tests.mutants.catalog import ROOT, Fault

TIMEOUT_SECONDS = 600.0
"""A test that takes longer did not see the fault: it hangs."""
_TESTS_FAILED = 1  # pytest's exit status. Others are of what could not be collected, which no test saw.


class Copy:
    """A copy of the checkout's files, with untracked ones that git does not ignore."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for path in _files():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, target)

    def check(self, tests: Sequence[str]) -> str:
        """What is wrong with these tests as long as no fault is planted; empty if they pass."""
        status, output = self._run(sorted(set(tests)))
        return "" if status == 0 else f"its tests do not pass without a fault:\n{output}"

    def try_fault(self, fault: Fault) -> str:
        """How the fault survived; empty if its test saw it."""
        file = self.folder / fault.file
        source = file.read_text()
        try:
            self._write(file, fault.plant(source))
            status, output = self._run([fault.test])
        finally:
            self._write(file, source)
        if status == _TESTS_FAILED:
            return ""
        return "no test failed" if status == 0 else f"its test ended with {status}:\n{output}"

    @staticmethod
    def _write(file: Path, text: str) -> None:
        file.write_text(text)
        # Bytecode counts as current if the source's size and second are the same.
        Path(cache_from_source(str(file))).unlink(missing_ok=True)

    def _run(self, tests: Sequence[str]) -> tuple[int | str, str]:
        path = os.pathsep.join(map(str, (self.folder, self.folder / "client")))
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "RATCHET_HOME": str(shared_home())}
        argv = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
        try:
            ended = subprocess.run(
                argv, cwd=self.folder, env=env, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
            )
        except subprocess.TimeoutExpired:
            return "no result", f"it took longer than {TIMEOUT_SECONDS:g} s"
        return ended.returncode, (ended.stdout + ended.stderr)[-2_000:]


def snapshot() -> str:
    """The hash of all that decides whether a fault is seen: results of another snapshot are of no use."""
    digest = hashlib.sha256()
    for path in _files():
        if not path.startswith("tests/mutants/faults/"):
            digest.update(path.encode() + b"\0" + (ROOT / path).read_bytes())
    return digest.hexdigest()


def run_all(
    rooms: dict[str, list[Fault]], known: set[str], workers: int, ended: Callable[[Fault, str], None]
) -> dict[str, str]:
    """Run the rooms' tests without a fault, then with each that is not known, and tell how it survived.

    Returns the rooms whose tests do not pass without one, and what is wrong; their faults are not tried.
    """
    copies: SimpleQueue[Copy] = SimpleQueue()
    broken: dict[str, str] = {}

    def with_copy(use: Callable[[Copy], str]) -> str:
        copy = copies.get()
        try:
            return use(copy)
        finally:
            copies.put(copy)

    with TemporaryDirectory(prefix="ratchet-mutants-") as folder, ThreadPoolExecutor(workers) as pool:
        for number in range(workers):
            copies.put(Copy(Path(folder, str(number), "checkout")))
        left = {room: [fault for fault in faults if key(fault) not in known] for room, faults in rooms.items()}
        tests = {room: [fault.test for fault in faults] for room, faults in left.items() if faults}
        checks = {pool.submit(with_copy, lambda copy, of=of: copy.check(of)): room for room, of in tests.items()}
        tries: dict[Future[str], Fault] = {}
        for check in as_completed(checks):
            if problem := check.result():
                broken[checks[check]] = problem
                continue
            for fault in left[checks[check]]:
                tries[pool.submit(with_copy, lambda copy, of=fault: copy.try_fault(of))] = fault
        for attempt in as_completed(tries):
            ended(tries[attempt], attempt.result())
    return broken


def key(fault: Fault) -> str:
    return hashlib.sha256(fault.model_dump_json().encode()).hexdigest()


def _files() -> list[str]:
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted(path for path in set(listed) if path and (ROOT / path).is_file())
