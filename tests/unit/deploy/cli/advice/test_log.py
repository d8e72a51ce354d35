"""What `ratchet advise` reads in a log: the form of answers, the words of those who ask, latency and cost."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from deploy.cli.advice.log import MIN_ANSWERS, log_facts
from schemas.tasks import TaskSpec
from shared.model.prices import Price, PriceList, Serving

LABELS = TaskSpec.model_validate(
    {"name": "desk", "kind": "classification", "system_prompt": "Say.", "labels": ["refund", "login"]}
)
TEXT = TaskSpec.model_validate({"name": "reply", "kind": "generation", "system_prompt": "Reply."})
FIELDS = TaskSpec.model_validate({
    "name": "order", "kind": "extraction", "system_prompt": "Read.",
    "output_schema": {
        "type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"],
        "additionalProperties": False,
    },
})  # fmt: skip
TODAY = date(2026, 11, 26)
PRICES = PriceList(
    currency="USD",
    gpu_hour=Price(price=2.5, as_of=TODAY),
    cpu_hour=Price(price=0.05, as_of=TODAY),
    models={
        "default": Serving(gpus=1),
        "big": Serving(million_prompt_tokens=5.0, million_answer_tokens=15.0, as_of=TODAY),
    },
)
JSON_FORMAT = json.dumps({"type": "json_object"})


def row(number: int = 0, answer: str = "refund", **changes: Any) -> dict[str, Any]:
    """A row of the lake: a prompt of 20 + 1.3 tokens a word."""
    words = 5 + number % 20
    messages = [{"role": "system", "content": "Say."}, {"role": "user", "content": "word " * words}]
    return {
        "messages": json.dumps(messages), "tools": None, "response_format": None, "constrained": False,
        "truncated": False,
        "answer": answer, "tool_calls": None, "latency_ms": 100.0 + number, "prompt_tokens": round(20 + 1.3 * words),
        "answer_tokens": 3, "task_revision": "r", "model": "base", "variant": "base", **changes,
    }  # fmt: skip


def test_the_tokens_of_a_word_do_not_count_what_every_prompt_has() -> None:
    rows = [row(n) for n in range(200)]
    found = log_facts(rows, LABELS, PRICES).tokens_per_word
    assert found == pytest.approx(1.3, abs=0.05)
    longer = [{**r, "prompt_tokens": r["prompt_tokens"] + 500} for r in rows]
    assert log_facts(longer, LABELS, PRICES).tokens_per_word == pytest.approx(found)


def test_words_are_not_counted_in_few_rows_of_one_length_or_without_counts() -> None:
    assert log_facts([row(n) for n in range(MIN_ANSWERS - 1)], LABELS, PRICES).tokens_per_word is None
    assert log_facts([row(7)] * 100, LABELS, PRICES).tokens_per_word is None
    assert log_facts([row(n, prompt_tokens=0) for n in range(100)], LABELS, PRICES).tokens_per_word is None


def chat(number: int, turns: int, tokens_per_word: float = 1.22, template: int = 5, **changes: Any) -> dict[str, Any]:
    """A row whose conversation has `turns` messages, each with tokens of a chat template around a sentence."""
    lengths = [3 + (5 * number + 3 * turn) % 7 for turn in range(turns)]
    roles = ["user" if turn % 2 == 0 else "assistant" for turn in range(turns)]
    messages = [{"role": role, "content": "word " * length} for role, length in zip(roles, lengths, strict=True)]
    tokens = round(3 + tokens_per_word * sum(lengths) + template * turns)
    return row(number, messages=json.dumps(messages), prompt_tokens=tokens, **changes)


@pytest.mark.parametrize("tokens_per_word", [1.22, 2.4])
@pytest.mark.parametrize("most", [1, 3, 13])
def test_a_conversation_s_turns_have_no_part_in_the_tokens_of_a_word(tokens_per_word: float, most: int) -> None:
    rows = [chat(n, turns, tokens_per_word) for n in range(60) for turns in range(1, most + 1, 2)]
    assert log_facts(rows, TEXT, PRICES).tokens_per_word == pytest.approx(tokens_per_word, abs=0.05)


def test_conversations_that_differ_in_the_number_of_equal_messages_tell_nothing_of_words() -> None:
    rows = [row(messages=json.dumps([{"role": "user", "content": "one two three"}] * n), prompt_tokens=9 * n)
            for n in range(1, 13)] * 5  # fmt: skip
    assert log_facts(rows, TEXT, PRICES).tokens_per_word is None


def test_tokens_of_tool_calls_in_a_conversation_are_no_tokens_of_words() -> None:
    plain = [chat(n, 1 + n % 3) for n in range(300)]
    call = {"role": "assistant", "tool_calls": [{"name": "find", "arguments": '{"number": 4711}'}]}
    result = {"role": "tool", "tool_call_id": "c", "content": '{"state":"in-transit","parcels":["JD-4711","JD-4712"]}'}
    for more in (call, result):
        longer = [[*json.loads(r["messages"]), *[more] * (1 + n % 4)] for n, r in enumerate(plain)]
        called = [row(n, messages=json.dumps(messages), prompt_tokens=90 * n) for n, messages in enumerate(longer)]
        assert log_facts([*plain, *called], TEXT, PRICES).tokens_per_word == pytest.approx(1.22, abs=0.05)
        assert log_facts(called, TEXT, PRICES).tokens_per_word is None


def test_tokens_of_pictures_definitions_and_cut_texts_are_no_tokens_of_words() -> None:
    plain = [chat(n, 1) for n in range(100)]
    picture = [{"role": "user", "content": [{"type": "text", "text": "word " * 30}, {"type": "image_url", "bytes": 9}]}]
    seen = [row(n, messages=json.dumps(picture), prompt_tokens=800) for n in range(60)]
    cut = [chat(n, 3, tokens_per_word=9.0, truncated=True) for n in range(60)]
    wordy = [{"role": "user", "content": "word " * 60}]
    defined = [row(n, messages=json.dumps(wordy), prompt_tokens=300, tools='[{"type":"function"}]') for n in range(60)]
    for others in (seen, cut, defined):
        assert log_facts([*plain, *others], TEXT, PRICES).tokens_per_word == pytest.approx(1.22, abs=0.05)
    assert log_facts(seen, TEXT, PRICES).tokens_per_word is None


@pytest.mark.parametrize("said", [{"type": "text"}, {"format": {"type": "text"}}, {"verbosity": "low"}])
def test_a_format_that_asks_for_no_json_is_read_by_people(said: dict[str, Any]) -> None:
    facts = log_facts([row(n, answer="a poem", response_format=json.dumps(said)) for n in range(60)], TEXT, PRICES)
    assert (facts.machine_read, facts.broken) == (0.0, None)
    asked = {"format": {"type": "json_schema", "name": "a", "schema": {}}}
    facts = log_facts([row(n, answer="a poem", response_format=json.dumps(asked)) for n in range(60)], TEXT, PRICES)
    assert (facts.machine_read, facts.broken) == (1.0, 1.0)


def test_the_form_of_an_answer_is_a_label_a_schema_json_or_a_call() -> None:
    assert log_facts([row(answer="refund"), row(answer="Refund!")], LABELS, PRICES).broken == 0.5
    amounts = [row(answer='{"amount": 5}'), row(answer='{"amount": "5"}'), row(answer="{}"), row(answer="5 euros")]
    assert log_facts(amounts, FIELDS, PRICES).broken == 0.75
    asked = [row(answer="{}", response_format=JSON_FORMAT), row(answer="```{}```", response_format=JSON_FORMAT)]
    facts = log_facts([*asked, row(answer="a poem"), row(answer="another")], TEXT, PRICES)
    assert (facts.machine_read, facts.broken) == (0.5, 0.5)
    assert log_facts([row(answer="a poem")], TEXT, PRICES).broken is None
    called = row(answer="", tool_calls="[{}]", tools="[{}]", response_format=JSON_FORMAT)
    assert log_facts([called], TEXT, PRICES).broken == 0.0


def test_latency_is_of_answers_that_took_time_and_there_must_be_enough_of_them() -> None:
    rows = [row(n) for n in range(100)] + [row(n, latency_ms=0.0) for n in range(100)]
    facts = log_facts(rows, LABELS, PRICES)
    assert facts.p95_ms == 194.0
    assert log_facts(rows[:20], LABELS, PRICES).p95_ms is None


def external(model: str, **changes: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": 1_500, "answer_tokens": 300, "latency_ms": 0.0}
    return row(variant="external", model=model, **{**counts, **changes})


def test_an_answer_costs_its_model_s_tokens_or_a_replica_s_time() -> None:
    assert log_facts([external("big")], TEXT, PRICES).answer_cost == pytest.approx(0.012)
    own = row(latency_ms=800.0, variant="primary", model="desk-v2")
    assert log_facts([own], TEXT, PRICES).answer_cost == pytest.approx(0.8 * 2.5 / 3_600)
    assert log_facts([own, external("big")], TEXT, PRICES, measured=0.001).answer_cost == pytest.approx(0.0065)


def test_a_model_without_a_price_or_counts_leaves_the_cost_unknown_and_is_named() -> None:
    for other in (external("other"), external("big", prompt_tokens=0), row(latency_ms=0.0, model="base")):
        found = log_facts([row(), other], TEXT, PRICES)
        assert (found.answer_cost, found.unpriced) == (None, (other["model"],))


def test_an_empty_log_says_nothing() -> None:
    facts = log_facts([], LABELS, PRICES)
    assert (facts.answers, facts.machine_read, facts.broken, facts.p95_ms) == (0, None, None, None)
