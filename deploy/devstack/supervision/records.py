"""The records of running parts: the supervisor of each, how it was started, how others reach it.

A record is `<home>/state/pids/<part>.json`, written by `up` and then by the part's supervisor; `down` and `status` read
it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.devstack.config import CHECKOUT, StackConfig
from deploy.devstack.errors import PartError
from deploy.devstack.part import Launch, tail
from deploy.devstack.supervision.processes import ProcessIdentity, stop
from shared.files import write_atomically

MAX_LOG_BYTES = 20_000_000


@dataclass(frozen=True)
class PartRecord:
    """The record of one part. `state`: starting, running, restarting, failed or stopped."""

    part: str
    state: str
    supervisor: ProcessIdentity | None
    child: ProcessIdentity | None
    restarts: int
    last_exit: int | None
    log: Path
    address: str
    environment: dict[str, str]
    launch: dict[str, Any]

    @property
    def supervised(self) -> bool:
        return self.supervisor is not None and self.supervisor.alive()

    @property
    def running(self) -> bool:
        return self.child is not None and self.child.alive()


def read(config: StackConfig, part: str) -> PartRecord | None:
    """Return the part's record, or None if `up` has not started it."""
    path = config.records / f"{part}.json"
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return PartRecord(
        part=raw["part"],
        state=raw.get("state", "starting"),
        supervisor=_identity(raw.get("supervisor")),
        child=_identity(raw.get("child")),
        restarts=raw.get("restarts", 0),
        last_exit=raw.get("last_exit"),
        log=Path(raw["log"]),
        address=raw["address"],
        environment=raw["environment"],
        launch=raw["launch"],
    )


def read_all(config: StackConfig) -> dict[str, PartRecord]:
    """Return the records of all parts that `up` started in this home, by name."""
    names = sorted(path.stem for path in config.records.glob("*.json"))
    found = {name: read(config, name) for name in names}
    return {name: record for name, record in found.items() if record}


def _identity(raw: dict[str, Any] | None) -> ProcessIdentity | None:
    return ProcessIdentity(**raw) if raw else None


def start_part(config: StackConfig, part: str, launch: Launch, address: str, environment: dict[str, str]) -> None:
    """Write the record and start the part's supervisor, detached from this process and terminal. Raises PartError."""
    path, log = config.records / f"{part}.json", config.logs / f"{part}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    record = {"part": part, "log": str(log), "address": address, "environment": environment, "launch": asdict(launch)}
    write_atomically(path, json.dumps(record, indent=1).encode())
    supervisor_log = config.logs / "supervisor.log"
    python_path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    with supervisor_log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.devstack.supervision.supervisor", str(path)],
            env={**os.environ, "PYTHONPATH": python_path},
            cwd=config.home,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _wait_for_supervisor(config, part, process, supervisor_log)


def _wait_for_supervisor(config: StackConfig, part: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the supervisor has written its identity: from then on `down` finds it. Raises PartError."""
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        record = read(config, part)
        if record and record.supervisor:
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    way_out = "In Ratchet's checkout: pip install '.[local]', then: ratchet up"
    raise PartError(f"the supervisor of {part} did not start:\n{tail(log)}", way_out)


def stop_part(config: StackConfig, record: PartRecord) -> None:
    """Stop the supervisor, which stops its child; stop the child here if it still runs. Then delete the record."""
    signal_number, grace = record.launch["stop_signal"], record.launch["grace_seconds"]
    if record.supervisor:
        record.supervisor.signal(15)
        if not record.supervisor.wait_gone(grace + 8.0):
            record.supervisor.signal(9)
            record.supervisor.wait_gone(5.0)
    latest = read(config, record.part) or record
    for child in {latest.child, record.child} - {None}:
        if child is not None and child.alive():
            stop(child, signal_number, grace)
    (config.records / f"{record.part}.json").unlink(missing_ok=True)
