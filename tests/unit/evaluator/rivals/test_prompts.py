from __future__ import annotations

from schemas.conversation import Message, Role
from schemas.datasets import Example
from services.evaluator.domain import Question
from services.evaluator.rivals.prompts import (
    MAX_CHARACTERS,
    MAX_SHOTS,
    balanced_shots,
    sample_rows,
    with_shots,
    within_budget,
)
from shared.conversation import comparable_text


def example(text: str, answer: str) -> Example:
    return Example(
        example_id="e", group="g", prediction_ids=(), correction_ids=(),
        messages=(
            Message(role=Role.SYSTEM, content="old instructions"),
            Message(role=Role.USER, content=text),
            Message(role=Role.ASSISTANT, content=answer),
        ),
    )  # fmt: skip


def test_a_sample_is_the_same_rows_however_they_are_ordered_and_all_where_there_are_fewer() -> None:
    questions = [Question((Message(role=Role.USER, content=f"q{n}"),), "a") for n in range(50)]
    backwards = questions[::-1]
    sampled = {questions[n].text for n in sample_rows(questions, 10)}
    assert len(sampled) == 10
    assert sampled == {backwards[n].text for n in sample_rows(backwards, 10)}
    assert sample_rows(questions, 80) == list(range(50))


def test_fixed_examples_have_each_label_before_one_has_two() -> None:
    train = [example(f"often {n}", "often") for n in range(50)] + [example("rare", "rare"), example("odd", "odd")]
    shots = balanced_shots(train)
    assert len(shots) == MAX_SHOTS
    assert {shot.answer for shot in shots[:3]} == {"often", "rare", "odd"}
    assert balanced_shots(train[::-1]) == shots


def test_examples_that_a_small_context_has_no_room_for_are_left_out() -> None:
    long, short = example("x" * MAX_CHARACTERS, "a"), example("short", "b")
    assert within_budget([long, short]) == [short]
    assert balanced_shots([long]) == []


def test_the_question_keeps_its_own_instructions_and_comes_last() -> None:
    question = Question(
        (Message(role=Role.SYSTEM, content="new"), Message(role=Role.USER, content="ask")), "a", row_id="r"
    )
    asked = with_shots(question, [example("one", "a"), example("two", "b")], {"old instructions"})
    assert [message.text for message in asked.messages] == ["new", "one", "a", "two", "b", "ask"]
    assert (asked.answer, asked.row_id) == ("a", "r")


def test_classifiers_read_every_turn_and_no_instructions() -> None:
    assert comparable_text(example("text", "label").messages, {"old instructions"}) == "text\nlabel"


DOCUMENT = "The tenant pays the rent on the third working day of each month. " * 4


def of_document(text: str, answer: str, document: str = DOCUMENT) -> Example:
    said = example(text, answer)
    return said.model_copy(update={"messages": (Message(role=Role.SYSTEM, content=document), *said.messages[1:])})


def test_rivals_read_a_document_that_stands_where_instructions_do() -> None:
    """Each question was the same sentence to them, so that the adapter seemed to beat all."""
    assert DOCUMENT.strip() in comparable_text(of_document("Classify it.", "lease").messages, {"Say."})
    question = Question((Message(role=Role.SYSTEM, content="Say."), Message(role=Role.USER, content="ask")), "a")
    asked = with_shots(question, [of_document("Classify it.", "lease")], {"Say."})
    assert [message.role for message in asked.messages] == [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.USER]
    assert asked.messages[1].text == f"{DOCUMENT}\n\nClassify it."
    long_answers = [of_document("Summarise.", "x" * 980, "y" * 900)] * 4
    assert len(within_budget(long_answers, {"Say."})) == MAX_CHARACTERS // 1_890
