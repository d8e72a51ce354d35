"""Up, down, status: the whole local stack, from Python or through `ratchet`.

    from deploy.devstack import stack
    stack.up(parts=["kafka", "postgres"], home=tmp_path, env={**os.environ, **stack.free_ports()})
    stack.down(home=tmp_path)

A second `up` leaves what is healthy alone. `stack.env` in the home says how to reach everything; every other
command reads it.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from deploy.devstack.catalog import INFRASTRUCTURE, PARTS, STOP_ORDER, part_named, select, with_split_services
from deploy.devstack.config import HOST, PORTS, StackConfig
from deploy.devstack.credentials import Credentials
from deploy.devstack.errors import StackError
from deploy.devstack.install.packages import locked
from deploy.devstack.part import Part
from deploy.devstack.parts.services import ALL, SERVICES
from deploy.devstack.startup import Ascent, Progress, side_by_side
from deploy.devstack.supervision import records
from deploy.devstack.supervision.processes import memory_bytes
from deploy.devstack.supervision.supervisor import write_private
from shared.jobs import stop_running

__all__ = ["INFRASTRUCTURE", "PARTS", "PartStatus", "StackError", "down", "free_ports", "install", "status", "up"]


def install(
    parts: Sequence[str] | None = None,
    home: Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
    on_progress: Progress | None = None,
) -> None:
    """Install what the parts need, side by side; start nothing. Raises StackError."""
    config, tell = StackConfig.load(home, env), on_progress or _silent
    config.home.mkdir(parents=True, exist_ok=True)

    def one(part: Part) -> None:
        if part.name in config.externals:
            tell(part.name, "external", part.address(config))
            return
        tell(part.name, "installing", "")
        part.install(config, lambda words: tell(part.name, "installing", words))
        tell(part.name, "ready", "installed")

    side_by_side(select(parts, without), one, tell, Event())


def up(
    parts: Sequence[str] | None = None,
    home: Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
    split: bool = False,
    installing: bool = True,
    on_progress: Progress | None = None,
) -> StackConfig:
    """Install, start and health-check. Returns when all is ready; raises StackError naming what is not.

    `env`: the settings' source instead of this process's environment. `installing=False`: a missing part is an error.
    """
    config, tell = StackConfig.load(home, env), on_progress or _silent
    chosen = select(parts, without, split)
    with locked(config.home / "state" / "up.lock"):
        Credentials.load(config.home)
        _stop_the_other_shape(config, chosen)
        _write_environment(config)
        ascent = Ascent(config, chosen, installing, tell)
        side_by_side(chosen, ascent.bring_up, tell, ascent.cancel)
    return config


def down(
    parts: Sequence[str] | None = None,
    home: Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> list[str]:
    """Stop what `up` started in this home, or only `parts` of it, services first. Returns the names stopped."""
    config, tell = StackConfig.load(home, env), on_progress or _silent
    wanted = with_split_services(parts or PARTS)
    if not config.records.exists():
        return []

    def one(record: records.Record) -> None:
        tell(record.part, "stopping", "")
        records.stop_part(config, record)
        jobs = config.home / "jobs"
        for job in stop_running(jobs if record.part == ALL else jobs / record.part):
            tell(record.part, "stopping", f"its job {job}, which the next start resumes")
        tell(record.part, "stopped", "")

    with locked(config.home / "state" / "up.lock"):
        found = {name: record for name, record in records.read_all(config).items() if name in wanted}
        for group in STOP_ORDER:
            if chosen := [record for name, record in found.items() if name in group]:
                with ThreadPoolExecutor(len(chosen)) as pool:
                    list(pool.map(one, chosen))
    return list(found)


@dataclass(frozen=True)
class PartStatus:
    """One row of `status`.

    `state`: ready, starting, not answering, restarting, unsupervised, failed, stopped, not installed. `owner`: own or
    external. `detail`: what is wrong and the way out, or a caveat.
    """

    part: str
    state: str
    owner: str
    pid: int | None
    address: str
    memory_bytes: int
    log: Path | None
    detail: str
    restarts: int


def status(home: Path | None = None, *, env: Mapping[str, str] | None = None) -> list[PartStatus]:
    """Every part as it is now, each asked a real question. Starts and writes nothing."""
    config = StackConfig.load(home, env)
    found = records.read_all(config)
    split = [name for name in SERVICES if name in found]
    names = [*INFRASTRUCTURE, *(split or [ALL])]
    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(lambda name: _status_of(config, part_named(name), found.get(name)), names))


def _status_of(config: StackConfig, part: Part, record: records.Record | None) -> PartStatus:
    if part.name in config.externals:
        trouble = part.probe(config)
        state = "not answering" if trouble else "ready"
        return PartStatus(part.name, state, "external", None, part.address(config), 0, None, trouble or "", 0)
    if record is None:
        there = part.installed(config)
        state, hint = ("stopped", "ratchet up") if there else ("not installed", f"ratchet install {part.name}")
        return PartStatus(part.name, state, "own", None, part.address(config), 0, None, hint, 0)
    state, detail = _state_of(config, part, record)
    memory = memory_bytes(record.child) if record.child else 0
    pid = record.child.pid if record.child and record.running else None
    return PartStatus(part.name, state, "own", pid, record.address, memory, record.log, detail, record.restarts)


def _state_of(config: StackConfig, part: Part, record: records.Record) -> tuple[str, str]:
    """What it is, and what to say about it."""
    if record.running and not record.supervised:
        return "unsupervised", "its supervisor is gone; ratchet up starts both again"
    if record.running:
        trouble = part.probe(config)
        return ("not answering", trouble) if trouble else ("ready", part.note(config))
    if record.supervised:
        return record.state, f"ended with {record.last_exit}: ratchet logs {part.name}"
    return "failed", f"ended with {record.last_exit}: ratchet logs {part.name}, then ratchet up"


def free_ports() -> dict[str, str]:
    """`RATCHET_…_PORT` settings with ports that are free now: for a second stack on this machine, and for tests."""
    sockets = {name: socket.socket() for name in PORTS}
    try:
        for one in sockets.values():
            one.bind((HOST, 0))
        return {f"RATCHET_{name.upper()}_PORT": str(one.getsockname()[1]) for name, one in sockets.items()}
    finally:
        for one in sockets.values():
            one.close()


def _stop_the_other_shape(config: StackConfig, chosen: Sequence[Part]) -> None:
    """All services in one process, or each in its own. Both would do the work twice: the new shape replaces the old."""
    names = {part.name for part in chosen}
    found = records.read_all(config)
    obsolete = [ALL] if names & set(SERVICES) else list(SERVICES) if ALL in names else []
    for name in obsolete:
        if name in found:
            records.stop_part(config, found[name])


def _write_environment(config: StackConfig) -> None:
    """Write `stack.env`. Parts that already run keep the address they were started with."""
    values: dict[str, str] = {}
    found = records.read_all(config)
    for name in PARTS:
        record = found.get(name)
        keep = record is not None and name not in config.externals
        values |= record.environment if record and keep else part_named(name).environment(config)
    lines = ["# Written by `ratchet up`: how to reach the stack.", *(f"{key}={value}" for key, value in values.items())]
    write_private(config.home / "stack.env", "\n".join(lines) + "\n")


def _silent(part: str, stage: str, words: str) -> None:
    """Progress for nobody."""
