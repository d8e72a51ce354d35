"""Runs one part and restarts it when it exits: `python -m deploy.devstack.supervision.supervisor RECORD`.

`records.start_part` starts one supervisor per part, detached. RECORD is the JSON file that says what to run (`launch`);
the supervisor adds its own identity and its child's, so that `down` can stop exactly these processes. A child that
exits by itself is restarted with exponential backoff; one that never ran for long and exits early too often is
`failed`. SIGTERM stops the child, then the supervisor. A full disk stops nothing: what cannot be written is left out of
the log, and written to the record later.
"""

from __future__ import annotations

import contextlib
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
_MOST_DOUBLED = 10
POLL_SECONDS = 0.2
MAX_EARLY_EXITS = 6
"""Early exits before the part is `failed` and no longer restarted. One that has run for long is not at fault: what it
needs, such as a broker or room on a disk, is away, and may come back after hours."""


class Supervisor:
    """Restarts one child when it exits. `run` blocks until the child was asked to stop or has failed."""

    def __init__(self, record: Path) -> None:
        self._path = record
        self._record: dict[str, Any] = json.loads(record.read_text())
        self._launch: dict[str, Any] = self._record["launch"]
        self._stopping = False
        self._is_written = True

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """Handle a stop signal. It sets a flag only: taking a lock here could deadlock with the interrupted code."""
        self._stopping = True

    def run(self) -> None:
        self._record |= {"supervisor": vars(ProcessIdentity.of(os.getpid())), "state": "starting", "restarts": 0}
        self._save()  # Unless it is in the record, nobody could stop it.
        early_exits, restarts, has_run = 0, 0, False
        while not self._stopping:
            began = time.monotonic()
            code = self._run_once()
            if self._stopping:
                break
            was_early = time.monotonic() - began <= EARLY_EXIT_SECONDS
            early_exits, has_run = early_exits + 1 if was_early else 1, has_run or not was_early
            restarts += 1
            if early_exits >= MAX_EARLY_EXITS and not has_run:
                self._write(child=None, state="failed", last_exit=code)
                return
            self._write(child=None, state="restarting", restarts=restarts, last_exit=code)
            self._sleep(min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(early_exits - 1, _MOST_DOUBLED)))
        self._write(child=None, state="stopped")

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stopping:
            self._poll()

    def _poll(self) -> None:
        time.sleep(POLL_SECONDS)
        if not self._is_written:
            self._write()

    def _run_once(self) -> int:
        """Start the child and wait until it exits or must be stopped. Returns its exit code."""
        try:
            with self._log().open("ab", buffering=0) as log:
                child = self._start(log)
        except OSError as error:
            self._say(f"cannot start {self._launch['argv'][0]}: {error}")
            return 127
        identity = ProcessIdentity.of(child.pid)
        self._write(child=vars(identity), state="running", since=time.time())
        while child.poll() is None and not self._stopping:
            self._poll()
        if child.poll() is None:
            reaper = threading.Thread(target=child.wait, daemon=True)
            reaper.start()
            stop(identity, self._launch["stop_signal"], self._launch["grace_seconds"])
            reaper.join(5.0)
        else:
            stop(identity, signal.SIGKILL, 0.0)  # Processes that the child left running in its group.
            self._say(f"{self._record['part']} exited with code {child.returncode}")
        return child.returncode if child.returncode is not None else -signal.SIGKILL

    def _log(self) -> Path:
        return Path(self._record["log"])

    def _say(self, words: str) -> None:
        with contextlib.suppress(OSError), self._log().open("ab") as log:
            log.write(f"supervisor: {words}\n".encode())

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
        """Write the record; where that fails, at the next poll again."""
        self._record.update(changes)
        try:
            self._save()
        except OSError:
            self._is_written = False
        else:
            self._is_written = True

    def _save(self) -> None:
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
