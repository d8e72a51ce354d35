"""Starts, stops and reports the whole local stack, from Python or through `ratchet`.

    from deploy.devstack import stack
    stack.up(parts=["kafka", "postgres"], home=tmp_path, env={**os.environ, **stack.free_ports()})
    stack.down(home=tmp_path)

A second `up` does not touch healthy parts. `<home>/stack.env` holds the addresses of everything; every other command
reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from deploy.devstack.catalog import (
    INFRASTRUCTURE,
    PARTS,
    STOP_ORDER,
    is_wanted,
    part_named,
    select,
)
from deploy.devstack.config import PORTS, StackConfig, stored_storage
from deploy.devstack.credentials import Credentials
from deploy.devstack.errors import PartError, StackError
from deploy.devstack.install.packages import file_lock
from deploy.devstack.part import StackPart
from deploy.devstack.parts.kafka import is_tansu, require_tansus_data
from deploy.devstack.parts.services import ALL_SERVICES
from deploy.devstack.ports import take_ports
from deploy.devstack.startup import Progress, StackStartup, run_in_parallel
from deploy.devstack.supervision import records
from deploy.devstack.supervision.processes import memory_bytes
from shared.files import write_atomically
from shared.jobs import stop_running

__all__ = ["INFRASTRUCTURE", "PARTS", "PartStatus", "StackError", "down", "free_ports", "install", "status", "up"]

_STACK_ENV_HEAD = "# How to reach the stack; written by each `ratchet up` anew. Settings belong in the environment."


def install(
    parts: Sequence[str] | None = None,
    home: Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> None:
    """Install what the parts need, in parallel; start nothing. Raises StackError."""
    config, report = StackConfig.load(home, env), on_progress or _ignore_progress
    config.home.mkdir(parents=True, exist_ok=True)

    def install_part(part: StackPart) -> None:
        if part.name in config.externals:
            report(part.name, "external", part.address(config))
            return
        report(part.name, "installing", "")
        part.install(config, lambda words: report(part.name, "installing", words))
        report(part.name, "ready", "installed")

    run_in_parallel(select(config, parts), install_part, report, Event())


def up(
    parts: Sequence[str] | None = None,
    home: Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> StackConfig:
    """Install, start and health-check the parts. Returns when all are ready; raises StackError naming the others.

    `env` replaces this process's environment as the source of settings.
    """
    config, report = StackConfig.load(home, env), on_progress or _ignore_progress
    selected = select(config, parts)
    if any(part.name == "kafka" for part in selected) and is_tansu(config):
        require_tansus_data(config)
    with file_lock(config.home / "state" / "up.lock"):
        Credentials.load(config.home)
        _refuse_other_storage(config)
        _write_stack_env(config, {part.name for part in selected})
        startup = StackStartup(config, selected, report)
        run_in_parallel(selected, startup.bring_up, report, startup.cancel)
    return config


def down(
    parts: Sequence[str] | None = None,
    home: Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> list[str]:
    """Stop what `up` started in this home, or only `parts` of it, services first. Returns the names stopped."""
    config, report = StackConfig.load(home, env), on_progress or _ignore_progress
    names = [part_named(name).name for name in parts or PARTS]
    if not config.records.exists():
        return []

    def stop_part(record: records.PartRecord) -> None:
        report(record.part, "stopping", "")
        records.stop_part(config, record)
        for job in stop_running(config.home / "jobs") if record.part == ALL_SERVICES else ():
            report(record.part, "stopping", f"its job {job}, which the next start resumes")
        report(record.part, "stopped", "")

    with file_lock(config.home / "state" / "up.lock"):
        started = {name: record for name, record in records.read_all(config).items() if name in names}
        for group in STOP_ORDER:
            if in_group := [record for name, record in started.items() if name in group]:
                with ThreadPoolExecutor(len(in_group)) as pool:
                    list(pool.map(stop_part, in_group))
    return list(started)


@dataclass(frozen=True)
class PartStatus:
    """One row of `ratchet status`.

    `state`: ready, starting, not answering, restarting, unsupervised, failed, stopped. `owner`: own or external.
    `detail`: what is wrong and the way out, or a caveat.
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
    """Probe every part and return its status. Starts and writes nothing."""
    config = StackConfig.load(home, env)
    started = records.read_all(config)
    names = [name for name in PARTS if name in started or is_wanted(config, name)]
    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(lambda name: _status_of(config, part_named(name), started.get(name)), names))


def _status_of(config: StackConfig, part: StackPart, record: records.PartRecord | None) -> PartStatus:
    if part.name in config.externals:
        problem = part.probe(config)
        state = "not answering" if problem else "ready"
        return PartStatus(part.name, state, "external", None, part.address(config), 0, None, problem or "", 0)
    if record is None:
        return PartStatus(part.name, "stopped", "own", None, part.address(config), 0, None, "ratchet up", 0)
    state, detail = _state_of(config, part, record)
    memory = memory_bytes(record.child) if record.child else 0
    pid = record.child.pid if record.child and record.running else None
    return PartStatus(part.name, state, "own", pid, record.address, memory, record.log, detail, record.restarts)


def _state_of(config: StackConfig, part: StackPart, record: records.PartRecord) -> tuple[str, str]:
    """Return the state of a part that `up` started, and the detail to show."""
    if record.running and not record.supervised:
        return "unsupervised", "its supervisor is gone; ratchet up restarts both"
    if record.running:
        problem = part.probe(config)
        return ("not answering", problem) if problem else ("ready", part.note(config))
    if record.supervised:
        return record.state, f"exited with code {record.last_exit}: ratchet logs {part.name}"
    return "failed", f"exited with code {record.last_exit}: ratchet logs {part.name}, then ratchet up"


def free_ports() -> dict[str, str]:
    """Return `RATCHET_…_PORT` settings with free ports: for a second stack on this machine, and for tests."""
    return {f"RATCHET_{name.upper()}_PORT": str(port) for name, port in zip(PORTS, take_ports(len(PORTS)), strict=True)}


def _refuse_other_storage(config: StackConfig) -> None:
    """Raise PartError if the home runs with the other storage: services would fill one lake, commands read another."""
    stored = stored_storage(config.home)
    runs = any(record.supervised or record.running for record in records.read_all(config).values())
    if config.storage != stored and runs:
        raise PartError(
            f"RATCHET_STORAGE={config.storage}, but this home runs with RATCHET_STORAGE={stored}",
            f"ratchet down && RATCHET_STORAGE={config.storage} ratchet up",
        )


def _write_stack_env(config: StackConfig, selected: Collection[str]) -> None:
    """Write `stack.env`. Parts that already run have the address they were started with.

    The record of one that died with its supervisor, as when the machine restarts, may name a port that it will not get
    again. One that a supervisor is starting again gets its own, unless it is `selected`: then it is started anew.
    """
    values: dict[str, str] = {}
    started = {
        name: record for name, record in records.read_all(config).items()
        if record.supervised and (record.running or name not in selected)
    }  # fmt: skip
    for name in PARTS:
        record = None if name in config.externals else started.get(name)
        values |= record.environment if record else part_named(name).environment(config)
    lines = [_STACK_ENV_HEAD, *(f"{key}={value}" for key, value in values.items())]
    write_atomically(config.home / "stack.env", ("\n".join(lines) + "\n").encode())


def _ignore_progress(part: str, stage: str, words: str) -> None: ...
