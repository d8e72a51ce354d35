"""Each gate stops a planted fault for its own reason, with its numbers and a way out; a clean set passes all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from schemas.base import Gate
from schemas.conversation import Message, Role, input_text
from schemas.datasets import Example, Fate, LeftOutExample
from schemas.task_settings import DatasetSettings
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.personal_data import PersonalData
from services.dataset_builder.building.votes import Vote
from services.dataset_builder.checks.agreement import blind_overlaps, measure_agreement
from services.dataset_builder.checks.distribution import audited, measure_distribution
from services.dataset_builder.checks.label_noise import LabelNoise
from services.dataset_builder.checks.measures import Measures
from services.dataset_builder.checks.poisoning import MOVES_CLASS
from services.dataset_builder.inspection.gates import (
    GATES,
    describe_failed_gates,
    evaluate_gates,
    gates_table,
    way_out,
)
from services.dataset_builder.inspection.label_gates import ReviewersAgree
from services.dataset_builder.inspection.row_gates import fewest_held_out
from services.dataset_builder.pipeline import Build, Dataset, Inputs, build_dataset
from shared.model.texts import text_hash
from tests.conftest import ROOT
from tests.unit.dataset_builder.voting import audits_of, overlaps_of


def spec(**dataset: object) -> TaskSpec:
    rules = {"min_examples": 20, "min_examples_per_label": 2, "max_rejected_share": 0.4, **dataset}
    return TaskSpec(
        name="t",
        kind=TaskKind.CLASSIFICATION,
        system_prompt="",
        labels=("a", "b", "c"),
        dataset=DatasetSettings.model_validate(rules),
    )


def example(number: int, label: str, weight: float = 1.0) -> Example:
    messages = (Message(role=Role.USER, content=f"question {number}"), Message(role=Role.ASSISTANT, content=label))
    return Example(
        example_id=f"e{number}",
        messages=messages,
        group=f"g{number}",
        weight=weight,
        prediction_ids=(f"p{number}",),
        correction_ids=("c",),
    )


def left_out(fate: Fate, reason: str, count: int, *votes: str) -> tuple[LeftOutExample, ...]:
    ids = votes or ("c",)
    return tuple(
        LeftOutExample(fate=fate, reason=reason, detail="user u1", prediction_ids=(f"x{n}",), correction_ids=ids)
        for n in range(count)
    )


def build(
    train: str = "abc" * 10,
    held_out: str = "abc" * 3,
    rejected: tuple[LeftOutExample, ...] = (),
    votes: tuple[Vote, ...] = (),
    noise: LabelNoise | None = None,
) -> Build:
    dataset = Dataset(
        tuple(example(i, label) for i, label in enumerate(train)),
        tuple(example(1_000 + i, label) for i, label in enumerate(held_out)),
        rejected,
    )
    agreement = measure_agreement(blind_overlaps(votes))
    distribution = measure_distribution(dataset.train, audited(votes))
    return Build(dataset, measures=Measures(agreement, distribution, noise=noise or LabelNoise()))


def noise_of(issues: int, recall: float = 0.9) -> LabelNoise:
    """So many of 100 labels look wrong, and a model tells so many of them from the texts."""
    return LabelNoise(rows=100, judged=100, issues=issues, recall={"a": (recall, 50), "b": (recall, 50)})


def failed(gates: tuple[Gate, ...]) -> list[str]:
    return [gate.name for gate in gates if not gate.passed]


def gate(name: str, made: Build, **dataset: object) -> Gate:
    return next(g for g in evaluate_gates(made, spec(**dataset), {}) if g.name == name)


def leaking(key: str) -> Build:
    """A set in which a training row is held out, too, as far as `key` says."""
    clean = build()
    update = {key: getattr(clean.dataset.train[0], key)}
    leak = clean.dataset.eval[0].model_copy(update=update)
    return Build(Dataset(clean.dataset.train, (leak, *clean.dataset.eval[1:]), ()), measures=clean.measures)


def golden() -> Build:
    """A set with a golden question."""
    clean = build()
    asked = clean.dataset.eval[0].prompt
    return replace(clean, measures=replace(clean.measures, frozen=frozenset({text_hash(input_text(asked))})))


CLEAN = build(votes=(*overlaps_of(190, agree=180), *audits_of({"a": 40, "b": 40, "c": 40})), noise=noise_of(issues=5))


def test_a_clean_set_passes_all_gates_and_each_is_measured() -> None:
    gates = evaluate_gates(CLEAN, spec(), {"a": 5, "b": 5}, PersonalData())
    assert failed(gates) == []
    assert [g.name for g in gates] == [g.name for g in GATES]
    assert all(g.measured is not None for g in gates)


PLANTED = [
    ("min_examples", build("abc" * 6), "18, required >= 20"),
    ("min_eval_examples", build(held_out="abca"), "4, required >= 5 held-out"),
    ("max_rejected_share", build(rejected=left_out(Fate.REJECTED, "unknown_label", 30)), "unknown_label 30"),
    ("max_held_back_share", build(rejected=left_out(Fate.HELD_BACK, MOVES_CLASS, 30)), "user u1"),
    ("leakage", leaking("prediction_ids"), "e0"),
    ("leakage", leaking("messages"), "e0"),
    ("leakage", leaking("group"), "e0"),
    ("leakage", golden(), "e1000"),
    ("personal_data", build(), "1, required 0 corrections"),
    ("labels_to_learn", build("a" * 30, "a" * 9), "none of: b, c"),
    ("labels_to_learn", build("a" * 29 + "b"), "collect more of: b 1; none of: c"),
    ("agreement", build(votes=overlaps_of(100, agree=0)), "ana 0%, ben 0%"),
    ("agreement", build(votes=overlaps_of(200, agree=160)), "80% of 200 questions; labels: "),
    ("label_noise", build(noise=noise_of(issues=30)), "about 30% of the labels look wrong"),
    ("labels_predictable", build(noise=noise_of(issues=0, recall=0.6)), "tells its label in 60% of cases"),
    ("label_distribution", build("a" * 80 + "b" * 20, votes=audits_of({"a": 50, "b": 50})), "differs too much"),
    ("label_distribution", build("a" * 94 + "b" * 6, votes=audits_of({"a": 50, "b": 50})), "differs too much"),
]


@pytest.mark.parametrize(("name", "planted", "says"), PLANTED, ids=[f"{name}-{says}" for name, _, says in PLANTED])
def test_each_gate_stops_its_planted_fault_and_says_why_and_the_way_out(name: str, planted: Build, says: str) -> None:
    gates = evaluate_gates(planted, spec(), {}, PersonalData(left=1))
    assert name in failed(gates)
    description = describe_failed_gates(tuple(g for g in gates if g.name == name))
    assert description.startswith(f"{name} is ")
    assert says in description
    assert "ratchet cycle t" in way_out(gates, spec())
    assert next(g.remedy for g in GATES if g.name == name) in way_out(gates, spec())


def test_every_gate_has_a_planted_fault() -> None:
    assert {name for name, _, _ in PLANTED} == {g.name for g in GATES}


def test_the_docs_list_the_gates_from_the_code() -> None:
    assert gates_table() in (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8"), gates_table()


def test_a_clean_set_of_two_labels_passes_however_rare_one_is() -> None:
    """A share of the commonest label stopped 126 to 3, which fails nobody."""
    assert failed(evaluate_gates(build("a" * 126 + "b" * 3), spec(min_examples_per_label=3), {})) == []
    assert failed(evaluate_gates(build("a" * 126 + "b" * 2), spec(min_examples_per_label=3), {})) == ["labels_to_learn"]


def test_one_rare_label_is_named_and_stops_nothing() -> None:
    made = build("ab" * 20 + "c")
    assert failed(evaluate_gates(made, spec(), {})) == []
    assert gate("labels_to_learn", made).detail == "collect more of: c 1"


@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        (Fate.REJECTED, "truncated"), (Fate.REJECTED, "refused"), (Fate.REJECTED, "media"), (Fate.CAPPED, "duplicate"),
        (Fate.SUPERSEDED, "outvoted"), (Fate.EXCLUDED, "near_unseen"),
    ],
)  # fmt: skip
def test_what_is_no_defect_of_the_data_does_not_count_as_rejected_but_is_listed(fate: Fate, reason: str) -> None:
    made = build(rejected=left_out(fate, reason, 500))
    assert failed(evaluate_gates(made, spec(), {})) == []
    assert gate("max_rejected_share", made).detail == f"{reason} 500"


def test_what_users_alone_wrote_stops_no_cycle_and_is_listed() -> None:
    """One sent a hundred edits that say thanks; a reviewer's word for one of them counts."""
    thanks = left_out(Fate.REJECTED, "answer_too_short", 100, "feedback-1")
    assert failed(evaluate_gates(build(rejected=thanks), spec(), {})) == []
    assert gate("max_rejected_share", build(rejected=thanks)).detail == "answer_too_short 100"
    confirmed = left_out(Fate.REJECTED, "answer_too_short", 100, "feedback-1", "c")
    assert failed(evaluate_gates(build(rejected=confirmed), spec(), {})) == ["max_rejected_share"]


def test_what_waits_because_of_the_users_who_wrote_it_stops_no_cycle_and_is_named() -> None:
    """One who gave a thousand wrong labels stopped every cycle until people had looked at all of them."""
    flood = left_out(Fate.HELD_BACK, MOVES_CLASS, 1_000, "feedback-1")
    assert failed(evaluate_gates(build(rejected=flood), spec(), {})) == []
    assert gate("max_held_back_share", build(rejected=flood)).detail == "user u1"
    taken = left_out(Fate.HELD_BACK, MOVES_CLASS, 1_000, "feedback-1", "c")
    assert failed(evaluate_gates(build(rejected=taken), spec(), {})) == ["max_held_back_share"]


@pytest.mark.parametrize(
    ("rules", "fewest"),
    [({}, 10), ({"min_examples": 20}, 5), ({"min_examples": 2}, 1), ({"min_eval_examples": 3}, 3)],
)
def test_a_small_task_needs_as_many_held_out_rows_as_its_smallest_set_has(rules: dict[str, int], fewest: int) -> None:
    assert fewest_held_out(DatasetSettings.model_validate(rules)) == fewest


@pytest.mark.parametrize("rules", [{}, {"min_examples": 10, "eval_share": 0.1}])
@pytest.mark.parametrize("fewest", [3, 10, 50, 200])
def test_a_number_of_held_out_rows_that_the_task_sets_binds(rules: dict[str, float], fewest: int) -> None:
    set_by_task = DatasetSettings.model_validate({**rules, "min_eval_examples": fewest})
    as_it_travels = DatasetSettings.model_validate_json(set_by_task.model_dump_json())
    assert fewest_held_out(as_it_travels) == fewest
    by_default = DatasetSettings.model_validate_json(DatasetSettings.model_validate(rules).model_dump_json())
    assert fewest_held_out(by_default) == (1 if rules else 10)


def test_agreement_on_few_questions_is_unknown_stops_nothing_and_asks_for_more() -> None:
    for votes, n in ((overlaps_of(19, agree=0), 19), ((), 0)):
        unknown = gate("agreement", build(votes=votes))
        assert (unknown.passed, unknown.measured) == (True, None)
        assert unknown.detail.startswith(f"unknown: {n} questions were answered by two reviewers")
        assert f"{20 - n} more are needed" in unknown.detail
        assert "second person" in ReviewersAgree.to_know


def test_new_questions_end_a_stop_by_disagreement_and_old_ones_answered_again_do_not() -> None:
    labels = spec()
    disputed = overlaps_of(120, agree=80)

    def verdict(votes: Sequence[Vote]) -> Gate:
        gates = evaluate_gates(build_dataset(Inputs(votes, labels)), labels, {})
        return next(gate for gate in gates if gate.name == "agreement")

    def later(vote: Vote, label: str, request_id: str) -> Vote:
        name, at = f"later-{vote.correction_id}", vote.occurred_at + timedelta(days=1)
        return replace(vote, correction_id=name, occurred_at=at, label=label, request_id=request_id)

    stopped = verdict(disputed)
    assert not stopped.passed
    assert "have new questions answered" in ReviewersAgree.remedy
    assert verdict([*disputed, *(later(vote, "a", str(vote.request_id)) for vote in disputed)]) == stopped
    new = [later(vote, vote.label, f"new-{vote.request_id}") for vote in overlaps_of(200, agree=190)]
    mended = verdict([*disputed, *new])
    assert mended.passed
    assert mended.detail == "95% of the newest 200 questions, of 320"


def test_agreement_that_may_be_over_the_limit_by_chance_stops_nothing() -> None:
    assert gate("agreement", build(votes=overlaps_of(100, agree=86))).passed
    assert not gate("agreement", build(votes=overlaps_of(100, agree=83))).passed
    assert gate("agreement", build(votes=overlaps_of(20, agree=16))).passed
    assert not gate("agreement", build(votes=overlaps_of(20, agree=14))).passed


def test_labels_without_audits_are_not_compared_with_production_and_production_s_answers_stop_nothing() -> None:
    gates = evaluate_gates(build("a" * 15 + "b" * 15, votes=audits_of({"a": 9})), spec(), {"c": 1_000})
    measured = next(g for g in gates if g.name == "label_distribution")
    assert (measured.passed, measured.measured) == (True, None)
    assert measured.detail.startswith("unknown: 9 audits; 30 are needed, 10 of them of one label")
    assert "not a gate" in measured.detail


def test_a_generation_task_has_no_gates_of_labels() -> None:
    writing = TaskSpec(name="t", kind=TaskKind.GENERATION, system_prompt="", dataset=spec().dataset)
    assert {g.name for g in evaluate_gates(build(), writing, {})} == {
        "min_examples", "min_eval_examples", "max_rejected_share", "leakage", "personal_data"
    }  # fmt: skip


def test_label_noise_stops_only_what_is_surely_over_the_limit_and_is_unknown_without_scores() -> None:
    assert gate("label_noise", build(noise=noise_of(issues=20))).passed
    assert not gate("label_noise", build(noise=noise_of(issues=22))).passed
    assert gate("label_noise", build(noise=noise_of(issues=28)), max_noise_share=0.25).passed
    unknown = gate("label_noise", build())
    assert (unknown.passed, unknown.measured) == (True, None)
    assert "50 rows" in unknown.detail


def test_labels_that_no_encoder_can_tell_pass_where_the_task_says_so() -> None:
    unpredictable = build(noise=noise_of(issues=0, recall=0.5))
    assert not gate("labels_predictable", unpredictable).passed
    assert gate("labels_predictable", unpredictable, max_noise_share=1.0).passed
    assert gate("labels_predictable", build()).measured is None
