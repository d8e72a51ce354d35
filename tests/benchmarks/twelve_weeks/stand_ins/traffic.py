"""The stand-in gateway: answers the stream's requests from the arm that the flags choose, and publishes its events."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime, timedelta

from schemas.adapters import AdapterEvaluated
from schemas.base import Variant
from schemas.conversation import Call, FinishReason, Message, Role
from schemas.predictions import (
    Confidence,
    LabelCount,
    LoggedAnswer,
    PredictionLogged,
    PredictionsRolledUp,
    RequestObserved,
    Usage,
)
from schemas.tasks import TaskSpec
from services.failure_miner.sampling import sampling_point
from services.gateway.routing.arms import Arm
from shared.model.confidence import measure
from shared.storage.artifacts import ArtifactStore
from shared.storage.calibrations import AdapterCalibration, read_calibration
from shared.storage.predictions import AnsweredPrediction
from tests.benchmarks.twelve_weeks.product import Product
from tests.benchmarks.twelve_weeks.stand_ins.engine import BASE, Engine
from tests.benchmarks.twelve_weeks.stand_ins.trainer import Trainer
from tests.benchmarks.twelve_weeks.world.models import BROKEN_STREAMS, Fault
from tests.benchmarks.twelve_weeks.world.people import complaint
from tests.benchmarks.twelve_weeks.world.stream import Corpus, Stream

_LATENCY_MS = 50.0


class Traffic:
    """Answers requests. `answered`: by week and model, how many; `right`: how many of those truly."""

    def __init__(
        self, corpus: Corpus, stream: Stream, spec: TaskSpec, engine: Engine, trainer: Trainer, store: ArtifactStore
    ) -> None:
        self._corpus, self._stream, self._spec, self._engine = corpus, stream, spec, engine
        self._trainer, self._store = trainer, store
        self._calibrations: dict[str, AdapterCalibration] = {}
        self.answered: Counter[tuple[int, str]] = Counter()
        self.right: Counter[tuple[int, str]] = Counter()

    async def on_verdict(self, event: AdapterEvaluated) -> None:
        if event.calibration is not None:
            self._calibrations[event.adapter] = read_calibration(self._store, event.adapter)

    async def send(self, product: Product, week: int, begin: float, end: float, start: datetime) -> None:
        """Send the requests of a part of a week that begins at `start`."""
        requests = self._stream.weeks[week]
        counts: defaultdict[Arm, Counter[str]] = defaultdict(Counter)
        for number in range(*requests.at.searchsorted([begin, end])):
            question, user = int(requests.questions[number]), f"user-{requests.users[number]}"
            arm = product.flags.arm(user)
            at = start + timedelta(days=7 * float(requests.at[number]))
            event = self._answered(f"week-{week}-request-{number}", question, user, arm, at)
            await self._publish(product, event, question, week, counts[arm])
        hour = start + timedelta(days=7 * begin)
        for arm, answers in counts.items():
            rolled_up = PredictionsRolledUp(
                task=self._spec.name, task_revision=self._spec.revision, hour=hour.replace(minute=0, second=0),
                variant=arm.variant, adapter=arm.adapter, predictions=answers.total(),
                answers=tuple(LabelCount(answer=name, count=count) for name, count in answers.items()),
                latency_ms_p50=_LATENCY_MS, latency_ms_p95=_LATENCY_MS,
            )  # fmt: skip
            await product.bus.publish(rolled_up)

    def _answered(self, name: str, question: int, user: str, arm: Arm, at: datetime) -> PredictionLogged:
        model = arm.model_name(BASE)
        text, tokens = self._engine.answer(model, question)
        found, asked = self._calibrations.get(model), self._corpus.texts[question]
        calibration = None if found is None else found.calibration
        measured = measure(self._spec, tokens, calibration, None if found is None else found.opinion_on(asked))
        messages = (
            Message(role=Role.SYSTEM, content=self._spec.system_prompt),
            Message(role=Role.USER, content=asked),
        )
        answer = LoggedAnswer(
            prediction_id=f"{self._spec.name}.{name}", text=text, finish_reason=FinishReason.STOP, tokens=1,
            confidence=Confidence(**measured.as_dict()),
        )  # fmt: skip
        return PredictionLogged(
            occurred_at=at, task=self._spec.name, task_revision=self._spec.revision, request_id=name,
            call=Call(messages=messages, constrained=True, parameters={"temperature": 0.0}), answers=(answer,),
            model=model, adapter=arm.adapter, variant=arm.variant, user_hash=user, subject=user,
            usage=Usage(prompt_tokens=30, answer_tokens=1), latency_ms=_LATENCY_MS,
        )  # fmt: skip

    async def _publish(
        self, product: Product, event: PredictionLogged, question: int, week: int, answers: Counter[str]
    ) -> None:
        answer = event.answers[0]
        broken = self._breaks(event)
        is_right = answer.text == self._corpus.names[self._corpus.labels[question]]
        self.answered[week, event.model] += 1
        self.right[week, event.model] += is_right and not broken
        seen = RequestObserved(
            occurred_at=event.occurred_at, task=event.task, task_revision=event.task_revision,
            prediction_id=answer.prediction_id, variant=event.variant, adapter=event.adapter,
            user_hash=event.user_hash, subject=event.subject, status=502 if broken else 200,
            latency_ms=event.latency_ms, confidence=answer.confidence.score,
        )  # fmt: skip
        await product.bus.publish(seen)
        if broken:
            return
        answers[answer.text] += 1
        product.lake.rows[answer.prediction_id] = AnsweredPrediction(
            answer.prediction_id, event.task, event.task_revision, event.occurred_at, event.call, answer,
            answer.confidence.score, event.user_hash,
        )  # fmt: skip
        await product.bus.publish(event)
        if (thumb := complaint(event, right=is_right)) is not None:
            await product.bus.publish(thumb)

    def _breaks(self, event: PredictionLogged) -> bool:
        candidate = self._trainer.candidates.get(event.model)
        if candidate is None or candidate.fault is not Fault.BREAKS or event.variant is Variant.ROLLBACK:
            return False
        return sampling_point("stream", event.request_id) < BROKEN_STREAMS
