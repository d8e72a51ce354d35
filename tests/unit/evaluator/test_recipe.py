from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from schemas.conversation import JsonObject, Message, Role, ToolCall
from schemas.tasks import TaskSpec
from services.evaluator.domain import Question
from services.evaluator.recipe import ask
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.model.confidence import request_fields
from shared.model.inference import Completion
from tests.unit.shared.grading.orders import orders

SPEC = TaskSpec.model_validate(
    {"name": "desk", "kind": "classification", "system_prompt": "Say.", "labels": ["a", "b"], "max_answer_tokens": 8}
)
FREE = TaskSpec.model_validate({"name": "reply", "kind": "generation", "system_prompt": "Reply."})


def question(text: str, answer: str) -> Question:
    return Question((Message(role=Role.USER, content=text),), answer)


class Engine:
    """Answers with the question's first letter; raises the errors listed for a question, one per request."""

    def __init__(self, errors: dict[str, list[Exception]] | None = None) -> None:
        self.errors = errors or {}
        self.requests: list[tuple[str, tuple[str, ...], int]] = []
        self.asked_for: list[Mapping[str, Any]] = []
        self.conversations: list[tuple[Sequence[dict[str, Any]], Sequence[JsonObject]]] = []

    async def complete(
        self,
        model: str,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[JsonObject],
        choices: Sequence[str],
        max_tokens: int,
        fields: Mapping[str, Any],
    ) -> Completion:
        self.requests.append((model, tuple(choices), max_tokens))
        self.asked_for.append(fields)
        self.conversations.append((messages, tools))
        text = messages[-1]["content"]
        if self.errors.get(text):
            raise self.errors[text].pop(0)
        listed = [
            {"token": text[0], "logprob": math.log(0.6)},
            {"token": "ab"[text[0] == "a"], "logprob": math.log(0.2)},
        ]
        token = {**listed[0], "top_logprobs": listed}
        return Completion(text[0], token["logprob"], 1, 5, "stop", 10.0, (token,))


QUESTIONS = [question("a1", "a"), question("b1", "b"), question("b2", "a")]


async def test_both_arms_are_asked_as_the_gateway_asks() -> None:
    engine, counts = Engine(), list[int]()
    answers = await ask(engine, "adapter", QUESTIONS, SPEC, 2, counts.append)
    assert answers.answers == ("a", "b", "b")
    assert set(engine.requests) == {("adapter", ("a", "b"), 8)}
    assert engine.asked_for == [request_fields(SPEC)] * 3
    assert counts == [1, 2, 3]


FIND: JsonObject = {"type": "function", "function": {"name": "find"}}
TALK = (
    Message(role=Role.USER, content="a1", name="customer"),
    Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="find", arguments='{"n": 1}', id="c1"),)),
    Message(role=Role.TOOL, content="a lost parcel", tool_call_id="c1"),
)


async def test_a_conversation_with_tools_is_asked_with_its_structure() -> None:
    engine = Engine()
    answers = await ask(engine, "adapter", [Question(TALK, "a", (FIND,))], FREE, 1, lambda _: None)
    assert answers.answers == ("a",)
    ((messages, tools),) = engine.conversations
    assert tools == (FIND,)
    assert messages == [
        {"role": "user", "content": "a1", "name": "customer"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"n": 1}'}},
        ]},
        {"role": "tool", "content": "a lost parcel", "tool_call_id": "c1"},
    ]  # fmt: skip


async def test_an_answer_that_must_be_a_label_is_asked_without_tools_as_the_gateway_asks() -> None:
    engine = Engine()
    await ask(engine, "adapter", [Question(TALK, "a", (FIND,))], SPEC, 1, lambda _: None)
    assert engine.conversations[0][1] == ()


async def test_an_extraction_is_asked_by_its_schema_as_the_gateway_asks() -> None:
    engine, spec = Engine(), orders()
    await ask(engine, "adapter", [question("a1", "{}")], spec, 1, lambda _: None)
    (fields,) = engine.asked_for
    assert fields["response_format"]["json_schema"]["schema"] == spec.output_schema
    assert fields["logprobs"] is True


async def test_each_answer_is_measured_as_the_gateway_measures_it() -> None:
    answers = await ask(Engine({"b1": [InvalidMessage("no")]}), "adapter", QUESTIONS, SPEC, 2, lambda _: None)
    assert answers.scores == (pytest.approx(0.75), None, pytest.approx(0.75))


async def test_a_request_is_tried_twice_before_it_counts_as_failed() -> None:
    away = [DependencyUnavailable("500")]
    engine = Engine({"a1": list(away), "b1": away * 2})
    answers = await ask(engine, "adapter", QUESTIONS, SPEC, 1, lambda _: None)
    assert answers.answers == ("a", None, "b")
    assert len(answers.latencies_ms) == 2


async def test_a_refused_request_is_not_tried_again() -> None:
    engine = Engine({"a1": [InvalidMessage("too long")]})
    answers = await ask(engine, "adapter", QUESTIONS, SPEC, 1, lambda _: None)
    assert answers.answers[0] is None
    assert len(engine.requests) == 3


async def test_an_unavailable_engine_is_not_counted_against_the_candidate() -> None:
    engine = Engine({q.text: [DependencyUnavailable("gone")] * 2 for q in QUESTIONS})
    with pytest.raises(DependencyUnavailable, match="3 of 3 requests"):
        await ask(engine, "adapter", QUESTIONS, SPEC, 1, lambda _: None)


async def test_answers_that_were_asked_for_again_take_the_place_of_those_that_failed() -> None:
    away = [DependencyUnavailable("500")]
    engine = Engine({"b1": away * 2})
    first = await ask(engine, "adapter", QUESTIONS, SPEC, 1, lambda _: None)
    assert first.unanswered == [1]
    repeated = await ask(engine, "adapter", [QUESTIONS[1]], SPEC, 1, lambda _: None)
    merged = first.merged([1], repeated)
    assert (merged.answers, merged.unanswered, len(merged.latencies_ms)) == (("a", "b", "b"), [], 3)
    assert None not in merged.scores
