"""Which rows are held out: whatever arrives, expires, is forgotten or set, nothing held out is trained on."""

from __future__ import annotations

import random

import pytest

from schemas.datasets import Fate
from schemas.labels import CorrectionSubmitted
from schemas.tasks import TaskKind
from services.dataset_builder.building.places.place import Place
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.inspection.counts import leakage
from services.dataset_builder.pipeline import Decisions, Inputs, build_dataset
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


def near_copies(count: int) -> list[CorrectionSubmitted]:
    return [correction(f"x{n}", typo(sentence(n)), LABELS[n % 3], minute=60 + n) for n in range(count)]


def test_the_split_is_stratified_by_label() -> None:
    build = Builds().build(corrections(150))
    for label in LABELS:
        assert sum(example.answer == label for example in build.dataset.eval) == 10


def test_the_share_is_right_over_many_small_builds() -> None:
    builds = Builds()
    for count in range(20, 301, 20):
        last = builds.build(corrections(count))
    assert len(last.dataset.eval) == pytest.approx(60, abs=3)


@pytest.mark.parametrize("kind", [TaskKind.CLASSIFICATION, TaskKind.GENERATION])
def test_however_much_users_write_the_share_is_held_out_of_what_reviewers_stand_for(kind: TaskKind) -> None:
    """Of 60 reviewed texts beside 600 of users alone all were held out, so that only users' words were learned."""
    rows = [
        user_word(correction(f"u{n}", sentence(1_000 + n), LABELS[n % 3], minute=n), f"user{n}") for n in range(600)
    ]
    for words in ([], rows):
        build = build_dataset(Inputs(votes_of(corrections(60), words), task(kind)))
        assert len(held_out(build)) == 12
        assert len([name for name in trained(build) if name.startswith("p")]) == 48


def test_users_words_that_are_trained_on_round_no_later_share_up() -> None:
    rows = [user_word(correction(f"u{n}", sentence(1_000 + n), LABELS[n % 3]), f"user{n}") for n in range(300)]
    places: dict[str, Place] = {}
    for count in range(20, 301, 20):
        build = build_dataset(Inputs(votes_of(corrections(count), rows), task(), Decisions(places=places)))
        places |= build.decisions.places
    assert len(held_out(build)) == pytest.approx(60, abs=3)


def test_a_row_that_joins_two_groups_moves_nothing() -> None:
    words = sentence(1, 24).split()
    rows = [*corrections(40), correction("left", " ".join(words[:12]), "refund")]
    rows.append(correction("right", " ".join(words[2:14]), "refund"))
    builds = Builds()
    before = builds.build(rows)
    bridge = correction("bridge", " ".join(words[1:13]), "refund", minute=-100)
    after = builds.build([*rows, bridge])
    assert held_out(after) == held_out(before)
    assert trained(before) <= trained(after)


def test_what_is_near_a_held_out_and_a_training_row_is_excluded_as_a_bridge() -> None:
    builds = Builds()
    rows = corrections(30)
    first = builds.build(rows)
    refunds = {row.prediction_id: row.call.messages[0].text for row in rows if row.label == "refund"}
    held, learnt = (min(part & refunds.keys()) for part in (held_out(first), trained(first)))
    bridge = correction("bridge", f"{refunds[held]} {refunds[learnt]}", "refund")
    loose = task(near_copy_similarity=0.45)
    second = builds.build([*rows, bridge], loose)
    assert fates(second)["bridge"] is Fate.EXCLUDED
    assert next(row.reason for row in second.dataset.left_out if row.prediction_ids == ("bridge",)) == "bridge"
    assert held_out(second) == held_out(first)


def test_near_copies_of_a_held_out_row_are_excluded_and_never_by_a_chain() -> None:
    builds = Builds()
    rows = corrections(30)
    first = builds.build(rows)
    original = next(row for row in rows if row.prediction_id in held_out(first))
    words = original.call.messages[0].text.split()
    chain, number = [], 0
    while words and number < 6:
        number += 1
        words = [*words[1:], sentence(1_000 + number, 1)]
        chain.append(correction(f"link{number}", " ".join(words), original.label or "", minute=100 + number))
    loose = task(near_copy_similarity=0.7)
    second = builds.build([*rows, *chain], loose)
    assert fates(second)["link1"] is Fate.EXCLUDED
    assert fates(second)["link6"] in (Fate.TRAIN, Fate.EVAL)
    assert "link1" not in trained(builds.build([*rows, *chain, *corrections(30, 100)], loose))


@pytest.mark.parametrize("oldest", [True, False])
def test_near_copies_stay_excluded_when_the_held_out_row_expires(oldest: bool) -> None:
    builds = Builds()
    rows = corrections(30)
    first = builds.build(rows)
    gone = held_out(first)
    copies = [
        correction(
            f"copy-{row.prediction_id}", typo(row.call.messages[0].text), row.label or "", minute=-50 if oldest else 99
        )
        for row in rows
        if row.prediction_id in gone
    ]
    later = builds.build([*(row for row in rows if row.prediction_id not in gone), *copies])
    assert gone
    assert {fates(later)[row.prediction_id] for row in copies} == {Fate.EXCLUDED}


@pytest.mark.parametrize("change", ["user_part", "template", "none"])
def test_a_disputed_row_attracts_near_copies_as_before(change: str) -> None:
    """Its text is there, though no build has its row: its fingerprint is of what was compared when it got its place."""

    before_it = f"Instructions that all have, {'which say what to do and how ' * 4}:" if change != "none" else ""

    def question(n: int, name: str = "p") -> CorrectionSubmitted:
        text = sentence(n) if name == "p" else typo(sentence(n))
        return correction(f"{name}{n}", f"{before_it} <q>{text}</q>", LABELS[n % 3], minute=n + 100 * (name != "p"))

    builds = Builds()
    first = [question(n) for n in range(7 if change == "template" else 60)]
    before = builds.build(first)
    disputes = [
        correction(row.prediction_id, row.call.messages[0].text, next(x for x in LABELS if x != row.label),
                   reviewer="ben", minute=90)
        for row in first
    ]  # fmt: skip
    more = [question(n) for n in range(200, 240)] if change == "template" else []
    copies = [question(n, "x") for n in range(len(first))]
    spec = task(user_part=r"<q>(.*)</q>") if change == "user_part" else task()
    after = builds.build([*first, *disputes, *more, *copies], spec)
    of_held = {name.replace("p", "x") for name in held_out(before)}
    found = fates(after)
    assert held_out(before) and not held_out(before) & (trained(after) | held_out(after)), "all are in dispute"
    assert {name for name in of_held if found[name] is Fate.EXCLUDED} == of_held
    of_trained = {name.replace("p", "x") for name in trained(before)}
    assert not of_trained & held_out(after), "of what was trained on"


def test_a_forgotten_row_attracts_nothing_any_more() -> None:
    builds = Builds()
    rows = corrections(30)
    gone = held_out(builds.build(rows))
    builds.forget(sorted(gone))
    kept = [row for row in rows if row.prediction_id not in gone]
    copies = [correction(f"copy-{n}", typo(sentence(int(n[1:]))), LABELS[0], minute=99) for n in sorted(gone)]
    later = builds.build([*kept, *copies])
    assert not {Fate.EXCLUDED} & set(fates(later).values())
    assert {f"copy-{n}" for n in gone} <= trained(later) | held_out(later)


def test_a_conflicting_label_moves_nothing_else() -> None:
    builds = Builds()
    rows = [
        *corrections(40),
        *(correction(f"x{n}", typo(sentence(n)), LABELS[n % 3], minute=60 + n) for n in range(40)),
    ]
    first = builds.build(rows)
    doubted = next(row for row in rows if row.prediction_id in trained(first))
    other = next(label for label in LABELS if label != doubted.label)
    second = builds.build([*rows, correction("doubt", doubted.call.messages[0].text, other, minute=500)])
    assert held_out(second) == held_out(first)
    assert trained(second) <= trained(first)
    assert {fates(second)[doubted.prediction_id], fates(second)["doubt"]} <= {Fate.REJECTED, Fate.HELD_BACK}


@pytest.mark.parametrize("share", [0.05, 0.5, 0.8])
def test_another_share_moves_no_row_that_has_a_place(share: float) -> None:
    builds = Builds()
    first = builds.build(corrections(90))
    second = builds.build(corrections(180), task(eval_share=share, seed=7))
    assert held_out(first) <= held_out(second)
    assert trained(first) <= trained(second)
    new = len(held_out(second)) - len(held_out(first))
    assert new == pytest.approx(90 * share, abs=2), "it holds for what is new"


def test_nothing_of_small_sets_ever_moves() -> None:
    for seed in range(10):
        builds, before = Builds(), None
        for count in (2, 3, 5, 8, 12):
            build = builds.build(corrections(count, first=seed * 20))
            if before is not None:
                assert held_out(before) <= held_out(build)
                assert trained(before) <= trained(build)
            assert build.dataset.train and build.dataset.eval
            before = build


def test_a_lower_similarity_keeps_near_copies_of_held_out_rows_out_of_training() -> None:
    builds = Builds()
    texts = [" ".join([*sentence(n, 8).split(), sentence(n + 500, 1)]) for n in range(40)]
    near = [" ".join([*sentence(n, 8).split(), sentence(n + 900, 1)]) for n in range(40)]
    rows = [correction(f"a{n}", text, LABELS[n % 3], minute=n) for n, text in enumerate(texts)]
    rows += [correction(f"b{n}", text, LABELS[n % 3], minute=50 + n) for n, text in enumerate(near)]
    strict = builds.build(rows, task(near_copy_similarity=0.95))
    loose = builds.build(rows, task(near_copy_similarity=0.6))
    assert any(f"b{name[1:]}" in trained(strict) for name in held_out(strict) if name[0] == "a")
    held = {name[1:] for name in held_out(loose)}
    assert not {name[1:] for name in trained(loose)} & held
    again = builds.build(rows, task(near_copy_similarity=0.95))
    assert fates(again).keys() == fates(strict).keys()


def test_a_label_with_too_few_rows_is_trained_on_and_the_rest_goes_on() -> None:
    rows = [*corrections(60), *(correction(f"rare{n}", sentence(900 + n), "rare", minute=n) for n in range(3))]
    spec = task(eval_share=0.5).model_copy(update={"labels": (*LABELS, "rare", "never")})
    build = Builds().build(rows, spec)
    assert {"rare0", "rare1", "rare2"} <= trained(build)
    assert len(build.dataset.eval) == 30


def test_a_near_copy_of_what_was_trained_on_is_trained_on_too() -> None:
    builds = Builds()
    learnt = trained(builds.build(corrections(30)))
    copies = [
        correction(f"copy-{n}", typo(sentence(int(n[1:]))), LABELS[int(n[1:]) % 3], minute=99) for n in sorted(learnt)
    ]
    build = builds.build([*corrections(60), *copies], task(eval_share=0.8))
    assert {row.prediction_id for row in copies} <= trained(build)


def test_all_rows_of_a_loud_mode_are_trained_on_rather_than_one_held_out() -> None:
    loud = [correction(f"loud{n}", f"{sentence(1, 20)} {n}", "refund", minute=n) for n in range(60)]
    build = Builds().build([*loud, *corrections(60)])
    assert not {row.prediction_id for row in loud} & held_out(build)
    assert len(build.dataset.eval) >= 8


def test_what_excludes_more_than_a_tenth_of_the_rows_is_named() -> None:
    builds = Builds()
    rows = corrections(30)
    held = next(row for row in rows if row.prediction_id in held_out(builds.build(rows)))
    copies = [
        correction(f"copy{n}", f"{held.call.messages[0].text} {n}", held.label or "", minute=50 + n) for n in range(10)
    ]
    build = builds.build([*rows, *copies])
    gate = leakage(build.dataset, (), build.measures.exclusions)
    assert gate.passed
    assert gate.detail.startswith("25% of the rows are left out as near-copies of held-out ones")
    assert f"10 of 10 of {held.prediction_id}" in gate.detail


@pytest.mark.parametrize("frozen", [sentence(3), typo(sentence(3)), sentence(3).upper() + "!"])
def test_a_golden_question_and_its_near_copies_are_in_neither_part(frozen: str) -> None:
    build = Builds().build(corrections(30), frozen=[frozen])
    assert fates(build)["p3"] is Fate.EXCLUDED
    assert [row.reason for row in build.dataset.left_out] == ["in_frozen_set"]


def test_a_row_comes_back_to_its_place_when_its_question_leaves_the_golden_set() -> None:
    builds = Builds()
    first = builds.build(corrections(30))
    held = min(held_out(first))
    without = builds.build(corrections(30), frozen=[sentence(int(held[1:]))])
    assert fates(without)[held] is Fate.EXCLUDED
    assert fates(builds.build(corrections(30))) == fates(first)
    fresh = Builds()
    assert "p3" not in fresh.build(corrections(30), frozen=[sentence(3)]).decisions.places


def test_the_marked_part_alone_is_compared() -> None:
    context = sentence(5, 60)
    rows = [correction(f"q{n}", f"{context} Question: {sentence(n, 3)}", "refund", minute=n) for n in range(6)]
    marked, whole = (Builds().build(rows, spec).dataset.train for spec in (task(user_part="Question:(.*)"), task()))
    assert len({example.group for example in marked}) == len(marked) == 5
    assert len({example.group for example in whole}) == 1


def test_questions_behind_one_template_are_held_out_and_trained_on_like_others() -> None:
    context = sentence(5, 60)
    rows = [correction(f"q{n}", f"{context} Question: {sentence(n, 3)}", LABELS[n % 3], minute=n) for n in range(120)]
    build = Builds().build(rows)
    assert (len(trained(build)), len(held_out(build))) == (96, 24)


@pytest.mark.parametrize("kind", [TaskKind.CLASSIFICATION, TaskKind.GENERATION])
def test_the_order_of_events_within_a_cycle_makes_no_difference(kind: TaskKind) -> None:
    rows = [
        *corrections(60),
        *(correction(f"x{n}", typo(sentence(n)), LABELS[n % 3], minute=60 + n) for n in range(20)),
    ]
    spec = task(kind)
    first = build_dataset(Inputs(votes_of(rows), spec))
    for seed in range(3):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert build_dataset(Inputs(votes_of(shuffled), spec)) == first


def test_where_every_text_comes_several_times_copies_are_held_out_together() -> None:
    rows = [
        correction(f"p{n}-{copy}", sentence(n), LABELS[n % 3], minute=n + 60 * copy)
        for n in range(60)
        for copy in range(3)
    ]
    build = Builds().build(rows)
    held = {name.split("-")[0] for name in held_out(build)}
    assert 24 <= len(held_out(build)) <= 42
    assert len(held_out(build)) == 3 * len(held)
    assert not build.dataset.left_out


def test_a_text_that_is_most_of_its_label_is_not_held_out() -> None:
    loud = [correction(f"loud{n}", sentence(7), "refund", minute=n) for n in range(30)]
    build = Builds().build([*loud, *(row for row in corrections(40, 100) if row.label != "refund")])
    assert not {row.prediction_id for row in loud} & held_out(build)
