"""Fits the second opinion on a candidate's answers, and has both arms' confidence be what the gateway's would be.

The score of an answer together with its second opinion is a logarithmic opinion pool (Genest & Zidek 1986): the sum of
both log-odds, each with a weight. The sum means what it says where both do. So the model's log-odds are divided by its
temperature on the held-out answers, and the classifier's, which are against the likeliest other label, are those that
answer best on the training rows, which are more, out of fold. Two whose log-odds correlate by r weigh 1 / (1 + r) each,
as in Fisher's linear discriminant: if they said the same they would be one, and if they knew of nothing in common their
log-odds would add up.

Nothing else is fitted, since eighty held-out answers have eight errors. On Banking77's ten intents the calibration
error on 1,328 other answers was .023 in the mean of 60 draws of 76 and .040 at most, that of a regression on those
answers .035 and .084 (docs/decisions/0020-a-second-opinion-on-labels.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from schemas.adapters import OpinionShare
from schemas.conversation import Message
from schemas.datasets import Example
from schemas.tasks import TaskSpec
from services.evaluator.calibration import (
    MIN_ANSWERS,
    chance_mistake_looks_right,
    chosen_answers,
    temperature_map,
)
from services.evaluator.comparison import traffic_of
from services.evaluator.domain import Question
from services.evaluator.recipe import ArmAnswers
from services.evaluator.statistics.intervals import group_numbers
from services.evaluator.verdict import Asked
from shared.conversation.question_text import has_second_opinion, question_text
from shared.model.confidence import joint_score, log_odds
from shared.model.second_opinion import BUCKETS, SecondOpinion, features, unit
from shared.storage.calibrations import AdapterCalibration

_MAX_ROWS = 20_000
"""Fitting on all of a large task would take longer than the adapter."""
_DIGITS = 4
_LEAST_SPREAD = 1e-3
_FOLDS = 5
_ENOUGH = 1_000
"""Out-of-fold rows from which on one number is known well enough: no further fold is fitted."""
_MAX_SHARPNESS = 4.0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FittedOpinion:
    """A second opinion, and its share in the scores."""

    opinion: SecondOpinion
    share: OpinionShare


def with_second_opinions(
    asked: Asked, train: Sequence[Example], spec: TaskSpec, production: AdapterCalibration | None
) -> tuple[Asked, FittedOpinion | None]:
    """Return what was asked with the scores that answers have together with a second opinion, and the candidate's.

    The candidate's is fitted on its training rows. `production`: its calibration; None of the base model. None, and the
    scores as they are, where nothing is calibrated: of too few answers, or of answers that are no labels.
    """
    if not has_second_opinion(spec):
        return asked, None
    ours, theirs = _fitted(train, asked, spec), None
    if production is not None and production.opinion is not None and production.calibration.opinion is not None:
        theirs = FittedOpinion(production.opinion, production.calibration.opinion)
    questions = [*asked.evaluation, *asked.golden]
    candidate, opponent = _joint(asked.candidate, questions, ours), _joint(asked.production, questions, theirs)
    if (attacked := asked.adversarial) is not None:
        cases = [case.question for case in attacked.cases]
        attacked = replace(
            attacked,
            candidate=_joint(attacked.candidate, cases, ours),
            production=_joint(attacked.production, cases, theirs),
        )
    return replace(asked, candidate=candidate, production=opponent, adversarial=attacked), ours


def _fitted(train: Sequence[Example], asked: Asked, spec: TaskSpec) -> FittedOpinion | None:
    opinion = fit_opinion(train)
    share = None if opinion is None else _share(opinion, asked.evaluation, asked.candidate, spec)
    return None if opinion is None or share is None else FittedOpinion(opinion, share)


def fit_opinion(train: Sequence[Example]) -> SecondOpinion | None:
    """Return a classifier fitted on training rows, by their weights; None where they have only one label."""
    rows = train[:_MAX_ROWS]
    if len({row.answer for row in rows}) < 2:
        return None
    found = [features(_text(row.prompt)) for row in rows]
    frequency = np.bincount(np.concatenate([buckets for buckets, _ in found]), minlength=BUCKETS)
    rarity = np.log((1.0 + len(rows)) / (1.0 + frequency)) + 1.0
    values = np.concatenate([unit(counts * rarity[buckets]) for buckets, counts in found])
    starts = np.cumsum([0, *(len(buckets) for buckets, _ in found)])
    matrix = csr_matrix((values, np.concatenate([buckets for buckets, _ in found]), starts), (len(rows), BUCKETS))
    labels, weights = np.array([row.answer for row in rows]), np.array([row.weight for row in rows])
    model = _regression().fit(matrix, labels, weights)
    sharpness = _sharpness(matrix, labels, weights, group_numbers([row.group for row in rows]))
    coefficients, intercepts = _by_label(model)
    return SecondOpinion(
        tuple(map(str, model.classes_)),
        (sharpness * coefficients).astype(np.float16),
        (sharpness * intercepts).astype(np.float32),
        rarity.astype(np.float32),
    )


def _regression() -> LogisticRegression:
    return LogisticRegression(C=10.0, max_iter=500)


def _by_label(model: LogisticRegression) -> tuple[Floats, Floats]:
    """Return coefficients [labels, features] and intercepts [labels]. Of two it has the second one's log-odds."""
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) > 2:
        return coefficients, intercepts
    return np.vstack([-coefficients, coefficients]) / 2, np.concatenate([-intercepts, intercepts]) / 2


def _sharpness(matrix: csr_matrix, labels: NDArray[np.str_], weights: Floats, groups: NDArray[np.intp]) -> float:
    """Return what the logits of a classifier fitted on these rows are to be multiplied by, in [1/4, 4].

    Regularised as it is it would be far too unsure: the right factor is the most probable one on rows that it was not
    fitted on, near-copies apart (Guo et al. 2017). 1 where no row can be left out.
    """
    tried: list[tuple[Floats, NDArray[np.intp], Floats]] = []
    for fold in range(_FOLDS):
        out = groups % _FOLDS == fold
        if len(np.unique(labels[~out])) < 2:
            continue
        model = _regression().fit(matrix[~out], labels[~out], weights[~out])
        coefficients, intercepts = _by_label(model)
        out &= np.isin(labels, model.classes_)
        logits = matrix[out] @ coefficients.T + intercepts
        tried.append((logits, np.searchsorted(model.classes_, labels[out]), weights[out]))
        if sum(len(answers) for _, answers, _ in tried) >= _ENOUGH:
            break

    def loss(log_sharpness: float) -> float:
        found = [(log_softmax(np.exp(log_sharpness) * logits, axis=1), answers, w) for logits, answers, w in tried]
        return -sum(float(w @ logs[np.arange(len(answers)), answers]) for logs, answers, w in found)

    if not tried:
        return 1.0
    limit = np.log(_MAX_SHARPNESS)
    return float(np.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded").x))


def _share(
    opinion: SecondOpinion, questions: Sequence[Question], arm: ArmAnswers, spec: TaskSpec
) -> OpinionShare | None:
    """Return the weights of both log-odds. None from too few answers, or where one never differs."""
    if len(arm.scores) < len(questions):
        return None
    answers = arm.answers[: len(questions)]
    scores = np.array([np.nan if score is None else score for score in arm.scores[: len(questions)]], dtype=np.float64)
    others = np.array(
        [
            np.nan if answer is None else opinion.log_odds(_text(question.messages), answer.strip())
            for question, answer in zip(questions, answers, strict=True)
        ],
        dtype=np.float64,
    )
    scores[np.isnan(others)] = np.nan
    chosen, weights, _ = chosen_answers(scores, traffic_of(questions))
    own = np.array([log_odds(score) for score in scores[chosen]])
    if len(chosen) < MIN_ANSWERS or min(own.std(), others[chosen].std()) < _LEAST_SPREAD:
        return None
    right = np.array(arm.graded(questions, 0, spec).right, dtype=np.float64)[chosen]
    fitted = temperature_map(scores[chosen], right, chance_mistake_looks_right(spec) or 0.0, weights)
    weight = 1.0 / (1.0 + max(float(np.corrcoef(own, others[chosen])[0, 1]), 0.0))
    return OpinionShare(own=round(weight / float(str(fitted["temperature"])), _DIGITS), other=round(weight, _DIGITS))


def _joint(arm: ArmAnswers, questions: Sequence[Question], second: FittedOpinion | None) -> ArmAnswers:
    """Return an arm's answers with the scores that they have together with a second opinion, if there is one."""
    if second is None:
        return arm
    scores = list(arm.scores)
    for position, (question, answer, score) in enumerate(zip(questions, arm.answers, arm.scores, strict=False)):
        if answer is None or score is None:
            continue
        other = second.opinion.log_odds(_text(question.messages), answer.strip())
        scores[position] = joint_score(score, other, second.share)
    return arm.model_copy(update={"scores": tuple(scores)})


def _text(messages: Sequence[Message]) -> str:
    return question_text((message.role, message.content) for message in messages)
