"""What a sample of a task's logged answers says: their form, the words of those who ask, latency and cost. Pure."""

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
from shared.model.prices import PriceList

COLUMNS = (
    "messages", "tools", "response_format", "constrained", "truncated", "answer", "tool_calls", "latency_ms",
    "prompt_tokens", "answer_tokens", "model", "variant",
)  # fmt: skip
"""The columns of the lake's table `predictions` that are read."""
MIN_ANSWERS = 50
"""Fewer say nothing about words and latency."""


@dataclass(frozen=True)
class LogFacts:
    """What a log says. None: it cannot be told from this one.

    `machine_read`: the share of requests whose answer a program reads (labels, a schema, tool calls, JSON).
    `broken`: the share of answers that are not in the form asked for. `tokens_per_word` of what users write: plain
    English has about 1.3. `answer_cost`: the mean; `unpriced`: models whose answers have no price.
    """

    answers: int = 0
    machine_read: float | None = None
    broken: float | None = None
    tokens_per_word: float | None = None
    p95_ms: float | None = None
    answer_cost: float | None = None
    unpriced: tuple[str, ...] = ()


def log_facts(
    rows: Sequence[Mapping[str, Any]], spec: TaskSpec, prices: PriceList, measured: float | None = None
) -> LogFacts:
    """Return what rows of the lake with `COLUMNS` say about the task. Rows of other revisions count as well.

    `measured`: what an answer of the task's own models costs by the last evaluation. None: a replica is taken to answer
    one request at a time, which is the most that it costs.
    """
    if not rows:
        return LogFacts()
    strict = [row for row in rows if row["constrained"] or row["tools"] or _asks_for_json(row)]
    judged = rows if answer_form(spec).is_exact else [row for row in rows if _asks_for_json(row)]
    latencies = sorted(float(row["latency_ms"]) for row in rows if row["latency_ms"] > 0)
    costs = [_cost(row, spec, prices, measured) for row in rows]
    unpriced = {row["model"] for row, cost in zip(rows, costs, strict=True) if cost is None}
    return LogFacts(
        answers=len(rows),
        machine_read=len(strict) / len(rows),
        broken=statistics.fmean(not _has_form(row, spec) for row in judged) if judged else None,
        tokens_per_word=_tokens_per_word(rows),
        p95_ms=latencies[int(0.95 * (len(latencies) - 1))] if len(latencies) >= MIN_ANSWERS else None,
        answer_cost=None if unpriced else statistics.fmean(cost for cost in costs if cost is not None),
        unpriced=tuple(sorted(unpriced)),
    )


def _cost(row: Mapping[str, Any], spec: TaskSpec, prices: PriceList, measured: float | None) -> float | None:
    """What an answer costs; None without a price, or what it is reckoned by. No default stands for other models."""
    is_external = row["variant"] == Variant.EXTERNAL
    if not is_external and measured is not None:
        return measured
    model = row["model"] if is_external else spec.base_model
    counted = row["prompt_tokens"] if prices.serving(model).by_tokens else row["latency_ms"]
    if not counted or (is_external and model not in prices.models):
        return None
    return prices.model_answer(model, row["latency_ms"] / 1000, row["prompt_tokens"], row["answer_tokens"]).amount


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
    """The slope of prompt tokens over words, so what is the same in every prompt does not count.

    Of conversations of texts alone, those of the commonest length are taken: what a chat template puts around each
    message has tokens, too. None for few rows, prompts of one length, and a log without token counts.
    """
    by_length = defaultdict[int, list[tuple[int, int]]](list)
    for row in rows:
        messages = json.loads(row["messages"])
        is_plain = not row["tools"] and all(
            isinstance(message.get("content"), str) and message["role"] != "tool" and not message.get("tool_calls")
            for message in messages
        )
        if is_plain and row["prompt_tokens"] > 0 and not row["truncated"]:
            words = " ".join(message["content"] for message in messages).split()
            by_length[len(messages)].append((len(words), row["prompt_tokens"]))
    counted = max(by_length.values(), key=len, default=[])
    if len(counted) < MIN_ANSWERS or len({words for words, _ in counted}) == 1:
        return None
    return statistics.linear_regression(*zip(*counted, strict=True)).slope
