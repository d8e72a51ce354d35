"""Runs one part and restarts it when it exits: `python -m deploy.devstack.supervision.supervisor RECORD`.

`records.start_part` starts one supervisor per part, detached. RECORD is the JSON file that says what to run (`launch`);
the supervisor adds its own identity and its child's, so that `down` can stop exactly these processes. A child that
exits by itself is restarted with exponential backoff; one that exits early too often is `failed`. SIGTERM stops the
child, then the supervisor.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import IO, Any

from deploy.devstack.supervision.processes import ProcessIdentity, run_as, stop
from shared.files import write_atomically

FIRST_BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 30.0
EARLY_EXIT_SECONDS = 60.0
"""A child that ran longer than this was healthy: the backoff starts over."""
POLL_SECONDS = 0.2
MAX_EARLY_EXITS = 6
"""Early exits in a row before the part is `failed` and no longer restarted."""


class Supervisor:
    """Restarts one child when it exits. `run` blocks until the child was asked to stop or has failed."""

    def __init__(self, record: Path) -> None:
        self._path = record
        self._record: dict[str, Any] = json.loads(record.read_text())
        self._launch: dict[str, Any] = self._record["launch"]
        self._stopping = False

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """Handle a stop signal. It sets a flag only: taking a lock here could deadlock with the interrupted code."""
        self._stopping = True

    def run(self) -> None:
        self._write(supervisor=vars(ProcessIdentity.of(os.getpid())), state="starting", restarts=0)
        early_exits, restarts = 0, 0
        while not self._stopping:
            began = time.monotonic()
            code = self._run_once()
            if self._stopping:
                break
            early_exits = 1 if time.monotonic() - began > EARLY_EXIT_SECONDS else early_exits + 1
            restarts += 1
            if early_exits >= MAX_EARLY_EXITS:
                self._write(child=None, state="failed", last_exit=code)
                return
            self._write(child=None, state="restarting", restarts=restarts, last_exit=code)
            self._sleep(min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (early_exits - 1)))
        self._write(child=None, state="stopped")

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stopping:
            time.sleep(POLL_SECONDS)

    def _run_once(self) -> int:
        """Start the child and wait until it exits or must be stopped. Returns its exit code."""
        with Path(self._record["log"]).open("ab", buffering=0) as log:
            try:
                child = self._start(log)
            except OSError as error:
                log.write(f"supervisor: cannot start {self._launch['argv'][0]}: {error}\n".encode())
                return 127
            identity = ProcessIdentity.of(child.pid)
            self._write(child=vars(identity), state="running", since=time.time())
            while child.poll() is None and not self._stopping:
                time.sleep(POLL_SECONDS)
            if child.poll() is None:
                reaper = threading.Thread(target=child.wait, daemon=True)
                reaper.start()
                stop(identity, self._launch["stop_signal"], self._launch["grace_seconds"])
                reaper.join(5.0)
            else:
                stop(identity, signal.SIGKILL, 0.0)  # Processes that the child left running in its group.
                log.write(f"supervisor: {self._record['part']} exited with code {child.returncode}\n".encode())
            return child.returncode if child.returncode is not None else -signal.SIGKILL

    def _start(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._launch["argv"],
            env={**os.environ, **self._launch["env"]},
            cwd=self._launch["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **run_as(self._launch["user"]),
        )

    def _write(self, **changes: Any) -> None:
        self._record.update(changes)
        write_atomically(self._path, json.dumps(self._record, indent=1).encode())


def main() -> None:
    """Entry point."""
    supervisor = Supervisor(Path(sys.argv[1]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.ask_to_stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    supervisor.run()


if __name__ == "__main__":
    main()
