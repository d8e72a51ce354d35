"""The turns of one conversation are on one side: a later one has the earlier one's question and answer in its input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta

import pytest

from schemas.conversation import Answer, Call, Message, Role
from schemas.datasets import Fate
from schemas.labels import CorrectionSubmitted
from services.dataset_builder.building.places.place import Place
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.pipeline import Decisions, Inputs, build_dataset
from tests.unit.dataset_builder.histories import (
    LABELS,
    NOON,
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

ANSWER = "other"


def turn(name: str, asked: Sequence[str], label: str, minute: int, user: str | None = None) -> CorrectionSubmitted:
    """Return a correction of the last of these questions, each of which was answered by a text of its own."""
    messages = [Message(role=Role.SYSTEM, content="Intent?")]
    for question in asked:
        messages += [Message(role=Role.USER, content=question), Message(role=Role.ASSISTANT, content=answer(question))]
    given = correction(name, "", label, minute=minute, user=user)
    call, answers = Call(messages=tuple(messages[:-1])), (Answer(text=answer(asked[-1])),)
    return given.model_copy(update={"call": call, "answers": answers, "predicted_at": NOON + timedelta(minutes=minute)})


def answer(question: str) -> str:
    return f"{ANSWER} {question.split()[0]}"


def conversation(number: int, turns: int = 3, first: str | None = None) -> list[CorrectionSubmitted]:
    asked = [first or sentence(1_000 * number), *(sentence(1_000 * number + n) for n in range(1, turns))]
    return [
        turn(f"{number}-{n}", asked[: n + 1], LABELS[(number + n) % 3], minute=10 * number + n) for n in range(turns)
    ]


def sides(rows: dict[str, Fate]) -> dict[str, set[Fate]]:
    found: dict[str, set[Fate]] = defaultdict(set)
    for name, fate in rows.items():
        found[name.split("-")[0]].add(fate)
    return found


def test_all_turns_of_a_conversation_are_on_one_side() -> None:
    build = Builds().build([row for number in range(1, 31) for row in conversation(number)])
    assert all(len(found) == 1 for found in sides(fates(build)).values())
    assert 12 <= len(held_out(build)) <= 24


def test_a_later_turn_of_a_held_out_conversation_is_held_out_and_of_a_trained_one_is_trained_on() -> None:
    builds = Builds()
    whole = [conversation(number, 4) for number in range(1, 31)]
    first = builds.build([row for rows in whole for row in rows[:2]])
    second = builds.build([row for rows in whole for row in rows])
    assert held_out(first) < held_out(second)
    assert trained(first) < trained(second)
    assert all(len(found) == 1 for found in sides(fates(second)).values())


def test_an_earlier_turn_follows_the_later_one_that_has_a_place() -> None:
    builds = Builds()
    whole = [conversation(number) for number in range(1, 31)]
    first = builds.build([rows[-1] for rows in whole])
    second = builds.build([row for rows in whole for row in rows])
    assert held_out(first) < held_out(second)
    assert all(len(found) == 1 for found in sides(fates(second)).values())


def test_a_held_out_turn_keeps_its_conversation_when_its_text_is_gone() -> None:
    builds = Builds()
    whole = [conversation(number) for number in range(1, 31)]
    held = held_out(builds.build([row for rows in whole for row in rows[:1]]))
    later = builds.build([rows[-1] for rows in whole])
    assert held
    assert {name for name in fates(later) if f"{name.split('-')[0]}-0" in held} <= held_out(later)


def test_a_conversation_on_both_sides_leaves_training_and_stays_out_of_it() -> None:
    builds = Builds()
    rows = [row for number in range(1, 31) for row in conversation(number)]
    builds.build(rows)
    held = next(name for name, place in builds.places.items() if place.fate is Fate.EVAL and name.endswith("-0"))
    other = f"{held.split('-')[0]}-1"
    builds.places[other] = Place(Fate.TRAIN, 0.8, None, NOON)
    build = builds.build(rows)
    reason = next(row.reason for row in build.dataset.left_out if row.prediction_ids == (other,))
    assert (fates(build)[held], fates(build)[other], reason) == (Fate.EVAL, Fate.EXCLUDED, "same_conversation")


def test_a_users_word_is_not_held_out_with_its_conversation_but_excluded() -> None:
    builds = Builds()
    whole = [conversation(number, 2) for number in range(1, 31)]
    held = held_out(builds.build([rows[0] for rows in whole]))
    words = [user_word(rows[1]) for rows in whole]
    build = build_dataset(Inputs(votes_of([rows[0] for rows in whole], words), task(), Decisions(places=builds.places)))
    assert held == held_out(build)
    assert {name for name, fate in fates(build).items() if fate is Fate.EXCLUDED} == {f"{n[:-2]}-1" for n in held}


def test_conversations_that_begin_alike_are_not_one() -> None:
    rows = [row for number in range(1, 31) for row in conversation(number, 2, first="hello")]
    build = Builds().build(rows)
    second = {name: fate for name, fate in fates(build).items() if name.endswith("-1")}
    assert {Fate.TRAIN, Fate.EVAL} <= set(second.values())


def test_an_equal_opening_with_another_answer_is_another_conversation() -> None:
    builds = Builds()
    held = sorted(held_out(builds.build(corrections(30))))[0]
    text = sentence(int(held[1:]))
    other = turn("other", [text, sentence(900)], LABELS[0], minute=99)
    assert fates(builds.build([*corrections(30), other]))["other"] is Fate.TRAIN


def test_a_beginning_that_goes_on_in_many_ways_is_a_script_and_joins_nothing() -> None:
    rows = [turn(f"{n}-1", ["hello", "my order", sentence(n)], LABELS[n % 3], minute=n) for n in range(1, 31)]
    rows.append(turn("0-0", ["hello", "my order"], LABELS[0], minute=0))
    assert 4 <= len(held_out(Builds().build(rows))) <= 8


def test_the_fewer_ways_a_beginning_goes_on_in_are_one_conversation() -> None:
    builds = Builds()
    opened = [conversation(number, 2) for number in range(1, 31)]
    held = held_out(builds.build([rows[-1] for rows in opened]))
    ways = [
        turn(f"{name}-{way}", [*asked(rows[-1]), sentence(9_000 + 10 * n + way)], LABELS[way], minute=500 + way)
        for n, rows in enumerate(opened) for way in range(3) if (name := rows[-1].prediction_id) in held
    ]  # fmt: skip
    assert {row.prediction_id for row in ways} <= held_out(builds.build([*(rows[-1] for rows in opened), *ways]))


def asked(given: CorrectionSubmitted) -> list[str]:
    return [message.text for message in given.call.messages if message.role == Role.USER]


def menu(choices: int, rows: int = 80, first: int = 0) -> list[CorrectionSubmitted]:
    """Return turns behind a menu: "hi", a choice, and a question of one's own, of many people."""
    return [
        turn(f"menu{n}", ["hi", f"choice {n % choices}", sentence(7_000 + n)], LABELS[n % 3], minute=n)
        for n in range(first, first + rows)
    ]


@pytest.mark.parametrize("choices", [1, 2, 7])
def test_a_menu_of_few_choices_joins_nothing(choices: int) -> None:
    builds = Builds()
    hi = turn("hi", ["hi"], LABELS[0], minute=500)
    rows = menu(choices)
    build = builds.build(rows)
    assert len(build.dataset.eval) >= 10
    again = builds.build([*rows, hi])
    assert len(again.dataset.eval) >= len(build.dataset.eval)
    assert len(again.dataset.train) >= len(build.dataset.train)


def test_a_conversation_that_is_too_long_to_be_held_out_does_not_end_the_choice_of_others() -> None:
    for number in range(1, 4):  # Whether it comes first goes by its name.
        asked = [sentence(90_000 + 100 * number + n) for n in range(80)]
        long = [turn(f"{number}-{n}", asked[: n + 1], LABELS[0], minute=n) for n in range(80)]
        alone = [turn(f"alone{n}", [sentence(40_000 + n)], LABELS[n % 3], minute=900 + n) for n in range(90)]
        build = Builds().build([*long, *alone])
        of_label = [row for row in build.dataset.eval if row.messages[-1].content == LABELS[0]]
        assert len(of_label) >= 15, number


def test_turns_of_one_conversation_are_one_group() -> None:
    build = Builds().build([row for number in range(1, 31) for row in conversation(number)])
    groups: dict[str, set[str]] = defaultdict(set)
    for example in (*build.dataset.train, *build.dataset.eval):
        groups[example.prediction_ids[0].split("-")[0]].add(example.group)
    assert {len(found) for found in groups.values()} == {1}
    assert len(set().union(*groups.values())) == len(groups)


def test_turns_of_one_conversation_are_no_copies_of_each_other() -> None:
    """Of 36 turns with three labels six were left out, each as one of twelve near-copies."""
    turns, copies = conversation(7, 36), [correction(f"x{n}", sentence(5), "refund", minute=n) for n in range(12)]
    build = Builds().build([*corrections(30, 100), *turns, *copies], task(eval_share=0.1))
    assert {row.prediction_id for row in turns} <= trained(build)
    assert [row.reason for row in build.dataset.left_out] == ["copies"] * 2


def test_a_later_turn_is_trained_on_with_an_earlier_one_that_is_in_dispute() -> None:
    """The parent version was trained on it: as a held-out row the later turn would be asked with an unfair hint."""
    builds = Builds()
    first = [turn for number in range(40) for turn in conversation(number, turns=2)]
    earlier, later = [row for row in first if row.prediction_id.endswith("-0")], first[1::2]
    before = builds.build(earlier)
    disputes = [
        row.model_copy(update={"correction_id": f"{row.correction_id}-ben", "reviewer": "ben", "label": label})
        for row in earlier for label in LABELS if label == LABELS[(LABELS.index(str(row.label)) + 1) % 3]
    ]  # fmt: skip
    after = builds.build([*earlier, *disputes, *later])
    on_one_side = {f"{name.split('-')[0]}-1" for name in trained(before)}
    assert len(on_one_side) > 20 and on_one_side <= trained(after)
    assert not {f"{name.split('-')[0]}-1" for name in held_out(before)} & trained(after)
