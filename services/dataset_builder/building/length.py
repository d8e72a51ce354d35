"""How long an example may be, in tokens of the base model: a longer one would be cut and teach half an answer. Pure.

Most examples are so short that their bytes already say so, and nobody counts their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schemas.conversation import JsonObject, Message
from schemas.tasks import TaskSpec
from services.dataset_builder.building.chat_format import Rejection

_TEMPLATE_TOKENS = 32
"""More than a chat template adds to a message: its role and the marks around it."""

CountTokens = Callable[[Sequence[Message], Sequence[JsonObject]], int | None]
"""Returns the tokens of an example by the base model's tokenizer and chat template (`chat_tokens.py`); None if the
template does not take the conversation, or drops its calls."""


def length_error(
    messages: Sequence[Message], tools: Sequence[JsonObject], spec: TaskSpec, count: CountTokens | None
) -> Rejection | None:
    """Return why an example is too long, or is none for this base model; None if it is neither.

    `count`: None where the base model is not on this machine. The trainer leaves such rows out as well.
    """
    limit = spec.training.max_length
    if count is None or (_is_plain(messages, tools) and _max_tokens(messages) <= limit):
        return None
    tokens = count(messages, tools)
    if tokens is None:
        return "not_rendered", f"the chat template of {spec.base_model} does not take this conversation"
    if tokens > limit:
        return "too_many_tokens", f"{tokens} tokens of {spec.base_model}; training.max_length is {limit}"
    return None


def _is_plain(messages: Sequence[Message], tools: Sequence[JsonObject]) -> bool:
    """True for a conversation without tools, which a template writes down as it is. A list: see `never_trained`."""
    return not tools and not any([message.tool_calls or message.role == "tool" for message in messages])


def _max_tokens(messages: Sequence[Message]) -> int:
    """A token has at least a byte, and an empty system prompt may be replaced by the template's own."""
    texts = [message.text + (message.reasoning or "") + (message.name or "") for message in messages]
    return len("".join(texts).encode()) + _TEMPLATE_TOKENS * (len(messages) + 2)
