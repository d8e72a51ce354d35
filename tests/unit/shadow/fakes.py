"""Shadow's handlers with Unleash, the training rows and vLLM in memory, and builders for the events that it reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from schemas.base import Event, Variant
from schemas.conversation import Answer, Call, FinishReason, Message, Role
from schemas.predictions import LoggedAnswer, PredictionLogged
from schemas.rollouts import Evidence, RolloutChanged, ShadowCompared, Stage
from schemas.tasks import RolloutSettings, TaskKind, TaskSpec
from services.shadow.clients import Replay
from services.shadow.domain import Request
from services.shadow.handlers import Handlers
from services.shadow.settings import ShadowSettings
from shared.errors import DependencyUnavailable
from shared.kafka.delivery import Delivery
from shared.model.near_duplicates import NearDuplicates

EXAMPLES = Path(__file__).parents[3] / "schemas" / "examples" / "predictions.logged.v1"
CUTOFF = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
SPEC = TaskSpec(
    name="support-desk", kind=TaskKind.CLASSIFICATION, base_model="base", system_prompt="Classify.",
    labels=("delivery", "refund"), rollout=RolloutSettings(shadow_requests_per_day=20),
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
        return self.on


class OneTrainingIndex:
    def __init__(self, *texts: str) -> None:
        self._index = NearDuplicates(texts, 0.8)

    async def for_rollout(self, rollout: RolloutChanged) -> NearDuplicates:
        return self._index


def reply(text: str | None, finish_reason: FinishReason = FinishReason.STOP) -> Replay:
    return Replay(None if text is None else Answer(text=text, finish_reason=finish_reason), 5.0)


class BothArms:
    def __init__(self) -> None:
        self.given = reply("delivery")
        self.given_by_production = reply("login")
        self.asked: list[Request] = []
        self.away = False

    async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay:
        self.asked.append(request)
        if self.away:
            raise DependencyUnavailable("the engine is away")
        return self.given

    async def production(self, rollout: RolloutChanged, request: Request) -> Replay:
        self.asked.append(request)
        return self.given_by_production


class Published:
    def __init__(self) -> None:
        self.events: list[Event] = []

    async def publish(self, event: Event) -> None:
        self.events.append(event)


class Shadow:
    """The handlers with Unleash, the training rows and vLLM in memory."""

    def __init__(self, *trained: str) -> None:
        self.sampling, self.candidate, self.published = Sampling(), BothArms(), Published()
        index = OneTrainingIndex(*trained)
        self.handlers = Handlers(ShadowSettings(), self.sampling, index, self.candidate, self.published)

    async def replay(self, *events: PredictionLogged, under: RolloutChanged | None = None) -> list[Any]:
        await self.handlers.rollouts.put(SPEC.name, under or rollout())
        deliveries = [Delivery(e, "predictions.logged.v1", 0, n, MappingProxyType({})) for n, e in enumerate(events)]
        before = len(self.published.events)
        await self.handlers.on_predictions(deliveries)
        return self.published.events[before:]


def texts(pair: ShadowCompared) -> tuple[str, str | None]:
    return pair.production_answer.text, None if pair.candidate_answer is None else pair.candidate_answer.text
