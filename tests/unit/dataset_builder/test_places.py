"""Which rows are held out: a known share of production, and nothing like what is unseen is ever trained on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from schemas.datasets import Example, Fate
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import TaskKind
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.inspection.gate import Inspection
from services.dataset_builder.inspection.row_gates import Leakage
from services.dataset_builder.pipeline import Build, Inputs, build_dataset
from tests.unit.dataset_builder.histories import (
    LABELS,
    Builds,
    correction,
    corrections,
    fates,
    held_out,
    sentence,
    task,
    trained,
    user_word,
)


def typo(text: str) -> str:
    return text.replace("a", "q", 1) if "a" in text else text.replace("e", "q", 1)


def audit(name: str, text: str, label: str, minute: int = 0, probability: float = 0.1) -> CorrectionSubmitted:
    """Return a correction of a prediction that chance drew for review."""
    given = correction(name, text, label, minute=minute)
    drawn = {"inclusion_probability": probability, "drawn_probability": probability}
    return given.model_copy(update={"purpose": Purpose.AUDIT, **drawn})


def reason_of(build: Build, name: str) -> str:
    return next(row.reason for row in build.dataset.left_out if row.prediction_ids == (name,))


def evaluated(build: Build) -> dict[str, Example]:
    return {example.prediction_ids[0]: example for example in build.dataset.eval}


def copies_of(rows: Sequence[CorrectionSubmitted], names: set[str]) -> list[CorrectionSubmitted]:
    """Return new predictions that ask nearly the same as these."""
    return [
        correction(f"copy-{row.prediction_id}", typo(row.call.messages[0].text), row.label or "", minute=900)
        for row in rows if row.prediction_id in names
    ]  # fmt: skip


def test_each_label_gives_its_share() -> None:
    build = Builds().build(corrections(150))
    assert Counter(example.answer for example in build.dataset.eval) == dict.fromkeys(LABELS, 10)


def test_the_share_is_right_over_many_small_builds() -> None:
    builds = Builds()
    for count in range(20, 301, 20):
        last = builds.build(corrections(count))
    assert len(last.dataset.eval) == pytest.approx(60, abs=8)


def test_every_group_has_the_same_chance_to_be_held_out() -> None:
    """A sample that is not even would make the accuracy of held-out rows another one than production's."""
    times = Counter[str]()
    for seed in range(400):
        times.update(held_out(Builds().build(corrections(20), task(seed=seed))))
    assert min(times[f"p{n}"] for n in range(20)) > 50
    assert max(times[f"p{n}"] for n in range(20)) < 115  # 80 are expected, with a standard deviation of 8.


@pytest.mark.parametrize("kind", [TaskKind.CLASSIFICATION, TaskKind.GENERATION])
def test_what_users_alone_wrote_is_never_held_out(kind: TaskKind) -> None:
    rows = [user_word(correction(f"u{n}", sentence(1_000 + n), LABELS[n % 3], minute=n), f"u{n}") for n in range(600)]
    for words in ([], rows):
        build = build_dataset(Inputs(votes_of(corrections(60), words), task(kind)))
        assert len(held_out(build)) == 12
        assert all(name.startswith("p") for name in held_out(build))


def test_held_out_rows_are_of_production_as_it_is_the_commonest_texts_among_them() -> None:
    """Twenty texts are half of traffic. They were hardly ever held out, so that a model that fails them passed."""
    rng = random.Random(1)
    rows = [
        audit(f"p{n}", sentence(rng.randrange(20) if rng.random() < 0.5 else 1_000 + n), "refund", minute=n)
        for n in range(1_000)
    ]
    build = Builds().build(rows)
    common = [example for example in build.dataset.eval if example.prompt[-1].text in set(map(sentence, range(20)))]
    assert len(build.dataset.eval) == 200
    assert 80 <= len(common) <= 120
    assert all(example.seen for example in common)
    assert Leakage().measure(Inspection(build, task())).passed, "production is asked these again"
    assert sum(example.seen for example in build.dataset.eval) == len(common)


def test_a_row_that_chance_did_not_draw_is_held_out_only_where_nothing_like_it_is_trained_on() -> None:
    rows = [correction(f"p{n}", sentence(n % 30), LABELS[n % 3], minute=n) for n in range(120)]
    build = Builds().build([*rows, *corrections(30, 200)])
    assert len(held_out(build)) == 6
    assert all(int(name[1:]) >= 200 for name in held_out(build))
    assert not build.dataset.left_out


def test_nothing_like_an_unseen_row_is_trained_on_later() -> None:
    builds = Builds()
    rows = corrections(30)
    held = held_out(builds.build(rows))
    copies = copies_of(rows, held)
    second = builds.build([*rows, *copies])
    names = {row.prediction_id for row in copies}
    left_out = names - held_out(second)
    assert left_out and not names & trained(second)
    assert {reason_of(second, name) for name in left_out} == {"near_unseen"}
    assert held <= held_out(second)
    assert not {row.prediction_id for row in copies} & trained(builds.build([*rows, *copies, *corrections(30, 100)]))


def test_what_is_near_a_row_that_chance_drew_and_that_is_seen_is_trained_on() -> None:
    rows = [audit(f"p{n}", sentence(n % 10), LABELS[n % 10 % 3], minute=n) for n in range(60)]
    builds = Builds()
    first = builds.build(rows)
    assert held_out(first) and all(example.seen for example in first.dataset.eval)
    more = builds.build([*rows, *copies_of(rows, held_out(first))])
    assert {f"copy-{name}" for name in held_out(first)} & trained(more)
    assert "near_unseen" not in more.dataset.left_out_by_reason()


def test_near_copies_stay_excluded_when_the_unseen_row_expires() -> None:
    builds = Builds()
    rows = corrections(30)
    gone = held_out(builds.build(rows))
    copies = copies_of(rows, gone)
    later = builds.build([*(row for row in rows if row.prediction_id not in gone), *copies])
    assert gone
    assert not {row.prediction_id for row in copies} & trained(later)


def test_near_copies_stay_excluded_while_the_unseen_row_is_in_dispute() -> None:
    builds = Builds()
    rows = corrections(30)
    held = held_out(builds.build(rows))
    disputes = [
        correction(row.prediction_id, row.call.messages[0].text, LABELS[(LABELS.index(row.label or "") + 1) % 3],
                   reviewer="ben", minute=90)
        for row in rows if row.prediction_id in held
    ]  # fmt: skip
    after = builds.build([*rows, *disputes, *(copies := copies_of(rows, held))])
    assert held and not held & (trained(after) | held_out(after)), "all are in dispute"
    assert not {row.prediction_id for row in copies} & trained(after)


def test_near_copies_stay_excluded_when_the_task_begins_to_say_what_the_users_part_is() -> None:
    rows = [correction(f"p{n}", f"<q>{sentence(n)}</q> {sentence(n + 900, 2)}", LABELS[n % 3]) for n in range(60)]
    builds = Builds()
    held = held_out(builds.build(rows))
    spec = task(user_part=r"<q>(.*)</q>")
    copies = [
        correction(f"copy-{n}", f"<q>{typo(sentence(n))}</q> {sentence(n + 5_000, 2)}", LABELS[n % 3], minute=99)
        for n in (int(name[1:]) for name in held)
    ]
    assert not {row.prediction_id for row in copies} & trained(builds.build([*rows, *copies], spec))


def test_a_forgotten_row_attracts_nothing_any_more() -> None:
    builds = Builds()
    rows = corrections(30)
    gone = held_out(builds.build(rows))
    builds.forget(sorted(gone))
    copies = copies_of(rows, gone)
    later = builds.build([*(row for row in rows if row.prediction_id not in gone), *copies])
    assert not {Fate.EXCLUDED} & set(fates(later).values())
    assert {row.prediction_id for row in copies} <= trained(later) | held_out(later)


def test_what_was_trained_on_is_never_held_out_and_a_near_copy_of_it_only_where_chance_drew_it() -> None:
    builds = Builds()
    rows = corrections(30)
    learnt = trained(builds.build(rows))
    copies = copies_of(rows, learnt)
    build = builds.build([*rows, *copies], task(eval_share=0.8))
    assert learnt <= trained(build)
    assert not {row.prediction_id for row in copies} & held_out(build)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.8])
def test_another_share_moves_no_row_that_has_a_place(share: float) -> None:
    builds = Builds()
    first = builds.build(corrections(90))
    second = builds.build(corrections(180), task(eval_share=share, seed=7))
    assert held_out(first) <= held_out(second)
    assert trained(first) <= trained(second)
    new = len(held_out(second)) - len(held_out(first))
    assert new == pytest.approx(90 * share, abs=2), "it holds for what is new"


def test_a_lower_similarity_takes_near_copies_of_unseen_rows_out_of_training() -> None:
    builds = Builds()
    texts = [" ".join([*sentence(n, 8).split(), sentence(n + 500, 1)]) for n in range(40)]
    near = [" ".join([*sentence(n, 8).split(), sentence(n + 900, 1)]) for n in range(40)]
    rows = [correction(f"a{n}", text, LABELS[n % 3], minute=n) for n, text in enumerate(texts)]
    rows += [correction(f"b{n}", text, LABELS[n % 3], minute=50 + n) for n, text in enumerate(near)]
    strict = builds.build(rows, task(near_copy_similarity=0.95))
    loose = builds.build(rows, task(near_copy_similarity=0.6))
    assert any(f"b{name[1:]}" in trained(strict) for name in held_out(strict) if name[0] == "a")
    assert not {name[1:] for name in trained(loose)} & {name[1:] for name in held_out(loose)}


@pytest.mark.parametrize("frozen", [sentence(3), typo(sentence(3)), sentence(3).upper() + "!"])
def test_a_golden_question_and_its_near_copies_are_in_neither_part(frozen: str) -> None:
    build = Builds().build(corrections(30), frozen=[frozen])
    assert fates(build)["p3"] is Fate.EXCLUDED
    assert [row.reason for row in build.dataset.left_out] == ["golden_or_adversarial"]


def test_a_row_comes_back_to_its_place_when_its_question_leaves_the_golden_set() -> None:
    builds = Builds()
    first = builds.build(corrections(30))
    held = min(held_out(first))
    without = builds.build(corrections(30), frozen=[sentence(int(held[1:]))])
    assert fates(without)[held] is Fate.EXCLUDED
    assert fates(builds.build(corrections(30))) == fates(first)
    fresh = Builds()
    assert "p3" not in fresh.build(corrections(30), frozen=[sentence(3)]).places


def test_questions_behind_one_instruction_are_told_apart_by_their_own_part() -> None:
    context = sentence(5, 60)
    rows = [correction(f"q{n}", f"{context} Question: {sentence(n, 3)}", LABELS[n % 3], minute=n) for n in range(120)]
    marked, whole = (Builds().build(rows, spec) for spec in (task(user_part="Question:(.*)"), task()))
    assert (len(trained(marked)), len(held_out(marked))) == (96, 24)
    assert not held_out(whole), "all are near-copies of what is trained on"


@pytest.mark.parametrize("kind", [TaskKind.CLASSIFICATION, TaskKind.GENERATION])
def test_the_order_of_events_within_a_cycle_makes_no_difference(kind: TaskKind) -> None:
    rows = [*corrections(60), *(audit(f"x{n}", typo(sentence(n)), LABELS[n % 3], minute=60 + n) for n in range(20))]
    spec = task(kind)
    first = build_dataset(Inputs(votes_of(rows), spec))
    for seed in range(3):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert build_dataset(Inputs(votes_of(shuffled), spec)) == first


def test_an_unconfirmed_row_that_was_held_out_waits() -> None:
    rows = corrections(30)
    builds = Builds()
    held = min(held_out(builds.build(rows)))
    word = user_word(next(row for row in rows if row.prediction_id == held))
    others = [row for row in rows if row.prediction_id != held]
    build = build_dataset(Inputs(votes_of(others, [word]), task(), builds.places))
    assert reason_of(build, held) == "unconfirmed"
