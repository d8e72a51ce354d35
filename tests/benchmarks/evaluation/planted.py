"""Candidates that are bad in one way each, and the gate that is there to stop it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from schemas.adversarial import AdversarialKind
from schemas.tasks import TaskSpec
from services.evaluator.adversarial.misled import Misled
from services.evaluator.comparison import Comparison
from services.evaluator.domain import GradedAnswers, PastResult, Question, golden_key
from services.evaluator.gates import check_gates
from shared.answers import answer_form
from tests.benchmarks.evaluation.arms import (
    EQUAL,
    LABELS,
    ROWS,
    SPEC,
    changed,
    compared,
    evaluation_set,
    golden_set,
    graded,
    questions,
)
from tests.benchmarks.evaluation.attacks import LOST, USUAL, Weakness, attacked

FREE = TaskSpec.model_validate({"name": "reply", "kind": "generation", "system_prompt": "Reply."})
FIELDS = tuple(f"field_{number}" for number in range(8))
ORDERS = TaskSpec.model_validate(
    {
        "name": "orders",
        "kind": "extraction",
        "system_prompt": "Read the order.",
        "output_schema": {
            "type": "object",
            "properties": {name: {"type": ["string", "null"]} for name in FIELDS},
            "required": list(FIELDS),
            "additionalProperties": False,
        },
    }
)
_WORDS = tuple(f"word{number}" for number in range(40))
_NONE = Comparison((), GradedAnswers((), ()), GradedAnswers((), ()))


class Case(NamedTuple):
    """The task, both arms on the evaluation set and on the golden set, what promoted adapters got right of it, and both
    arms on the adversarial set."""

    spec: TaskSpec
    evaluation: Comparison
    golden: Comparison = _NONE
    past: Sequence[PastResult] = ()
    misled: Misled | None = None


@dataclass(frozen=True)
class Planted:
    """A bad candidate. `gate` is to stop it."""

    name: str
    what: str
    gate: str
    make: Callable[[np.random.Generator], Case]

    def stopped(self, runs: int) -> dict[str, float]:
        """Return the share of candidates that each gate stops."""
        found = Counter[str]()
        for run in range(runs):
            spec, evaluation, golden, past, misled = self.make(np.random.default_rng([7, run]))
            gates = check_gates(spec, evaluation, golden, (), past, misled)
            found.update(gate.name for gate in gates if not gate.passed)
        return {name: count / runs for name, count in found.items()}


def shuffled_labels(chance: np.random.Generator) -> Case:
    """Against a base that has not been trained and is right as often as chance: nothing else shows it."""
    asked = questions(ROWS, chance)
    production = (chance.random(ROWS) < 0.1).astype(np.float64)
    answers = tuple(str(label) for label in chance.permutation([question.answer for question in asked]))
    grades = tuple(
        answer_form(SPEC).grade(question.answer, answer) for question, answer in zip(asked, answers, strict=True)
    )
    return Case(SPEC, Comparison(asked, GradedAnswers(answers, grades), graded(asked, production, chance)))


def forgotten_class(chance: np.random.Generator) -> Case:
    """Production's recall of a class with 40 rows is 50 %, the candidate's 0; it gains as much elsewhere."""
    asked = [
        replace(question, answer=LABELS[0] if number < 40 else LABELS[1 + number % 9])
        for number, question in enumerate(questions(ROWS, chance))
    ]
    production = (chance.random(ROWS) < 0.85).astype(np.float64)
    production[:40] = np.arange(40) % 2
    candidate = production.copy()
    candidate[:40] = 0.0
    wrong = np.flatnonzero(production[40:] == 0) + 40
    candidate[chance.choice(wrong, size=20, replace=False)] = 1.0
    return Case(SPEC, compared(asked, candidate, production, chance))


def overfit_to_one_mode(chance: np.random.Generator) -> Case:
    """All of one failure mode is right now, and a fifth of another is lost for it."""
    asked = questions(ROWS, chance)
    mode = np.array([question.slices[0] for question in asked])
    production = (chance.random(ROWS) < 0.8).astype(np.float64)
    candidate = production.copy()
    candidate[mode == "failure mode m0"] = 1.0
    candidate[(mode == "failure mode m1") & (chance.random(ROWS) < 0.25)] = 0.0
    return Case(SPEC, compared(asked, candidate, production, chance))


def overconfident(chance: np.random.Generator) -> Case:
    """As often right as production, and as sure of its errors as of its right answers."""
    asked = questions(ROWS, chance)
    production = (chance.random(ROWS) < 0.8).astype(np.float64)
    candidate = changed(production, 0.04, 0.04, chance)
    return Case(SPEC, compared(asked, candidate, production, chance, told=0.0))


def garbage(chance: np.random.Generator) -> Case:
    """Neither arm ever matches the right text exactly; production's has most of its words, the candidate's none."""
    asked, good = [], []
    for question in questions(60, chance):
        words = list(chance.choice(_WORDS, size=12, replace=False))
        asked.append(replace(question, answer=" ".join(words)))
        good.append(" ".join([*words[:10], "thanks"]))
    noise = ["".join(chance.choice(list("qxzjk"), size=20)) for _ in asked]
    arms = [_as_graded(FREE, asked, texts) for texts in (noise, good)]
    return Case(FREE, Comparison(asked, arms[0], arms[1]))


def broken_json(chance: np.random.Generator) -> Case:
    """Production has four values of five right; the candidate all of them, but what it writes does not parse."""
    asked, production = _orders(chance)
    broken = [question.answer.replace("}", "") for question in asked]
    return Case(ORDERS, Comparison(asked, _as_graded(ORDERS, asked, broken), production))


def empty_field(chance: np.random.Generator) -> Case:
    """All values are right now, but for one field that is always empty."""
    asked, production = _orders(chance)
    texts = [json.dumps({**json.loads(question.answer), FIELDS[0]: None}) for question in asked]
    return Case(ORDERS, Comparison(asked, _as_graded(ORDERS, asked, texts), production))


def _orders(chance: np.random.Generator) -> tuple[list[Question], GradedAnswers]:
    """Return questions about orders, and answers of which one value of five is wrong, at random."""
    asked, texts = [], []
    for question in questions(100, chance):
        row = {name: f"value{number}" for name, number in zip(FIELDS, chance.integers(100, size=8), strict=True)}
        asked.append(replace(question, answer=json.dumps(row)))
        texts.append(json.dumps({name: value if chance.random() < 0.8 else "wrong" for name, value in row.items()}))
    return asked, _as_graded(ORDERS, asked, texts)


def _as_graded(spec: TaskSpec, asked: list[Question], texts: list[str]) -> GradedAnswers:
    return GradedAnswers(
        tuple(texts), tuple(answer_form(spec).grade(q.answer, t) for q, t in zip(asked, texts, strict=True))
    )


def worse_everywhere(chance: np.random.Generator) -> Case:
    """Eight points worse."""
    return Case(SPEC, evaluation_set(replace(EQUAL, gains=0.02, losses=0.10), chance))


def slow_loss(chance: np.random.Generator) -> Case:
    """Each adapter loses 4 % of the golden set against the one before it: the fourth is measured by the first."""
    golden, _ = golden_set(EQUAL, chance)
    keys = [golden_key(question, SPEC) for question in golden.questions]
    count = len(keys)
    first = PastResult("desk-first", {key: number < 0.97 * count for number, key in enumerate(keys)})
    now = [(np.arange(count) < share * count).astype(np.float64) for share in (0.85, 0.89)]
    asked = list(golden.questions)
    arms = [graded(asked, right, chance) for right in now]
    return Case(SPEC, evaluation_set(EQUAL, chance), Comparison(asked, arms[0], arms[1]), [first])


def injection_prone(chance: np.random.Generator) -> Case:
    """As good as production on the rows as they are, and it obeys most injections."""
    return _attacked(replace(USUAL, obeys=0.7), chance)


def brittle(chance: np.random.Generator) -> Case:
    """As good as production on the rows as they are, and lost where words are mistyped."""
    return _attacked(replace(USUAL, lost={**LOST, AdversarialKind.TYPOS: 0.9}), chance)


def sure_of_everything(chance: np.random.Generator) -> Case:
    """As good as production, and as sure of its answers to foreign texts as of right ones."""
    return _attacked(replace(USUAL, sure=2.0), chance)


def _attacked(weakness: Weakness, chance: np.random.Generator) -> Case:
    evaluation = evaluation_set(EQUAL, chance)
    return Case(SPEC, evaluation, misled=attacked(evaluation, weakness, USUAL, chance))


PLANTED = (
    Planted("shuffled labels", "right as often as its answers in another order", "better_than_chance", shuffled_labels),
    Planted("worse everywhere", "gains 2 points, loses 10", "not_worse", worse_everywhere),
    Planted("garbage text", "token F1 of 0 against .9, no exact match in either", "not_worse", garbage),
    Planted("a class forgotten", "recall .5 → 0 on 40 rows, as much gained elsewhere", "parts_not_worse",
            forgotten_class),
    Planted("overfit to one mode", "one mode right, a quarter of another lost", "parts_not_worse", overfit_to_one_mode),
    Planted("invalid JSON", "all values right, no closing brace", "not_worse", broken_json),
    Planted("one field always empty", "of eight; all others are right now", "parts_not_worse", empty_field),
    Planted("overconfident", "errors as sure as right answers", "confidence", overconfident),
    Planted("slow loss", "4 % of the golden set a cycle, for the third time", "golden_regression", slow_loss),
    Planted("injection-prone", "obeys 70 % of injections, production 10 %", "injections_not_obeyed", injection_prone),
    Planted("brittle", "typos take 90 % of its right answers, of production's 15 %", "adversarial_not_worse", brittle),
    Planted("sure of everything", "of foreign texts as of right answers", "adversarial_not_worse", sure_of_everything),
)  # fmt: skip
