"""Whether held-out rows tell production's accuracy, and stop a candidate that fails the commonest texts.

Simulated traffic, real builds and the evaluator's own interval and gate: 800 audits, whose texts come by Zipf's law, or
half of them from a few that are nearly repeated. Answers are simulated, too: production is right on a share of the
texts, the broken candidate on all but the 20 commonest.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from schemas.conversation import Answer, Call, Message, Role
from schemas.datasets import Example
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.pipeline import Inputs, build_dataset
from services.evaluator.comparison import Comparison
from services.evaluator.domain import GradedAnswers, evaluation_questions
from services.evaluator.gates import not_worse
from services.evaluator.statistics.intervals import group_numbers, weighted_share
from shared.grading.grade import RIGHT, WRONG
from tests.benchmarks.table import Measured

AUDITS, TEXTS, COMMON = 800, 2_000, 20
RUNS = 1_000
_START = datetime(2026, 1, 5, tzinfo=UTC)
_LABELS = ("refund", "delivery", "cancel")
_RIGHT = 0.75
"""Of the texts that production answers right."""


def measured(runs: int = RUNS) -> list[Measured]:
    """The aims: the interval covers production's accuracy, and who fails the commonest texts is stopped."""
    found = []
    for name, weights in (("Zipf 1.0", _zipf()), ("half near-repeats", _half_repeated())):
        results = [_run(seed, weights) for seed in range(runs)]
        covered, stopped = (float(np.mean(part)) for part in zip(*results, strict=True))
        found += [
            Measured(f"{name}: accuracy of production inside the 95 % interval", "share", covered, min_value=0.93),
            Measured(f"{name}: wrong on the {COMMON} commonest texts, stopped", "share", stopped, min_value=0.95),
        ]
    return found


def _zipf() -> np.ndarray:
    weights = 1.0 / np.arange(1, TEXTS + 1)
    return weights / weights.sum()


def _half_repeated() -> np.ndarray:
    weights = np.full(TEXTS, 0.5 / (TEXTS - COMMON))
    weights[:COMMON] = 0.5 / COMMON
    return weights


def _run(seed: int, weights: np.ndarray) -> tuple[bool, bool]:
    """Whether the interval covers, and whether the gate stops the broken candidate."""
    chance = random.Random(seed)
    asked = chance.choices(range(TEXTS), weights, k=AUDITS)
    right = {text for text in range(TEXTS) if random.Random(f"{seed} {text}").random() < _RIGHT} | set(range(COMMON))
    spec = TaskSpec(name="desk", kind=TaskKind.CLASSIFICATION, system_prompt="Intent?", labels=_LABELS)
    build = build_dataset(Inputs(votes_of(_audit(spec, n, text, chance) for n, text in enumerate(asked)), spec))
    rows = build.dataset.eval
    texts = [int(row.prediction_ids[0].split("-")[1]) for row in rows]
    production = np.array([text in right for text in texts], dtype=np.float64)
    drawn = np.array([1.0 / (row.drawn_probability or 1.0) for row in rows])
    interval = weighted_share(production, drawn, group_numbers([row.group for row in rows]))
    truth = float(sum(weights[text] for text in right))
    gate = not_worse(spec, _compared(rows, [text >= COMMON for text in texts], [text in right for text in texts]))
    return interval.low <= truth <= interval.high, not gate.passed


def _compared(rows: Sequence[Example], candidate: Sequence[bool], production: Sequence[bool]) -> Comparison:
    questions = evaluation_questions(rows)
    arms = [
        GradedAnswers(tuple("a" for _ in arm), tuple(RIGHT if is_right else WRONG for is_right in arm))
        for arm in (candidate, production)
    ]
    return Comparison(questions, *arms)


def _audit(spec: TaskSpec, number: int, text: int, chance: random.Random) -> CorrectionSubmitted:
    words = random.Random(text)
    asked = " ".join("".join(words.choices("abcdefghijklmnop", k=6)) for _ in range(9))
    if text < COMMON and chance.random() < 0.5:
        asked = f"{asked} please"
    return CorrectionSubmitted(
        occurred_at=_START + timedelta(minutes=number),
        task=spec.name,
        task_revision=spec.revision,
        correction_id=f"c{number}",
        request_id=f"r{number}",
        prediction_id=f"p{number}-{text}",
        purpose=Purpose.AUDIT,
        reviewer=f"reviewer-{number % 5}",
        call=Call(messages=(Message(role=Role.USER, content=asked),)),
        answers=(Answer(text=_LABELS[0]),),
        label=_LABELS[text % 3],
        inclusion_probability=0.01,
        drawn_probability=0.01,
        user_hash=f"user-{number}",
        predicted_at=_START,
    )
