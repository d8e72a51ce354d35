"""One run: start everything, send load and play faults in parallel, wait until all events are stored, then check.

`run_chaos` returns an `Outcome`. It always stops every process and unmounts its disks.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import psycopg
from deltalake.exceptions import DeltaError

from schemas.catalog import DEAD_LETTERS, SERVICES, TOPICS
from shared.kafka.dead_letters import DEAD_LETTER_KEY
from shared.privacy.encryption import load_cipher
from tests.chaos.checks import checker, lake, leaks
from tests.chaos.faults import KINDS, Faults, schedule
from tests.chaos.ledger import Ledger
from tests.chaos.load.clients import USERS_TO_FORGET, Load
from tests.chaos.load.people import seeded_values
from tests.chaos.report import SAME, Outcome
from tests.chaos.system import EVENT_PATH, WRITERS, System, can_mount
from tests.chaos.verdict import TABLES, verdict

_POLL_SECONDS = 2.0
T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """The options of a run. `faults`: number of each kind. `without`: kinds that are not played.

    `short`: only the services on an event's path, and no rebuild of the lake at the end. `tansu_kills`: on the local
    broker, the number of kills of the broker and of its store; 0: as many faults as of other kinds, stops among them.
    """

    seconds: float = 720.0
    events: int = 200_000
    faults: int = 50
    seed: int = 4
    short: bool = False
    without: frozenset[str] = frozenset()
    settle_seconds: float = 600.0
    tansu_kills: int = 0


SHORT = Options(seconds=25.0, events=5_000, faults=2, short=True)
SHORT_ON_TANSU = {"seconds": 200.0, "events": 16_000, "tansu_kills": 12}
"""What the short run does differently there: of twelve kills each, ten hit the store alone and ten tansu."""


@dataclass
class Progress:
    """The progress of a run, for display. `events`: how many are to be accepted."""

    stage: str = "starting"
    events: int = 1
    accepted: int = 0
    refused: int = 0
    unknown: int = 0
    spool_bytes: int = 0
    faults: Counter[str] | None = None
    now: dict[str, str] | None = None


Show = Callable[[Progress], None]


async def run_chaos(home: Path, options: Options, show: Show, *, keep: bool = False) -> Outcome:
    """Run once in a new folder, which is deleted if the run passes. Raises the errors of the harness itself."""
    not_played = {kind: "excluded by --without" for kind in options.without}
    if "disk" not in options.without and not await asyncio.to_thread(can_mount):
        not_played["disk"] = "it needs a small mounted disk, and only root may mount one"
    services = EVENT_PATH if options.short else SERVICES
    system = System(home, disks="disk" not in not_played, services=services)
    if options.short and system.broker_kind == "tansu":
        options = replace(options, **SHORT_ON_TANSU)
    if system.broker_kind == "external":
        not_played["broker"] = "RATCHET_KAFKA names an external broker, which the run must not stop"
    if system.broker_kind != "tansu":
        not_played["store"] = "only the local default broker keeps its records in an S3 server"
    if options.short:
        absent = ", ".join(name for name in SERVICES if name not in EVENT_PATH)
        not_played["service: others"] = f"the short run does not start {absent}"
    run = _Run(system, options, show)
    run.outcome.not_played = not_played
    try:
        await run.run(set(not_played))
        return run.outcome
    finally:
        if run.ledger is not None:
            run.ledger.close()
        await asyncio.shield(_close(system, keep=keep or not (run.finished and run.outcome.passed)))


async def _close(system: System, *, keep: bool) -> None:
    if keep and system.disks and system.lake.exists():  # For diagnosis: the disk itself is unmounted.
        await asyncio.to_thread(shutil.copytree, system.lake, system.home / "lake", dirs_exist_ok=True)
    await system.close()
    await asyncio.to_thread(system.remove, everything=not keep)


class _Run:
    """The state of one run."""

    def __init__(self, system: System, options: Options, show: Show) -> None:
        self.system, self.options, self._show = system, options, show
        self.progress = Progress(events=options.events)
        self.outcome = Outcome(
            system={"broker": system.broker_kind, "seed": options.seed, "tasks": ", ".join(system.tasks)}
        )
        self.ledger: Ledger | None = None
        self.finished = False
        self.planned: Counter[str] = Counter()
        self._scanner = leaks.Scanner(seeded_values())
        self._leaks = leaks.Leaks()
        self._stored_error = ""

    async def run(self, without: set[str]) -> None:
        await self.system.start(self._say)
        self.ledger = Ledger(self.system.home / "ledger.sqlite")
        await self._load_and_faults(without)
        await self._settle()
        await self._check()
        if not self.options.short:
            await self._rebuild()
        self.outcome.verdict += verdict(self.outcome, self.options.events, self.planned)
        self.finished = True

    def _say(self, words: str) -> None:
        self.progress.stage = words
        self._show(self.progress)

    async def _load_and_faults(self, without: set[str]) -> None:
        assert self.ledger is not None
        options, began = self.options, time.monotonic()
        load = Load(self.system, self.ledger, options.events, options.seconds * 0.95, options.seed)
        plan = schedule(
            options.seed, options.faults, self.system.services, self.system.broker_kind, without, options.tansu_kills
        )
        faults = Faults(self.system, load, plan, options.seconds)
        self._say("load and faults")
        async with self._watching(load, faults):
            clients = asyncio.create_task(load.run())
            forgetting = asyncio.create_task(self._forget(load))
            try:
                await faults.run()
                while not load.reached and not clients.done():
                    await asyncio.sleep(0.2)
                await forgetting
                load.stopping = True
                await clients
            finally:  # Both have ended, unless the run is interrupted.
                for task in (clients, forgetting):
                    task.cancel()
                await asyncio.gather(clients, forgetting, return_exceptions=True)
        self.outcome.seconds = round(time.monotonic() - began, 1)
        self.planned = faults.planned
        self.outcome.faults = {kind: faults.played.by_kind[kind] for kind in KINDS if kind not in without}
        self.outcome.faults |= {"copies": load.direct.counts.copies, "reordered": load.direct.counts.reordered}
        self.outcome.faults_by_way = dict(sorted(faults.played.by_way.items()))
        self.outcome.faults_lasted = faults.played.durations
        self.outcome.faults_missed = dict(faults.played.missed)
        self.outcome.load = {
            **self.ledger.counts, "accepted_while_the_broker_was_away": load.counts.while_broker_down,
            "by_http_and_kafka": load.counts.both_ways, "poison": load.direct.counts.poison,
            "seeded": dict(load.texts.seeded.most_common()), "answers": dict(load.answers.most_common()),
            "feedback": dict(load.counts.feedback),
        }  # fmt: skip

    async def _forget(self, load: Load) -> None:
        """Forget one user after the other, spread over the run."""
        for _ in range(USERS_TO_FORGET):
            await asyncio.sleep(self.options.seconds * 0.8 / USERS_TO_FORGET)
            await load.forget()

    @contextlib.asynccontextmanager
    async def _watching(self, load: Load, faults: Faults) -> AsyncIterator[None]:
        """Show counts, scan the spools every few seconds, and raise if a program cannot be started."""

        async def watch() -> None:
            seconds = 0
            while True:
                assert self.ledger is not None and self.system.programs is not None
                counts = self.ledger.counts
                self.progress.accepted, self.progress.refused = counts["accepted"], counts["refused"]
                self.progress.unknown = counts["unknown"]
                self.progress.spool_bytes = self.system.spool_bytes()
                self.progress.faults, self.progress.now = faults.played.by_kind, faults.played.now
                self.system.programs.check()
                self._show(self.progress)
                if seconds % 10 == 5:
                    await asyncio.to_thread(
                        leaks.scan_files, self._scanner, "spool files", self.system.spool, self._leaks
                    )
                seconds += 1
                await asyncio.sleep(1.0)

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _settle(self) -> None:
        """Wait until the lake has everything that was accepted, or until nothing more arrives."""
        assert self.ledger is not None
        self._say("waiting until everything is stored")
        await self.system.wait_until_recovered()
        began = progressed = time.monotonic()
        expected, feedback, requests = (
            self.ledger.expected(), self.ledger.expected_feedback(), self.ledger.expected_requests()
        )  # fmt: skip
        fewest_missing: int | None = None
        while True:
            ids = await self._stored_ids_by_key()
            remaining = {
                "predictions": len(expected - set(ids)),
                "feedback": len(feedback - await self._stored("feedback")),
                "requests": len(requests - await self._stored("requests")),
                "questions": len(await self._questions_missing(ids)),
            }
            missing = sum(remaining.values())
            self.progress.spool_bytes = self.system.spool_bytes()
            to_come = ", ".join(f"{count:,} {table}" for table, count in remaining.items() if count) or "nothing"
            self._say(f"waiting until everything is stored: {to_come} to come {self._stored_error}")
            if not missing:
                break
            if fewest_missing is None or missing < fewest_missing:
                fewest_missing, progressed = missing, time.monotonic()
            max_idle_seconds = min(180.0, self.options.settle_seconds / 2)
            if (
                time.monotonic() - progressed > max_idle_seconds
                or time.monotonic() - began > self.options.settle_seconds
            ):
                self.outcome.verdict.append(f"{missing:,} events did not arrive in the lake or at the failure miner")
                break
            await asyncio.sleep(_POLL_SECONDS)
        self.outcome.settled_seconds = round(time.monotonic() - began, 1)
        await asyncio.sleep(_POLL_SECONDS)  # Duplicates may still arrive.

    async def _stored(self, table: str) -> set[str]:
        return set(await self._read(table, lambda: lake.stored_ids(self.system.lake, table, self.system.tasks)))

    async def _stored_ids_by_key(self) -> dict[lake.Key, str]:
        return dict(await self._read("predictions", lambda: lake.ids_by_key(self.system.lake, self.system.tasks)))

    async def _read(self, table: str, read: Callable[[], T]) -> T | tuple[()]:
        """Read a table; nothing while it cannot be read."""
        try:
            found = await asyncio.to_thread(read)
            self._stored_error = ""
            return found
        except (DeltaError, OSError) as error:
            self._stored_error = f"({table}: {str(error)[:100]})"
            return ()

    async def _questions_missing(self, ids: Mapping[lake.Key, str]) -> set[str]:
        assert self.ledger is not None
        expected, _ = checker.expected_questions(self.ledger.path, ids)
        return expected - set(await asyncio.to_thread(self._questions))

    def _questions(self) -> Counter[str]:
        """Return how often the failure miner asked about each prediction."""
        try:
            with psycopg.connect(self.system.settings.postgres, connect_timeout=4) as connection:
                rows = connection.execute("SELECT prediction_id FROM failure_miner.asked").fetchall()
        except psycopg.Error:
            return Counter()
        return Counter(row[0] for row in rows)

    async def _check(self) -> None:
        system, found, programs = self.system, self._leaks, self.system.programs
        assert self.ledger is not None and programs is not None
        self._say("checking")
        self.outcome.checked = await asyncio.to_thread(checker.check, self.ledger.path, system.lake, system.tasks)
        expected, forgotten = checker.expected_questions(self.ledger.path, await self._stored_ids_by_key())
        questions = await asyncio.to_thread(self._questions)
        self.outcome.questions = {
            "low confidence, accepted": len(expected),
            "missing": len(expected - set(questions)),
            "doubled": sum(count > 1 for count in questions.values()),
            "forgotten, still there": len(forgotten & set(questions)),
        }
        self._say("looking for personal data")
        await asyncio.to_thread(leaks.scan_lake, self._scanner, system.lake, found)
        await asyncio.to_thread(leaks.scan_files, self._scanner, "spool files", system.spool, found)
        await asyncio.to_thread(leaks.scan_database, self._scanner, system.settings.postgres, found)
        topics = [*(topic.name for topic in TOPICS), *DEAD_LETTERS]
        cipher = load_cipher(system.settings.secrets_folder, DEAD_LETTER_KEY)
        contents = await asyncio.to_thread(
            leaks.read_topics, self._scanner, system.settings.kafka, topics, cipher, found
        )
        self._count_dead_letters(contents)
        await self._last_found(contents)
        self.outcome.leaks = dict(found.by_location)
        self.outcome.looked_at = dict(found.scanned)
        self.outcome.leak_examples = found.examples
        self.outcome.load["more_than_once_on_predictions_logged"] = sum(contents.logged.values()) - len(contents.logged)
        started = programs.by_name.values()
        self.outcome.restarts = {program.name: program.starts - 1 for program in started}
        self.outcome.fell = {p.name: {str(code): n for code, n in p.crashes.items()} for p in started if p.crashes}

    def _count_dead_letters(self, contents: leaks.TopicContents) -> None:
        """Count dead letters: the poison should be among them, and nothing else."""
        by_service = contents.dead_letters
        poison = {p for positions in by_service.values() for p in positions if p[0] == "predictions.submitted.v1"}
        others = {service: len(positions - poison) for service, positions in by_service.items() if positions - poison}
        sent = self.outcome.load["poison"]
        self.outcome.dead_letters = {"poison_sent": sent, "poison_dead_lettered": len(poison), **others}
        self.outcome.dead_letter_errors = dict(contents.errors.most_common(20))

    async def _last_found(self, contents: leaks.TopicContents) -> None:
        """Record where the lost predictions were last found."""
        assert self.outcome.checked is not None and self.ledger is not None
        if not self.outcome.checked.predictions.lost:
            return
        lost = {marker for marker, _ in self.ledger.expected() - set(await self._stored_ids_by_key())}
        logged = lost & set(contents.logged)
        submitted = (lost & contents.submitted) - logged
        self.outcome.last_seen = {
            "on predictions.logged": len(logged),
            "on predictions.submitted only": len(submitted),
            "in a spool, or nowhere": len(lost - logged - submitted),
            "bytes in the spools": self.system.spool_bytes(),
            "examples": sorted(lost)[:10],
        }

    async def _rebuild(self) -> None:
        """Delete the lake, let the writers read the topics from the start, and compare the rows."""
        assert self.ledger is not None
        system = self.system
        tables = [table for table in TABLES if await self._stored(table)]
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
            missing = len(self.ledger.expected() - set(await self._stored_ids_by_key()))
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
            old, new = before[table], after.get(table, "nothing")
            self.outcome.rebuilt[table] = f"{SAME}{old}" if same else f"DIFFERENT: {old} before, {new} after"
            if not same:
                self.outcome.verdict.append(f"{table}, rebuilt from its topic, has other rows")

    def _hashes(self, tables: list[str]) -> dict[str, str]:
        return {table: lake.rows_hash(self.system.lake, table, self.system.tasks, TABLES[table]) for table in tables}
