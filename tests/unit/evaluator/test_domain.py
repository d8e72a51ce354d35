from __future__ import annotations

import json
from pathlib import Path

from schemas.adapters import AdapterTrained
from schemas.conversation import Message, Role, ToolCall
from schemas.datasets import Example
from schemas.golden import GoldenRow
from schemas.labels import Purpose
from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskSpec
from services.evaluator.domain import (
    GradedAnswers,
    Question,
    evaluation_questions,
    failed_must_pass,
    golden_questions,
    job_name,
    production_of,
)
from shared.answers import answer_form
from shared.grading.grade import RIGHT, WRONG

FREE = TaskSpec.model_validate({"name": "reply", "kind": "generation", "system_prompt": "Reply."})


def spec() -> TaskSpec:
    return TaskSpec.model_validate(
        {"name": "desk", "kind": "classification", "system_prompt": "Say.", "labels": ["a", "b"]}
    )


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
    assert answer_form(FREE).grade(question.answer, 'once more\n[{"name":"find","arguments":"{\\"n\\":1}"}]').right
    assert not answer_form(FREE).grade(question.answer, "Once more.").right


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


def test_only_marked_rows_must_pass_and_a_failed_request_is_a_wrong_answer() -> None:
    messages = (Message(role=Role.USER, content="?"),)
    asked = [Question(messages, "a", must_pass=number in (1, 2, 3)) for number in range(6)]
    grades = tuple(RIGHT if number in (0, 1, 4) else WRONG for number in range(6))
    answers = ("a", "a", "b", None, "a", "b")
    assert failed_must_pass(asked, GradedAnswers(answers, grades)) == [2, 3]


def test_a_question_knows_the_slices_it_is_in_and_how_probable_it_was() -> None:
    messages = (Message(role=Role.USER, content="q"), Message(role=Role.ASSISTANT, content="a"))
    rows = [
        Example(
            example_id=f"e{number}", messages=messages, group="g", prediction_ids=(), correction_ids=(),
            mode_id="m1", app="shop", purpose=purpose, drawn_probability=drawn,
        )
        for number, (purpose, drawn) in enumerate([(Purpose.AUDIT, 0.25), (Purpose.LOW_CONFIDENCE, 0.5), (None, None)])
    ]  # fmt: skip
    audit, suspect, chosen = evaluation_questions(rows)
    assert audit.slices == ("failure mode m1", "app shop")
    assert (audit.drawn, audit.is_uniform, audit.group) == (0.25, True, "g")
    assert (suspect.drawn, suspect.is_uniform) == (0.5, False)
    assert (chosen.drawn, chosen.is_uniform) == (None, False)
    seen = rows[0].model_copy(update={"seen": True, "mode_id": None, "app": None})
    slices = [question.slices[-1:] for question in evaluation_questions([seen, *rows[1:]])]
    assert slices == [("seen questions",), ("unseen questions",), ("unseen questions",)]


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


def test_the_job_is_named_by_the_candidate_and_the_cycle_whoever_serves() -> None:
    event = trained()
    assert job_name(event, None).startswith(f"{event.adapter}-")
    later = event.model_copy(update={"cycle_id": "later"})
    assert job_name(event, None) == job_name(event, "p") != job_name(later, None)
