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
    assert left_out(built(rows, golden=(golden.call.messages,))) == Counter({"golden_or_adversarial": 1})


@pytest.mark.parametrize("rules", [RULES, "Answer briefly."])
def test_an_instruction_of_an_application_makes_its_questions_no_near_copies(rules: str) -> None:
    rows = [asked(f"p{n}", rules, sentence(n, 2), LABELS[n % 3], minute=n) for n in range(30)]
    assert left_out(built(rows)) == Counter()


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
    def rows(prefix: str, rules: str) -> list[CorrectionSubmitted]:
        given = {"rules": RULES * 3, "name": "Mora Fenwick", "other": "Ilka Tarn"}
        systems = (rules.format(n % 24, n * 7 % 24, n % 28 + 1, **given) for n in range(60))
        return [
            asked(f"{prefix}{n}", system, sentence(n, 5), LABELS[n % 3], minute=n) for n, system in enumerate(systems)
        ]

    builds = Builds()
    held = {name[1:] for name in held_out(builds.build(rows("p", first)))}
    later = builds.build([*rows("p", first), *rows("q", again)])
    assert len(held) == 12
    assert not held & {name[1:] for name in trained(later)}


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
    learnt = {name for name in trained(found) if "-" in name}
    assert learnt and all(name.startswith("other-") for name in learnt)


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


def test_the_same_turn_after_different_beginnings_is_another_row() -> None:
    rows = [turns(f"p{n}", LABELS[n % 3], f"{sentence(n, 3)}?", "Are you sure?", "yes", minute=n) for n in range(60)]
    assert left_out(built(rows)) == Counter()


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
