"""From corrections to a promoted adapter, and the ways in which a candidate is stopped. In memory, in seconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from schemas.base import Message, Role, Variant
from schemas.predictions import Confidence, PredictionLogged, RequestObserved
from schemas.rollouts import Stage
from schemas.tasks import FailureSettings, RolloutSettings, TaskKind, TaskSpec
from shared.settings import Settings
from tests.e2e.wheel import Models, Wheel, answer_queue, settled, support_desk, turning

pytestmark = pytest.mark.stack

ROWS = support_desk()
TRUTH = dict(ROWS)
LABELS = tuple(sorted(set(TRUTH.values())))
TAUGHT, LIVE = ROWS[:130], ROWS[130:260]


def always(label: str) -> Callable[[str], str]:
    return lambda text: label


def spec() -> TaskSpec:
    return TaskSpec(
        name=f"desk-{uuid4().hex[:8]}",
        kind=TaskKind.CLASSIFICATION,
        base_model="small",
        system_prompt="Classify the message.",
        labels=LABELS,
        failures=FailureSettings(overlap_share=0.0, min_cluster_size=5),
        rollout=RolloutSettings(canary_percent=20, min_canary_requests=10),
    )


def prediction(spec: TaskSpec, text: str, answer: str, confidence: float) -> PredictionLogged:
    return PredictionLogged(
        task=spec.name,
        task_revision=spec.revision,
        prediction_id=f"{spec.name}.{uuid4().hex}.0",
        messages=(Message(role=Role.SYSTEM, content=spec.system_prompt), Message(role=Role.USER, content=text)),
        answer=answer,
        model=spec.base_model,
        variant=Variant.BASE,
        confidence=Confidence(score=confidence, logprob=-1.0, tokens=1),
        user_hash=uuid4().hex,
        latency_ms=1.0,
    )


async def teach(wheel: Wheel, truth: Callable[[str], str] = TRUTH.__getitem__) -> None:
    """Traffic that the base gets wrong, corrected by people, and a cycle up to the evaluation."""
    for text, _ in TAUGHT:
        await wheel.gateway.publish(prediction(wheel.spec, text, "billing", 0.1))
    assert await answer_queue(wheel, "ann", truth) == len(TAUGHT)
    assert await wheel.scheduler.start(wheel.spec, "command")
    await settled()


async def go_live(wheel: Wheel, until: Stage = Stage.PROMOTED) -> int:
    """Live traffic in shadow and canary, discordant pairs labelled as they come, up to a stage. Returns the labels."""
    labels = 0
    for text, _ in LIVE:
        await wheel.gateway.publish(prediction(wheel.spec, text, "billing", 0.1))
        labels += await answer_queue(wheel, "bob", TRUTH.__getitem__, purpose="discordant_pair")
        if wheel.rollouts[-1].stage is Stage.CANARY:
            await wheel.gateway.publish(observed(wheel))
            await wheel.deployer.tick(wheel.spec.name)
        if wheel.rollouts[-1].stage in (until, Stage.REJECTED):
            break
    return labels


def observed(wheel: Wheel, status: int = 200) -> RequestObserved:
    return RequestObserved(
        task=wheel.spec.name,
        task_revision=wheel.spec.revision,
        prediction_id=uuid4().hex,
        variant=Variant.CANARY,
        adapter=wheel.rollouts[-1].candidate_adapter,
        user_hash=uuid4().hex,
        status=status,
        latency_ms=1.0,
    )


async def test_corrections_become_a_promoted_adapter(stack_settings: Settings, tmp_path: Path) -> None:
    task = spec()
    async with turning(stack_settings, tmp_path, task, Models(task, always("billing"), TRUTH.__getitem__)) as wheel:
        await teach(wheel)
        assert [rollout.stage for rollout in wheel.rollouts] == [Stage.SHADOW]
        labels = await go_live(wheel)
        assert [rollout.stage for rollout in wheel.rollouts] == [Stage.SHADOW, Stage.CANARY, Stage.PROMOTED]
        promoted = wheel.rollouts[-1]
        assert promoted.evidence.wealth >= 1 / promoted.evidence.alpha
        assert promoted.evidence.losses == 0
        assert 15 <= labels <= 40, "a clear winner costs tens of labels, not hundreds"
        payload = wheel.flags.payload(f"ratchet.{task.name}.primary")
        assert payload == {"adapter": promoted.candidate_adapter, "previous": None}
        assert wheel.flags.flags[f"ratchet.{task.name}.canary"][0] is False
        assert wheel.outcomes[0][0] == "promoted"
        (cycle,) = (await wheel.console.get("/api/cycles", params={"task": task.name})).json()["cycles"]
        steps = (await wheel.console.get(f"/api/cycles/{cycle['cycle_id']}")).json()["steps"]
        topics = [step["topic"] for step in steps]
        assert topics[:5] == [
            "cycles.started.v1",
            "failures.clustered.v1",
            "datasets.built.v1",
            "adapters.trained.v1",
            "adapters.evaluated.v1",
        ]


async def test_a_candidate_that_learned_nonsense_is_stopped_before_live_traffic(
    stack_settings: Settings, tmp_path: Path
) -> None:
    task, dice = spec(), random.Random(1)
    nonsense = {text: dice.choice(LABELS) for text, _ in ROWS}
    learned = Models(task, always("billing"), lambda text: LABELS[len(text) % len(LABELS)])
    async with turning(stack_settings, tmp_path, task, learned) as wheel:
        await teach(wheel, nonsense.__getitem__)
        (rollout,) = wheel.rollouts
        assert rollout.stage is Stage.REJECTED
        assert "better_than_chance" in rollout.reason
        ((outcome, reason),) = wheel.outcomes
        assert outcome == "rejected" and "better_than_chance" in reason
        assert not wheel.flags.flags.get(f"ratchet.{task.name}.shadow", (False,))[0]


async def test_a_candidate_that_is_only_as_good_is_never_promoted(stack_settings: Settings, tmp_path: Path) -> None:
    """It shines on what it was evaluated on, and is a coin against production on live traffic."""
    task = spec()
    known = dict(TAUGHT)

    def adapter(text: str) -> str:
        return known.get(text, TRUTH[text] if len(text) % 2 else "stock")

    def base(text: str) -> str:
        return TRUTH[text] if not len(text) % 2 else "stock"

    async with turning(stack_settings, tmp_path, task, Models(task, base, adapter)) as wheel:
        await teach(wheel)
        assert wheel.rollouts[-1].stage is Stage.SHADOW
        for text, _ in LIVE[:80]:
            await wheel.gateway.publish(prediction(wheel.spec, text, base(text), 0.9))
            await answer_queue(wheel, "bob", TRUTH.__getitem__, purpose="discordant_pair")
        assert Stage.PROMOTED not in {rollout.stage for rollout in wheel.rollouts}


async def test_a_canary_that_fails_its_users_is_sent_back(stack_settings: Settings, tmp_path: Path) -> None:
    task = spec()
    task = task.model_copy(update={"rollout": RolloutSettings(canary_percent=20, min_canary_requests=10_000)})
    async with turning(stack_settings, tmp_path, task, Models(task, always("billing"), TRUTH.__getitem__)) as wheel:
        await teach(wheel)
        await go_live(wheel, until=Stage.CANARY)
        assert wheel.rollouts[-1].stage is Stage.CANARY
        for _ in range(20):
            await wheel.gateway.publish(observed(wheel, status=502))
        await wheel.deployer.tick(task.name)
        last = wheel.rollouts[-1]
        assert last.stage is Stage.REJECTED, last.reason
        assert last.primary_adapter is None
        assert wheel.flags.flags[f"ratchet.{task.name}.canary"][0] is False
