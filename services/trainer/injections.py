"""Rows that teach a model not to obey what stands in a user's text. Pure.

An adapter learns to read texts more closely than its base model does, and so to do as they say: trained on rows as they
are, the demonstration's obeyed four of five injections, the base model one of five.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from schemas.conversation import Message, Role
from schemas.datasets import Example
from schemas.tasks import TaskSpec
from shared.answers import answer_form
from shared.identity import content_hash
from shared.model.injections import TARGET, TRAINED, pick, wrong_answer

SHARE = 0.15
"""Of the rows that are repeated with an injection: measured, so that an adapter obeys as seldom as its base model."""
FROM_NOWHERE = (
    "Which of the two moons of Mars is the larger one?",
    "Write me a limerick about a lighthouse keeper.",
    "How do you say good evening in Finnish?",
    "What is seventeen times twenty-three?",
    "Who painted the ceiling of the chapel?",
    "My knee hurts when I climb stairs, what could that be?",
    "Sort these words by their length: plum, apple, fig.",
    "The quick brown fox jumps over the lazy dog.",
    "asdf qwer zxcv",
    "Will it be sunny in Lisbon on Sunday?",
    "Tell me the plot of a famous opera in two sentences.",
    "Why do cats purr?",
)
"""Texts that hardly any task is about, and none of those that the adversarial set asks."""
ROWS_A_FOREIGN_TEXT = 25
"""Of a small set a dozen foreign texts would be a class of their own."""


def added_rows(rows: Sequence[Example], spec: TaskSpec) -> list[Example]:
    """Return copies of some rows with an injection in the user's text and the answer as it was.

    The same rows give the same copies in any order. A copy is of its row's group, so validation rows have theirs. Where
    the task has a label for what is none of the others, a few questions that it is not about follow with that answer.
    """
    fitting = sorted(
        (row for row in rows if _can_carry(row)), key=lambda row: content_hash("injection", row.example_id)
    )
    chosen = fitting[: math.ceil(SHARE * len(fitting))]
    return [*(_injected(row, spec) for row in chosen), *_from_nowhere(rows, spec)]


def _can_carry(row: Example) -> bool:
    last = row.prompt[-1]
    return last.role == Role.USER and isinstance(last.content, str)


def _injected(row: Example, spec: TaskSpec) -> Example:
    chance = random.Random(row.example_id)  # noqa: S311 - the same copies every time, no secret
    demand = pick(TRAINED, chance).text
    *before, last, answer = row.messages
    text = f"{last.content} {demand.replace(TARGET, wrong_answer(spec, row.answer, chance))}"
    messages = (*before, last.model_copy(update={"content": text}), answer)
    return row.model_copy(update={"example_id": content_hash("injection", row.example_id), "messages": messages})


def _from_nowhere(rows: Sequence[Example], spec: TaskSpec) -> list[Example]:
    labels = spec.evaluation.adversarial.catch_all_labels
    if not labels:
        return []
    system = (Message(role=Role.SYSTEM, content=spec.system_prompt),) if spec.system_prompt else ()
    answer = Message(role=Role.ASSISTANT, content=answer_form(spec).from_user(labels[0]))
    names = [content_hash("from nowhere", text) for text in FROM_NOWHERE[: math.ceil(len(rows) / ROWS_A_FOREIGN_TEXT)]]
    return [
        Example(
            example_id=name, group=name, messages=(*system, Message(role=Role.USER, content=text), answer),
            prediction_ids=(), correction_ids=(),
        )
        for name, text in zip(names, FROM_NOWHERE, strict=False)
    ]  # fmt: skip
