"""Conversations and answers as HTML: who speaks, tool calls with their results, media, reasoning, what was cut.

Every text of an event is escaped here. Nothing says which model gave an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from schemas.conversation import INSTRUCTIONS, Answer, Call, Media, Message, Part, Role, ToolCall
from services.console.pages.layout import laid_out

CUT_CALL = "Not all of this conversation is here: it was too long, or has something that cannot be shown."
CUT_ANSWER = "Not all of this answer is here: it was too long, or had something that cannot be shown."
_LARGE_TEXT = 300
"""Up to so many characters the last thing that a user said is in large type."""
_PREVIEW = 90
_WHO: dict[str, str] = {Role.SYSTEM: "System", Role.USER: "User", Role.ASSISTANT: "Assistant", Role.TOOL: "Tool result"}
_MEDIA = {"image": "Picture", "audio": "Sound", "video": "Film", "document": "Document", "text": "Embeddings"}
_LEFT_OUT = re.compile(r"\[… \d+ characters left out …\]")


def conversation(call: Call) -> str:
    """Return the whole conversation. A long one scrolls inside, and its end is in view."""
    turns, shown = [], set[int]()
    for position, message in enumerate(call.messages):
        if position not in shown:
            results = _results_of(call.messages, position)
            shown |= set(results)
            is_last = position == len(call.messages) - 1
            turns.append(_turn(message, [call.messages[result] for result in results], is_last))
    note = _note(CUT_CALL) if call.truncated else ""
    markup = f"<div class=talk tabindex=0><div>{_offered(call)}{''.join(turns)}</div></div>"
    return note + (_mark_cuts(markup) if call.truncated else markup)


def answer(given: Answer) -> str:
    """Return an answer: its reasoning collapsed, its text, its refusal and its tool calls."""
    parts = [_reasoning(given.reasoning), _said(given.text), _refusal(given.refusal)]
    parts += [_tool_call(call, ()) for call in given.tool_calls]
    markup = "".join(parts) or "<div class='muted'>(an empty answer)</div>"
    return _note(CUT_ANSWER) + _mark_cuts(markup) if given.truncated else markup


def is_text_alone(given: Answer) -> bool:
    """Return True for an answer that is a text and nothing else."""
    return given == Answer(text=given.text, finish_reason=given.finish_reason)


def _results_of(messages: Sequence[Message], position: int) -> list[int]:
    """The positions of the tools' results for a message's calls: ids need not be unique beyond the next answer."""
    ids = {call.id for call in messages[position].tool_calls if call.id is not None}
    found = []
    for following in range(position + 1, len(messages)):
        message = messages[following]
        if message.role == Role.ASSISTANT or not ids:
            break
        if message.role == Role.TOOL and message.tool_call_id in ids:
            found.append(following)
    return found


def _turn(message: Message, results: Sequence[Message], is_last: bool) -> str:
    who = _WHO.get(message.role, message.role) + (f" · {message.name}" if message.name else "")
    calls = (_tool_call(call, [r for r in results if r.tool_call_id == call.id]) for call in message.tool_calls)
    large = message.role == Role.USER and is_last and len(message.text) <= _LARGE_TEXT
    said = _content(message.content, "said question" if large else "said", is_result=message.role == Role.TOOL)
    body = "".join((_reasoning(message.reasoning), said, _refusal(message.refusal), *calls))
    if message.role in INSTRUCTIONS and not is_last:
        return _collapsed(who, " ".join(message.text.split())[:_PREVIEW], body)
    kind = "model" if message.role == Role.ASSISTANT else ""
    return f"<div class='turn {kind}'><b class=who>{escape(who)}</b>{body}</div>"


def _content(content: str | tuple[Part, ...] | None, classes: str, *, is_result: bool = False) -> str:
    """A message's text and the chips of its media. A tool's result is often JSON, which is laid out."""
    if isinstance(content, tuple):
        return "".join(_part(part, classes, is_result=is_result) for part in content)
    return _code(content) if is_result and content else _said(content, classes)


def _part(part: Part, classes: str, *, is_result: bool) -> str:
    if part.media is not None:
        return _chip(part.media)
    if part.text is None:
        return f"<span class=chip>{escape(part.type)}</span>"
    return _refusal(part.text) if part.type == "refusal" else _content(part.text, classes, is_result=is_result)


def _chip(media: Media) -> str:
    """The kind, type and size of what the event has by reference only."""
    size = "by its address" if media.size is None else _size(media.size)
    words = " · ".join(escape(word) for word in (media.media_type, size) if word)
    return f"<span class=chip><b>{_MEDIA[media.kind]}</b> {words}</span>"


def _size(size: int) -> str:
    if size < 1_000:
        return f"{size} bytes"
    return f"{size / 1_000:,.0f} kB" if size < 1_000_000 else f"{size / 1_000_000:,.1f} MB"


def _tool_call(call: ToolCall, results: Sequence[Message]) -> str:
    given = "".join(
        f"<div class=result><b class=who>Result</b>{_content(result.content, 'said', is_result=True)}</div>"
        for result in results
    )
    return (
        f"<div class=call><b class=who>Calls</b> <code>{escape(call.name)}</code>{_code(call.arguments)}{given}</div>"
    )


def _code(text: str) -> str:
    return f"<pre>{escape(laid_out(text))}</pre>" if text else ""


def _said(text: str | None, classes: str = "said") -> str:
    return f"<div class='{classes}'>{escape(text)}</div>" if text else ""


def _refusal(text: str | None) -> str:
    return f"<div class='said refusal'><b class=who>Refuses</b>{escape(text)}</div>" if text else ""


def _reasoning(text: str | None) -> str:
    return _collapsed("Reasoning", f"{len(text):,} characters", _said(text), "aside") if text else ""


def _offered(call: Call) -> str:
    """The tools that the model could call and the format that its answer must have, collapsed."""
    offered = ""
    if call.tools:
        names = ", ".join(map(_tool_name, call.tools))
        offered += _collapsed("Tools", names, "".join(_code(json.dumps(tool)) for tool in call.tools))
    if call.response_format is not None:
        offered += _collapsed("Required format", "", _code(json.dumps(call.response_format)))
    return offered


def _collapsed(title: str, note: str, body: str, classes: str = "turn aside") -> str:
    """Something that is rarely read, behind its title and a note."""
    return f"<details class='{classes}'><summary><b>{escape(title)}</b> {escape(note)}</summary>{body}</details>"


def _tool_name(tool: dict[str, Any]) -> str:
    """The name of a tool: the chat API has it in `function`, the others at the root."""
    inner = tool.get(str(tool.get("type")))
    named = inner if isinstance(inner, dict) else tool
    return str(named.get("name") or tool.get("type") or "?")


def _note(text: str) -> str:
    return f"<div class=note>{escape(text)}</div>"


def _mark_cuts(markup: str) -> str:
    """Make the places visible where texts were cut."""
    return _LEFT_OUT.sub(lambda found: f"<mark>{found.group()}</mark>", markup)
