"""Classes with too few rows to be judged alone are judged together: what is forgotten in some of them stops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from schemas.conversation import Message, Role
from schemas.tasks import TaskSpec
from services.evaluator.comparison import ComparedPart, Comparison
from services.evaluator.domain import Question
from services.evaluator.gates import PARTS, check_gates, parts_not_worse, verdict
from services.evaluator.parts.judged import judge_parts
from services.evaluator.report.parts import part_scores
from services.evaluator.statistics.intervals import Floats
from services.evaluator.statistics.paired import p_worse_together
from tests.unit.evaluator.arms import NO_GOLDEN, gate, graded, stopped_by

INTENTS, ROWS = 77, 5
N = INTENTS * ROWS
SPEC = TaskSpec.model_validate({
    "name": "bank", "kind": "classification", "system_prompt": "Say.",
    "labels": [f"intent {number}" for number in range(INTENTS)],
})  # fmt: skip
ASKED = [
    Question((Message(role=Role.USER, content="about it " * (1 + row % 2)),), SPEC.labels[row // ROWS])
    for row in range(N)
]


def compared(candidate: Floats, production: Floats) -> Comparison:
    """Both arms on five rows of each of 77 intents, right where there is a 1."""
    arms = [
        [
            q.answer if is_right else SPEC.labels[n // ROWS - 1]
            for n, (q, is_right) in enumerate(zip(ASKED, arm, strict=True))
        ]
        for arm in (candidate, production)
    ]
    return Comparison(ASKED, graded(ASKED, arms[0], SPEC), graded(ASKED, arms[1], SPEC))


def production_and_four_forgotten(seed: int = 3) -> tuple[Floats, Floats]:
    """Production is right on 85 %; the candidate on nothing of four intents, and on 20 more rows of the others."""
    chance = np.random.default_rng(seed)
    production = np.ones(N)
    production[::7] = 0.0
    candidate = production.copy()
    candidate[: 4 * ROWS] = 0.0
    others = 4 * ROWS + np.flatnonzero(production[4 * ROWS :] == 0)
    candidate[chance.choice(others, size=20, replace=False)] = 1.0
    return candidate, production


def test_four_forgotten_intents_of_five_rows_each_stop_a_candidate_that_gains_as_much_elsewhere() -> None:
    evaluation = compared(*production_and_four_forgotten())
    assert len(evaluation.gained) >= len(evaluation.lost)
    gates = check_gates(SPEC, evaluation, NO_GOLDEN)
    assert stopped_by(gates) == ["parts_not_worse"]
    stopped = gate(gates, "parts_not_worse")
    assert stopped.measured is not None and stopped.measured < PARTS
    assert "2 of 79 classes, slices and fields judged. Worse: none." in stopped.detail
    assert "Together worse (p = 0.000" in stopped.detail
    assert "class intent 1: 80% → 0% of 5 rows (4 lost, 0 gained)" in stopped.detail


@pytest.mark.parametrize("rows", [11, 12, 13, 14, 16])
def test_forgotten_intents_stop_a_candidate_also_where_each_has_just_rows_enough_to_be_judged_alone(rows: int) -> None:
    """Of 77 intents four are forgotten, and as many rows gained elsewhere. Production is right on 75 %: of twelve rows
    of an intent nine can be lost, and alone all twelve would have to be."""
    n, forgotten = INTENTS * rows, 4 * rows
    production = np.random.default_rng([8, rows]).permuted((np.arange(n).reshape(INTENTS, rows) % 4 > 0), axis=1)
    production = production.ravel().astype(np.float64)
    candidate = production.copy()
    candidate[:forgotten] = 0.0
    wrong = forgotten + np.flatnonzero(production[forgotten:] == 0.0)
    candidate[wrong[: int(production[:forgotten].sum())]] = 1.0
    parts = {f"class {i}": np.arange(rows * i, rows * (i + 1)) for i in range(INTENTS)}
    parts |= {"longer inputs": np.arange(0, n, 2), "shorter inputs": np.arange(1, n, 2)}
    judged = judge_parts(
        np.arange(n),
        {name: ComparedPart(part, candidate[part], production[part]) for name, part in parts.items()},
        PARTS,
    )
    assert judged.together_worse


def test_the_gate_says_what_was_judged_only_together_and_asks_for_no_more_labels() -> None:
    _, production = production_and_four_forgotten()
    gates = check_gates(SPEC, compared(production, production), NO_GOLDEN)
    assert verdict(gates) == "passed"
    found = gate(gates, "parts_not_worse")
    assert found.labels_needed is None
    assert "Too few rows to judge (under 12): class intent 0 (5); " in found.detail
    assert "Together: p = 1." in found.detail


def test_a_better_candidate_whose_losses_are_spread_over_many_small_classes_passes() -> None:
    """It gains 15 % of the rows and loses 6 %: up to two in some classes, as chance has it."""
    for seed in range(10):
        point = np.random.default_rng([5, seed]).random(N)
        evaluation = compared((point >= 0.06).astype(np.float64), (point < 0.85).astype(np.float64))
        assert len(evaluation.lost) >= 12
        assert parts_not_worse(evaluation, evaluation.parts(SPEC)).passed


@pytest.mark.parametrize(("intents", "size"), [(INTENTS, ROWS), (10, 14)])
def test_equal_candidates_are_stopped_at_most_at_the_level_of_the_gate(intents: int, size: int) -> None:
    """Of 150 that gain 5 % of the rows and lose as many; the test of all small parts by itself keeps to any level."""
    runs, stopped, alone, n = 150, 0, list[float](), intents * size
    classes = {f"class {number}": np.arange(size * number, size * (number + 1)) for number in range(intents)}
    halves = {"longer inputs": np.arange(0, n, 2), "shorter inputs": np.arange(1, n, 2)}
    for run in range(runs):
        apart = np.random.default_rng([9, run]).choice([-1.0, 0.0, 1.0], n, p=[0.05, 0.9, 0.05])
        ours, theirs = np.maximum(apart, 0.0), np.maximum(-apart, 0.0)
        parts = {name: ComparedPart(rows, ours[rows], theirs[rows]) for name, rows in (halves | classes).items()}
        judged = judge_parts(np.arange(n), parts, PARTS)
        assert judged.p_together is not None
        stopped += bool(judged.worse) or judged.together_worse
        alone.append(p_worse_together([(apart[rows], rows) for rows in classes.values()]))
    assert stopped <= runs * PARTS
    for level in (0.02, 0.05, 0.1, 0.5):
        assert np.mean(np.array(alone) <= level) <= level + 2.0 * np.sqrt(level / runs)


def test_rows_of_several_small_parts_and_of_one_group_count_once() -> None:
    """Each of five groups has two rows, and is in two parts: only one flip of their five signs is as bad."""
    apart, groups = np.full(10, -0.5), np.repeat(np.arange(5), 2)
    assert p_worse_together([(apart, groups), (apart, groups)]) == pytest.approx(2**-5)
    assert p_worse_together([(-apart, groups)]) == 1.0
    assert p_worse_together([(np.zeros(4), np.arange(4))]) == 1.0


def test_a_forgotten_class_stops_also_where_so_many_parts_are_judged_that_few_flips_could_not_show_it() -> None:
    """Of 240 classes one is lost: 40 texts, every other one with a copy. Ten thousand flips show no p below one in
    10,001, and 241 times that is above the level."""
    classes, sizes = 240, np.array([1, 2] * 20)
    rows = int(sizes.sum())
    groups = np.repeat(np.arange(40 * classes), np.tile(sizes, classes))
    lost = {name: np.full(rows, float(name == "class 0")) for name in (f"class {n}" for n in range(classes))}
    parts = {
        name: ComparedPart(np.arange(rows * n, rows * (n + 1)), 1.0 - wrong, np.ones(rows))
        for n, (name, wrong) in enumerate(lost.items())
    }
    assert judge_parts(groups, parts, PARTS).worse == ["class 0"]


def test_so_few_rows_that_not_even_all_of_them_together_could_show_a_loss_are_not_tested() -> None:
    rows = {f"class {number}": np.arange(2 * number, 2 * number + 2) for number in range(3)}
    parts = {name: ComparedPart(part, np.zeros(2), np.ones(2)) for name, part in rows.items()}
    judged = judge_parts(np.arange(6), parts, 0.01)
    assert (judged.p_together, judged.together_worse, dict(judged.p_values)) == (None, False, {})
    assert judge_parts(np.arange(6), parts, 0.02).together_worse, "six rows lost of six"


def test_where_no_class_can_be_judged_alone_a_loss_in_all_of_them_still_stops() -> None:
    asked = [replace(question, messages=ASKED[0].messages) for question in ASKED]
    candidate, production = production_and_four_forgotten()
    alone = replace(compared(candidate, production), questions=asked)
    assert stopped_by(check_gates(SPEC, alone, NO_GOLDEN)) == ["parts_not_worse"]
    same = gate(check_gates(SPEC, replace(compared(production, production), questions=asked), NO_GOLDEN),
                "parts_not_worse")  # fmt: skip
    assert (same.passed, same.measured, same.labels_needed) == (True, None, 7)
    assert "Together: p = 1." in same.detail


def test_the_report_has_no_p_of_a_class_that_was_judged_only_together() -> None:
    parts = {part.name: part for part in part_scores(compared(*production_and_four_forgotten()), SPEC)}
    assert parts["intent 0"].p_worse is None and not parts["intent 0"].worse
    assert parts["longer inputs"].p_worse is not None
