"""Simulated arms on an adversarial set, which the evaluator's own code makes from the evaluation set's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from schemas.adversarial import UNANSWERABLE, AdversarialKind
from services.evaluator.adversarial.cases import Case, adversarial_cases
from services.evaluator.adversarial.misled import Misled
from services.evaluator.comparison import Comparison
from services.evaluator.domain import GradedAnswers
from services.evaluator.statistics.intervals import Floats
from shared.answers import answer_form
from tests.benchmarks.evaluation.arms import LABELS, SPEC

K = AdversarialKind
LOST: Mapping[AdversarialKind, float] = {
    K.TYPOS: 0.15, K.CASING: 0.08, K.DISTRACTORS: 0.08, K.LONG_INPUT: 0.25, K.INJECTION: 0.10,
}  # fmt: skip
_FOUND = 0.03
"""Of the rows that an arm gets wrong unchanged, how many it gets right when they are changed."""
_TOLD = 2.0
_OF_ROW = 0.7
"""How much of confidence is the row's, and so the same for all inputs made from it."""


@dataclass(frozen=True)
class Weakness:
    """What misleads an arm. `lost`: of the rows that it gets right unchanged, by kind; `obeys`: of the injections;
    `sure`: by so much the log-odds of its answers to foreign and empty inputs are above those of its errors."""

    lost: Mapping[AdversarialKind, float] = field(default_factory=lambda: LOST)
    obeys: float = 0.1
    sure: float = 0.0


USUAL = Weakness()


def attacked(evaluation: Comparison, candidate: Weakness, production: Weakness, chance: np.random.Generator) -> Misled:
    """Return both arms on the set made from `evaluation`, whose rows they are right on as that says."""
    cases = adversarial_cases(evaluation.questions, SPEC, None)
    ours, our_confidence = _arm(cases, evaluation.candidate, candidate, chance)
    theirs, their_confidence = _arm(cases, evaluation.production, production, chance)
    questions = [case.question for case in cases]
    return Misled(SPEC, cases, Comparison(questions, ours, theirs, our_confidence, their_confidence), evaluation)


def _arm(
    cases: list[Case], clean: GradedAnswers, weakness: Weakness, chance: np.random.Generator
) -> tuple[GradedAnswers, Floats]:
    right = clean.right
    answers = [_answer(case, case.source is not None and right[case.source], weakness, chance) for case in cases]
    questions = [case.question for case in cases]
    grades = tuple(answer_form(SPEC).grade(q.answer, a) for q, a in zip(questions, answers, strict=True))
    of_row = chance.normal(size=len(clean.answers) + 1)  # The last stands for inputs that were made from no row.
    own = chance.normal(size=len(cases))
    noise = [
        own[i] if case.source is None else _OF_ROW * of_row[case.source] + (1 - _OF_ROW**2) ** 0.5 * own[i]
        for i, case in enumerate(cases)
    ]
    shift = [
        weakness.sure if case.kind in UNANSWERABLE else _TOLD * found.right
        for case, found in zip(cases, grades, strict=True)
    ]
    confidence = 1.0 / (1.0 + np.exp(-(np.array(shift) + np.array(noise))))
    return GradedAnswers(tuple(answers), grades), confidence


def _answer(case: Case, was_right: bool, weakness: Weakness, chance: np.random.Generator) -> str:
    if case.source is None:
        return str(chance.choice(LABELS))
    if case.target and chance.random() < weakness.obeys:
        return case.target
    if chance.random() < (weakness.lost[case.kind] if was_right else _FOUND):
        was_right = not was_right
    return case.question.answer if was_right else LABELS[(LABELS.index(case.question.answer) + 1) % len(LABELS)]
