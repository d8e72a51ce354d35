"""Makes the table of approaches: asks the base with prompts of examples, fits the classifiers, counts the costs.

The prompts are asked a fixed sample of the held-out rows, since a long prompt takes a small engine seconds; all else is
judged on every row. A rival that cannot be measured is named in the findings, and stops nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.approaches import ApproachKind, ApproachTable, ExamplesCurve
from schemas.base import utc_now
from schemas.datasets import Example
from schemas.evaluation_settings import TextMetric
from services.evaluator.domain import Candidate, Question
from services.evaluator.job_input import EvaluationJob
from services.evaluator.recipe import ArmAnswers, ask_persistently
from services.evaluator.rivals.classifiers import (
    MAX_ROWS,
    ClassifierResult,
    TrainingRows,
    embedding_classifier,
    nearest,
    tf_idf_classifier,
)
from services.evaluator.rivals.curve import examples_curve
from services.evaluator.rivals.findings import findings
from services.evaluator.rivals.prompts import (
    ASKED_ROWS,
    MAX_NEAREST,
    balanced_shots,
    sample_rows,
    with_shots,
    within_budget,
)
from services.evaluator.rivals.table import Measured, answer_cost, approach
from services.evaluator.statistics.intervals import group_numbers
from shared.answers import answer_form
from shared.conversation import comparable_text
from shared.errors import ConfigurationError, DependencyUnavailable
from shared.grading.overlap import WORD_METRICS
from shared.model.embedding import Embedder, Vectors
from shared.model.inference import InferenceClient
from shared.model.prices import read_prices
from shared.storage.volume import task_volume

logger = logging.getLogger(__name__)
_CURVE_ROWS = MAX_ROWS[ApproachKind.EMBEDDING]


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
    def prompts(self) -> frozenset[str]:
        """The task's system prompt: other system messages may be documents."""
        return frozenset({self.trained.spec.system_prompt})

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


@dataclass
class _Room:
    """What the rivals share: the texts, their embeddings, and what could not be measured."""

    train_texts: list[str]
    texts: list[str]
    embedder: Embedder
    vectors: Vectors | None = None
    text_vectors: Vectors | None = None
    missing: list[str] = field(default_factory=list)

    def embed(self) -> None:
        """Embed all texts, if the sentence encoder is there."""
        try:
            self.vectors = self.embedder.embed(self.train_texts[:_CURVE_ROWS])
            self.text_vectors = self.embedder.embed(self.texts)
        except DependencyUnavailable as error:
            self.missing.append(f"Compared with nothing that needs embeddings: {error.reason[:500]}.")


async def approach_table(
    client: InferenceClient,
    embedder: Embedder,
    contest: Contest,
    job: EvaluationJob,
    report: Callable[[str], None],
) -> ApproachTable:
    """Measure all rivals and return the table. `report` is called with what is being done."""
    report("rivals: embeddings")
    room = _Room(
        [comparable_text(example.prompt, contest.prompts) for example in contest.train],
        [comparable_text(question.messages, contest.prompts) for question in contest.questions],
        embedder,
    )
    room.embed()
    everything = range(len(contest.questions))
    candidate = contest.measured(
        ApproachKind.CANDIDATE, contest.candidate, everything, adapter=contest.trained.adapter,
        examples=len(contest.train),
    )  # fmt: skip
    production = contest.measured(
        ApproachKind.PRODUCTION, contest.production, everything, adapter=contest.production_adapter
    )
    prompts = await _prompts(client, contest, room, report)
    report("rivals: classifiers")
    classifiers, curve = _classifiers(contest, room)
    rows = [candidate, production, *prompts, *classifiers]
    return _table(contest, rows, curve, job, room.missing)


async def _prompts(
    client: InferenceClient, contest: Contest, room: _Room, report: Callable[[str], None]
) -> list[Measured]:
    """Ask the base model the sampled questions: as they are, with fixed examples, and with the most similar ones."""
    positions = sample_rows(contest.questions, ASKED_ROWS)
    spec, base = contest.trained.spec, contest.trained.base_model

    async def ask(kind: ApproachKind, questions: Sequence[Question], examples: int) -> Measured:
        def count(done: int) -> None:
            report(f"rivals: {kind.value.replace('_', ' ')}, {done} of {len(questions)} answers")

        count(0)
        answers = await ask_persistently(client, base, questions, spec, contest.concurrency, count)
        return contest.measured(kind, answers, positions, examples=examples)

    asked = [contest.questions[position] for position in positions]
    if contest.production_adapter is None:  # The base model serves: it has answered every question.
        everything = range(len(contest.questions))
        measured = [contest.measured(ApproachKind.BASE, contest.production, everything)]
    else:
        measured = [await ask(ApproachKind.BASE, asked, 0)]
    prompts = contest.prompts
    shots = balanced_shots(contest.train, prompts)
    if not shots:
        room.missing.append("Not compared with few-shot prompting: no training example is short enough for a prompt.")
        return measured
    measured.append(await ask(ApproachKind.FEW_SHOT, [with_shots(q, shots, prompts) for q in asked], len(shots)))
    if room.vectors is None or room.text_vectors is None:
        return measured
    retrieved = _retrieved(contest, room.vectors, room.text_vectors[positions])
    most = max(map(len, retrieved))
    questions = [with_shots(question, similar, prompts) for question, similar in zip(asked, retrieved, strict=True)]
    measured.append(await ask(ApproachKind.RETRIEVAL_FEW_SHOT, questions, most))
    return measured


def _retrieved(contest: Contest, vectors: Vectors, asked: Vectors) -> list[list[Example]]:
    """Return the training examples that are most similar to each question, by the embeddings of both."""
    # The most similar ones are the first that must fit, and stand nearest to the question.
    return [
        within_budget([contest.train[row] for row in reversed(similar)], contest.prompts)[::-1]
        for similar in nearest(vectors, asked, MAX_NEAREST)
    ]


def _classifiers(contest: Contest, room: _Room) -> tuple[list[Measured], ExamplesCurve | None]:
    """Fit the classifiers of a task with labels, a set of them being a class of its own (label powerset, Tsoumakas &
    Katakis 2007); none for other kinds, or if the training set has a single label."""
    train = TrainingRows(
        room.train_texts,
        [example.answer for example in contest.train],
        [example.weight for example in contest.train],
        [example.group for example in contest.train],
    )
    if not contest.trained.spec.labels or len(set(train.labels)) < 2:
        return [], None
    measured = [_classifier(contest, ApproachKind.TF_IDF, tf_idf_classifier(train, room.texts))]
    part = train.first(_CURVE_ROWS)
    if room.vectors is None:
        return measured, None
    if len(set(part.labels)) > 1:
        result = embedding_classifier(part, room.vectors, room.embedder, room.texts)
        measured.append(_classifier(contest, ApproachKind.EMBEDDING, result))
    return measured, examples_curve(part, room.vectors)


def _classifier(contest: Contest, kind: ApproachKind, result: ClassifierResult) -> Measured:
    answers = ArmAnswers(answers=tuple(result.answers), latencies_ms=tuple(result.latencies_ms))
    right = contest.graded(answers, range(len(contest.questions)))
    seconds = sum(result.latencies_ms) / len(result.latencies_ms) / 1000
    return Measured(kind, right, result.latencies_ms, seconds, examples=result.examples)


def _table(
    contest: Contest,
    measured: Sequence[Measured],
    curve: ExamplesCurve | None,
    job: EvaluationJob,
    missing: Sequence[str],
) -> ApproachTable:
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
        curve=curve,
        answers_per_month=per_month,
        currency=prices.currency,
        prices_of=min(cost.as_of for cost in costs),
        metric=contest.metric,
        findings=findings(rows, curve, prices.currency, missing, is_scored=contest.metric is not None),
    )
