"""Which examples stand in a few-shot prompt, and which rows are asked. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from schemas.conversation import INSTRUCTIONS, Messages
from schemas.datasets import Example
from services.evaluator.domain import Question
from shared.identity import content_hash

MAX_SHOTS = 16
MAX_NEAREST = 8
MAX_CHARACTERS = 4_000
"""Of all examples in a prompt, about 1,000 tokens: a small model's context must have room for the question."""


def sample_rows(questions: Sequence[Question], rows: int) -> list[int]:
    """Return the positions of at most `rows` questions, ascending: the same ones whenever the same are asked."""
    by_hash = sorted(range(len(questions)), key=lambda position: _rank(questions[position].messages))
    return sorted(by_hash[:rows])


def in_stable_order(train: Sequence[Example]) -> list[Example]:
    """Return the examples in an order that has nothing to do with how they came: the first ones are a sample."""
    return sorted(train, key=lambda example: _rank(example.messages))


def conversation_text(messages: Messages) -> str:
    """Return what a conversation says, without instructions: what classifiers and embeddings read."""
    return "\n".join(message.text for message in messages if message.role not in INSTRUCTIONS)


def balanced_shots(train: Sequence[Example]) -> list[Example]:
    """Return at most `MAX_SHOTS` examples, one of each answer in turn, within `MAX_CHARACTERS`."""
    by_answer: dict[str, list[Example]] = defaultdict(list)
    for example in in_stable_order(train):
        by_answer[example.answer].append(example)
    waiting = list(by_answer.values())
    ordered: list[Example] = []
    while waiting and len(ordered) < MAX_SHOTS:
        ordered += [examples.pop(0) for examples in waiting]
        waiting = [examples for examples in waiting if examples]
    return within_budget(ordered[:MAX_SHOTS])


def within_budget(examples: Sequence[Example]) -> list[Example]:
    """Return the examples, in their order, without those that no longer fit into `MAX_CHARACTERS`."""
    chosen, used = [], 0
    for example in examples:
        size = len(conversation_text(example.messages))
        if used + size <= MAX_CHARACTERS:
            chosen.append(example)
            used += size
    return chosen


def with_shots(question: Question, shots: Sequence[Example]) -> Question:
    """Return the question with examples as earlier turns of the conversation, behind its instructions."""
    instructions = tuple(message for message in question.messages if message.role in INSTRUCTIONS)
    asked = tuple(message for message in question.messages if message.role not in INSTRUCTIONS)
    turns = tuple(m for example in shots for m in example.messages if m.role not in INSTRUCTIONS)
    return replace(question, messages=(*instructions, *turns, *asked))


def _rank(messages: Messages) -> str:
    return content_hash(*(f"{message.role}:{message.text}" for message in messages), length=24)
