"""System messages of applications: a document is part of what was asked, an instruction that many rows share is not."""

from __future__ import annotations

from collections import Counter

import pytest

from schemas.conversation import Call, Message, Role, ToolCall
from schemas.labels import CorrectionSubmitted
from schemas.tasks import TaskKind
from services.dataset_builder.building.carry_over import Revision
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.inspection.gates import evaluate_gates
from services.dataset_builder.pipeline import Build, Inputs, build_dataset
from tests.unit.dataset_builder.histories import (
    LABELS,
    Builds,
    correction,
    corrections,
    held_out,
    sentence,
    task,
    trained,
)

RULES = "You work for a shop. Be kind, be brief, and answer with the name of the intent and with nothing else at all."


def asked(name: str, system: str, text: str, label: str, minute: int = 0) -> CorrectionSubmitted:
    messages = Message(role=Role.SYSTEM, content=system), Message(role=Role.USER, content=text)
    return correction(name, text, label, minute=minute).model_copy(update={"call": Call(messages=messages)})


def built(rows: list[CorrectionSubmitted], kind: TaskKind = TaskKind.CLASSIFICATION, **inputs: object) -> Build:
    return build_dataset(Inputs(votes_of(rows), task(kind), **inputs))  # type: ignore[arg-type]


def left_out(build: Build) -> Counter[str]:
    return Counter(row.reason for row in build.dataset.left_out)


def documents(count: int) -> list[CorrectionSubmitted]:
    return [
        asked(f"p{n}", f"Ticket: {sentence(n, 60)}", "Classify the ticket.", LABELS[n % 3], minute=n)
        for n in range(count)
    ]


def test_rows_with_a_document_each_in_the_system_message_are_different_rows() -> None:
    build = built(documents(120))
    assert (len(build.dataset.train), len(build.dataset.eval), left_out(build)) == (96, 24, Counter())
    leakage = next(gate for gate in evaluate_gates(build, task(), {}) if gate.name == "leakage")
    assert (leakage.passed, leakage.detail) == (True, "")


def test_summaries_of_different_documents_do_not_take_each_others_place() -> None:
    rows = [
        asked(f"p{n}", f"Document: {sentence(n, 60)}", "Summarise the document.", f"It is about {sentence(5_000 + n)}")
        for n in range(60)
    ]
    assert left_out(built(rows, TaskKind.GENERATION)) == Counter()


def test_the_same_document_with_two_labels_is_a_conflict() -> None:
    rows = documents(60)
    twice = asked("again", rows[0].call.messages[0].text, "Classify the ticket.", LABELS[1], minute=90)
    build = built([*rows, twice.model_copy(update={"reviewer": "ben"})])
    assert left_out(build) == Counter({"conflicting_labels": 2})


def test_a_golden_question_with_its_document_excludes_that_document_alone() -> None:
    rows = documents(60)
    golden = asked("golden", f"Ticket: {sentence(7, 60)}", "Classify the ticket.", LABELS[0])
    assert left_out(built(rows, frozen=(golden.call.messages,))) == Counter({"in_frozen_set": 1})


def test_the_same_text_for_two_instructions_is_held_out_or_trained_on_and_each_answer_stays() -> None:
    """Translations of a text are different rows, and nearly the same text is never on both sides."""
    rows = [
        asked(f"{language}{n}", f"Translate to {language}.", sentence(n), f"{language}: {sentence(9_000 + n)}")
        for n in range(60)
        for language in ("French", "German")
    ]
    build = built(rows, TaskKind.GENERATION)
    assert left_out(build).keys() == {"near_held_out"}
    numbers = [{name.removeprefix("French").removeprefix("German") for name in of(build)} for of in (trained, held_out)]
    assert not numbers[0] & numbers[1]


@pytest.mark.parametrize("rules", [RULES, "Answer briefly."])
def test_an_instruction_of_an_application_makes_its_questions_no_near_copies(rules: str) -> None:
    rows = [asked(f"p{n}", rules, sentence(n, 2), LABELS[n % 3], minute=n) for n in range(30)]
    assert left_out(built(rows)) == Counter()


@pytest.mark.parametrize("text", ["Intent?", RULES])
def test_a_message_of_the_developer_is_compared_as_a_system_message_is(text: str) -> None:
    """The responses API has this role: the same instruction, or the task's own prompt, makes no other questions."""
    rows = [asked(f"p{n}", text, sentence(n, 2), LABELS[n % 3], minute=n) for n in range(30)]
    again = [asked(f"q{n}", text, sentence(n, 2), LABELS[n % 3], minute=n) for n in range(30)]
    for number, row in enumerate(again):
        developer, question = row.call.messages
        messages = developer.model_copy(update={"role": "developer"}), question
        again[number] = row.model_copy(update={"call": row.call.model_copy(update={"messages": messages})})
    build = built([*rows, *again])
    numbers = [{name[1:] for name in names(build)} for names in (trained, held_out)]
    assert left_out(build).keys() == {"near_held_out"}
    assert not numbers[0] & numbers[1]


@pytest.mark.parametrize("prompt", ["Intent?", "An earlier prompt of the task."])
def test_the_tasks_own_prompts_are_no_part_of_a_question(prompt: str) -> None:
    """The same question, with a prompt that the task has or had and without any, is the same."""
    rows = [correction(f"p{n}", sentence(n), LABELS[n % 3], minute=n) for n in range(30)]
    again = asked("again", prompt, sentence(0), LABELS[1], minute=90).model_copy(update={"reviewer": "ben"})
    revisions = {"r0": Revision(TaskKind.CLASSIFICATION, "An earlier prompt of the task.")}
    assert left_out(built([*rows, again], revisions=revisions)) == Counter({"conflicting_labels": 2})


def questions_on_documents(kind: TaskKind, per_document: int = 4) -> list[CorrectionSubmitted]:
    rows = []
    for n in range(120):
        label = LABELS[n % 3] if kind is TaskKind.CLASSIFICATION else f"It says {sentence(5_000 + n)}"
        document = f"Document: {sentence(9_000 + n // per_document, 80)}"
        rows.append(asked(f"p{n}", document, f"{sentence(n, 4)}?", label, minute=n))
    return rows


@pytest.mark.parametrize("kind", [TaskKind.CLASSIFICATION, TaskKind.GENERATION])
def test_different_questions_on_one_document_are_different_rows(kind: TaskKind) -> None:
    build = built(questions_on_documents(kind), kind)
    assert (len(build.dataset.train), len(build.dataset.eval), left_out(build)) == (96, 24, Counter())


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ("It is {0:02d}:{1:02d} on 2026-11-{2:02d}. {rules}", "It is {1:02d}:{0:02d} on 2026-12-{2:02d}. {rules}"),
        ("{rules} It is {0:02d}:{1:02d} on 2026-11-{2:02d}.", "{rules} It is {1:02d}:{0:02d} on 2026-12-{2:02d}."),
        ("The customer is {name}. {rules}", "The customer is {other}. {rules}"),
    ],
)
def test_a_date_or_a_name_in_an_instruction_does_not_hide_that_the_same_was_asked(first: str, again: str) -> None:
    rows = []
    for n in range(60):
        given = {"rules": RULES * 3, "name": sentence(n + 100, 2).title(), "other": sentence(n + 200, 2).title()}
        for name, rules in ((f"p{n}", first), (f"q{n}", again)):
            system = rules.format(n % 24, n * 7 % 24, n % 28 + 1, **given)
            rows.append(asked(name, system, sentence(n, 5), LABELS[n % 3], minute=n))
    build = built(rows)
    numbers = [{name[1:] for name in names(build)} for names in (trained, held_out)]
    assert numbers[1]
    assert not numbers[0] & numbers[1]


@pytest.mark.parametrize("text", ["where is my card", sentence(0, 9)])
@pytest.mark.parametrize("with_typo", ["question", "document", "both"])
def test_a_typo_in_a_question_or_in_its_document_makes_no_other_row(text: str, with_typo: str) -> None:
    document = f"Document: {sentence(9_000, 80)}"
    others = documents(60)
    first = asked("x", document, text, LABELS[0])
    again = asked(
        "y",
        document if with_typo == "question" else document.replace("a", "ä", 1),
        text if with_typo == "document" else f"{text[:-3]}{text[-2]}{text[-3]}{text[-1]}",
        LABELS[1],
    ).model_copy(update={"reviewer": "ben"})
    assert left_out(built([*others, first, again])) == Counter({"conflicting_near_copies": 2})


def test_an_expired_question_about_a_document_keeps_its_copies_out_and_no_other_question_about_it() -> None:
    builds, rows = Builds(), questions_on_documents(TaskKind.CLASSIFICATION)
    gone = held_out(builds.build(rows))
    theirs = {row.prediction_id: row.call.messages for row in rows if row.prediction_id in gone}
    again = [
        asked(f"{kind}-{name}", document.text, text, LABELS[int(name[1:]) % 3], minute=900)
        for number, (name, (document, question)) in enumerate(sorted(theirs.items()))
        for kind, text in (("copy", f"{question.text[:-1]} now?"), ("other", f"{sentence(number + 700, 4)}?"))
    ]
    found = builds.build([*corrections(60, first=400), *again])
    placed = {name for name in trained(found) | held_out(found) if "-" in name}
    assert placed == {f"other-{name}" for name in gone}


def test_a_text_whose_first_line_was_moved_out_of_the_system_message_stays_on_its_side() -> None:
    """The whole texts are equal, and what is compared of them is not: an instruction in a question is a part of it."""
    first_line = "Classify this ticket of a customer of the bank:"
    rows = [asked(f"p{n}", first_line, sentence(n, 3), LABELS[n % 3], minute=n) for n in range(60)]
    moved = [correction(f"q{n}", f"{first_line}\n{sentence(n, 3)}", LABELS[n % 3], minute=60 + n) for n in range(60)]
    golden = (Message(role=Role.USER, content=f"{first_line}\n{sentence(7, 3)}"),)
    build = built([*rows, *moved], frozen=(golden,))
    numbers = [{name[1:] for name in names(build)} for names in (trained, held_out)]
    assert numbers[1]
    assert not numbers[0] & numbers[1]
    assert "7" not in numbers[0] | numbers[1]
    assert all(gate.passed for gate in evaluate_gates(build, task(), {}) if gate.name == "leakage")


def turns(name: str, label: str, *texts: str, minute: int = 0) -> CorrectionSubmitted:
    """Return a row of a conversation in which user and assistant take turns; the user speaks last."""
    roles = [Role.USER if (len(texts) - n) % 2 else Role.ASSISTANT for n in range(len(texts))]
    messages = tuple(Message(role=role, content=text) for role, text in zip(roles, texts, strict=True))
    return correction(name, "", label, minute=minute).model_copy(update={"call": Call(messages=messages)})


def test_different_turns_after_the_same_long_beginning_are_different_rows() -> None:
    rows = [
        turns(f"p{n}-{i}", LABELS[(n + i) % 3], sentence(n, 20), sentence(n + 500, 60), sentence(100 * n + i, 4))
        for n in range(40)
        for i in range(3)
    ]
    build = built(rows)
    assert (len(build.dataset.train), len(build.dataset.eval), left_out(build)) == (96, 24, Counter())


def test_the_turns_of_a_growing_conversation_are_different_rows() -> None:
    rows = []
    for n in range(12):
        said: list[str] = []
        for i in range(10):
            said += [*([sentence(1_000 * n + i, 15)] if said else []), sentence(1_000 * n + i + 500, 6)]
            rows.append(turns(f"p{n}-{i}", LABELS[i % 3], *said, minute=n))
    assert left_out(built(rows)) == Counter()


def test_the_same_turn_after_different_beginnings_is_another_row_and_with_a_typo_in_either_it_is_not() -> None:
    first = [turns(f"p{n}", LABELS[n % 3], f"{sentence(n, 3)}?", "Are you sure?", "yes", minute=n) for n in range(60)]
    assert left_out(built(first)) == Counter()
    beginning, other = sentence(900, 30), sentence(901, 30)
    typos = [
        turns("x", LABELS[0], beginning, other, "where is my card"),
        turns("y", LABELS[1], beginning, other, "where is my crad"),
        turns("z", LABELS[1], beginning.replace("a", "ä", 1), other, "where is my card"),
    ]
    by_ben = [row.model_copy(update={"reviewer": "ben"}) for row in typos[1:]]
    assert left_out(built([*first, typos[0], *by_ben])) == Counter({"conflicting_near_copies": 3})


def test_other_results_of_a_call_make_another_row() -> None:
    rows = []
    for n in range(60):
        call = ToolCall(name="find_order", arguments='{"customer": "the one who asks"}', id="c1")
        messages = (
            Message(role=Role.USER, content="Where is my order?"),
            Message(role=Role.ASSISTANT, tool_calls=(call,)),
            Message(role=Role.TOOL, content=sentence(n, 20), tool_call_id="c1"),
        )
        offered = ({"type": "function", "function": {"name": "find_order"}},)
        row = correction(f"p{n}", "", LABELS[n % 3], minute=n)
        rows.append(row.model_copy(update={"call": Call(messages=messages, tools=offered)}))
    assert left_out(built(rows)) == Counter()
