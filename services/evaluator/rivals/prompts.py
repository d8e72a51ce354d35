"""Which examples stand in a few-shot prompt, and which rows are asked. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import replace

from schemas.conversation import INSTRUCTIONS, Message, Messages, Role
from schemas.datasets import Example
from services.evaluator.domain import Question
from shared.conversation import comparable_text
from shared.identity import content_hash

ASKED_ROWS = 40
"""Held-out rows that prompts with examples are asked: long prompts take a small engine seconds."""
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


def balanced_shots(train: Sequence[Example], prompts: Container[str] = ()) -> list[Example]:
    """Return at most `MAX_SHOTS` examples, one of each answer in turn, within `MAX_CHARACTERS`."""
    by_answer: dict[str, list[Example]] = defaultdict(list)
    for example in in_stable_order(train):
        by_answer[example.answer].append(example)
    waiting = list(by_answer.values())
    ordered: list[Example] = []
    while waiting and len(ordered) < MAX_SHOTS:
        ordered += [examples.pop(0) for examples in waiting]
        waiting = [examples for examples in waiting if examples]
    return within_budget(ordered[:MAX_SHOTS], prompts)


def within_budget(examples: Sequence[Example], prompts: Container[str] = ()) -> list[Example]:
    """Return the examples, in their order, without those that no longer fit into `MAX_CHARACTERS`."""
    chosen, used = [], 0
    for example in examples:
        size = sum(len(message.text) for message in _turns(example.messages, prompts))
        if used + size <= MAX_CHARACTERS:
            chosen.append(example)
            used += size
    return chosen


def with_shots(question: Question, shots: Sequence[Example], prompts: Container[str] = ()) -> Question:
    """Return the question with examples as earlier turns of the conversation, behind its instructions.

    A document that an example has where instructions stand is part of what its user says: a second system message is
    one that chat templates refuse.
    """
    instructions = tuple(message for message in question.messages if message.role in INSTRUCTIONS)
    asked = tuple(message for message in question.messages if message.role not in INSTRUCTIONS)
    turns = tuple(turn for example in shots for turn in _turns(example.messages, prompts))
    return replace(question, messages=(*instructions, *turns, *asked))


def _turns(messages: Messages, prompts: Container[str]) -> tuple[Message, ...]:
    turns = tuple(message for message in messages if message.role not in INSTRUCTIONS)
    asked = comparable_text(turns[:-1])
    given = comparable_text(messages[:-1], prompts)
    if given == asked or turns[0].role != Role.USER:  # Equal where there is no document.
        return turns
    documents = [m.text for m in messages if m.role in INSTRUCTIONS and m.text not in prompts]
    first = turns[0].model_copy(update={"content": "\n\n".join([*documents, turns[0].text])})
    return (first, *turns[1:])


def _rank(messages: Messages) -> str:
    return content_hash(*(f"{message.role}:{message.text}" for message in messages), length=24)
