"""Shadow's handlers with Unleash, the training rows and vLLM in memory, and builders for the events that it reads."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from schemas.base import Event, Variant
from schemas.conversation import Answer, Call, FinishReason, Message, Role
from schemas.predictions import LoggedAnswer, PredictionLogged, Usage
from schemas.rollouts import Evidence, RolloutChanged, ShadowCompared, Stage
from schemas.task_settings import RedactionSettings, RolloutSettings
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.shadow.clients import Replay
from services.shadow.domain import Outcome, Request
from services.shadow.handlers import Handlers
from services.shadow.replays import Replays
from services.shadow.settings import ShadowSettings
from services.shadow.storage import PostgresDecisions
from services.shadow.tables import DAYS, DECISIONS
from shared.errors import DependencyUnavailable
from shared.kafka.delivery import Delivery
from shared.model.near_copies import AskedQuestions
from tests.database import Database

EXAMPLES = Path(__file__).parents[3] / "schemas" / "examples" / "predictions.logged.v1"
CUTOFF = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
SPEC = TaskSpec(
    name="support-desk", kind=TaskKind.CLASSIFICATION, base_model="base", system_prompt="Classify.",
    labels=("delivery", "refund"), redaction=RedactionSettings(enabled=False),
    rollout=RolloutSettings(shadow_tokens_per_day=20 * 40),
)  # fmt: skip


def rollout(stage: Stage = Stage.SHADOW, primary: str | None = None) -> RolloutChanged:
    return RolloutChanged(
        task=SPEC.name,
        task_revision=SPEC.revision,
        cycle_id="cycle-1",
        rollout_id="rollout-1",
        stage=stage,
        primary_adapter=primary,
        candidate_adapter="a1",
        candidate_uri="/artifacts/adapters/a1",
        dataset_uri="/artifacts/datasets/d1",
        data_cutoff=CUTOFF,
        evidence=Evidence(alpha=0.001),
        reason="passed",
        spec=SPEC,
    )


def task_changed(at: datetime, *, redacts: bool) -> TaskChanged:
    spec = SPEC.model_copy(update={"redaction": RedactionSettings(enabled=redacts)})
    return TaskChanged(occurred_at=at, task=SPEC.name, task_revision=spec.revision, spec=spec)


def call(text: str = "where is parcel number 1 that I ordered?", **changes: Any) -> Call:
    messages = (Message(role=Role.SYSTEM, content="Classify."), Message(role=Role.USER, content=text))
    return Call(**{"messages": messages, "constrained": True, "parameters": {"temperature": 0.0}, **changes})


def answer(text: str = "refund", name: str = "support-desk.1", **changes: Any) -> LoggedAnswer:
    return LoggedAnswer(**{"prediction_id": name, "text": text, "finish_reason": FinishReason.STOP, **changes})


def prediction(number: int = 1, **changes: Any) -> PredictionLogged:
    values: dict[str, Any] = {
        "occurred_at": CUTOFF + timedelta(minutes=1),
        "task": SPEC.name,
        "task_revision": SPEC.revision,
        "request_id": f"request-{number}",
        "call": call(f"where is parcel number {number} that I ordered?"),
        "answers": (answer(name=f"support-desk.{number}"),),
        "model": "base",
        "variant": Variant.BASE,
        "user_hash": f"user-{number}",
        "subject": f"user-{number}",
        "usage": Usage(prompt_tokens=38, answer_tokens=2),
        "latency_ms": 1.0,
    }
    return PredictionLogged(**{**values, **changes})


def logged(example: str, **changes: Any) -> PredictionLogged:
    """A golden message as a request of this test's task."""
    event = PredictionLogged.model_validate_json((EXAMPLES / f"{example}.json").read_text())
    values = {"task_revision": SPEC.revision, "occurred_at": CUTOFF + timedelta(minutes=1), **changes}
    return event.model_copy(update=values)


def with_tools(**changes: Any) -> PredictionLogged:
    """A conversation of several turns with tools, as text only, whose first answer is a tool call."""
    event = logged("tools")
    *messages, last = event.call.messages
    last = last.model_copy(update={"content": "Then look for 4713."})
    values = {"messages": (*messages, last), **changes}
    return event.model_copy(update={"call": event.call.model_copy(update=values)})


class Sampling:
    def __init__(self, on: bool = True) -> None:
        self.on = on

    def sampled(self, task: str, prediction_id: str) -> bool:
        return self.on and not prediction_id.endswith(".unsampled")

    def is_off(self, task: str) -> bool:
        return not self.on


class OneTrainingIndex:
    def __init__(self, *texts: str) -> None:
        self._asked = [(Message(role=Role.USER, content=text),) for text in texts]

    async def for_rollout(self, rollout: RolloutChanged) -> AskedQuestions:
        return AskedQuestions(self._asked, rollout.spec)


def reply(text: str | None, finish_reason: FinishReason = FinishReason.STOP) -> Replay:
    return Replay(None if text is None else Answer(text=text, finish_reason=finish_reason), 5.0)


class BothArms:
    def __init__(self) -> None:
        self.given: Replay | None = reply("delivery")
        self.given_by_production = reply("login")
        self.asked: list[Request] = []
        self.away = False

    async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay | None:
        self.asked.append(request)
        if self.away:
            raise DependencyUnavailable("the engine is away")
        return self.given

    async def production(self, rollout: RolloutChanged, request: Request) -> Replay:
        self.asked.append(request)
        return self.given_by_production


class Load:
    def __init__(self) -> None:
        self.busy_for = 0
        """Readings."""

    async def is_busy(self) -> bool:
        self.busy_for -= 1
        return self.busy_for >= 0


class Published:
    def __init__(self) -> None:
        self.events: list[Event] = []

    async def publish(self, event: Event) -> None:
        self.events.append(event)


class Shadow:
    """The handlers on a database, with Unleash, the training rows and vLLM in memory."""

    def __init__(self, decisions: PostgresDecisions, *trained: str, engine: BothArms | None = None) -> None:
        self.sampling, self.candidate, self.published = Sampling(), engine or BothArms(), Published()
        self.decisions, index = decisions, OneTrainingIndex(*trained)
        self.load = Load()
        self.replays = Replays(self.candidate, self.load.is_busy, self.published, self.decisions, 4)
        self.handlers = Handlers(ShadowSettings(), self.sampling, index.for_rollout, self.decisions, self.replays)
        self._next_offset = 0

    @classmethod
    async def on(cls, database: Database, *trained: str, engine: BothArms | None = None) -> Shadow:
        """Shadow on empty tables."""
        return cls(PostgresDecisions(await database.engine("shadow"), 4), *trained, engine=engine)

    async def count(self) -> Counter[Outcome | None]:
        """What was decided about the requests, None: they are still to be replayed."""
        async with self.decisions._engine.connect() as connection:
            outcomes = await connection.scalars(sa.select(DECISIONS.c.outcome))
            return Counter(None if outcome is None else Outcome(outcome) for outcome in outcomes)

    async def tokens(self) -> dict[str, int]:
        """What was spent, by task."""
        async with self.decisions._engine.connect() as connection:
            return {row.task: row.tokens for row in await connection.execute(sa.select(DAYS))}

    async def replay(self, *events: PredictionLogged, under: RolloutChanged | None = None) -> list[Any]:
        """Deliver new records, and return the pairs published."""
        first, self._next_offset = self._next_offset, self._next_offset + len(events)
        return await self.deliver(first, *events, under=under)

    async def deliver(
        self, first_offset: int, *events: PredictionLogged, under: RolloutChanged | None = None, partition: int = 0
    ) -> list[Any]:
        await self.handlers.rollouts.put(SPEC.name, under or rollout())
        await self.handlers.rollouts.read_to({})
        await self.handlers.tasks.read_to({})
        before = len(self.published.events)
        await self.handlers.on_predictions([delivery(e, first_offset + n, partition) for n, e in enumerate(events)])
        return self.published.events[before:]


def delivery(event: PredictionLogged, offset: int, partition: int = 0) -> Delivery[PredictionLogged]:
    return Delivery(event, "predictions.logged.v1", partition, offset, MappingProxyType({}))


def texts(pair: ShadowCompared) -> tuple[str, str | None]:
    return pair.production_answer.text, None if pair.candidate_answer is None else pair.candidate_answer.text
