"""Fits the second opinion on a candidate's answers, and has both arms' confidence be what the gateway's would be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_matrix

from schemas.adapters import OpinionShare
from schemas.approaches import ApproachKind
from schemas.conversation import Message
from schemas.datasets import Example
from schemas.tasks import TaskSpec
from services.evaluator.calibration import MIN_ANSWERS
from services.evaluator.domain import Question
from services.evaluator.recipe import ArmAnswers
from services.evaluator.rivals.classifiers import MAX_ROWS, fit
from services.evaluator.verdict import Asked
from shared.conversation.question_text import has_second_opinion, question_text
from shared.model.confidence import joint_score, log_odds
from shared.model.second_opinion import BUCKETS, SecondOpinion, features, unit
from shared.storage.calibrations import AdapterCalibration

_DIGITS = 4
_LEAST_SPREAD = 1e-3


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
    ours, theirs = _fitted(train, asked), None
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


def _fitted(train: Sequence[Example], asked: Asked) -> FittedOpinion | None:
    opinion = fit_opinion(train)
    share = None if opinion is None else _share(opinion, asked.evaluation, asked.candidate)
    return None if opinion is None or share is None else FittedOpinion(opinion, share)


def fit_opinion(train: Sequence[Example]) -> SecondOpinion | None:
    """Return a classifier fitted on training rows, by their weights; None where they have only one label."""
    rows = train[: MAX_ROWS[ApproachKind.TF_IDF]]
    if len({row.answer for row in rows}) < 2:
        return None
    found = [features(_text(row.prompt)) for row in rows]
    frequency = np.bincount(np.concatenate([buckets for buckets, _ in found]), minlength=BUCKETS)
    rarity = np.log((1.0 + len(rows)) / (1.0 + frequency)) + 1.0
    values = np.concatenate([unit(counts * rarity[buckets]) for buckets, counts in found])
    starts = np.cumsum([0, *(len(buckets) for buckets, _ in found)])
    matrix = csr_matrix((values, np.concatenate([buckets for buckets, _ in found]), starts), (len(rows), BUCKETS))
    model = fit(matrix, [row.answer for row in rows], [row.weight for row in rows])
    weights, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # It has the log-odds of the second one only.
        weights, intercepts = np.vstack([-weights, weights]) / 2, np.concatenate([-intercepts, intercepts]) / 2
    return SecondOpinion(
        tuple(map(str, model.classes_)),
        weights.astype(np.float16),
        intercepts.astype(np.float32),
        rarity.astype(np.float32),
    )


def _share(opinion: SecondOpinion, questions: Sequence[Question], arm: ArmAnswers) -> OpinionShare | None:
    """Return shares by which both count alike, once equally spread, and their sum has the mean and the spread of the
    model's own log-odds: on average it is as sure as it was. None from too few answers, or where one never differs.
    """
    found = [
        (log_odds(score), other)
        for question, answer, score in zip(questions, arm.answers, arm.scores, strict=False)
        if answer is not None
        and score is not None
        and (other := opinion.log_odds(_text(question.messages), answer.strip())) is not None
    ]
    if len(found) < MIN_ANSWERS:
        return None
    own, others = np.array(found).T
    spread, spread_of_others = float(own.std()), float(others.std())
    if min(spread, spread_of_others) < _LEAST_SPREAD:
        return None
    correlation = float(np.corrcoef(own, others)[0, 1])
    of_own = 1.0 / math.sqrt(2.0 + 2.0 * max(correlation, 0.0))
    of_others = of_own * spread / spread_of_others
    shift = float(own.mean()) * (1.0 - of_own) - of_others * float(others.mean())
    return OpinionShare(own=round(of_own, _DIGITS), other=round(of_others, _DIGITS), shift=round(shift, _DIGITS))


def _joint(arm: ArmAnswers, questions: Sequence[Question], second: FittedOpinion | None) -> ArmAnswers:
    """Return an arm's answers with the scores that they have together with a second opinion, if there is one."""
    if second is None:
        return arm
    scores = list(arm.scores)
    for position, (question, answer, score) in enumerate(zip(questions, arm.answers, arm.scores, strict=False)):
        if answer is None or score is None:
            continue
        other = second.opinion.log_odds(_text(question.messages), answer.strip())
        if other is not None:
            scores[position] = joint_score(score, other, second.share)
    return arm.model_copy(update={"scores": tuple(scores)})


def _text(messages: Sequence[Message]) -> str:
    return question_text((message.role, message.content) for message in messages)
