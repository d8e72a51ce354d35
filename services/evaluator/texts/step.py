"""The part of the evaluation job that compares generated texts: by metrics, and by the task's judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from schemas.evaluation_settings import TextMetric
from services.evaluator.job_input import EvaluationJob
from services.evaluator.judge.step import ask_judge
from services.evaluator.texts.metrics import Scores, cosines, word_scores
from services.evaluator.verdict import Asked
from shared.answers import answer_form
from shared.grading.tool_calls import with_calls_as_in
from shared.jobs import Progress
from shared.model.embedding import Embedder, SentenceEmbedder


def compare_texts(job: EvaluationJob, asked: Asked, dataset: Path, folder: Path, progress: Progress) -> Asked:
    """Add to a generation's answers their scores and the judge's report; other kinds stay as they are.

    `dataset`: the version's folder, which has the choices of people that a judge is certified by.
    """
    spec = job.trained.spec
    if answer_form(spec).is_exact:
        return asked
    progress(1, 1, "texts: scores")
    scores = text_scores(asked, SentenceEmbedder(job.embedder, fast=True))
    return replace(asked, texts=scores, judge=ask_judge(spec.evaluation.judge, dataset, asked, folder, progress))


def text_scores(asked: Asked, encoder: Embedder) -> Scores:
    """Score both arms' answers to the evaluation set by every metric. One with other calls is worth 0, as in `grade`.

    Raises DependencyUnavailable without the sentence encoder.
    """
    expected = [question.answer for question in asked.evaluation]
    candidate, production = (_compared(expected, arm.answers) for arm in (asked.candidate, asked.production))
    ours, theirs = word_scores(expected, candidate), word_scores(expected, production)
    for scores, given in ((ours, candidate), (theirs, production)):
        scores[TextMetric.COSINE] = cosines(expected, given, encoder)
    return {metric: (ours[metric], theirs[metric]) for metric in ours}


def _compared(expected: Sequence[str], answers: Sequence[str | None]) -> list[str | None]:
    """Return what of an arm's answers, the first ones being to these rows, is compared; None: it is worth nothing."""
    pairs = zip(answers, expected, strict=False)
    return [None if given is None else with_calls_as_in(given, wanted) for given, wanted in pairs]
