"""Requests that are made again of what an event says."""

from __future__ import annotations

from schemas.conversation import Api, Call, Message, Part
from shared.conversation import chat_messages, replay_request, template_messages

TYPED = (
    Message(role="user", content=(Part(type="input_text", text="Where is it?"),)),
    Message(
        role="assistant",
        reasoning="The parcel left on Monday.",
        content=(Part(type="output_text", text="On its way."), Part(type="refusal", text="No address.")),
    ),
    Message(role="assistant", content="Anything else?"),
    Message(role="user", content="No, thanks."),
)
"""A conversation as clients of the responses API send it: what was answered goes back with the next question."""


def test_an_answer_in_parts_goes_back_as_the_responses_api_gave_it() -> None:
    """vLLM refuses an `output_text` without annotations, and one that is in no message of its type."""
    path, body = replay_request(Call(api=Api.RESPONSES, messages=TYPED))
    assert path == "/v1/responses"
    assert body["input"] == [
        {"role": "user", "content": [{"type": "input_text", "text": "Where is it?"}]},
        {
            "type": "reasoning", "id": "", "summary": [],
            "content": [{"type": "reasoning_text", "text": "The parcel left on Monday."}],
        },
        {
            "type": "message", "id": "", "role": "assistant", "status": "completed",
            "content": [
                {"type": "output_text", "text": "On its way.", "annotations": []},
                {"type": "refusal", "refusal": "No address."},
            ],
        },
        {"role": "assistant", "content": "Anything else?"},
        {"role": "user", "content": "No, thanks."},
    ]  # fmt: skip


def test_texts_of_the_responses_api_are_texts_of_the_chat_api() -> None:
    """vLLM's chat API knows neither `input_text` nor `output_text`."""
    question, answer, *_ = chat_messages(TYPED)
    assert question["content"] == [{"type": "text", "text": "Where is it?"}]
    assert answer["content"] == [{"type": "text", "text": "On its way."}, {"type": "refusal", "refusal": "No address."}]
    assert [message["content"] for message in template_messages(TYPED)][:2] == [
        "Where is it?", "On its way.\nNo address.",
    ]  # fmt: skip
