from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from schemas.adapters import AdapterTrained
from schemas.base import Gate
from schemas.conversation import Message, Role, ToolCall
from schemas.datasets import Example
from schemas.golden import GoldenRow
from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskSpec
from services.evaluator.domain import (
    Comparison,
    GradedAnswers,
    Question,
    evaluation_questions,
    failed_must_pass,
    golden_questions,
    job_name,
    mcnemar_worse,
    production_of,
    wilson,
)
from services.evaluator.gates import check_gates, regression_set, verdict
from shared.grading.grade import grade

LABELS = tuple("abcdefghij")
FREE = TaskSpec.model_validate({"name": "reply", "kind": "generation", "system_prompt": "Reply."})
NO_GOLDEN = Comparison((), GradedAnswers((), ()), GradedAnswers((), ()))


def spec(**evaluation: object) -> TaskSpec:
    return TaskSpec.model_validate(
        {"name": "desk", "kind": "classification", "system_prompt": "Say.", "labels": LABELS, "evaluation": evaluation}
    )


def questions(n: int) -> list[Question]:
    return [Question((Message(role=Role.USER, content=f"question {i}"),), LABELS[i % len(LABELS)]) for i in range(n)]


def arm(asked: list[Question], right: set[int], failed: frozenset[int] = frozenset()) -> GradedAnswers:
    answers = tuple(None if i in failed else q.answer if i in right else "wrong" for i, q in enumerate(asked))
    return GradedAnswers(answers, tuple(grade(spec(), q.answer, a) for a, q in zip(answers, asked, strict=True)))


def compared(n: int, candidate: set[int], production: set[int]) -> Comparison:
    asked = questions(n)
    return Comparison(asked, arm(asked, candidate), arm(asked, production))


def gate(gates: tuple[Gate, ...], name: str) -> Gate:
    (found,) = [g for g in gates if g.name == name]
    return found


def test_a_better_candidate_passes_every_gate() -> None:
    gates = check_gates(spec(), compared(60, set(range(54)), set(range(12))), NO_GOLDEN)
    assert verdict(gates) == "passed"
    assert gate(gates, "min_gain").measured == pytest.approx(0.7)
    assert "Candidate 90.0%, production 20.0% of 60 rows" in gate(gates, "min_gain").detail


@pytest.mark.parametrize("n", [30, 60, 200])
def test_a_candidate_trained_on_shuffled_labels_fails_the_better_than_chance_gate(n: int) -> None:
    """Even where it happens to beat a base that guesses: its answers have nothing to do with the questions."""
    stopped = 0
    for seed in range(200):
        rng = random.Random(seed)
        lucky = {i for i in range(n) if rng.random() < 1 / len(LABELS)}
        gates = check_gates(spec(), compared(n, lucky, set(range(n // 20))), NO_GOLDEN)
        stopped += not gate(gates, "better_than_chance").passed
    assert stopped >= 190


def test_the_better_than_chance_gate_reports_what_chance_is() -> None:
    stopped = gate(check_gates(spec(), compared(60, set(range(8)), set()), NO_GOLDEN), "better_than_chance")
    assert not stopped.passed
    assert stopped.required == "> 0.100, the share of the most frequent label"
    assert "right on 8 of 60 rows" in stopped.detail


def test_a_significantly_worse_candidate_fails_and_its_losses_are_quoted() -> None:
    gates = check_gates(spec(min_gain=-1.0), compared(100, set(range(80)), set(range(90))), NO_GOLDEN)
    worse = gate(gates, "not_worse")
    assert not worse.passed
    assert "wins 0 and loses 10 rows" in worse.detail
    assert "'question 80': 'wrong' instead of 'a'" in worse.detail


def test_an_insignificant_loss_fails_min_gain_only() -> None:
    gates = check_gates(spec(), compared(100, set(range(80)), set(range(81))), NO_GOLDEN)
    assert [g.name for g in gates if not g.passed] == ["min_gain"]


def test_golden_losses_are_not_outweighed_by_gains_elsewhere() -> None:
    golden = compared(20, set(range(15)), set(range(20)))
    gates = check_gates(spec(), compared(60, set(range(60)), set()), golden)
    assert [g.name for g in gates if not g.passed] == ["golden_regression"]
    assert gate(gates, "golden_regression").measured == pytest.approx(0.25)


def test_without_golden_examples_the_evaluation_set_is_the_regression_set() -> None:
    evaluation = compared(10, {0}, {1, 2})
    assert regression_set(evaluation, NO_GOLDEN) is evaluation
    assert (evaluation.lost, evaluation.gained) == ([1, 2], [0])


def test_failed_requests_count_as_wrong_and_stop_the_candidate() -> None:
    asked = questions(50)
    evaluation = Comparison(asked, arm(asked, set(range(48)), frozenset({48, 49})), arm(asked, set()))
    failed = gate(check_gates(spec(), evaluation, NO_GOLDEN), "max_failed_share")
    assert not failed.passed
    assert failed.measured == pytest.approx(0.04)
    assert sum(evaluation.candidate.right) == 48


def test_min_accuracy_is_a_gate_of_its_own() -> None:
    gates = check_gates(spec(min_accuracy=0.8), compared(50, set(range(30)), set()), NO_GOLDEN)
    assert [g.name for g in gates if not g.passed] == ["min_accuracy"]


def test_wilson_agrees_with_the_published_interval() -> None:
    interval = wilson(15, 50)  # Newcombe 1998 gives such values; statsmodels' proportion_confint too.
    assert (interval.low, interval.high) == pytest.approx((0.1910, 0.4375), abs=5e-4)
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


@given(n=st.integers(1, 2_000), data=st.data())
def test_the_wilson_interval_always_contains_the_share(n: int, data: st.DataObject) -> None:
    interval = wilson(data.draw(st.integers(0, n)), n)
    assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0


@given(lost=st.integers(0, 60), gained=st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    expected = 1.0 if lost + gained == 0 else binomtest(lost, lost + gained, alternative="greater").pvalue
    assert mcnemar_worse(lost, gained) == pytest.approx(expected)


def test_a_question_keeps_the_conversation_and_its_tools_and_expects_tool_calls_as_one_text() -> None:
    calls = (ToolCall(name="find", arguments='{"n": 1}', id="c1"),)
    talk = (
        Message(role=Role.USER, content="where is it"),
        Message(role=Role.ASSISTANT, tool_calls=calls),
        Message(role=Role.TOOL, content="lost", tool_call_id="c1"),
    )
    tools = ({"type": "function", "function": {"name": "find"}},)
    again = Message(role=Role.ASSISTANT, content="Once more.", tool_calls=calls)
    row = Example(example_id="e", messages=(*talk, again), tools=tools, group="g", prediction_ids=(), correction_ids=())
    (question,) = evaluation_questions([row])
    assert (question.messages, question.tools, question.text) == (talk, tools, "lost")
    assert question.answer == 'Once more.\n[{"name":"find","arguments":"{\\"n\\": 1}"}]'
    assert grade(FREE, question.answer, 'once more\n[{"name":"find","arguments":"{\\"n\\":1}"}]').right
    assert not grade(FREE, question.answer, "Once more.").right


def golden_row(*messages: tuple[str, str], must_pass: bool = False) -> GoldenRow:
    turns = tuple(Message(role=role, content=content) for role, content in messages)
    return GoldenRow(row_id=f"g-{messages[0][1]}", messages=turns, must_pass=must_pass)


def test_golden_rows_are_asked_with_the_tasks_system_prompt_unless_they_have_one() -> None:
    rows = [
        golden_row((Role.USER, "hello"), (Role.ASSISTANT, "a"), must_pass=True),
        golden_row((Role.USER, "one"), (Role.ASSISTANT, "what?"), (Role.USER, "two"), (Role.ASSISTANT, "b")),
        golden_row(("developer", "Be rude."), (Role.USER, "hello"), (Role.ASSISTANT, "c")),
    ]
    plain, talk, own = golden_questions(rows, spec())
    assert [message.text for message in plain.messages] == ["Say.", "hello"]
    assert (plain.answer, plain.must_pass, plain.row_id) == ("a", True, "g-hello")
    assert [message.text for message in talk.messages] == ["Say.", "one", "what?", "two"]
    assert [message.text for message in own.messages] == ["Be rude.", "hello"]


def with_must_pass(comparison: Comparison, *positions: int) -> Comparison:
    marked = [
        replace(question, must_pass=number in positions, row_id=f"g-{number}")
        for number, question in enumerate(comparison.questions)
    ]
    return replace(comparison, questions=marked)


def test_a_must_pass_row_that_is_wrong_twice_stops_the_candidate_and_is_named() -> None:
    evaluation = compared(60, set(range(60)), set())
    golden = with_must_pass(compared(20, set(range(20)) - {7}, set()), 3, 7)
    gates = check_gates(spec(), evaluation, golden, wrong_twice=[7])
    assert [g.name for g in gates if not g.passed] == ["must_pass"]
    stopped = gate(gates, "must_pass")
    assert stopped.measured == 1
    assert stopped.detail == "1 of 2 must-pass rows are wrong: g-7 (ratchet golden list desk)."


def test_many_must_pass_rows_that_are_wrong_are_named_within_what_a_gate_may_say() -> None:
    golden = with_must_pass(compared(500, set(), set()), *range(500))
    detail = gate(check_gates(spec(), compared(60, set(range(60)), set()), golden, range(500)), "must_pass").detail
    assert "g-0, g-1, " in detail and "and 480 more" in detail


def test_rows_that_nobody_marked_are_no_must_pass_gate() -> None:
    gates = check_gates(spec(), compared(60, set(range(60)), set()), compared(20, set(range(19)), set()))
    assert "must_pass" not in [g.name for g in gates]


def test_only_marked_rows_must_pass_and_a_failed_request_is_a_wrong_answer() -> None:
    asked = with_must_pass(compared(6, set(), set()), 1, 2, 3).questions
    assert failed_must_pass(asked, arm(list(asked), {0, 1, 4}, frozenset({3}))) == [2, 3]


def trained() -> AdapterTrained:
    return AdapterTrained.model_validate_json(Path("schemas/examples/adapters.trained.v1/lora.json").read_bytes())


def rollout() -> RolloutChanged:
    data = json.loads(Path("schemas/examples/rollouts.changed.v1/promoted.json").read_bytes())
    data["spec"]["base_model"] = trained().base_model
    return RolloutChanged.model_validate(data)


def test_production_is_the_current_primary() -> None:
    assert production_of(trained(), rollout()) == rollout().primary_adapter is not None
    assert production_of(trained(), None) is None


def test_an_adapter_of_another_base_model_is_not_an_opponent() -> None:
    moved = trained().model_copy(update={"base_model": "another"})
    assert production_of(moved, rollout()) is None


def test_the_job_is_named_by_both_sides_and_the_cycle() -> None:
    event = trained()
    assert job_name(event, None).startswith(f"{event.adapter}-vs-base-")
    later = event.model_copy(update={"cycle_id": "later"})
    assert len({job_name(event, None), job_name(event, "p"), job_name(later, None)}) == 3
