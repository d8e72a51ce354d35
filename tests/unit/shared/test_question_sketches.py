"""Sketches of all of a task's questions: made together, in this process or another, and taken for some of them."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.conversation import Message, Role
from schemas.task_settings import DatasetSettings
from shared.conversation import MAX_COMPARED
from shared.model.near_duplicates import NearTexts
from shared.model.question_sketches import (
    Question,
    QuestionSketcher,
    QuestionSketches,
    QuestionsToSketch,
    question_of,
    sketch_questions,
)
from shared.model.sketches import Sketch

INSTRUCTION = "You are the assistant of a bank, and answer in one word what the customer wants to know or to have done."
DOCUMENT = "Terms of {name}: a card of {name} is sent within five working days and costs {name} ten euros, of which "
PROMPTS = frozenset({"Intent?"})
SETTINGS = DatasetSettings()


def asked(text: str, *before: Message) -> Question:
    return question_of(
        (Message(role=Role.SYSTEM, content="Intent?"), *before, Message(role="user", content=text)), PROMPTS
    )


def system(text: str) -> Message:
    return Message(role=Role.SYSTEM, content=text)


QUESTIONS = [
    *(asked(f"where is order {number} of mine, please?") for number in range(40)),
    *(
        asked(f"may I cancel {word}?", system(INSTRUCTION))
        for word in ("now", "today", "it", "both", "a card", "all", "x", "y")
    ),
    *(
        asked("what does it cost?", system(DOCUMENT.format(name=name) * 2))
        for name in ("Visa", "Mastercard", "Maestro")
    ),
    *(asked("yes", Message(role="user", content=text), Message(role="assistant", content="Sure?")) for text in "ab"),
]


def same(left: Sketch, right: Sketch) -> bool:
    return np.array_equal(left.shingles, right.shingles) and np.array_equal(left.typos, right.typos)


def test_a_tasks_own_system_prompt_is_no_part_of_a_question_and_any_other_is() -> None:
    own, other = asked("where is it?"), asked("where is it?", system(INSTRUCTION))
    assert own == (("user", "where is it?"),)
    assert other == (("system", INSTRUCTION), ("user", "where is it?"))


@pytest.mark.parametrize("user_part", [None, r"order (\d+)"])
def test_sketches_are_taken_for_any_of_the_questions_in_any_order(user_part: str | None) -> None:
    settings = DatasetSettings(user_part=user_part)
    chosen = [QUESTIONS[number] for number in (50, 3, 3, 44, 0, len(QUESTIONS) - 1, 41)]
    sketcher, portions = QuestionSketches([*QUESTIONS, *QUESTIONS[:9]], settings).take(chosen)
    taken = [sketch for portion in portions for sketch in portion]
    assert len(taken) == len(chosen)
    assert all(same(sketch, sketcher.sketch(question)) for sketch, question in zip(taken, chosen, strict=True))
    alone = QuestionSketcher(QUESTIONS, user_part)
    list(alone.sketch_all(QUESTIONS))
    assert all(same(sketch, alone.sketch(question)) for sketch, question in zip(taken, chosen, strict=True))


def test_more_questions_than_a_portion_has_are_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.model.sketches._TEXTS", 7)
    sketcher, portions = QuestionSketches(QUESTIONS, SETTINGS).take(reversed(QUESTIONS))
    taken = [sketch for portion in portions for sketch in portion]
    assert all(same(one, sketcher.sketch(question)) for one, question in zip(taken, reversed(QUESTIONS), strict=True))


def test_a_question_that_was_not_among_all_of_them_is_sketched_when_it_is_taken() -> None:
    other = asked("who are you, and who made you?")
    sketcher, portions = QuestionSketches(QUESTIONS, SETTINGS).take([QUESTIONS[2], other, QUESTIONS[44], other])
    taken = [sketch for portion in portions for sketch in portion]
    assert [same(taken[0], sketcher.sketch(QUESTIONS[2])), same(taken[2], sketcher.sketch(QUESTIONS[44]))] == [True] * 2
    assert [same(taken[number], sketcher.sketch(other)) for number in (1, 3)] == [True] * 2


@pytest.mark.parametrize("document", [None, "system", "user"])
def test_no_more_of_a_long_text_is_sent_than_is_compared_of_it(document: str | None) -> None:
    text = " ".join(f"word{number * 7919 % 100_003}" for number in range(12_000))
    before = () if document is None else (Message(role=document, content=f"About {text[::-1]}"),)
    long = asked(text, *before)
    got: list[QuestionsToSketch] = []

    def begin(asked: QuestionsToSketch):  # type: ignore[no-untyped-def]
        got.append(asked)
        return lambda: sketch_questions(asked)

    _, portions = QuestionSketches([*QUESTIONS, long], SETTINGS, begin).take([long])
    assert max(len(text) for question in got[0].questions for _, text in question) <= MAX_COMPARED + 1
    (taken,) = (sketch for portion in portions for sketch in portion)
    whole = QuestionSketcher([*QUESTIONS, long], None)
    list(whole.sketch_all([*QUESTIONS, long]))
    assert same(taken, whole.sketch(long))
    QuestionSketches([long], DatasetSettings(user_part=r"word(\d+)"), begin)
    assert got[1].questions == [long], "what it matches may be in the middle"


def test_nothing_to_sketch_is_no_fault() -> None:
    _, portions = QuestionSketches([], SETTINGS).take([])
    assert not list(portions)


def test_the_process_that_sketches_gets_each_question_once_and_what_it_sends_is_what_is_taken() -> None:
    got: list[QuestionsToSketch] = []

    def begin(asked: QuestionsToSketch):  # type: ignore[no-untyped-def]
        got.append(asked)
        return lambda: sketch_questions(asked)

    sketches = QuestionSketches(QUESTIONS * 2, DatasetSettings(user_part="order", near_copy_similarity=0.7), begin)
    assert got == [QuestionsToSketch(QUESTIONS, "order", 0.7)]
    _, portions = sketches.take(QUESTIONS[:5])
    assert sum(map(len, portions)) == 5


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.95])
def test_an_index_by_another_similarity_than_the_sketches_were_made_for_finds_the_same(similarity: float) -> None:
    """Copies of a held-out row are looked for from the lowest similarity on that any version had."""
    texts = [
        f"please tell me where the parcel is that I sent on day {number // 3} from {number % 3}" for number in range(90)
    ]
    questions = [asked(text) for text in texts]
    plain = QuestionSketcher(questions, None).sketch_all(questions)
    _, made_for_others = QuestionSketches(questions, DatasetSettings(near_copy_similarity=0.95)).take(questions)
    expected, found = NearTexts(plain, similarity), NearTexts(made_for_others, similarity)
    assert found.groups() == expected.groups()
    assert found.pairs().tolist() == expected.pairs().tolist()
