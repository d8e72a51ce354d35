"""The play: start everything, load and faults side by side, wait until all is stored, then check.

`play` returns an `Outcome`; it stops every process and takes its disks away whatever happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
from deltalake.exceptions import DeltaError

from schemas.catalog import DEAD_LETTERS, SERVICES, TOPICS
from shared.kafka.dead_letters import DEAD_LETTER_KEY
from shared.privacy.encryption import load_cipher
from tests.chaos import checker, leaks
from tests.chaos.faults import KINDS, Faults, schedule
from tests.chaos.ledger import Ledger
from tests.chaos.load import LEAVERS, Load
from tests.chaos.people import seeded_values
from tests.chaos.report import SAME, Outcome
from tests.chaos.system import ON_THE_WAY, WRITERS, System, can_mount

KEYS = {"predictions": "prediction_id", "feedback": "event_id", "requests": "event_id"}
_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Options:
    """One run. `faults`: of each kind. `without`: kinds that are not played.

    `short`: only the services that an event passes, and no rebuild at the end.
    """

    seconds: float = 720.0
    events: int = 200_000
    faults: int = 50
    seed: int = 4
    short: bool = False
    without: frozenset[str] = frozenset()
    settle_seconds: float = 600.0


@dataclass
class Progress:
    """What is shown while it runs."""

    stage: str = "starting"
    accepted: int = 0
    refused: int = 0
    unknown: int = 0
    spool_bytes: int = 0
    faults: Counter[str] | None = None
    now: dict[str, str] | None = None


Show = Callable[[Progress], None]


async def play(home: Path, options: Options, show: Show, *, keep: bool = False) -> Outcome:
    """One run in a new folder, which stays if something was wrong. Raises what broke the harness itself."""
    not_played = {kind: "left out by --without" for kind in options.without}
    if "disk" not in options.without and not await asyncio.to_thread(can_mount):
        not_played["disk"] = "a small disk must be mounted for it, and only root may do that"
    services = ON_THE_WAY if options.short else SERVICES
    system = System(home, disks="disk" not in not_played, services=services)
    if system.broker_kind == "external":
        not_played["broker"] = "RATCHET_KAFKA names a broker that is not ours to stop"
    if system.broker_kind == "tansu":
        not_played["broker: kill -9, stopped"] = "tansu keeps all in memory, and forgets it then: it is frozen instead"
    if options.short:
        left = ", ".join(name for name in SERVICES if name not in ON_THE_WAY)
        not_played["service: others"] = f"the short run leaves out {left}"
    run = _Run(system, options, show)
    run.outcome.not_played = not_played
    try:
        await run.all(set(not_played))
        return run.outcome
    finally:
        if run.ledger is not None:
            run.ledger.close()
        await asyncio.shield(_closed(system, keep=keep or not (run.finished and run.outcome.passed)))


async def _closed(system: System, *, keep: bool) -> None:
    if keep and system.disks and system.lake.exists():  # For a look at what went wrong: the disk itself goes.
        await asyncio.to_thread(shutil.copytree, system.lake, system.home / "lake", dirs_exist_ok=True)
    await system.close()
    await asyncio.to_thread(system.remove, all_of_it=not keep)


class _Run:
    """The state of one run."""

    def __init__(self, system: System, options: Options, show: Show) -> None:
        self.system, self.options, self._show = system, options, show
        self.progress = Progress()
        self.outcome = Outcome(system={"broker": system.broker_kind, "seed": options.seed, "task": system.task})
        self.ledger: Ledger | None = None
        self.finished = False
        self._scanner = leaks.Scanner(seeded_values())
        self._leaks = leaks.Leaks()
        self._stored_error = ""

    async def all(self, without: set[str]) -> None:
        await self.system.start(self._say)
        self.ledger = Ledger(self.system.home / "ledger.sqlite")
        await self._load_and_faults(without)
        await self._settle()
        await self._check()
        if not self.options.short:
            await self._rebuild()
        self._judge()
        self.finished = True

    def _say(self, words: str) -> None:
        self.progress.stage = words
        self._show(self.progress)

    async def _load_and_faults(self, without: set[str]) -> None:
        assert self.ledger is not None
        options, began = self.options, time.monotonic()
        load = Load(self.system, self.ledger, options.events, options.seconds * 0.95, options.seed)
        plan = schedule(options.seed, options.faults, self.system.services, self.system.broker_kind, without)
        faults = Faults(self.system, load, plan, options.seconds)
        self._say("load and faults")
        async with self._watching(load, faults):
            clients = asyncio.create_task(load.run())
            leaving = asyncio.create_task(self._forget(load))
            try:
                await faults.run()
                while not load.reached and not clients.done():
                    await asyncio.sleep(0.2)
                await leaving
                load.stopping = True
                await clients
            finally:  # Nothing is left to do for them, unless the run is interrupted.
                for task in (clients, leaving):
                    task.cancel()
                await asyncio.gather(clients, leaving, return_exceptions=True)
        self.outcome.seconds = round(time.monotonic() - began, 1)
        self.outcome.faults = {kind: faults.played.by_kind[kind] for kind in KINDS if kind not in without}
        self.outcome.faults |= {"copies": load.told.copies, "reordered": load.told.reordered}
        self.outcome.faults_by_way = dict(sorted(faults.played.by_way.items()))
        self.outcome.faults_lasted = faults.played.lasted
        self.outcome.faults_missed = dict(faults.played.missed)
        self.outcome.load = {
            **self.ledger.counts, "accepted_while_the_broker_was_away": load.told.while_away,
            "texts_with_personal_data": load.texts.personal, "poison": load.told.poison,
            "answers": dict(load.told.answers.most_common()), "feedback": dict(load.told.feedback),
        }  # fmt: skip

    async def _forget(self, load: Load) -> None:
        """One person after the other leaves, spread over the run."""
        for _ in range(LEAVERS):
            await asyncio.sleep(self.options.seconds * 0.8 / LEAVERS)
            await load.forget()

    @contextlib.asynccontextmanager
    async def _watching(self, load: Load, faults: Faults) -> AsyncIterator[None]:
        """Show counts, look into the spools now and then, and notice a keeper that broke."""

        async def watch() -> None:
            turn = 0
            while True:
                assert self.ledger is not None and self.system.keeper is not None
                counts = self.ledger.counts
                self.progress.accepted, self.progress.refused = counts["accepted"], counts["refused"]
                self.progress.unknown = counts["unknown"]
                self.progress.spool_bytes = self.system.spool_bytes()
                self.progress.faults, self.progress.now = faults.played.by_kind, faults.played.now
                self.system.keeper.check()
                self._show(self.progress)
                if turn % 10 == 5:
                    await asyncio.to_thread(
                        leaks.scan_files, self._scanner, "spool files", self.system.spool, self._leaks
                    )
                turn += 1
                await asyncio.sleep(1.0)

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _settle(self) -> None:
        """Wait until the lake has everything that was accepted; give up when nothing arrives any more."""
        assert self.ledger is not None
        self._say("waiting until everything is stored")
        await self.system.until_whole()
        began = progressed = time.monotonic()
        wanted = {
            "predictions": self.ledger.expected(),
            "feedback": self.ledger.expected_feedback(),
            "requests": self.ledger.expected("chat"),
        }
        least: int | None = None
        while True:
            left = {table: len(ids - await self._stored(table)) for table, ids in wanted.items()}
            left["suspects"] = len(await self._suspects_missing())
            missing = sum(left.values())
            self.progress.spool_bytes = self.system.spool_bytes()
            to_come = ", ".join(f"{count:,} {table}" for table, count in left.items() if count) or "nothing"
            self._say(f"waiting until everything is stored: {to_come} to come {self._stored_error}")
            if not missing:
                break
            if least is None or missing < least:
                least, progressed = missing, time.monotonic()
            patience = min(180.0, self.options.settle_seconds / 2)
            if time.monotonic() - progressed > patience or time.monotonic() - began > self.options.settle_seconds:
                self.outcome.verdict.append(f"{missing:,} events did not arrive in the lake or at the failure miner")
                break
            await asyncio.sleep(_POLL_SECONDS)
        self.outcome.settled_seconds = round(time.monotonic() - began, 1)
        await asyncio.sleep(_POLL_SECONDS)  # What would come twice still comes.

    async def _stored(self, table: str) -> set[str]:
        try:
            found = await asyncio.to_thread(checker.stored_ids, self.system.lake, table, self.system.task)
            self._stored_error = ""
            return found
        except (DeltaError, OSError) as error:
            self._stored_error = f"({table}: {str(error)[:100]})"
            return set()

    async def _suspects_missing(self) -> set[str]:
        assert self.ledger is not None
        wanted, _ = checker.suspects_wanted(self.ledger.path)
        return wanted - set(await asyncio.to_thread(self._suspects))

    def _suspects(self) -> Counter[str]:
        """How often the failure miner has each prediction."""
        try:
            with psycopg.connect(self.system.settings.postgres, connect_timeout=4) as connection:
                rows = connection.execute("SELECT prediction_id FROM failure_miner.suspects").fetchall()
        except psycopg.Error:
            return Counter()
        return Counter(row[0] for row in rows)

    async def _check(self) -> None:
        system, found, keeper = self.system, self._leaks, self.system.keeper
        assert self.ledger is not None and keeper is not None
        self._say("checking")
        self.outcome.checked = await asyncio.to_thread(checker.check, self.ledger.path, system.lake, system.task)
        wanted, gone = checker.suspects_wanted(self.ledger.path)
        suspects = await asyncio.to_thread(self._suspects)
        self.outcome.suspects = {
            "low confidence, accepted": len(wanted),
            "missing": len(wanted - set(suspects)),
            "doubled": sum(count > 1 for count in suspects.values()),
            "forgotten, still there": len(gone & set(suspects)),
        }
        self._say("looking for personal data")
        await asyncio.to_thread(leaks.scan_lake, self._scanner, system.lake, found)
        await asyncio.to_thread(leaks.scan_files, self._scanner, "spool files", system.spool, found)
        await asyncio.to_thread(leaks.scan_database, self._scanner, system.settings.postgres, found)
        topics = [*(topic.name for topic in TOPICS), *DEAD_LETTERS]
        cipher = load_cipher(system.settings.secrets_folder, DEAD_LETTER_KEY)
        seen = await asyncio.to_thread(leaks.read_topics, self._scanner, system.settings.kafka, topics, cipher, found)
        self._letters(seen)
        self._last_seen(seen)
        self.outcome.leaks = dict(found.by_place)
        self.outcome.looked_at = dict(found.looked_at)
        self.outcome.leak_examples = found.examples
        self.outcome.load["more_than_once_on_predictions_logged"] = sum(seen.logged.values()) - len(seen.logged)
        programs = keeper.programs.values()
        self.outcome.restarts = {program.name: program.starts - 1 for program in programs}
        self.outcome.fell = {p.name: {str(code): n for code, n in p.fell.items()} for p in programs if p.fell}

    def _letters(self, seen: leaks.TopicsSeen) -> None:
        """Poison was meant to become dead letters; anything else was not."""
        poison = {
            place for places in seen.letters.values() for place in places if place[0] == "predictions.submitted.v1"
        }
        others = {service: len(places - poison) for service, places in seen.letters.items() if places - poison}
        sent = self.outcome.load["poison"]
        self.outcome.dead_letters = {"poison_sent": sent, "poison_buried": len(poison), **others}
        self.outcome.dead_letter_errors = dict(seen.errors.most_common(20))

    def _last_seen(self, seen: leaks.TopicsSeen) -> None:
        """Where the lost predictions were last seen."""
        assert self.outcome.checked is not None and self.ledger is not None
        if not self.outcome.checked.predictions.lost:
            return
        lost = self.ledger.expected() - checker.stored_ids(self.system.lake, "predictions", self.system.task)
        logged = lost & set(seen.logged)
        submitted = (lost & seen.submitted) - logged
        self.outcome.last_seen = {
            "on predictions.logged": len(logged),
            "on predictions.submitted only": len(submitted),
            "in a spool, or nowhere": len(lost - logged - submitted),
            "bytes left in the spools": self.system.spool_bytes(),
            "examples": sorted(lost)[:10],
        }

    async def _rebuild(self) -> None:
        """Delete the lake, let the writers replay the topics from their start, and compare."""
        assert self.ledger is not None
        system = self.system
        tables = [table for table in KEYS if await self._stored(table)]
        before = await asyncio.to_thread(self._hashes, tables)
        self._say("the lake is deleted and rebuilt from the topics")
        for name in WRITERS:
            await system.program(name).stop()
        await asyncio.to_thread(shutil.rmtree, system.lake)
        for name in WRITERS:
            system.program(name).resume()
        began, after = time.monotonic(), {}
        while time.monotonic() - began < self.options.settle_seconds:
            await asyncio.sleep(_POLL_SECONDS)
            missing = len(self.ledger.expected() - await self._stored("predictions"))
            self._say(f"the lake is rebuilt: {missing:,} predictions to come {self._stored_error}")
            if missing:
                continue
            with contextlib.suppress(DeltaError, OSError):
                after = await asyncio.to_thread(self._hashes, tables)
                if after == before:
                    break
        self.outcome.rebuilt = {"seconds": round(time.monotonic() - began, 1)}
        for table in tables:
            same = before[table] == after.get(table)
            was, became = before[table], after.get(table, "nothing")
            self.outcome.rebuilt[table] = f"{SAME}{was}" if same else f"DIFFERENT: {was} was, {became} is"
            if not same:
                self.outcome.verdict.append(f"{table}, rebuilt from its topic, is another table")

    def _hashes(self, tables: list[str]) -> dict[str, str]:
        return {table: checker.content_hash(self.system.lake, table, self.system.task, KEYS[table]) for table in tables}

    def _judge(self) -> None:
        """Say in words what was promised and not held."""
        outcome = self.outcome
        assert outcome.checked is not None
        for name in KEYS:
            found: checker.Finding = getattr(outcome.checked, name)
            for trouble in ("lost", "doubled", "invented", "forgotten_left"):
                if count := getattr(found, trouble):
                    examples = ", ".join(found.examples.get(trouble, [])[:3])
                    outcome.verdict.append(f"{name}: {count:,} {trouble.replace('_', ' ')} ({examples})")
        for trouble in ("missing", "doubled", "forgotten, still there"):
            if outcome.suspects[trouble]:
                outcome.verdict.append(f"failure miner: {outcome.suspects[trouble]} {trouble}")
        if outcome.leaks:
            outcome.verdict.append(f"personal data at rest: {outcome.leaks}")
        if letters := {s: n for s, n in outcome.dead_letters.items() if not s.startswith("poison")}:
            outcome.verdict.append(f"dead letters that were no poison: {letters}, see dead_letter_errors")
        if outcome.dead_letters["poison_buried"] != outcome.dead_letters["poison_sent"]:
            outcome.verdict.append(f"poison sent and buried differ: {outcome.dead_letters}")
        if outcome.load["accepted"] < self.options.events:
            outcome.verdict.append(f"only {outcome.load['accepted']:,} events were accepted")
        if outcome.checked.predictions.forgotten == 0:
            outcome.verdict.append("nobody who had sent anything was forgotten: that was not tested")
        for kind in KINDS:
            enough = 1 if kind == "zombie" else max(1, round(self.options.faults * 0.9))
            if kind not in outcome.not_played and outcome.faults.get(kind, 0) < enough:
                outcome.verdict.append(f"only {outcome.faults.get(kind, 0)} faults of kind {kind} were played")
