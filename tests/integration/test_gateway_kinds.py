"""Tasks whose answers are JSON, several labels or calls, on a real vLLM: it keeps to the task's format, whole and
streamed, and the event has how sure each part of the answer is."""

from __future__ import annotations

from uuid import uuid4

import pytest

from schemas.tasks import TaskSpec
from shared.answers import answer_form
from tests.integration.gateway_process import publish_task
from tests.integration.gateway_stack import MESSAGES, Gateway, gateway, until_ready

pytestmark = pytest.mark.stack

__all__ = ["gateway"]

YES_OR_NO = {"type": "boolean"}
SCHEMA = {
    "type": "object",
    "properties": {"topic": {"enum": ["card", "top up", None]}, "urgent": YES_OR_NO},
    "required": ["topic", "urgent"],
    "additionalProperties": False,
}
BLOCK = {
    "name": "block_card",
    "description": "Block a card that was lost.",
    "parameters": {"type": "object", "properties": {"replace": YES_OR_NO}, "required": ["replace"]},
}
KINDS = {
    "extraction": {"output_schema": SCHEMA},
    "multi_label": {"labels": ["card lost", "refund", "top up"], "max_labels_per_answer": 2},
    "tools": {"tools": [BLOCK, {"name": "ask_a_person"}]},
}


async def task_of(gateway: Gateway, kind: str) -> TaskSpec:
    spec = TaskSpec.model_validate({
        "name": f"gateway-{kind.replace('_', '-')}-{uuid4().hex[:6]}", "kind": kind, "base_model": gateway.base_model,
        "system_prompt": "Answer as the format says.", "max_answer_tokens": 200, "cron": "0 0 29 2 *", **KINDS[kind],
    })  # fmt: skip
    await publish_task(gateway.settings, spec)
    await until_ready(gateway.http, spec.name)
    return spec


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_keeps_to_its_kind_and_is_logged_with_the_confidence_of_each_part(
    gateway: Gateway, kind: str, stream: bool
) -> None:
    spec = await task_of(gateway, kind)
    asked = {"model": spec.name, "messages": MESSAGES, "temperature": 0.0}
    if stream:
        chunks = [chunk async for chunk in await gateway.client.chat.completions.create(**asked, stream=True)]
        prediction, text = chunks[0].id, "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    else:
        answer = await gateway.client.chat.completions.create(**asked)
        prediction, text = answer.id, answer.choices[0].message.content or ""
    event, logged = await gateway.logged(prediction)
    assert logged.text == text
    assert logged.finish_reason in ("stop", "tool_calls")
    assert answer_form(spec).grade(logged.plain, logged.plain).valid, logged.plain
    assert logged.confidence.score is not None and 0.0 < logged.confidence.score <= 1.0
    assert logged.confidence.fields is not None
    assert (kind == "tools") == bool(event.call.tools)
