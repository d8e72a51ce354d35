"""The tasks, the candidates' kinds, and how often people find each kind better or worse."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import yaml

from schemas.task_settings import RolloutSettings
from schemas.tasks import TaskKind, TaskSpec

BASE_MODEL, VLLM_BASE = "chaos-base", "SmolLM2-135M-Instruct"
VLLM_MARK = "-vllm-"
"""In the names of tasks, and so of adapters, that vLLM serves."""
LABELS = (
    "delivery", "refund", "login", "account", "billing", "card", "damage", "exchange", "fraud", "invoice", "limit",
    "other", "password", "quality", "return", "shipping",
)  # fmt: skip
"""So many that two models of random weights, each of which gives nearly every text the same label, hardly agree."""
MIN_TICKETS = 25
"""Nobody answers before so many tickets of a rollout were asked."""


class Kind(StrEnum):
    """What a candidate is. `fragile`: better, but its streams break, which shadow does not see."""

    GOOD = "good"
    EQUAL = "equal"
    BAD = "bad"
    FRAGILE = "fragile"


@dataclass(frozen=True)
class Quality:
    """Of answers that differ, the share in which the candidate is right, and in which production is; else neither."""

    better: float
    worse: float


QUALITIES = {
    Kind.GOOD: Quality(0.92, 0.04),
    Kind.EQUAL: Quality(0.45, 0.45),
    Kind.BAD: Quality(0.2, 0.75),
    Kind.FRAGILE: Quality(0.92, 0.04),
}
_SHARES = {Kind.GOOD: 4, Kind.EQUAL: 2, Kind.BAD: 2, Kind.FRAGILE: 2}

ROLLOUT = RolloutSettings(
    yearly_false_promotion=0.9,
    cycles_per_year=8_784,
    canary_wealth=20.0,
    canary_steps=(20, 50),
    min_canary_users=10,
    control_days=15 / 86_400,
    max_labels=80,
)
"""Alpha accrues within minutes here, and a rollout takes a minute. What is tested is that the levels are kept."""


def spec_of(task: str, base_model: str) -> TaskSpec:
    """Return a task's specification."""
    return TaskSpec(
        name=task, kind=TaskKind.CLASSIFICATION, base_model=base_model, system_prompt="Classify the message.",
        labels=LABELS, max_answer_tokens=8, cron="0 3 1 1 *", rollout=ROLLOUT,
    )  # fmt: skip


def write_task(folder: Path, spec: TaskSpec) -> None:
    """Write a task's file, without redaction: the texts are made up, and both arms answer what was sent."""
    values = spec.model_dump(mode="json", exclude_unset=True, exclude={"rollout"})
    values["rollout"] = spec.rollout.model_dump(mode="json", exclude_unset=True)
    values["redaction"] = {"enabled": False}
    values["failures"] = {"audit_share": 0.0}
    (folder / f"{spec.name}.yaml").write_text(yaml.safe_dump(values))


def kinds(seed: int, task: int) -> Iterator[Kind]:
    """Return the kinds of a task's candidates, mixed, without end; the first ones of four tasks are one of each."""
    rng = random.Random(seed * 1_000 + task)
    yield tuple(Kind)[task % len(Kind)]
    while True:
        yield from rng.choices(list(_SHARES), list(_SHARES.values()))
