"""What a sample of a task's logged answers says: their form, the words of those who ask, models and latency. Pure."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.base import Variant
from schemas.tasks import TaskSpec
from shared.answers import answer_form
from shared.conversation import json_asked_for
from shared.grading.json_values import read_json

COLUMNS = (
    "messages", "tools", "response_format", "constrained", "truncated", "answer", "tool_calls", "latency_ms",
    "prompt_tokens", "answer_tokens", "task_revision", "model", "variant",
)  # fmt: skip
"""The columns of the lake's table `predictions` that are read."""
MIN_ANSWERS = 50
"""Fewer say nothing about words and latency."""
_PLAIN_LETTERS = 0x250
"""Beyond it are scripts that put no spaces between words, or that a tokenizer for English cuts into bytes."""
_MAX_OTHER_LETTERS = 0.2
_MIN_WORDS_SPREAD = 0.5
"""Standard deviation, in words: where prompts differ by less, their tokens say nothing of a word's."""


@dataclass(frozen=True)
class ModelUse:
    """Answers of one external model; `model` None: of the task's base model, adapters included.

    `seconds`, `prompt_tokens` and `answer_tokens` are means of those answers that have them; None: none has.
    """

    model: str | None
    answers: int
    seconds: float | None
    prompt_tokens: float | None
    answer_tokens: float | None


@dataclass(frozen=True)
class LogFacts:
    """As in `Facts`. `uses`: a use for each model that answered."""

    answers: int
    machine_read: float | None = None
    broken: float | None = None
    tokens_per_word: float | None = None
    p95_ms: float | None = None
    uses: tuple[ModelUse, ...] = ()


def log_facts(rows: Sequence[Mapping[str, Any]], spec: TaskSpec) -> LogFacts:
    """Return what rows of the lake with `COLUMNS` say about the task. Rows of other revisions count as well."""
    if not rows:
        return LogFacts(answers=0)
    strict = [row for row in rows if row["constrained"] or row["tools"] or _asks_for_json(row)]
    judged = rows if answer_form(spec).is_exact else [row for row in rows if _asks_for_json(row)]
    latencies = sorted(float(row["latency_ms"]) for row in rows if row["latency_ms"] > 0)
    enough = len(latencies) >= MIN_ANSWERS
    return LogFacts(
        answers=len(rows),
        machine_read=len(strict) / len(rows),
        broken=statistics.fmean(not _has_form(row, spec) for row in judged) if judged else None,
        tokens_per_word=_tokens_per_word(rows),
        p95_ms=latencies[int(0.95 * (len(latencies) - 1))] if enough else None,
        uses=_uses(rows),
    )


def _uses(rows: Sequence[Mapping[str, Any]]) -> tuple[ModelUse, ...]:
    """Group the rows by who is to be paid for them."""
    by_model = defaultdict[str | None, list[Mapping[str, Any]]](list)
    for row in rows:
        by_model[row["model"] if row["variant"] == Variant.EXTERNAL else None].append(row)
    return tuple(_use(model, given) for model, given in by_model.items())


def _use(model: str | None, rows: Sequence[Mapping[str, Any]]) -> ModelUse:
    timed = [row["latency_ms"] / 1000 for row in rows if row["latency_ms"] > 0]
    counted = [row for row in rows if row["prompt_tokens"] > 0]  # No prompt has none: its sender did not count.
    return ModelUse(
        model,
        answers=len(rows),
        seconds=statistics.fmean(timed) if timed else None,
        prompt_tokens=statistics.fmean(row["prompt_tokens"] for row in counted) if counted else None,
        answer_tokens=statistics.fmean(row["answer_tokens"] for row in counted) if counted else None,
    )


def _asks_for_json(row: Mapping[str, Any]) -> bool:
    return bool(row["response_format"]) and json_asked_for(json.loads(row["response_format"])) is not None


def _has_form(row: Mapping[str, Any], spec: TaskSpec) -> bool:
    """True if the answer is a label, fits the task's schema or functions, is JSON where that was asked for, or calls a
    tool."""
    if row["tool_calls"] and not spec.tools:
        return True
    form = answer_form(spec)
    if form.is_exact:
        return form.problem(row["answer"].strip()) is None
    try:
        read_json(row["answer"])
    except ValueError:
        return False
    return True


def _tokens_per_word(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The slope of prompt tokens over words.

    So what is the same in every prompt does not count. Of calls with different tools, formats or numbers of messages,
    the commonest are taken: definitions, and what a chat template puts around each message, have tokens, too. Whole
    conversations with tool calls, pictures or what was cut are left out: those tokens are not of words that are here.
    None for few rows, prompts of one length, a log without token counts, and scripts without spaces.
    """
    alike = defaultdict[tuple[Any, ...], list[tuple[str, float]]](list)
    for row in rows:
        if row["prompt_tokens"] > 0 and not row["truncated"]:
            messages = json.loads(row["messages"])
            if all(map(_is_of_words, messages)):
                form = row["tools"], row["response_format"], len(messages)
                alike[form].append((_said(messages), float(row["prompt_tokens"])))
    counted = max(alike.values(), key=len, default=[])
    texts = [text for text, _ in counted]
    letters = [character for text in texts for character in text if character.isalpha()]
    other = sum(ord(character) >= _PLAIN_LETTERS for character in letters)
    if len(texts) < MIN_ANSWERS or other > _MAX_OTHER_LETTERS * len(letters):
        return None
    words = [float(len(text.split())) for text in texts]
    if statistics.pstdev(words) < _MIN_WORDS_SPREAD:
        return None
    return statistics.linear_regression(words, [tokens for _, tokens in counted]).slope


def _is_of_words(message: Mapping[str, Any]) -> bool:
    """True for a message without tool calls, their results, pictures and other parts that are no text."""
    if message.get("tool_calls") or message.get("tool_call_id") or message["role"] == "tool":
        return False
    return all(isinstance(part.get("text"), str) for part in _parts(message))


def _parts(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else [{"text": content or ""}]


def _said(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of messages, instructions included: they have tokens, too."""
    return " ".join(part["text"] for message in messages for part in _parts(message))
