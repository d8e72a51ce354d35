"""The product in one process: the services' own handlers on one PostgreSQL, wired by the bus of `stand_ins`.

Real: handlers, rules, statistics and stores of failure_miner, dataset_builder, evaluator, shadow, deployer and
scheduler. Stand-ins: the broker, the engine, Unleash, the trainer, the gateway, the lake's roll-ups, and people.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskChanged
from services.dataset_builder import handlers as builder_handlers
from services.dataset_builder import main as builder_main
from services.dataset_builder.feedback import UserFeedback
from services.dataset_builder.job import BuildResult, build_version
from services.dataset_builder.job_input import BuildJob, embeddings_file
from services.dataset_builder.recipe import LabelScorer
from services.dataset_builder.settings import DatasetBuilderSettings
from services.dataset_builder.storage.corrections import PostgresCorrectionStore
from services.dataset_builder.storage.traffic import PostgresTrafficStore
from services.deployer import handlers as deployer_handlers
from services.deployer import main as deployer_main
from services.deployer.admission import Admission
from services.deployer.settings import DeployerSettings
from services.deployer.storage.ledger import PostgresLedger
from services.deployer.storage.rollouts import PostgresRollouts
from services.deployer.transitions import RolloutTransitions
from services.evaluator import handlers as evaluator_handlers
from services.evaluator.settings import EvaluatorSettings
from services.failure_miner import handlers as miner_handlers
from services.failure_miner import main as miner_main
from services.failure_miner.storage import PostgresSuspectStore
from services.scheduler import handlers as scheduler_handlers
from services.scheduler import main as scheduler_main
from services.scheduler.settings import SchedulerSettings
from services.scheduler.storage import PostgresCycleStore
from services.scheduler.task_watcher import TaskWatcher
from services.shadow import handlers as shadow_handlers
from services.shadow import main as shadow_main
from services.shadow.clients import StoredTrainingIndexes
from services.shadow.replays import Replays
from services.shadow.settings import ShadowSettings
from services.shadow.storage import PostgresDecisions
from shared.jobs import Progress
from shared.model.embedding import CachedEmbedder, Vectors
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import build_engine, database_url
from shared.storage.migration import migrate
from shared.storage.predictions import AnsweredPrediction
from tests.benchmarks.twelve_weeks.stand_ins.bus import Bus
from tests.benchmarks.twelve_weeks.stand_ins.engine import Engine
from tests.benchmarks.twelve_weeks.stand_ins.evaluation import evaluate
from tests.benchmarks.twelve_weeks.stand_ins.flags import Flags
from tests.benchmarks.twelve_weeks.stand_ins.jobs import InlineJobs
from tests.benchmarks.twelve_weeks.world.stream import Corpus
from tests.benchmarks.twelve_weeks.world.task import TASK
from tests.unit.deployer.fakes import MemoryAdapters, MemoryAdmin

_SCHEMAS = {
    "failure_miner": miner_main, "dataset_builder": builder_main, "deployer": deployer_main, "shadow": shadow_main,
    "scheduler": scheduler_main,
}  # fmt: skip


class EmbeddedTexts:
    """The sentence encoder's vectors of the corpus, which are computed once."""

    def __init__(self, corpus: Corpus) -> None:
        self._vectors, self._index = corpus.vectors, corpus.index

    def embed(self, texts: Sequence[str]) -> Vectors:
        return self._vectors[[self._index[text] for text in texts]] if texts else np.empty((0, 384), dtype=np.float32)

    def unload(self) -> None: ...


class LoggedPredictions:
    """The lake, as far as feedback looks predictions up."""

    def __init__(self) -> None:
        self.rows: dict[str, AnsweredPrediction] = {}

    def find(self, task: str, prediction_ids: Collection[str], around: date) -> dict[str, AnsweredPrediction]:
        return {name: self.rows[name] for name in prediction_ids if name in self.rows}

    def newest(self, until: datetime) -> datetime | None:
        return max((row.occurred_at for row in self.rows.values() if row.occurred_at <= until), default=None)


class Product:
    """All services of one run. `settings`: of a stack whose PostgreSQL runs; what it holds is deleted."""

    def __init__(self, settings: Settings, corpus: Corpus, engine: Engine, bus: Bus) -> None:
        self._settings, self._engine, self.bus = settings, engine, bus
        self.artifacts = ArtifactStore(settings.artifacts_uri, settings.home / "cache")
        self.lake, self.admin = LoggedPredictions(), MemoryAdmin()
        self.flags = Flags(self.admin, TASK)
        self._texts = EmbeddedTexts(corpus)
        self._databases = {name: build_engine(settings, name) for name in _SCHEMAS}
        self._corrections = PostgresCorrectionStore(self._databases["dataset_builder"])
        self._traffic = PostgresTrafficStore(self._databases["dataset_builder"])
        self._mine()
        self._build_datasets()
        self._evaluate()
        self._compare()
        self._deploy()
        self._schedule()

    def _mine(self) -> None:
        suspects = PostgresSuspectStore(self._databases["failure_miner"], miner_handlers.CORRECTIONS)
        settings = self._of(Settings)
        miner_handlers.Handlers(settings, suspects, self._texts, self.lake, self.artifacts, self.bus).subscribe(
            self._consumers
        )

    def _build_datasets(self) -> None:
        settings = self._of(DatasetBuilderSettings)
        self._builds = InlineJobs(settings.home / "jobs" / "dataset_builder", self._build)
        self._builder = builder_handlers.Handlers(
            settings, self._corrections, self._traffic, self._jobs(self._builds), self.bus
        )
        self._builder.subscribe(self._consumers)
        UserFeedback(settings, self._corrections, self.lake).subscribe(self._consumers)

    async def _build(self, spec: bytes, folder: Path) -> BuildResult:
        job = BuildJob.model_validate_json(spec)
        embeddings = CachedEmbedder(self._texts, embeddings_file(job.cache, TASK), lambda *_: None)
        return await build_version(
            job, self._corrections, self._traffic, self.artifacts, folder, Progress(folder), LabelScorer(embeddings)
        )

    def _evaluate(self) -> None:
        settings = self._of(EvaluatorSettings)
        self._evaluations = InlineJobs(
            settings.jobs_folder, lambda spec, folder: evaluate(spec, folder, self.artifacts, self._engine)
        )
        self._evaluator = evaluator_handlers.Handlers(
            settings, self._jobs(self._evaluations), self.bus, self.bus.table(RolloutChanged)
        )
        self._evaluator.subscribe(self._consumers)

    def _compare(self) -> None:
        # One replay at a time: which pair is a user's first must not depend on which task the loop runs first.
        decisions = PostgresDecisions(self._databases["shadow"], ShadowSettings().shadow_concurrency)
        replays = Replays(self._engine, self._engine.is_busy, self.bus, decisions, concurrency=1)
        read_index = StoredTrainingIndexes(self.artifacts).for_rollout
        shadow_handlers.Handlers(self._of(ShadowSettings), self.flags, read_index, decisions, replays).subscribe(
            self._consumers
        )

    def _deploy(self) -> None:
        settings, database = self._of(DeployerSettings), self._databases["deployer"]
        self.rollouts, ledger = PostgresRollouts(database), PostgresLedger(database)
        transitions = RolloutTransitions(self.rollouts, ledger, self.admin, MemoryAdapters(), self.bus)
        admission = Admission(self.rollouts, transitions, self.bus)
        self._deployer = deployer_handlers.Handlers(settings, self.rollouts, ledger, transitions, admission)
        self._deployer.subscribe(self._consumers)

    def _schedule(self) -> None:
        settings = self._of(SchedulerSettings)
        tasks = TaskWatcher(settings, self.bus, self.bus.table(TaskChanged), self.artifacts)
        tasks.scanned = True  # No task has a file.
        cycles = PostgresCycleStore(self._databases["scheduler"])
        self._scheduler = scheduler_handlers.Handlers(settings, cycles, self.bus, self.bus.fence, tasks)
        self._scheduler.subscribe(self._consumers)

    async def open(self) -> None:
        """Make the tables anew. They are written without waiting for the disk: nothing here is to survive a crash."""
        url = database_url(self._settings)
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text("ALTER SYSTEM SET synchronous_commit = off"))
            connection.execute(sa.text("SELECT pg_reload_conf()"))
            for name in _SCHEMAS:
                connection.execute(sa.text(f'DROP SCHEMA IF EXISTS "{name}" CASCADE'))
        engine.dispose()
        for name, module in _SCHEMAS.items():
            await migrate(self._settings, name, module.MIGRATIONS)
        await self.bus.open()

    async def close(self) -> None:
        await asyncio.gather(*(database.dispose() for database in self._databases.values()))

    async def settle(self) -> None:
        """Deliver all events and run all jobs, until nothing is left to do."""
        while True:
            await self.bus.drain()
            built = await self._builds.run(self._builder.on_done, self._builder.on_failed)
            if not (await self._evaluations.run(self._evaluator.on_done, self._evaluator.on_failed) or built):
                return

    async def tick(self) -> None:
        """Let the services do what they do by the clock."""
        await self._scheduler.tick()
        await self.settle()
        await self._deployer.tick(TASK)
        await self.settle()

    @property
    def _consumers(self) -> Any:
        return self.bus

    def _jobs(self, jobs: InlineJobs) -> Any:
        return jobs

    def _of(self, kind: type[Any]) -> Any:
        return kind.load(home=self._settings.home)
