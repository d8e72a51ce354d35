"""What a canary's guards see, as events: the primary before it, its own requests, complaints, and the audit."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from schemas.base import Variant, utc_now
from schemas.conversation import Answer, Call, Message, Role
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.predictions import FeedbackGiven
from schemas.rollouts import RolloutChanged
from tests.unit.deployer.fakes import Deployer, deliveries, observed

BEFORE = range(1_000, 1_200)
"""Numbers of the primary's requests in shadow."""
NOON = utc_now().replace(hour=12, minute=0, second=0, microsecond=0) + timedelta(days=2)
"""When the requests are: after all that a test does, and on one day, also where it runs at midnight."""


async def see(
    deployer: Deployer,
    numbers: Iterable[int],
    variant: Variant,
    latency_ms: float = 100.0,
    day: int = 0,
    confidence: float | None = None,
) -> None:
    """One request of each number, of a user of that number, some days later."""
    later = {"latency_ms": latency_ms, "confidence": confidence, "occurred_at": NOON + timedelta(days=day)}
    events = [observed(deployer.last, number, variant).model_copy(update=later) for number in numbers]
    await deployer.handlers.on_observed(deliveries(events))


async def leave(
    deployer: Deployer, numbers: Iterable[int], variant: Variant, after_ms: float = 197.0, day: int = 0
) -> None:
    """Requests whose clients leave after a while, before the whole answer is there: after as long as the primary's 95th
    percentile."""
    left = {"status": 499, "latency_ms": after_ms, "occurred_at": NOON + timedelta(days=day)}
    events = [observed(deployer.last, number, variant).model_copy(update=left) for number in numbers]
    await deployer.handlers.on_observed(deliveries(events))


async def in_canary(deployer: Deployer) -> None:
    """Bring a candidate that is in shadow into its canary; 200 requests of the primary took 1 to 200 ms before."""
    for number in BEFORE:
        await see(deployer, [number], Variant.BASE, latency_ms=number - 999.0)
    await deployer.compare_and_label(range(10), "delivery")


def feedback(rollout: RolloutChanged, number: int, at: datetime | None = None, positive: bool = False) -> FeedbackGiven:
    """A thumb on the request of this number, of nobody in particular."""
    return FeedbackGiven(
        task=rollout.task, task_revision=rollout.task_revision, prediction_id=f"{rollout.task}.seen-{number}",
        kind="thumbs", positive=positive, occurred_at=at or rollout.occurred_at + timedelta(minutes=5),
    )  # fmt: skip


def audited(
    rollout: RolloutChanged, number: int, label: str = "delivery", purpose: Purpose = Purpose.AUDIT
) -> CorrectionSubmitted:
    """A reviewer's answer about the request of this number, which was answered with refund."""
    at = rollout.occurred_at + timedelta(minutes=5)
    return CorrectionSubmitted(
        task=rollout.task, task_revision=rollout.task_revision, correction_id=f"correction-{number}",
        request_id=f"question-{number}", prediction_id=f"{rollout.task}.seen-{number}", purpose=purpose,
        reviewer="ann", call=Call(messages=(Message(role=Role.USER, content="?"),)), answers=(Answer(text="refund"),),
        label=label, predicted_at=at, occurred_at=at,
    )  # fmt: skip
