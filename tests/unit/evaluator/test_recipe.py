from __future__ import annotations

import pytest

from schemas.conversation import JsonObject, Message, Role, ToolCall
from schemas.tasks import TaskKind, TaskSpec
from services.evaluator.domain import Question
from services.evaluator.recipe import ask
from shared.answers import answer_form
from shared.errors import DependencyUnavailable, InvalidMessage
from tests.unit.evaluator.engine import FakeEngine, first_letter
from tests.unit.shared.grading.orders import orders

SPEC = TaskSpec.model_validate(
    {"name": "desk", "kind": "classification", "system_prompt": "Say.", "labels": ["a", "b"], "max_answer_tokens": 8}
)
FREE = TaskSpec.model_validate({"name": "reply", "kind": "generation", "system_prompt": "Reply."})


def question(text: str, answer: str) -> Question:
    return Question((Message(role=Role.USER, content=text),), answer)


def letters(**errors: list[Exception]) -> FakeEngine:
    return FakeEngine(first_letter, errors)


QUESTIONS = [question("a1", "a"), question("b1", "b"), question("b2", "a")]


async def test_both_arms_are_asked_as_the_gateway_asks() -> None:
    engine, counts = letters(), list[int]()
    answers = await ask(engine, "adapter", QUESTIONS, SPEC, 2, counts.append)
    assert answers.answers == ("a", "b", "b")
    assert {(r.model, r.choices, r.max_tokens) for r in engine.requests} == {("adapter", ("a", "b"), 8)}
    assert [request.fields for request in engine.requests] == [answer_form(SPEC).confidence_fields] * 3
    assert counts == [1, 2, 3]


FIND: JsonObject = {"type": "function", "function": {"name": "find"}}
TALK = (
    Message(role=Role.USER, content="a1", name="customer"),
    Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="find", arguments='{"n": 1}', id="c1"),)),
    Message(role=Role.TOOL, content="a lost parcel", tool_call_id="c1"),
)


async def test_a_conversation_with_tools_is_asked_with_its_structure() -> None:
    engine = letters()
    answers = await ask(engine, "adapter", [Question(TALK, "a", (FIND,))], FREE, 1, lambda _: None)
    assert answers.answers == ("a",)
    (request,) = engine.requests
    assert request.tools == (FIND,)
    assert request.messages == [
        {"role": "user", "content": "a1", "name": "customer"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"n": 1}'}},
        ]},
        {"role": "tool", "content": "a lost parcel", "tool_call_id": "c1"},
    ]  # fmt: skip


async def test_an_answer_that_must_be_a_label_is_asked_without_tools_as_the_gateway_asks() -> None:
    engine = letters()
    await ask(engine, "adapter", [Question(TALK, "a", (FIND,))], SPEC, 1, lambda _: None)
    assert engine.requests[0].tools == ()


async def test_an_extraction_is_asked_by_its_schema_as_the_gateway_asks() -> None:
    engine, spec = letters(), orders()
    await ask(engine, "adapter", [question("a1", "{}")], spec, 1, lambda _: None)
    fields = engine.requests[0].fields
    assert fields["response_format"]["json_schema"]["schema"] == spec.output_schema
    assert fields["logprobs"] is True


async def test_what_an_application_asked_for_itself_is_asked_of_both_arms_where_the_task_has_no_form() -> None:
    """Production's answers were guided by it: in free text the arm that writes JSON unasked would look better."""
    engine, wanted = letters(), {"type": "json_object"}
    asked = Question(TALK, "{}", (FIND,), "required", wanted)
    free = SPEC.model_copy(update={"kind": TaskKind.GENERATION, "labels": ()})
    for spec in (free, SPEC, orders()):
        await ask(engine, "adapter", [asked], spec, 1, lambda _: None)
    of_text, of_labels, of_orders = (request.fields for request in engine.requests)
    assert (of_text["response_format"], of_text["tool_choice"]) == (wanted, "required")
    assert not {"response_format", "tool_choice"} & of_labels.keys()
    assert of_orders["response_format"]["type"] == "json_schema"


async def test_each_answer_is_measured_as_the_gateway_measures_it() -> None:
    answers = await ask(letters(b1=[InvalidMessage("no")]), "adapter", QUESTIONS, SPEC, 2, lambda _: None)
    assert answers.scores == (pytest.approx(0.75), None, pytest.approx(0.75))


async def test_a_request_is_tried_twice_before_it_counts_as_failed() -> None:
    away = DependencyUnavailable("500")
    engine = letters(a1=[away], b1=[away] * 2)
    answers = await ask(engine, "adapter", QUESTIONS, SPEC, 1, lambda _: None)
    assert answers.answers == ("a", None, "b")
    assert len(answers.latencies_ms) == 2


async def test_a_refused_request_is_not_tried_again() -> None:
    engine = letters(a1=[InvalidMessage("too long")])
    answers = await ask(engine, "adapter", QUESTIONS, SPEC, 1, lambda _: None)
    assert answers.answers[0] is None
    assert len(engine.requests) == 3


async def test_an_unavailable_engine_is_not_counted_against_the_candidate() -> None:
    engine = letters(**{q.text: [DependencyUnavailable("gone")] * 2 for q in QUESTIONS})
    with pytest.raises(DependencyUnavailable, match="3 of 3 requests"):
        await ask(engine, "adapter", QUESTIONS, SPEC, 1, lambda _: None)


async def test_answers_that_were_asked_for_again_take_the_place_of_those_that_failed() -> None:
    engine = letters(b1=[DependencyUnavailable("500")] * 2)
    first = await ask(engine, "adapter", QUESTIONS, SPEC, 1, lambda _: None)
    assert first.unanswered == [1]
    repeated = await ask(engine, "adapter", [QUESTIONS[1]], SPEC, 1, lambda _: None)
    merged = first.merged([1], repeated)
    assert (merged.answers, merged.unanswered, len(merged.latencies_ms)) == (("a", "b", "b"), [], 3)
    assert None not in merged.scores
