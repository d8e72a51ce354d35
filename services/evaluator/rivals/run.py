"""Makes the table of approaches: asks the base model, fits the linear classifier, counts the costs.

The base model is asked a fixed sample of the held-out rows where an adapter serves; all else is judged on every row. A
rival that cannot be measured is named in the findings, and stops nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.approaches import ApproachKind, ApproachTable
from schemas.base import utc_now
from schemas.datasets import Example
from schemas.evaluation_settings import TextMetric
from services.evaluator.domain import Candidate, Question, sample_rows, stable_rank
from services.evaluator.job_input import EvaluationJob
from services.evaluator.recipe import ArmAnswers, ask_persistently
from services.evaluator.rivals.classifier import MAX_ROWS, classify
from services.evaluator.rivals.findings import findings
from services.evaluator.rivals.table import Measured, answer_cost, approach
from services.evaluator.settings import KEY_VARIABLE
from services.evaluator.statistics.intervals import group_numbers
from services.evaluator.verdict import Asked
from shared.answers import answer_form
from shared.conversation import comparable_text
from shared.errors import ConfigurationError, DependencyUnavailable
from shared.files import write_atomically
from shared.grading.overlap import WORD_METRICS
from shared.jobs import Progress
from shared.model.embedding import Embedder, SentenceEmbedder
from shared.model.inference import InferenceClient
from shared.model.prices import read_prices
from shared.storage.volume import task_volume

ASKED_ROWS = 40
"""Held-out rows that the base model is asked."""

logger = logging.getLogger(__name__)


async def compare_rivals(
    job: EvaluationJob, train: Sequence[Example], asked: Asked, folder: Path, progress: Progress
) -> ApproachTable:
    """Return the table of approaches. A killed job does not measure again what it has written to its folder."""
    path = folder / "approaches.json"
    if path.exists():
        return ApproachTable.model_validate_json(path.read_bytes())
    client = InferenceClient(job.vllm, job.timeout_seconds, os.environ.get(KEY_VARIABLE, ""))
    arms = (asked.evaluation, asked.candidate, asked.production)
    contest = Contest(job.trained, job.production, *arms, train, job.concurrency, len(job.vllm))
    embedder = SentenceEmbedder(job.embedder, fast=True)
    try:
        table = await approach_table(client, embedder, contest, job, lambda said: progress(1, 1, said))
    finally:
        await client.close()
    write_atomically(path, table.model_dump_json().encode())
    return table


@dataclass(frozen=True)
class Contest:
    """What the rivals are compared with, and by what: both arms' answers to `questions`, the evaluation set.

    The arms may have answered further questions after these. `concurrency` requests at a time go to all `replicas`.
    """

    trained: Candidate
    production_adapter: str | None
    questions: Sequence[Question]
    candidate: ArmAnswers
    production: ArmAnswers
    train: Sequence[Example]
    concurrency: int
    replicas: int = 1

    @property
    def metric(self) -> TextMetric | None:
        """What generated text is scored by; None of other kinds. Metrics that need a model are ROUGE-L here."""
        spec = self.trained.spec
        if answer_form(spec).is_exact:
            return None
        wanted = spec.evaluation.text_metric
        return wanted if wanted in WORD_METRICS else TextMetric.ROUGE_L

    def graded(self, answers: ArmAnswers, positions: Sequence[int]) -> dict[int, float]:
        """Return which answers are right, of generated text their scores: `answers` to the questions at `positions`."""
        asked = [self.questions[position] for position in positions]
        found = answers.graded(asked, 0, self.trained.spec)
        return dict(zip(positions, found.right if self.metric is None else found.scores, strict=True))

    def measured(self, kind: ApproachKind, answers: ArmAnswers, positions: Sequence[int], **fields: Any) -> Measured:
        """Return a model's answers to the questions at `positions`, which it was asked `concurrency` at a time."""
        times = answers.latencies_ms
        at_once = max(1.0, min(self.concurrency, len(times)) / self.replicas)
        return Measured(
            kind=kind,
            right=self.graded(answers, positions),
            latencies_ms=times,
            seconds=sum(times) / len(times) / 1000 / at_once if times else 0.0,
            unanswered=frozenset(positions[number] for number in answers.unanswered if number < len(positions)),
            prompt_tokens=answers.prompt_tokens,
            answer_tokens=answers.answer_tokens,
            **fields,
        )


async def approach_table(
    client: InferenceClient, embedder: Embedder, contest: Contest, job: EvaluationJob, report: Callable[[str], None]
) -> ApproachTable:
    """Measure the rivals and return the table. `report` is called with what is being done."""
    everything = range(len(contest.questions))
    rows = [
        contest.measured(
            ApproachKind.CANDIDATE, contest.candidate, everything, adapter=contest.trained.adapter,
            examples=len(contest.train),
        ),
        contest.measured(
            ApproachKind.PRODUCTION, contest.production, everything, adapter=contest.production_adapter
        ),
        await _base(client, contest, report),
    ]  # fmt: skip
    report("rivals: linear classifier")
    missing = []
    try:
        rows += _linear(contest, embedder)
    except DependencyUnavailable as error:
        missing.append(f"Not compared with a linear classifier: {error.reason[:500]}.")
    return _table(contest, rows, job, missing)


async def _base(client: InferenceClient, contest: Contest, report: Callable[[str], None]) -> Measured:
    if contest.production_adapter is None:  # The base model serves: it has answered every question.
        return contest.measured(ApproachKind.BASE, contest.production, range(len(contest.questions)))
    positions = sample_rows(contest.questions, ASKED_ROWS)
    questions = [contest.questions[position] for position in positions]
    spec, base = contest.trained.spec, contest.trained.base_model

    def count(done: int) -> None:
        report(f"rivals: base, {done} of {len(questions)} answers")

    answers = await ask_persistently(client, base, questions, spec, contest.concurrency, count)
    return contest.measured(ApproachKind.BASE, answers, positions)


def _linear(contest: Contest, embedder: Embedder) -> list[Measured]:
    """Fit the classifier of a task with labels; none for other kinds, or if the training rows have a single label."""
    # In an order that has nothing to do with how they came: the first ones are a sample.
    train = sorted(contest.train, key=lambda example: stable_rank(example.messages))[:MAX_ROWS]
    spec = contest.trained.spec
    if not spec.labels or len({row.answer for row in train}) < 2:
        return []
    prompts = frozenset({spec.system_prompt})  # Other system messages may be documents.
    texts = [comparable_text(question.messages, prompts) for question in contest.questions]
    found = classify(train, texts, embedder, prompts)
    answers = ArmAnswers(answers=tuple(found.answers), latencies_ms=tuple(found.latencies_ms))
    right = contest.graded(answers, range(len(contest.questions)))
    seconds = sum(found.latencies_ms) / len(found.latencies_ms) / 1000
    return [Measured(ApproachKind.LINEAR, right, found.latencies_ms, seconds, examples=found.examples)]


def _table(contest: Contest, measured: Sequence[Measured], job: EvaluationJob, missing: Sequence[str]) -> ApproachTable:
    prices, per_month = read_prices(None), None
    try:
        prices = read_prices(job.prices_file)
        volume = task_volume(job.lake, contest.trained.task, utc_now())
        per_month = volume.per_month if volume.answers else None
    except ConfigurationError as error:  # The arms were asked for hours, and no gate reads a cost.
        missing = (*missing, f"Without costs: {error.reason[:500]}")
    except DependencyUnavailable as error:
        # What a store says of itself may be long, and quote a request with its credentials: it is for the log.
        logger.warning("no volume, so no costs: %s", error.reason)
        missing = (*missing, "Without costs: the lake does not answer; the evaluator's log says why.")
    costs = [answer_cost(row, prices, contest.trained.base_model) for row in measured]
    candidate = measured[0].right
    groups = group_numbers([question.group for question in contest.questions])
    rows = [approach(row, candidate, cost, per_month, groups) for row, cost in zip(measured, costs, strict=True)]
    return ApproachTable(
        approaches=tuple(rows),
        answers_per_month=per_month,
        currency=prices.currency,
        prices_of=min(cost.as_of for cost in costs),
        metric=contest.metric,
        findings=findings(rows, prices.currency, missing, is_scored=contest.metric is not None),
    )
