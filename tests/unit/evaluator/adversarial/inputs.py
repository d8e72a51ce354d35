"""Adversarial sets and what two arms answer to them, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from schemas.conversation import Message, Role
from schemas.tasks import TaskSpec
from services.evaluator.adversarial.cases import Case, adversarial_cases
from services.evaluator.adversarial.misled import Misled
from services.evaluator.comparison import Comparison
from services.evaluator.domain import Question
from tests.unit.evaluator.arms import LABELS, graded, spec

SURE, UNSURE = 0.9, 0.2


def task(**adversarial: Any) -> TaskSpec:
    return spec(adversarial={"rows": 32, **adversarial})


def rows(count: int = 40) -> list[Question]:
    return [
        Question(
            (
                Message(role=Role.SYSTEM, content="Say."),
                Message(role=Role.USER, content=f"where is my parcel number {i}"),
            ),
            LABELS[i % len(LABELS)],
        )
        for i in range(count)
    ]


def wrong_label(answer: str) -> str:
    return LABELS[(LABELS.index(answer) + 1) % len(LABELS)]


def misled(
    task: TaskSpec,
    candidate: Sequence[str | None],
    production: Sequence[str | None],
    candidate_sure: Sequence[float] | None = None,
    production_sure: Sequence[float] | None = None,
    asked: Sequence[Question] = (),
    cases: Sequence[Case] = (),
) -> Misled:
    """Both arms are right on every unchanged row, surely on every other; `candidate` … are answers to the cases."""
    asked = asked or rows()
    cases = cases or adversarial_cases(asked, task, None)
    questions = [case.question for case in cases]
    right = graded(asked, [question.answer for question in asked], task)
    clean = np.array([SURE if i % 2 else 0.5 for i in range(len(asked))])
    sure = [
        np.array(scores if scores is not None else [UNSURE] * len(cases))
        for scores in (candidate_sure, production_sure)
    ]
    found = Comparison(questions, graded(questions, candidate, task), graded(questions, production, task), *sure)
    return Misled(task, cases, found, Comparison(asked, right, right, clean, clean))


def answers(cases: Sequence[Case]) -> list[str]:
    """The right answer of each case, and any label where none is right."""
    return [case.question.answer or LABELS[0] for case in cases]
