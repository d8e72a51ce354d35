"""From corrections to a promoted adapter, and how a bad candidate is stopped. On an in-memory broker, in seconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from schemas.base import Variant
from schemas.conversation import Call, FinishReason, Message, Role, ToolCall
from schemas.predictions import Confidence, LoggedAnswer, PredictionLogged, RequestObserved
from schemas.rollouts import Stage
from schemas.task_settings import FailureSettings, RolloutSettings
from schemas.tasks import TaskKind, TaskSpec
from shared.settings import Settings
from tests.e2e.system import Models, System, answer_queue, running_system, settled, support_desk

pytestmark = pytest.mark.stack

ROWS = support_desk()
TRUTH = dict(ROWS)
LABELS = tuple(sorted(set(TRUTH.values())))
CORRECTED, LIVE = ROWS[:130], ROWS[130:260]


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
        rollout=RolloutSettings(canary_steps=(20,), control_days=0, min_canary_users=10),
    )


TURNS_BEFORE = (
    Message(role=Role.USER, content="Hi!"),
    Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="find_customer", arguments="{}", id="c1"),)),
    Message(role=Role.TOOL, content="unknown", tool_call_id="c1"),
    Message(role=Role.ASSISTANT, content="How can I help?"),
)


def prediction(
    spec: TaskSpec, text: str, answer: str, confidence: float, *, truncated: bool = False
) -> PredictionLogged:
    """A prediction; a third of the texts are the last turn of a conversation with a tool."""
    name = f"{spec.name}.{uuid4().hex}.0"
    before = TURNS_BEFORE if len(text) % 3 == 0 else ()
    system = Message(role=Role.SYSTEM, content=spec.system_prompt)
    messages = (system, *before, Message(role=Role.USER, content=text))
    logged = LoggedAnswer(
        prediction_id=name,
        text=answer,
        finish_reason=FinishReason.STOP,
        confidence=Confidence(score=confidence, logprob=-1.0, tokens=1),
    )
    user = uuid4().hex
    return PredictionLogged(
        task=spec.name,
        task_revision=spec.revision,
        request_id=name,
        call=Call(messages=messages, constrained=True, parameters={"temperature": 0.0}, truncated=truncated),
        answers=(logged,),
        model=spec.base_model,
        variant=Variant.BASE,
        user_hash=user,
        subject=user,
        latency_ms=1.0,
    )


async def correct_and_train(system: System, truth: Callable[[str], str] = TRUTH.__getitem__) -> None:
    """Send traffic that the base model gets wrong, have people correct it, and run a cycle up to the evaluation."""
    for text, _ in CORRECTED:
        await system.gateway.publish(prediction(system.spec, text, "billing", 0.1))
    await system.gateway.publish(prediction(system.spec, "a very long text", "billing", 0.1, truncated=True))
    assert await answer_queue(system, "ann", truth) == len(CORRECTED), "nobody is asked about what is truncated"
    assert await system.scheduler.start(system.spec, "command")
    await settled()


async def go_live(system: System, until: Stage = Stage.PROMOTED) -> int:
    """Send live traffic through shadow and canary until a stage, and label discordant pairs. Returns the labels."""
    labels = 0
    for number, (text, _) in enumerate(LIVE):
        await system.gateway.publish(prediction(system.spec, text, "billing", 0.1))
        if number % 3 == 0:
            await leave_to_others(system, "ann", skips=number % 2 == 0)
        labels += await answer_queue(system, "bob", TRUTH.__getitem__, purpose="discordant_pair")
        if system.rollouts[-1].stage is Stage.CANARY:
            await system.gateway.publish(observed(system))
            await system.deployer.tick(system.spec.name)
        if system.rollouts[-1].stage in (until, Stage.REJECTED):
            break
    return labels


async def leave_to_others(system: System, reviewer: str, *, skips: bool) -> None:
    """Skip, or say "cannot tell" about, every open pair. Nobody is asked about what they left."""
    asked = {"task": system.spec.name, "reviewer": reviewer, "purpose": "discordant_pair"}
    for item in (await system.console.get("/api/queue", params=asked)).json()["items"]:
        body = {"request_id": item["request_id"], "reviewer": reviewer}
        path, answer = ("/api/skips", {}) if skips else ("/api/corrections", {"preference": "cannot_tell"})
        assert (await system.console.post(path, json=body | answer)).status_code == 200
    await settled()
    assert (await system.console.get("/api/queue", params=asked)).json()["items"] == []


def observed(system: System, status: int = 200) -> RequestObserved:
    return RequestObserved(
        task=system.spec.name,
        task_revision=system.spec.revision,
        prediction_id=uuid4().hex,
        variant=Variant.CANARY,
        adapter=system.rollouts[-1].candidate_adapter,
        user_hash=uuid4().hex,
        status=status,
        latency_ms=1.0,
    )


async def test_corrections_become_a_promoted_adapter(stack_settings: Settings, tmp_path: Path) -> None:
    task = spec()
    async with running_system(
        stack_settings, tmp_path, task, Models(task, always("billing"), TRUTH.__getitem__)
    ) as system:
        await correct_and_train(system)
        assert [rollout.stage for rollout in system.rollouts] == [Stage.QUEUED, Stage.SHADOW]
        labels = await go_live(system)
        assert [rollout.stage for rollout in system.rollouts] == [
            Stage.QUEUED, Stage.SHADOW, Stage.CANARY, Stage.PROMOTED,
        ]  # fmt: skip
        promoted = system.rollouts[-1]
        assert promoted.evidence.wealth >= 1 / promoted.evidence.alpha
        assert (promoted.evidence.losses, promoted.evidence.pending) == (0, 0), "others told what ann left to them"
        (ann, bob) = (await system.console.get("/api/reviewers", params={"task": task.name})).json()["reviewers"]
        assert ann["skipped"] and ann["cannot_tell"] and not bob["skipped"] and not bob["cannot_tell"]
        assert 15 <= labels <= 40, "a clear winner costs tens of labels, not hundreds"
        payload = system.flags.payload(f"ratchet.{task.name}.primary")
        assert payload == {"adapter": promoted.candidate_adapter, "previous": None}
        assert not system.flags.flags[f"ratchet.{task.name}.canary"].enabled
        assert system.outcomes[0][0] == "promoted"
        (cycle,) = (await system.console.get("/api/cycles", params={"task": task.name})).json()["cycles"]
        steps = (await system.console.get(f"/api/cycles/{cycle['cycle_id']}")).json()["steps"]
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
    """What people said is never what it answers: else chance may make it right on many of the few held-out rows."""
    task, dice = spec(), random.Random(1)

    def learned(text: str) -> str:
        return LABELS[len(text) % len(LABELS)]

    nonsense = {text: dice.choice([label for label in LABELS if label != learned(text)]) for text, _ in ROWS}
    models = Models(task, always("billing"), learned)
    async with running_system(stack_settings, tmp_path, task, models) as system:
        await correct_and_train(system, nonsense.__getitem__)
        (rollout,) = system.rollouts
        assert rollout.stage is Stage.REJECTED
        assert "better_than_chance" in rollout.reason
        ((outcome, reason),) = system.outcomes
        assert outcome == "rejected" and "better_than_chance" in reason
        assert f"ratchet.{task.name}.shadow" not in system.flags.flags or system.flags.is_off(task.name)
