"""Cuts a call or an answer to a size, as JSON: an event must fit a Kafka record. Pure.

The longest texts are cut first, in their middle, to one common length: most of a long conversation is in few of its
messages. They are cut between lines, sentences or at least words: half of an address or of a number would no longer be
found as personal data. Only if a hundred thousand short messages, or parts or calls of one, are too many are some left
out, of the middle, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from schemas.conversation import Answer, Call
from shared.text_ends import first_end, last_end

QUESTION_BYTES = 256 * 1024
"""The most of a conversation, and of an answer, that a person is asked about."""
_MARK = "\n[… {} characters left out …]\n"
_MARK_BYTES = 48
_MIN_KEPT = 64
_MARGIN = 1_024
"""Characters in which a place to cut is looked for, and an eighth of what is kept at most."""
_MESSAGE_TEXTS = ("content", "reasoning", "refusal")


def bounded_call(call: Call, max_bytes: int = QUESTION_BYTES) -> Call:
    """Return the call, cut and marked as truncated if its JSON is longer than `max_bytes`."""
    data = call.model_dump(mode="json", exclude_defaults=True)
    return call if (cut := cut_call(data, max_bytes)) is data else Call.model_validate(cut)


def bounded_answer(answer: Answer, max_bytes: int = QUESTION_BYTES) -> Answer:
    """Return the answer as an `Answer`, cut and marked as truncated if its JSON is longer than `max_bytes`."""
    fields = set(Answer.model_fields)
    data = answer.model_dump(mode="json", exclude_defaults=True, include=fields)
    return Answer.model_validate(cut_answer(data, max_bytes))


def cut_call(call: dict[str, Any], max_bytes: int) -> dict[str, Any]:
    """Return the call itself if it fits in `max_bytes` as JSON, else a shorter copy that is marked as truncated."""
    if _size(call) <= max_bytes:
        return call
    cut: dict[str, Any] = orjson.loads(orjson.dumps(call))
    cut["truncated"] = True
    for name in ("parameters", "tools", "tool_choice", "response_format"):  # Half of an object would be none.
        if _size(cut.get(name)) > max_bytes // 4:
            cut.pop(name)
    _shorten(list(_call_texts(cut)), _size(cut) - max_bytes)
    if (excess := _size(cut) - max_bytes) > 0:
        cut["messages"] = _without_middle(cut["messages"], excess)
        excess = _size(cut) - max_bytes
        for holder, name in [(message, name) for message in cut["messages"] for name in ("content", "tool_calls")]:
            if excess <= 0:
                break
            if isinstance(items := holder.get(name), list):
                holder[name] = _without_middle(items, excess)
                excess -= _size(items) - _size(holder[name])
    return cut


def cut_answer(answer: dict[str, Any], max_bytes: int) -> dict[str, Any]:
    """Return the answer itself if it fits in `max_bytes` as JSON, else a shorter copy that is marked as truncated."""
    if _size(answer) <= max_bytes:
        return answer
    cut: dict[str, Any] = orjson.loads(orjson.dumps(answer))
    cut["truncated"] = True
    _shorten(list(_answer_texts(cut)), _size(cut) - max_bytes)
    if _size(cut) > max_bytes:
        cut["tool_calls"] = []
    return cut


def cut_text(text: str, max_bytes: int) -> str:
    """Return the text itself if it fits in `max_bytes` as JSON, else its beginning and its end."""
    holder = {"text": text}
    if (found := _Text(holder, "text")).size > max_bytes:
        found.cut(max_bytes)
    return holder["text"]


class _Text:
    """A text in an object: `holder[name]`."""

    __slots__ = ("holder", "is_json", "name", "size")

    def __init__(self, holder: dict[str, Any], name: str, *, is_json: bool = False) -> None:
        self.holder = holder
        self.name = name
        self.is_json = is_json
        self.size = _size(holder[name])

    def cut(self, max_bytes: int) -> None:
        """Cut the text to about `max_bytes` of JSON. A text that is JSON becomes a JSON string of what is left."""
        text: str = self.holder[self.name]
        kept = max(_MIN_KEPT, int(len(text) * max_bytes / self.size) - _MARK_BYTES)
        if kept >= len(text):
            return
        end, start = kept - kept // 2, len(text) - kept // 2
        margin = min(_MARGIN, kept // 8)
        end = last_end(text, end - margin, end) or end
        start = first_end(text, start, start + margin) or start
        shorter = text[:end] + _MARK.format(start - end) + text[start:]
        if self.is_json:
            shorter = orjson.dumps(shorter).decode()
        self.holder[self.name] = shorter


def _call_texts(call: dict[str, Any]) -> Iterator[_Text]:
    for message in call["messages"]:
        yield from _texts(message, _MESSAGE_TEXTS)
        if isinstance(message.get("content"), list):
            for part in message["content"]:
                yield from _texts(part, ("text",))
        yield from _arguments(message)


def _answer_texts(answer: dict[str, Any]) -> Iterator[_Text]:
    yield from _texts(answer, ("text", "refusal", "reasoning"))
    yield from _arguments(answer)


def _texts(holder: dict[str, Any], names: tuple[str, ...]) -> Iterator[_Text]:
    for name in names:
        if isinstance(holder.get(name), str):
            yield _Text(holder, name)


def _arguments(holder: dict[str, Any]) -> Iterator[_Text]:
    for call in holder.get("tool_calls") or ():
        if isinstance(call.get("arguments"), str):
            yield _Text(call, "arguments", is_json=True)


def _shorten(texts: list[_Text], excess: int) -> None:
    """Cut the longest texts to one common length, so that together they lose `excess` bytes, as far as they can."""
    texts.sort(key=lambda text: -text.size)
    freed, limit, count = 0, 0, 0
    for count, text in enumerate(texts, start=1):
        freed += text.size
        following = texts[count].size if count < len(texts) else 0
        limit = (freed - excess) // count - 2 * _MARK_BYTES
        if limit >= following:
            break
    for text in texts[:count]:
        text.cut(max(limit, 0))


def _without_middle(items: list[Any], excess: int) -> list[Any]:
    """Leave out items from the second on until `excess` bytes are gone; the last one stays."""
    end = 1
    while excess > 0 and end < len(items) - 1:
        excess -= _size(items[end]) + 1
        end += 1
    return [*items[:1], *items[end:]]


def _size(value: Any) -> int:
    return len(orjson.dumps(value))
