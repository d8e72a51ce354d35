"""The turns of one conversation are on one side: a later one has the earlier one's question and answer in its input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest

from schemas.conversation import Answer, Call, Message, Role
from schemas.datasets import Fate
from schemas.labels import CorrectionSubmitted
from services.dataset_builder.building.places import Place
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.pipeline import Inputs, build_dataset
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


def turn(name: str, asked: Sequence[str], label: str, minute: int, session: str | None = None) -> CorrectionSubmitted:
    """Return a correction of the last of these questions, each of which was answered by a text of its own."""
    messages = [Message(role=Role.SYSTEM, content="Intent?")]
    for question in asked:
        messages += [Message(role=Role.USER, content=question), Message(role=Role.ASSISTANT, content=answer(question))]
    given = correction(name, "", label, minute=minute)
    call, answers = Call(messages=tuple(messages[:-1])), (Answer(text=answer(asked[-1])),)
    update = {"call": call, "answers": answers, "predicted_at": NOON + timedelta(minutes=minute)}
    return given.model_copy(update={**update, "session_hash": session})


def answer(question: str) -> str:
    return f"{ANSWER} {question.split()[0]}"


def conversation(number: int, turns: int = 3, session: str | None = None) -> list[CorrectionSubmitted]:
    asked = [sentence(1_000 * number + n) for n in range(turns)]
    return [
        turn(f"{number}-{n}", asked[: n + 1], LABELS[(number + n) % 3], 10 * number + n, session) for n in range(turns)
    ]


def sides(rows: dict[str, Fate]) -> dict[str, set[Fate]]:
    found: dict[str, set[Fate]] = defaultdict(set)
    for name, fate in rows.items():
        found[name.split("-")[0]].add(fate)
    return found


def in_session(number: int, turns: int = 3) -> list[CorrectionSubmitted]:
    return conversation(number, turns, f"s{number}")


with_and_without_session = pytest.mark.parametrize("made", [conversation, in_session])
Made = Callable[..., list[CorrectionSubmitted]]


@with_and_without_session
def test_all_turns_of_a_conversation_are_on_one_side_and_in_one_group(made: Made) -> None:
    build = Builds().build([row for number in range(1, 31) for row in made(number)])
    assert all(len(found) == 1 for found in sides(fates(build)).values())
    assert len(held_out(build)) == 18
    groups: dict[str, set[str]] = defaultdict(set)
    for example in (*build.dataset.train, *build.dataset.eval):
        groups[example.prediction_ids[0].split("-")[0]].add(example.group)
    assert {len(found) for found in groups.values()} == {1}
    assert len(set().union(*groups.values())) == len(groups)


@with_and_without_session
@pytest.mark.parametrize("first", [slice(0, 2), slice(2, 4)])
def test_turns_that_come_later_go_where_those_before_are(made: Made, first: slice) -> None:
    builds = Builds()
    whole = [made(number, 4) for number in range(1, 31)]
    before = builds.build([row for rows in whole for row in rows[first]])
    after = builds.build([row for rows in whole for row in rows])
    assert held_out(before) < held_out(after)
    assert trained(before) < trained(after)
    assert all(len(found) == 1 for found in sides(fates(after)).values())


SHAPES = {
    "with a clock in the system message": lambda messages, n: [
        Message(role=Role.SYSTEM, content=f"Intent? It is {n % 24:02d}:{n % 60:02d}."), *messages[1:],
    ],
    "the last five messages alone": lambda messages, n: messages[-5:],
    "in another spacing": lambda messages, n: [
        m.model_copy(update={"content": "  ".join(m.text.split(" ")) + "\n"}) for m in messages
    ],
    "in one message": lambda messages, n: [
        Message(role=Role.USER, content="\n".join(f"{m.role}: {m.text}" for m in messages)),
    ],
    "a summary and the question": lambda messages, n: [
        Message(role=Role.SYSTEM, content=f"So far: {messages[1].text[:40]}"), messages[-1],
    ],
    "as it was": lambda messages, n: list(messages),
}  # fmt: skip
Shape = Callable[[Sequence[Message], int], list[Message]]


def reshaped(row: CorrectionSubmitted, shape: Shape, number: int) -> CorrectionSubmitted:
    call = row.call.model_copy(update={"messages": tuple(shape(row.call.messages, number))})
    return row.model_copy(update={"call": call})


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_no_turn_of_a_session_is_on_the_other_side_whatever_history_its_input_has(shape: Shape) -> None:
    rows = [row for number in range(1, 41) for row in in_session(number, 6)]
    build = Builds().build([reshaped(row, shape, number) for number, row in enumerate(rows)])
    assert len(held_out(build)) >= 40
    in_part = [{name.split("-")[0] for name in part(build)} for part in (trained, held_out)]
    assert not in_part[0] & in_part[1]


@pytest.mark.parametrize("shape", [*SHAPES][:3])
def test_without_a_session_the_messages_that_two_inputs_share_join_them(shape: str) -> None:
    rows = [row for number in range(1, 41) for row in conversation(number, 4)]
    build = Builds().build([reshaped(row, SHAPES[shape], number) for number, row in enumerate(rows)])
    assert held_out(build)
    in_part = [{name.split("-")[0] for name in part(build)} for part in (trained, held_out)]
    assert not in_part[0] & in_part[1]


def test_a_held_out_session_keeps_its_later_turns_when_its_text_is_gone() -> None:
    builds = Builds()
    whole = [in_session(number) for number in range(1, 31)]
    held = held_out(builds.build([row for rows in whole for row in rows[:1]]))
    later = builds.build([rows[-1] for rows in whole])
    assert {f"{name.split('-')[0]}-2" for name in held} == held_out(later)


def test_a_conversation_on_both_sides_leaves_training_and_stays_out_of_it() -> None:
    builds = Builds()
    rows = [row for number in range(1, 31) for row in conversation(number)]
    builds.build(rows)
    held = next(name for name, place in builds.places.items() if place.fate is Fate.EVAL and name.endswith("-0"))
    other = f"{held.split('-')[0]}-1"
    builds.places[other] = Place(Fate.TRAIN, builds.places[held].group, None, NOON)
    build = builds.build(rows)
    reason = next(row.reason for row in build.dataset.left_out if row.prediction_ids == (other,))
    assert (fates(build)[held], fates(build)[other], reason) == (Fate.EVAL, Fate.EXCLUDED, "same_conversation")


def test_a_users_word_is_not_held_out_with_its_conversation_but_excluded() -> None:
    builds = Builds()
    whole = [conversation(number, 2) for number in range(1, 31)]
    held = held_out(builds.build([rows[0] for rows in whole]))
    words = [user_word(rows[1], f"u{number}") for number, rows in enumerate(whole)]
    build = build_dataset(Inputs(votes_of([rows[0] for rows in whole], words), task(), builds.places))
    assert held == held_out(build)
    excluded = {f"{n[:-2]}-1" for n in held}
    assert excluded <= {name for name, fate in fates(build).items() if fate is Fate.EXCLUDED}
    places = {**builds.places, **build.places}
    again = build_dataset(Inputs(votes_of([rows[0] for rows in whole], words), task(), places))
    reasons = {row.prediction_ids[0]: row.reason for row in again.dataset.left_out}
    assert {reasons[name] for name in excluded} == {"excluded_before"}, "it is like no held-out row"


def test_conversations_that_begin_alike_are_not_one() -> None:
    rows = [
        turn(f"{n}-{i}", ["hello", *(sentence(1_000 * n + k) for k in range(i))], LABELS[n % 3], minute=10 * n + i)
        for n in range(1, 31)
        for i in (1, 2)
    ]
    build = Builds().build(rows)
    assert {Fate.TRAIN, Fate.EVAL} <= set(fates(build).values())
    assert all(len(found) == 1 for found in sides(fates(build)).values())


def test_an_equal_opening_with_another_answer_is_another_conversation() -> None:
    builds = Builds()
    held = sorted(held_out(builds.build(corrections(30))))[0]
    text = sentence(int(held[1:]))
    other = turn("other", [text, sentence(900)], LABELS[0], minute=99)
    assert builds.build([*corrections(30), other]).places["other"].group != builds.places[held].group


@pytest.mark.parametrize("choices", [1, 2, 7])
def test_a_menu_of_few_choices_joins_nothing(choices: int) -> None:
    """Behind "hi" and a choice many people ask questions of their own."""
    rows = [
        turn(f"menu{n}", ["hi", f"choice {n % choices}", sentence(7_000 + n)], LABELS[n % 3], minute=n)
        for n in range(80)
    ]
    builds = Builds()
    build = builds.build(rows)
    assert len(build.dataset.eval) == 16
    again = builds.build([*rows, turn("hi", ["hi"], LABELS[0], minute=500)])
    assert len(again.dataset.eval) >= 16 and len(again.dataset.train) >= 64


def test_a_conversation_that_is_most_of_the_rows_is_trained_on() -> None:
    for number in range(1, 6):
        asked = [sentence(90_000 + 100 * number + n) for n in range(80)]
        long = [turn(f"{number}-{n}", asked[: n + 1], LABELS[0], minute=n) for n in range(80)]
        alone = [turn(f"alone{n}", [sentence(40_000 + n)], LABELS[n % 3], minute=900 + n) for n in range(90)]
        build = Builds().build([*long, *alone])
        assert {row.prediction_id for row in long} <= trained(build)
        assert len(build.dataset.eval) == 18


def test_turns_of_one_conversation_are_no_copies_of_each_other() -> None:
    turns, copies = conversation(7, 36), [correction(f"x{n}", sentence(5), "refund", minute=n) for n in range(12)]
    build = Builds().build([*corrections(30, 100), *turns, *copies], task(eval_share=0.1))
    assert {row.prediction_id for row in turns} <= trained(build)
    assert [row.reason for row in build.dataset.left_out] == ["copies"] * 2
