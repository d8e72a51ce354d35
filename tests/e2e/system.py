"""All services on one in-memory broker, for a whole cycle in seconds.

Real: every handler, rule, store (PostgreSQL, the lake, the artifact store), clustering, gates, statistics, the
console's HTTP. Simulated: the model (a function from text to label), its training, the sentence encoder, and Unleash.
"""

from __future__ import annotations

import asyncio
import csv
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
from faststream.kafka import KafkaBroker, TestKafkaBroker
from sklearn.feature_extraction.text import HashingVectorizer

from schemas.approaches import Approach, ApproachKind, ApproachTable
from schemas.base import utc_now
from schemas.catalog import SERVICES
from schemas.conversation import Answer, FinishReason
from schemas.cycles import Fence, PartitionFence
from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskChanged, TaskSpec
from services.console.handlers import Handlers as ConsoleHandlers
from services.console.history import PostgresCycleHistory
from services.console.http import build_app as build_console
from services.console.redaction import AnswerRedactor
from services.console.reviews import Reviews
from services.console.settings import ConsoleSettings
from services.console.storage import PostgresQueue
from services.dataset_builder import job as building
from services.dataset_builder.feedback import UserFeedback
from services.dataset_builder.handlers import Handlers as BuilderHandlers
from services.dataset_builder.settings import DatasetBuilderSettings
from services.dataset_builder.storage.corrections import PostgresCorrectionStore
from services.dataset_builder.storage.traffic import PostgresTrafficStore
from services.deployer.admission import Admission
from services.deployer.handlers import Handlers as DeployerHandlers
from services.deployer.settings import DeployerSettings
from services.deployer.storage.ledger import PostgresLedger
from services.deployer.storage.rollouts import PostgresRollouts
from services.deployer.transitions import RolloutTransitions
from services.evaluator import job as evaluation
from services.evaluator import recipe as evaluating
from services.evaluator import verdict as verdicts
from services.evaluator.handlers import Handlers as EvaluatorHandlers
from services.evaluator.report.publish import publish_report
from services.evaluator.settings import EvaluatorSettings
from services.evaluator.statistics.intervals import wilson
from services.failure_miner.handlers import CORRECTIONS
from services.failure_miner.handlers import Handlers as MinerHandlers
from services.failure_miner.storage import PostgresSuspectStore
from services.prediction_log.handlers import Handlers as LogHandlers
from services.prediction_log.settings import PredictionLogSettings
from services.prediction_log.storage import DeltaLake
from services.scheduler.handlers import Handlers as SchedulerHandlers
from services.scheduler.settings import SchedulerSettings
from services.scheduler.storage import PostgresCycleStore
from services.scheduler.task_watcher import TaskWatcher
from services.shadow.clients import Replay, StoredTrainingIndexes
from services.shadow.domain import Request
from services.shadow.handlers import Handlers as ShadowHandlers
from services.shadow.replays import Replays
from services.shadow.settings import ShadowSettings
from services.shadow.storage import PostgresDecisions
from services.trainer import job as training
from services.trainer.domain import SkippedRows, TrainingOutcome
from services.trainer.handlers import Handlers as TrainerHandlers
from services.trainer.settings import TrainerSettings
from shared.files import write_atomically
from shared.jobs import Job, Progress
from shared.kafka.clients import topic_ids
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher
from shared.model.inference import Completion
from shared.privacy.redaction import Redactor
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore
from shared.storage.database import build_engine
from shared.storage.migration import migrate
from shared.storage.predictions import LakePredictions
from tests.unit.deployer.fakes import MemoryAdmin

ROOT = Path(__file__).parent.parent.parent
INPUTS = ("predictions.logged.v1", "corrections.submitted.v1")
WITH_DATABASE = ("failure_miner", "console", "dataset_builder", "shadow", "deployer", "scheduler")

AnswerText = Callable[[str], str]


def support_desk() -> list[tuple[str, str]]:
    """Return (text, label) of the shipped dataset."""
    with (ROOT / "deploy" / "demo" / "data" / "support_desk.csv").open(encoding="utf-8") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


class HashedWords:
    """A sentence encoder that hashes words, which is enough to cluster by them."""

    def embed(self, texts: Sequence[str]) -> Any:
        if not texts:
            return np.zeros((0, 384), dtype=np.float32)
        vectorizer = HashingVectorizer(n_features=384, ngram_range=(1, 2), alternate_sign=False)
        return np.asarray(vectorizer.transform(texts).todense(), dtype=np.float32)


async def never_busy() -> bool:
    """An engine always has room for replays."""
    return False


class Flags(MemoryAdmin):
    """Unleash, simulated."""

    def is_off(self, task: str) -> bool:
        return not self.flags[f"ratchet.{task}.shadow"].enabled

    def sampled(self, task: str, prediction_id: str) -> bool:
        return not self.is_off(task)

    def payload(self, flag: str) -> Mapping[str, Any]:
        return self.flags[flag].payload or {}


@dataclass
class Models:
    """vLLM, simulated: `base` answers for the base model, `adapter` for whatever was trained."""

    spec: TaskSpec
    base: AnswerText
    adapter: AnswerText

    async def complete(
        self, model: str, messages: Sequence[dict[str, Any]], *, choices: Sequence[str] = (), **_: object
    ) -> Completion:
        answer = (self.base if model == self.spec.base_model else self.adapter)(messages[-1]["content"])
        return Completion(answer, math.log(0.9), 1, 10, "stop", 1.0)

    async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay:
        return Replay(_answered(self.adapter, request), 1.0)

    async def production(self, rollout: RolloutChanged, request: Request) -> Replay:
        return Replay(_answered(self.adapter if rollout.primary_adapter else self.base, request), 1.0)

    async def serve(self, adapter: str, uri: str, spec: TaskSpec) -> None:
        """Do nothing: every adapter is served."""


def _answered(answer: AnswerText, request: Request) -> Answer:
    return Answer(text=answer(request.body["messages"][-1]["content"]), finish_reason=FinishReason.STOP)


class InlineJobs:
    """Jobs in this process, which are done soon after they are submitted."""

    async def end(self, cycle_id: str, is_meant: Callable[[Job], bool]) -> list[Job]:
        return []


class BuildJobs(InlineJobs):
    """Runs the dataset builder's job in this process."""

    def __init__(self, folder: Path, corrections: PostgresCorrectionStore, traffic: PostgresTrafficStore) -> None:
        self._folder = folder
        self._corrections = corrections
        self._traffic = traffic
        self.handlers: BuilderHandlers | None = None

    def submit(self, name: str, spec: building.BuildJob, cycle_id: str | None = None) -> None:
        _later(self._run(name, spec))

    async def _run(self, name: str, spec: building.BuildJob) -> None:
        folder = self._folder / name
        write_atomically(folder / "spec.json", spec.model_dump_json().encode())
        store = ArtifactStore(spec.artifacts, spec.cache)
        result = await building.build_version(spec, self._corrections, self._traffic, store, folder, Progress(folder))
        assert self.handlers is not None
        await self.handlers.on_done(Job(name, folder), result.model_dump_json().encode())


class TrainingJobs(InlineJobs):
    """Runs the trainer's job in this process, without the gradient steps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.handlers: TrainerHandlers | None = None

    def submit(self, name: str, spec: training.TrainingJob, cycle_id: str | None = None) -> None:
        folder = self._folder / name
        write_atomically(folder / "spec.json", spec.model_dump_json().encode())
        store = ArtifactStore(spec.artifacts, spec.cache)
        rows = training.read_examples(store.fetch(spec.dataset.uri) / "train.jsonl")
        write_atomically(folder / "adapter" / "adapter_model.safetensors", f"{len(rows)} rows".encode())
        outcome = TrainingOutcome(
            steps=len(rows) // 8, train_loss=0.1, losses=(1.0, 0.1), seconds=1.0, dtype="none", versions={},
            skipped=SkippedRows(),
        )  # fmt: skip
        manifest = training.build_manifest(spec.dataset, folder / "adapter", outcome)
        write_atomically(folder / "adapter" / "manifest.json", manifest.model_dump_json().encode())
        uri = store.publish(folder / "adapter", "adapters", manifest.adapter)
        result = training.trained_event(spec.dataset, name, manifest, uri)
        assert self.handlers is not None
        _later(self.handlers.on_done(Job(name, folder), result.model_dump_json().encode()))


class EvaluationJobs(InlineJobs):
    """Runs the evaluator's job in this process, on the simulated models."""

    def __init__(self, folder: Path, models: Models) -> None:
        self._folder = folder
        self._models = models
        self.handlers: EvaluatorHandlers | None = None

    def submit(self, name: str, spec: evaluation.EvaluationJob, cycle_id: str | None = None) -> None:
        _later(self._run(name, spec))

    async def _run(self, name: str, spec: evaluation.EvaluationJob) -> None:
        folder = self._folder / name
        write_atomically(folder / "spec.json", spec.model_dump_json().encode())
        trained = spec.trained
        store = ArtifactStore(spec.artifacts, spec.cache)
        rows = evaluation.read_examples(store.fetch(trained.dataset_uri) / "eval.jsonl")
        questions = evaluation.evaluation_questions(rows)
        golden = evaluation.golden_questions(evaluation.read_golden_set(store, trained.spec), trained.spec)
        both = [*questions, *golden]
        arms = [trained.adapter, spec.production or trained.base_model]
        asked = [await evaluating.ask(self._models, arm, both, trained.spec, 4, lambda done: None) for arm in arms]
        repeated = await evaluation.ask_must_pass_again(spec, self._models, golden, asked[0], len(questions))
        both_arms = verdicts.Asked(questions, golden, *asked, repeated)
        judged = evaluation.with_golden_history(spec, both_arms, store)
        # Rivals gate nothing: production stands alone in their table.
        right = asked[1].graded(questions, 0, trained.spec).right
        production = Approach(
            kind=ApproachKind.PRODUCTION, accuracy=wilson(sum(right), len(right)), latency_ms_p50=0, latency_ms_p95=0
        )
        extras = verdicts.Extras(ApproachTable(approaches=(production,), currency="EUR", prices_of=utc_now().date()))
        report = verdicts.evaluation_report(trained, spec.production, name, judged, extras, utc_now())
        result = verdicts.evaluated_event(trained, report, publish_report(report, store, folder / "report"))
        assert self.handlers is not None
        await self.handlers.on_done(Job(name, folder), result.model_dump_json().encode())


_background: set[asyncio.Task[None]] = set()


def _later(work: Any) -> None:
    """Run a job after the handler that submitted it has returned, as a job process would."""
    task = asyncio.ensure_future(work)
    _background.add(task)
    task.add_done_callback(_background.discard)


async def settled() -> None:
    """Wait until all jobs submitted so far, and those that they led to, are done."""
    while _background:
        await asyncio.gather(*list(_background))


@dataclass
class System:
    """The running services, with what a test needs to drive and observe them."""

    spec: TaskSpec
    flags: Flags
    gateway: Publisher
    scheduler: SchedulerHandlers
    deployer: DeployerHandlers
    console: httpx.AsyncClient
    rollouts: list[RolloutChanged]
    outcomes: list[tuple[str, str]]


async def fence_over_everything() -> Fence:
    """A fence over all records: the in-memory broker gives each one offset 0 of partition 0 and delivers it at once."""
    return tuple(PartitionFence(topic=topic, partition=0, offset=1) for topic in INPUTS)


def _settings(kind: type[Settings], base: Settings, home: Path) -> Any:
    own = {"home": home, "lake": "", "artifacts": ""}
    return kind.model_validate({**base.model_dump(), **own})


@asynccontextmanager
async def running_system(base: Settings, home: Path, spec: TaskSpec, models: Models) -> AsyncIterator[System]:
    """Wire all services to one in-memory broker, on a real database."""
    for service in WITH_DATABASE:
        await migrate(base, service, ROOT / "services" / service / "migrations")
    engines = {service: build_engine(base, service) for service in WITH_DATABASE}
    broker = KafkaBroker("nowhere:9092")
    consumers = {name: Consumers(broker, name, _settings(Settings, base, home)) for name in SERVICES}
    publish = {name: Publisher(broker, name) for name in SERVICES}
    flags = Flags()

    log = _settings(PredictionLogSettings, base, home)
    lake = DeltaLake(log.lake_uri)
    LogHandlers(log, lake, publish["prediction_log"], partial(topic_ids, log)).subscribe(consumers["prediction_log"])

    miner = _settings(Settings, base, home)
    suspects = PostgresSuspectStore(engines["failure_miner"], CORRECTIONS)
    predictions = LakePredictions(miner.lake_uri)
    artifacts = ArtifactStore(miner.artifacts_uri, home / "cache")
    MinerHandlers(miner, suspects, HashedWords(), predictions, artifacts, publish["failure_miner"]).subscribe(
        consumers["failure_miner"]
    )

    builder = _settings(DatasetBuilderSettings, base, home)
    database = engines["dataset_builder"]
    corrections, traffic = PostgresCorrectionStore(database), PostgresTrafficStore(database)
    builder_jobs = BuildJobs(home / "building", corrections, traffic)
    builder_handlers = BuilderHandlers(
        builder, corrections, traffic, cast(Any, builder_jobs), publish["dataset_builder"]
    )
    builder_jobs.handlers = builder_handlers
    builder_handlers.subscribe(consumers["dataset_builder"])
    UserFeedback(builder, corrections, LakePredictions(builder.lake_uri)).subscribe(consumers["dataset_builder"])

    trainer_jobs = TrainingJobs(home / "training")
    trainer = TrainerHandlers(
        _settings(TrainerSettings, base, home),
        cast(Any, trainer_jobs),
        publish["trainer"],
        consumers["trainer"].table(RolloutChanged),
    )
    trainer_jobs.handlers = trainer
    trainer.subscribe(consumers["trainer"])

    evaluator_jobs = EvaluationJobs(home / "evaluation", models)
    rollouts_table = consumers["evaluator"].table(RolloutChanged)
    await rollouts_table.read_to({})  # There is none yet.
    evaluator = EvaluatorHandlers(
        _settings(EvaluatorSettings, base, home),
        cast(Any, evaluator_jobs),
        publish["evaluator"],
        rollouts_table,
    )
    evaluator_jobs.handlers = evaluator
    evaluator.subscribe(consumers["evaluator"])

    shadow = _settings(ShadowSettings, base, home)
    decisions = PostgresDecisions(engines["shadow"], shadow.shadow_concurrency)
    replays = Replays(models, never_busy, publish["shadow"], decisions, shadow.shadow_concurrency)
    shadow_handlers = ShadowHandlers(shadow, flags, StoredTrainingIndexes(artifacts).for_rollout, decisions, replays)
    shadow_handlers.subscribe(consumers["shadow"])
    await shadow_handlers.rollouts.read_to({})  # There is none yet.
    await shadow_handlers.tasks.read_to({})

    deployer = _settings(DeployerSettings, base, home)
    rollouts, ledger = PostgresRollouts(engines["deployer"]), PostgresLedger(engines["deployer"])
    transitions = RolloutTransitions(rollouts, ledger, flags, models, publish["deployer"])
    admission = Admission(rollouts, transitions, publish["deployer"])
    deployer_handlers = DeployerHandlers(deployer, rollouts, ledger, transitions, admission)
    deployer_handlers.subscribe(consumers["deployer"])
    await deployer_handlers.tasks.read_to({})  # There is none yet.

    console_settings = _settings(ConsoleSettings, base, home)
    queue = PostgresQueue(engines["console"])
    history = PostgresCycleHistory(engines["console"])
    tasks = consumers["console"].table(TaskChanged)
    ConsoleHandlers(queue, history).subscribe(consumers["console"])
    await tasks.read_to({})  # There is none yet.
    reviews = Reviews(queue, publish["console"], tasks, AnswerRedactor(lambda: Redactor(b"k" * 32)))
    app = build_console(console_settings, reviews, history)

    settings = _settings(SchedulerSettings, base, home)
    cycles = PostgresCycleStore(engines["scheduler"])
    task_table = consumers["scheduler"].table(TaskChanged)
    task_watcher = TaskWatcher(settings, publish["scheduler"], task_table, artifacts)
    scheduler = SchedulerHandlers(settings, cycles, publish["scheduler"], fence_over_everything, task_watcher)
    scheduler.subscribe(consumers["scheduler"])

    observed = SimpleNamespace(rollouts=[], outcomes=[])

    @broker.subscriber("rollouts.changed.v1", group_id="test")
    async def note_rollout(body: dict[str, Any]) -> None:
        changed = RolloutChanged.model_validate(body)
        last = observed.rollouts[-1] if observed.rollouts else None
        if last is not None and (last.stage, last.reason) == (changed.stage, changed.reason):
            observed.rollouts.pop()  # The same change, with newer evidence.
        observed.rollouts.append(changed)

    @broker.subscriber("cycles.finished.v1", group_id="test")
    async def note_outcome(body: dict[str, Any]) -> None:
        observed.outcomes.append((body["outcome"], body["reason"]))

    async with (
        TestKafkaBroker(broker),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        await publish["scheduler"].publish(TaskChanged(task=spec.name, task_revision=spec.revision, spec=spec))
        yield System(
            spec, flags, publish["gateway"], scheduler, deployer_handlers, client, observed.rollouts, observed.outcomes
        )
        await settled()
    for engine in engines.values():
        await engine.dispose()


async def answer_queue(system: System, reviewer: str, truth: Callable[[str], str], purpose: str | None = None) -> int:
    """Answer every open question as a reviewer, through the console's API. Returns how many."""
    count = 0
    asked = {"task": system.spec.name, "reviewer": reviewer, "limit": 50, **({"purpose": purpose} if purpose else {})}
    while items := (await system.console.get("/api/queue", params=asked)).json()["items"]:
        for item in items:
            correction = {
                "request_id": item["request_id"],
                "reviewer": reviewer,
                "label": truth(item["call"]["messages"][-1]["content"]),
            }
            response = await system.console.post("/api/corrections", json=correction)
            assert response.status_code == 200, response.text
            count += 1
    return count
