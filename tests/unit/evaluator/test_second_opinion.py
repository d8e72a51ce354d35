"""The second opinion on a candidate's answers is fitted on its training rows, and part of the confidence as served."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.adapters import AdapterTrained, Calibration, OpinionShare
from schemas.conversation import Message, Role
from schemas.datasets import Example
from schemas.tasks import TaskSpec
from services.evaluator.domain import Question
from services.evaluator.job import calibrate, calibration_of
from services.evaluator.recipe import ArmAnswers
from services.evaluator.second_opinion import FittedOpinion, fit_opinion, with_second_opinions
from services.evaluator.verdict import Asked
from shared.conversation.question_text import has_second_opinion
from shared.model.confidence import log_odds, measure
from shared.storage.artifacts import ArtifactStore
from shared.storage.calibrations import AdapterCalibration, read_calibration
from tests.unit.evaluator.test_handlers import trained as trained  # A fixture.

SPEC = TaskSpec.model_validate(
    {"name": "desk", "kind": "classification", "system_prompt": "Intent?", "labels": ["refund", "delivery"]}
)
WORDS = {"refund": "I want my money back", "delivery": "Where is my parcel"}


def user(text: str) -> tuple[Message, ...]:
    return (Message(role=Role.USER, content=text),)


def rows(count: int = 20) -> list[Example]:
    return [
        Example(
            example_id=f"e{number}", group="g", prediction_ids=(f"p{number}",), correction_ids=(f"c{number}",),
            messages=(*user(f"{WORDS[label]} {number}"), Message(role=Role.ASSISTANT, content=label)),
        )
        for number in range(count)
        for label in WORDS
    ]  # fmt: skip


def asked(score: float = 0.9, count: int = 30) -> Asked:
    """Questions about parcels, of which both arms take every third for a refund, as sure as of all others."""
    questions = [Question(user(f"Where is my parcel, number {n}?"), "delivery") for n in range(count)]
    answers = tuple("delivery" if n % 3 else "refund" for n in range(count))
    scores = tuple(score + 0.001 * (7 * n % 5) for n in range(count))
    arm = ArmAnswers(answers=answers, latencies_ms=(1.0,) * count, scores=scores)
    return Asked(questions, (), arm, arm)


def calibration(share: OpinionShare | None) -> Calibration:
    return Calibration(name="desk-1", kind="temperature", answers=80, ece_before=0.2, ece_after=0.1, opinion=share)


def test_what_both_arms_are_equally_sure_of_is_told_apart_by_the_words_of_the_question() -> None:
    before = asked()
    found, ours = with_second_opinions(before, rows(), SPEC, None)
    assert ours is not None
    assert wrong_in_lowest_third(before.candidate) <= 4
    assert wrong_in_lowest_third(found.candidate) >= 7
    assert found.production == before.production, "the base model's confidence is its own"


def wrong_in_lowest_third(arm: ArmAnswers) -> int:
    lowest = sorted(range(30), key=lambda n: arm.scores[n] or 0.0)[:10]
    return sum(arm.answers[n] == "refund" for n in lowest)


def test_productions_confidence_is_with_the_opinion_that_it_is_served_with() -> None:
    opinion = fit_opinion(rows())
    assert opinion is not None
    share = OpinionShare(own=0.5, other=2.0, shift=0.25)
    found, _ = with_second_opinions(asked(), rows(), SPEC, AdapterCalibration(calibration(share), opinion))
    question, answer, score = (of[0] for of in (found.evaluation, found.production.answers, asked().production.scores))
    other = opinion.log_odds(question.messages[0].text, answer or "")
    assert other is not None
    expected = 0.5 * log_odds(score or 0.0) + 2.0 * other + 0.25
    assert log_odds(found.production.scores[0] or 0.0) == pytest.approx(expected)
    alone, _ = with_second_opinions(asked(), rows(), SPEC, AdapterCalibration(calibration(None)))
    assert alone.production == asked().production


def test_the_joint_log_odds_are_as_high_and_as_spread_as_the_models_own() -> None:
    """Else a model whose confidence needed no calibration would need one, from few answers."""
    before, after = asked(), with_second_opinions(asked(), rows(), SPEC, None)[0]
    own, joint = ([log_odds(score or 0.0) for score in of.candidate.scores] for of in (before, after))
    assert own != joint
    assert statistics.fmean(joint) == pytest.approx(statistics.fmean(own), abs=0.01)
    assert statistics.pstdev(joint) <= 1.01 * statistics.pstdev(own)


@pytest.mark.parametrize("change", ["few answers", "one label", "no labels", "no scores", "equal scores"])
def test_there_is_none_where_nothing_could_be_said(change: str) -> None:
    what, train, spec = asked(), rows(), SPEC
    if change == "few answers":
        what = asked(count=19)
    elif change == "one label":
        train = [row for row in rows() if row.answer == "refund"]
    elif change == "no labels":
        spec = SPEC.model_copy(update={"kind": "generation", "labels": ()})
    else:
        scores = (None if change == "no scores" else 0.9,) * 30
        what = replace(what, candidate=what.candidate.model_copy(update={"scores": scores}))
    assert with_second_opinions(what, train, spec, None) == (what, None)


def test_a_task_of_very_many_labels_has_none() -> None:
    many = SPEC.model_copy(update={"labels": tuple(f"label {n}" for n in range(501))})
    assert (has_second_opinion(SPEC), has_second_opinion(many)) == (True, False)


def test_it_is_stored_beside_the_calibration_and_the_gateway_measures_as_the_evaluation_did(
    trained: AdapterTrained, tmp_path: Path
) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    found, ours = with_second_opinions(asked(), rows(), SPEC, None)
    assert isinstance(ours, FittedOpinion)
    assert calibration_of(store, trained.adapter) is None
    candidate = trained.model_copy(update={"spec": SPEC})
    calibrated, _ = calibrate(candidate, found.evaluation, found.candidate, store, tmp_path / "job", ours)
    assert calibrated is not None and calibrated.opinion == ours.share
    served = calibration_of(store, trained.adapter)
    assert served is not None and served == (calibrated, served.opinion)
    question, score = found.evaluation[1], asked().candidate.scores[1] or 0.0
    shares = {"delivery": score, "refund": 1.0 - score}
    listed = [{"token": name, "logprob": math.log(p)} for name, p in shares.items()]
    tokens = [{"token": "delivery", "logprob": math.log(score), "top_logprobs": listed}]
    measured = measure(SPEC, tokens, served.calibration, served.opinion_on(question.messages[0].text))
    assert measured.raw == pytest.approx(found.candidate.scores[1])


def test_a_calibration_whose_opinion_is_gone_is_unreadable_rather_than_half_used(
    trained: AdapterTrained, tmp_path: Path
) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    found, ours = with_second_opinions(asked(), rows(), SPEC, None)
    candidate = trained.model_copy(update={"spec": SPEC})
    calibrate(candidate, found.evaluation, found.candidate, store, tmp_path / "job", ours)
    (tmp_path / "artifacts" / "calibrations" / trained.adapter / "opinion.npz").write_bytes(b"torn")
    with pytest.raises(ValueError, match="second opinion"):
        read_calibration(store, trained.adapter)
