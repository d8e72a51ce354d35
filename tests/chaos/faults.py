"""A seeded schedule of faults, and its player.

Faults of different kinds overlap. Those of one kind never do, nor do those of broker and store: each hits a broker that
has just acknowledged a record.

- `service`: kill -9 of a random service process, or of a gateway's shipper
- `broker`: kill -9, or stopped for a while; on the local broker, kill -9 of tansu or of the proxy before it
- `store`: kill -9 of the S3 server that the local broker keeps everything in, alone or with tansu, or stopped
- `database`: kill -9 of PostgreSQL's first process, or stopped for a while
- `disk`: the disk of the spools or of the lake is full for a while
- `zombie`: a writer of the lake is frozen until its consumer group has reassigned its partitions, then resumed
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos.load.clients import Load
from tests.chaos.system import BROKER, DATABASE, GATEWAYS, STORE, TANSU_ONLY, WRITERS, System

KINDS = ("service", "broker", "store", "database", "disk", "zombie")
SHIPPER, TANSU, PROXY, STORE_AND_TANSU = "shipper", "tansu", "proxy", "s3 and tansu"
KILL, STOP = "kill -9", "stopped"
Ways = Mapping[str, Sequence[tuple[str, str]]]
"""By kind, the targets and ways that are played in rotation."""
_WAYS: Ways = {
    "broker": ((BROKER, KILL), (BROKER, STOP)),
    "database": ((DATABASE, KILL), (DATABASE, STOP)),
}
_TANSU_WAYS: Ways = {
    **_WAYS,
    "broker": ((TANSU, KILL), (PROXY, KILL), (BROKER, STOP)),
    "store": ((STORE, KILL), (STORE, STOP), (STORE_AND_TANSU, KILL)),
}
_TANSU_KILLS: Ways = {
    **_WAYS,
    "broker": (*[(TANSU, KILL)] * 5, (PROXY, KILL)),
    "store": (*[(STORE, KILL)] * 5, (STORE_AND_TANSU, KILL)),
}
_WEIGHTS = {"gateway": 6, "prediction_log": 6, SHIPPER: 8, "failure_miner": 1, "trainer": 1, "evaluator": 1}
_DEFAULT_WEIGHT = 3
_OUTAGE_SECONDS = {"broker": (1.0, 3.0), "store": (1.0, 3.0), "database": (0.5, 3.0)}
"""For how long a part is stopped."""
_ZOMBIE_SECONDS = (11.0, 14.0)
"""Slightly longer than the session timeout of the consumer groups."""
_PAUSES = {"broker": (4.0, 4.0, 4.0, 15.0), "store": (4.0,), "database": (2.0,)}
_PAUSE = (0.5,)
"""Minimum seconds between a fault and the next of its kind, used in rotation; without them nothing would run between
outages. Consumers need ten seconds to take over a dead member's partitions: the broker's longest pause is longer."""


@dataclass(frozen=True)
class Fault:
    """A fault. `at`: share of the run, in [0, 1]. `way`: kill -9, stopped, frozen or full. `seconds`: its length."""

    at: float
    kind: str
    target: str
    way: str
    seconds: float = 0.0


@dataclass
class PlayedFaults:
    """The faults that were played so far."""

    by_kind: Counter[str] = field(default_factory=Counter)
    by_way: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    now: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """By kind, the seconds from the start of each fault until its target answered again."""

    @property
    def durations(self) -> dict[str, dict[str, float]]:
        """Return median and maximum of `seconds`, by kind."""
        return {
            kind: {"median_s": round(statistics.median(found), 1), "longest_s": round(max(found), 1)}
            for kind, found in self.seconds.items()
        }


def schedule(
    seed: int, each: int, services: list[str], broker: str, without: set[str], tansu_kills: int = 0
) -> list[Fault]:
    """Return a run's faults, `each` of every kind (zombies: a fifth of that, at least one), in the order of time.

    `tansu_kills`: on the local broker, as many faults of broker and of store instead, all of them kill -9.
    """
    rng = random.Random(seed)
    counts = dict.fromkeys(KINDS, each) | {"store": 0, "zombie": max(1, each // 5)}
    ways = _WAYS
    if broker == "external":
        counts["broker"] = 0
    elif broker == "tansu":
        ways = _TANSU_KILLS if tansu_kills else _TANSU_WAYS
        counts |= dict.fromkeys(("broker", "store"), tansu_kills or each)
    found: list[Fault] = []
    for kind in KINDS:
        if kind in without:
            continue
        count = counts[kind]
        targets = _service_targets(rng, count, services) if kind == "service" else [""] * count
        for number, target in enumerate(targets):
            at = 0.03 + 0.92 * (number + rng.uniform(0.1, 0.9)) / count
            found.append(_fault(rng, at, kind, target, number, ways))
    return sorted(found, key=lambda fault: fault.at)


def too_few(planned: Mapping[str, int], played: Mapping[str, int]) -> list[str]:
    """Return a sentence for each kind of which too few faults were played.

    Every fault of broker and store must be; of others nine in ten, since a target may be restarting; one zombie, since
    a service fault may hit it.
    """
    required = {kind: 1 if kind == "zombie" else max(1, round(count * 0.9)) for kind, count in planned.items()}
    required |= {kind: planned[kind] for kind in ("broker", "store") if kind in planned}
    return [
        f"only {played.get(kind, 0)} of {planned[kind]} faults of kind {kind} were played"
        for kind, count in required.items()
        if played.get(kind, 0) < count
    ]


def _service_targets(rng: random.Random, count: int, services: list[str]) -> list[str]:
    """Choose each process twice if `count` allows, the rest by weight: those on a prediction's path most often."""
    every = [*services, SHIPPER]
    fixed = every * 2 if count >= 2 * len(every) else []
    weights = [_WEIGHTS.get(name.partition("-")[0], _DEFAULT_WEIGHT) for name in every]
    if not fixed:  # A short run: those on a prediction's path first.
        fixed = ["gateway", WRITERS[0], SHIPPER][:count]
    targets = fixed + rng.choices(every, weights, k=count - len(fixed))
    rng.shuffle(targets)
    return targets


def _fault(rng: random.Random, at: float, kind: str, target: str, number: int, ways: Ways) -> Fault:
    if kind == "service":
        return Fault(at, kind, target, KILL)
    if kind in ways:
        target, way = ways[kind][number % len(ways[kind])]
        return Fault(at, kind, target, way, rng.uniform(*_OUTAGE_SECONDS[kind]))
    if kind == "disk":
        return Fault(at, kind, ("spool", "lake")[number % 2], "full", rng.uniform(1.0, 3.0))
    return Fault(at, kind, WRITERS[(number + 1) % 2], "frozen", rng.uniform(*_ZOMBIE_SECONDS))


class Faults:
    """Plays a schedule."""

    def __init__(self, system: System, load: Load, plan: list[Fault], seconds: float) -> None:
        self._system = system
        self._load = load
        self._plan = plan
        self._seconds = seconds
        self._random = random.Random(len(plan))
        self.played = PlayedFaults()
        self._players: dict[str, Callable[[Fault], object]] = {
            "service": self._service, "broker": self._broker, "store": self._broker, "database": self._database,
            "disk": self._disk, "zombie": self._zombie,
        }  # fmt: skip
        self._turns = {kind: asyncio.Lock() for kind in KINDS}
        self._turns["store"] = self._turns["broker"]

    @property
    def planned(self) -> Counter[str]:
        """How many faults of each kind there are to play."""
        return Counter(fault.kind for fault in self._plan)

    async def run(self) -> None:
        """Play all faults: those of one kind in sequence, the kinds in parallel. A late one is played after a pause."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for kind in KINDS:
                group.create_task(self._play(began, [fault for fault in self._plan if fault.kind == kind]))

    async def _play(self, began: float, plan: list[Fault]) -> None:
        for number, fault in enumerate(plan, 1):
            await asyncio.sleep(max(0.0, began + fault.at * self._seconds - time.monotonic()))
            async with self._turns[fault.kind]:
                await self._play_one(fault)
                if number < len(plan):
                    pauses = _PAUSES.get(fault.kind, _PAUSE)
                    await asyncio.sleep(pauses[(number - 1) % len(pauses)])

    async def _play_one(self, fault: Fault) -> None:
        self.played.now[fault.kind] = f"{fault.target} {fault.way}"
        player: Callable[..., object] = self._players[fault.kind]
        started = time.monotonic()
        was_played = await player(fault)  # type: ignore[misc]
        self.played.seconds.setdefault(fault.kind, []).append(time.monotonic() - started)
        self.played.now.pop(fault.kind, None)
        if was_played:
            self.played.by_kind[fault.kind] += 1
            self.played.by_way[f"{fault.kind}: {fault.target} {fault.way}"] += 1
        else:
            self.played.missed[f"{fault.kind}: {fault.target}"] += 1

    async def _service(self, fault: Fault) -> bool:
        if fault.target == SHIPPER:
            return await self._kill_shipper()
        return await self._kill(fault.target)

    async def _kill(self, name: str) -> bool:
        """kill -9 a program; wait for one that is restarting."""
        program = self._system.program(name)
        for _ in range(100):
            if program.running:
                await program.kill()
                return True
            await asyncio.sleep(0.1)
        return False

    async def _kill_shipper(self) -> bool:
        for _ in range(50):
            found = [child for name in GATEWAYS for child in self._system.program(name).children(SHIPPER)]
            if found:
                victim = self._random.choice(found)
                try:
                    victim.kill()
                    return True
                except psutil.Error:
                    continue
            await asyncio.sleep(0.1)
        return False

    async def _kill_tansu(self) -> bool:
        for _ in range(100):
            if await self._system.program(BROKER).kill_child(TANSU_ONLY):
                return True
            await asyncio.sleep(0.1)
        return False

    async def _broker(self, fault: Fault) -> bool:
        """Play an outage of the broker, or of the store without which it answers nothing."""
        self._load.broker_down = True
        try:
            was_played = await self._outage(fault)
            if fault.kind == "store":
                await self._system.wait_until_up(STORE)
            await self._system.wait_until_up(BROKER)
            await self._load.wait_until_acknowledged()
        finally:
            self._load.broker_down = False
        return was_played

    async def _database(self, fault: Fault) -> bool:
        was_played = await self._outage(fault)
        await self._system.wait_until_up(DATABASE)
        return was_played

    async def _outage(self, fault: Fault) -> bool:
        if fault.target == TANSU:
            return await self._kill_tansu()
        if fault.target == STORE_AND_TANSU:
            return all(await asyncio.gather(self._kill(STORE), self._kill_tansu()))
        name = BROKER if fault.target == PROXY else fault.target
        if fault.way == KILL:
            return await self._kill(name)
        program = self._system.program(name)
        await program.stop()
        await asyncio.sleep(fault.seconds)
        program.resume()
        return True

    async def _disk(self, fault: Fault) -> bool:
        """Fill the disk for a while, including blocks that other processes free; then delete the fillers."""
        folder = self._system.spool_disk if fault.target == "spool" else self._system.lake_disk
        deadline, fillers = time.monotonic() + fault.seconds, []
        try:
            while time.monotonic() < deadline:
                fillers += await asyncio.to_thread(_fill, folder, len(fillers))
                await asyncio.sleep(0.1)
        finally:
            for path in fillers:
                path.unlink(missing_ok=True)
        return bool(fillers)

    async def _zombie(self, fault: Fault) -> bool:
        program = self._system.program(fault.target)
        process = program.process
        if process is None or process.returncode is not None:
            return False
        program.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            resumed = program.process is process and process.returncode is None
            if resumed:
                program.signal(signal.SIGCONT)
        return resumed  # If it was killed while frozen, it was not a zombie.


def _fill(folder: Path, number: int) -> list[Path]:
    """Take all free blocks of the file system. Returns the files created; none if no block was free."""
    path = folder / f"filler-{number}"
    for _ in range(20):
        free = os.statvfs(folder)
        if free.f_bavail <= 0:
            return []
        with path.open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
                return [path]
            except OSError:
                path.unlink()  # Another process took the last blocks.
    return []
