"""Says which conversations can teach a model nothing, so that nobody is asked about them and none is a training row."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.conversation import Answer, Api, Call, FinishReason, Message, Role
from shared.conversation.requests import TOKEN_IDS

NEVER_TRAINED = frozenset({"truncated", "refused", "token_ids", "media", "custom_tool", "completions", "continued"})
"""The reasons of `never_trained`."""


def never_trained(call: Call, answers: Sequence[Answer]) -> tuple[str, str] | None:
    """Return why no correction of these answers is a training row, as reason and detail; None if one may be.

    An answer that ran into its token limit is no reason: what a person writes instead is whole.
    """
    # Loops, not `any`: a build asks this of every row, and nearly all have one answer.
    truncated, refused = call.truncated, False
    for answer in answers:
        truncated = truncated or answer.truncated
        refused = refused or answer.refusal is not None or answer.finish_reason is FinishReason.CONTENT_FILTER
    if truncated:
        return (
            "truncated",
            "the conversation or its answer is too long for an event, or has something that none has",
        )
    if refused:
        return "refused", "the model, or a filter of its server, refused to answer"
    for message in call.messages:
        for part in message.content if isinstance(message.content, tuple) else ():
            if part.type == TOKEN_IDS:
                return "token_ids", "a prompt of token ids, which is no text"
            if part.media is not None or part.text is None:
                return "media", f"a part of type {part.type}, which the event does not have"
    said: tuple[Message | Answer, ...] = (*call.messages, *answers)
    for words in said:
        for tool_call in words.tool_calls:
            if tool_call.type != "function":
                return "custom_tool", "a call of a custom tool, which chat templates do not know"
    if call.api is Api.COMPLETIONS:
        return "completions", "a prompt that no chat template was put around, as it is around all that is trained on"
    if call.messages[-1].role == Role.ASSISTANT:
        return "continued", "an answer behind a message of the assistant, which it goes on from: half of one"
    return None
