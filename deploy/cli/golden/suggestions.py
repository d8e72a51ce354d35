"""Suggests rows for a golden set; only a person adds them.

The part `sample` says how good a model is, so no model's answer may decide who is in it: its rows are drawn from the
uniform audit of all traffic, where at least two reviewers gave the same label. The part `kept` says what fine-tuning
must not forget: its rows are reviewed questions that the base model, asked twice, gets right both times.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import zip_longest

from deploy.cli.golden.corrections import agreed_labels
from deploy.cli.golden.sources import row_of_correction
from schemas.golden import GoldenPart, GoldenRow
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import TaskSpec
from services.evaluator.domain import golden_questions
from services.evaluator.recipe import ask
from shared.answers import answer_form
from shared.errors import ConfigurationError
from shared.model.inference import InferenceClient
from shared.model.near_copies import AskedQuestions

MIN_REVIEWERS = 2
"""Who must agree on the label of a row of the sample."""
_BATCH = 32
_CONCURRENCY = 8

AskBase = Callable[[Sequence[GoldenRow]], Awaitable[Sequence[bool]]]
"""Returns for each row whether the base model answers it correctly, now."""


def sample_candidates(corrections: Iterable[CorrectionSubmitted], spec: TaskSpec) -> list[GoldenRow]:
    """Return the audited questions on whose label two reviewers agree."""
    corrections = list(corrections)
    audited = {c.prediction_id for c in corrections if c.purpose is Purpose.AUDIT}
    double_labelled = agreed_labels(corrections, MIN_REVIEWERS)
    return _askable((double_labelled[name][0] for name in double_labelled if name in audited), spec, GoldenPart.SAMPLE)


def kept_candidates(corrections: Iterable[CorrectionSubmitted], spec: TaskSpec) -> list[GoldenRow]:
    """Return the questions whose label is known, whoever answered them."""
    return _askable((votes[0] for votes in agreed_labels(corrections, 1).values()), spec, GoldenPart.KEPT)


def new_rows(candidates: Sequence[GoldenRow], golden: Sequence[GoldenRow], spec: TaskSpec) -> list[GoldenRow]:
    """Leave out what is in the golden set already, or nearly, and near-copies among the candidates."""
    asked = AskedQuestions((row.prompt for row in golden), spec)
    rows = []
    for row in candidates:
        if not asked.contains(row.prompt):
            asked.add(row.prompt)
            rows.append(row)
    return rows


def drawn(rows: Sequence[GoldenRow], seed: int) -> list[GoldenRow]:
    """Return the rows in a random order that the seed decides, one of each answer in turn as long as there are."""
    shuffled = sorted(rows, key=lambda row: row.row_id)
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - a sample, no secret
    by_answer: dict[str, list[GoldenRow]] = {}
    for row in shuffled:
        by_answer.setdefault(row.answer, []).append(row)
    turns = zip_longest(*by_answer.values())
    return [row for turn in turns for row in turn if row is not None]


async def right_twice(rows: Sequence[GoldenRow], count: int, ask_once: AskBase) -> list[GoldenRow]:
    """Return the first `count` rows that the base model gets right both times. Asks no more than it needs to."""
    kept: list[GoldenRow] = []
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        once = [row for row, right in zip(batch, await ask_once(batch), strict=True) if right]
        kept += [row for row, right in zip(once, await ask_once(once), strict=True) if right]
        if len(kept) >= count:
            break
    return kept[:count]


async def ask_base(client: InferenceClient, rows: Sequence[GoldenRow], spec: TaskSpec) -> list[bool]:
    """Ask the task's base model, without an adapter, as the gateway would; see `AskBase`.

    Raises DependencyUnavailable if most requests fail.
    """
    questions = golden_questions(rows, spec)
    answers = await ask(client, spec.base_model, questions, spec, _CONCURRENCY, lambda done: None)
    return [answer_form(spec).grade(q.answer, a).right for a, q in zip(answers.answers, questions, strict=True)]


def _askable(corrections: Iterable[CorrectionSubmitted], spec: TaskSpec, part: GoldenPart) -> list[GoldenRow]:
    rows = []
    for correction in corrections:
        try:
            rows.append(row_of_correction(spec, correction, part))
        except ConfigurationError:  # A label that the task has no longer, a picture, a cut conversation.
            continue
    return rows
