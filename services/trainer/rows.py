"""Turns examples into tokens with the base model's chat template, as vLLM does when it serves the adapter.

It is done here and not by TRL: given to TRL as messages they would pass through an Arrow table, which gives the
arguments of each tool call the names of all others, and templates would write them down.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError

from schemas.datasets import Example
from schemas.tasks import TaskSpec
from services.trainer.domain import SkippedRows, TrainingRow
from services.trainer.injections import added_rows
from shared.conversation import template_messages
from shared.errors import StepImpossible
from shared.grading.json_values import check_characters

logger = logging.getLogger(__name__)

_EMPTY_THOUGHT = re.compile(r"\s*(?:<think>)?\s*</think>\s*")


def tokenize_rows(rows: Sequence[Example], tokenizer: Any, spec: TaskSpec) -> tuple[list[TrainingRow], SkippedRows]:
    """The rows that can be trained on, and how many cannot: cut to `max_length` one would teach half an answer.

    Rows that teach not to obey a user's text (`injections.py`) come last; of them those that fit.

    Raises StepImpossible if no row is left, or if more than `max_skipped_share` cannot.
    """
    if not rows:
        raise StepImpossible("the data set has no training rows", f"Have answers of {spec.name} corrected.")
    limit = spec.training.max_length
    rendered = [tokens for row in rows if (tokens := tokenize(row, tokenizer)) is not None]
    fitting = [row for row in rendered if len(row.tokens) <= limit]
    skipped = SkippedRows(too_long=len(rendered) - len(fitting), not_rendered=len(rows) - len(rendered))
    share = skipped.total / len(rows)
    if not fitting or share > spec.training.max_skipped_share:
        longest = max((len(row.tokens) for row in rendered), default=0)
        raise StepImpossible(
            f"{skipped.total} of {len(rows)} training rows ({share:.0%}) cannot be trained on: {skipped.too_long} are "
            f"longer than {limit} tokens (the longest has {longest}), and {skipped.not_rendered} are not taken by the "
            f"chat template of {spec.base_model}",
            f"Raise training.max_length of {spec.name}, or choose a base model whose template knows tools. "
            "training.max_skipped_share says which share may be left out.",
        )
    if skipped.total:
        logger.warning(
            "%d of %d rows skipped: %d longer than %d tokens, %d that the chat template does not take",
            skipped.total, len(rows), skipped.too_long, limit, skipped.not_rendered,
        )  # fmt: skip
    rendered = [tokens for row in added_rows(rows, spec) if (tokens := tokenize(row, tokenizer)) is not None]
    return [*fitting, *(row for row in rendered if len(row.tokens) <= limit)], skipped


def tokenize(row: Example, tokenizer: Any) -> TrainingRow | None:
    """Tokenize a row: the prompt with which a template asks for an answer, as it is served, and the answer.

    Models that think have templates that put an empty thought before an answer that is given, or begin one in the
    prompt. An engine does neither between the prompt and a label that it asks for, so it is not trained on.

    None if the template refuses the conversation, or leaves out the answer's tool calls, as those that know no tools
    do: what remains would teach the model to say nothing. Also where half of a surrogate pair makes it no text, and
    where it is not certain which part of the row is the answer.
    """
    options = {"tools": list(row.tools) or None, "return_dict": True}
    messages = template_messages(row.messages)
    try:
        check_characters(messages)
        whole = tokenizer.apply_chat_template(messages, **options)["input_ids"]
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **options)["input_ids"]
        start: int | None = len(prompt)
        if whole[:start] != prompt:
            otherwise = [*messages[:-1], _another_answer(messages[-1])]
            other = tokenizer.apply_chat_template(otherwise, **options)["input_ids"]
            start = _answer_start(prompt, whole, _common_length(whole, other), tokenizer)
    except (TemplateError, UnicodeEncodeError) as error:
        logger.info("%s is skipped: %s", row.example_id, error)
        return None
    if start is None:
        logger.info("%s is skipped: the chat template does not show where its answer begins", row.example_id)
        return None
    answer = _without_empty_thought(whole[start:], tokenizer)
    text = tokenizer.decode(answer)
    if not all(call.name in text for call in row.messages[-1].tool_calls):
        return None
    return TrainingRow((*prompt, *answer), len(prompt), row.weight, row.group)


def _another_answer(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer that differs from a message in its first character."""
    return {"role": message["role"], "content": "1" if message["content"].lstrip().startswith("0") else "0"}


def _answer_start(prompt: Sequence[int], whole: Sequence[int], differs: int, tokenizer: Any) -> int | None:
    """Return at which token of the row its answer begins, where the row does not begin with the prompt.

    A row may lack one stretch of the prompt: Mistral's templates write the system prompt only where a user's message is
    the last, others end a prompt with a thought. What else is before the answer must be empty. `differs`: where the row
    differs from the same row with another answer. None where the two differ in more.

    Texts are compared: beside the stretch the same text may have other tokens.
    """
    if differs == len(whole):  # The template wrote no answer.
        return None
    served, head = tokenizer.decode(prompt), tokenizer.decode(whole[:differs])
    stem = head.rstrip().removesuffix("</think>").rstrip().removesuffix("<think>").rstrip()
    for start in range(differs, 0, -1):
        text = tokenizer.decode(whole[:start])
        if len(text) < len(stem):
            break
        common = _common_length(served, text)
        if len(text) <= len(served) and served.endswith(text[common:]):
            return start
    return None


def _without_empty_thought(tokens: Sequence[int], tokenizer: Any) -> Sequence[int]:
    """Return the tokens of an answer without an empty thought that stands before it."""
    thought = _EMPTY_THOUGHT.match(tokenizer.decode(tokens))
    if thought is None:
        return tokens
    ends = (count for count in range(1, len(tokens)) if tokenizer.decode(tokens[:count]) == thought[0])
    return tokens[next(ends, 0) :]


def _common_length(left: Iterable[object], right: Iterable[object]) -> int:
    """Return how many elements both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
