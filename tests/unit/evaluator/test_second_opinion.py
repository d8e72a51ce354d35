"""The second opinion on a candidate's answers is fitted on its training rows, and part of the confidence as served."""

from __future__ import annotations

import math
import random
import statistics
import string
from collections.abc import Sequence
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


def example(name: str, text: str, label: str) -> Example:
    messages = (*user(text), Message(role=Role.ASSISTANT, content=label))
    return Example(
        example_id=f"e{name}", group=name, prediction_ids=(f"p{name}",), correction_ids=(f"c{name}",), messages=messages
    )


def as_sure_as_the_words(alike: float) -> Asked:
    """Questions of which a share of what the model is sure of is what their words say; the rest is chance."""
    opinion = fit_opinion(rows())
    assert opinion is not None
    rng = random.Random(5)
    texts = [f"{WORDS['delivery'][: 3 + number % 15]} {WORDS['refund'][: 20 - number % 20]}" for number in range(200)]
    questions = [Question(user(text), "delivery") for text in texts]
    others = [opinion.log_odds(text, "delivery") or 0.0 for text in texts]
    noise = rng.sample(others, len(others))
    scores = tuple(1 / (1 + math.exp(-(alike * own + (1 - alike) * by_chance)))
                   for own, by_chance in zip(others, noise, strict=True))  # fmt: skip
    arm = ArmAnswers(answers=("delivery",) * 200, latencies_ms=(1.0,) * 200, scores=scores)
    return Asked(questions, (), arm, arm)


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
    share = OpinionShare(own=0.5, other=2.0)
    found, _ = with_second_opinions(asked(), rows(), SPEC, AdapterCalibration(calibration(share), opinion))
    question, answer, score = (of[0] for of in (found.evaluation, found.production.answers, asked().production.scores))
    other = opinion.log_odds(question.messages[0].text, answer or "")
    assert other is not None
    expected = 0.5 * log_odds(score or 0.0) + 2.0 * other
    assert log_odds(found.production.scores[0] or 0.0) == pytest.approx(expected)
    alone, _ = with_second_opinions(asked(), rows(), SPEC, AdapterCalibration(calibration(None)))
    assert alone.production == asked().production


@pytest.mark.parametrize("labels", [("refund", "delivery"), ("refund", "delivery", "login")])
def test_the_classifier_is_right_as_often_as_it_says_on_rows_that_it_was_not_fitted_on(labels: Sequence[str]) -> None:
    """As it is regularised it would be as sure of nearly everything as of nothing."""
    rng = random.Random(3)
    words = {label: [f"{label}{number}" for number in range(12)] for label in labels}

    def drawn(label: str) -> str:
        """Four words, each of which is of another label one time in three, among twelve that say nothing."""
        said = [rng.choice(words[label if rng.random() > 1 / 3 else rng.choice(labels)]) for _ in range(4)]
        return " ".join([*said, *("".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(12))])

    train = [example(str(number), drawn(labels[number % len(labels)]), labels[number % len(labels)])
             for number in range(400)]  # fmt: skip
    opinion = fit_opinion(train)
    assert opinion is not None
    right, said = [], []
    for number in range(800):
        label = labels[number % len(labels)]
        text = drawn(label)
        odds = {each: opinion.log_odds(text, each) or 0.0 for each in labels}
        likeliest = max(odds, key=odds.__getitem__)
        right.append(likeliest == label)
        said.append(1 / (1 + sum(math.exp(odds[each]) for each in labels if each != likeliest)))
    assert 0.7 < statistics.fmean(right) < 0.95
    assert statistics.fmean(said) == pytest.approx(statistics.fmean(right), abs=0.04)


@pytest.mark.parametrize(("alike", "weight"), [(0.0, 1.0), (1.0, 0.5)])
def test_two_opinions_that_know_of_different_things_count_whole_and_two_that_are_one_count_half(
    alike: float, weight: float
) -> None:
    what, ours = with_second_opinions(as_sure_as_the_words(alike), rows(), SPEC, None)
    assert ours is not None
    assert ours.share.other == pytest.approx(weight, abs=0.12)
    assert what.candidate.scores != as_sure_as_the_words(alike).candidate.scores


def test_what_the_model_says_counts_less_the_more_it_exaggerates() -> None:
    """Its answers are right in two of three cases, however sure it is of them."""
    modest, boastful = (with_second_opinions(asked(score), rows(), SPEC, None)[1] for score in (0.66, 0.99))
    assert modest is not None and boastful is not None
    assert modest.share.own / modest.share.other == pytest.approx(1.0, abs=0.1)
    assert boastful.share.own / boastful.share.other < 0.6


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
    calibrated, _ = calibrate(candidate, found.evaluation, found.candidate, store, ours)
    assert calibrated is not None and calibrated.opinion == ours.share
    alone, _ = calibrate(renamed(candidate), found.evaluation, found.candidate, store)
    assert alone is not None
    assert abs(math.log(calibrated.temperature)) < abs(math.log(alone.temperature)), "both parts are calibrated already"
    served = calibration_of(store, trained.adapter)
    assert served is not None and served == (calibrated, served.opinion)
    question, score = found.evaluation[1], asked().candidate.scores[1] or 0.0
    shares = {"delivery": score, "refund": 1.0 - score}
    listed = [{"token": name, "logprob": math.log(p)} for name, p in shares.items()]
    tokens = [{"token": "delivery", "logprob": math.log(score), "top_logprobs": listed}]
    measured = measure(SPEC, tokens, served.calibration, served.opinion_on(question.messages[0].text))
    assert measured.raw == pytest.approx(found.candidate.scores[1])


def renamed(candidate: AdapterTrained) -> AdapterTrained:
    return candidate.model_copy(update={"adapter": f"{candidate.adapter}-0"})


def test_where_there_is_no_second_opinion_the_models_counts_whole_at_its_own_temperature() -> None:
    """No training row has the label, so that the classifier does not know it."""
    before = asked(0.99)
    answers = ("login", *before.candidate.answers[1:])
    before = replace(before, candidate=before.candidate.model_copy(update={"answers": answers}))
    spec = SPEC.model_copy(update={"labels": (*SPEC.labels, "login")})
    after, ours = with_second_opinions(before, rows(), spec, None)
    assert ours is not None
    own, alone = (log_odds(of.candidate.scores[0] or 0.0) for of in (before, after))
    assert alone < own
    assert alone == pytest.approx(own * ours.share.own / ours.share.other)


def test_a_calibration_whose_opinion_is_gone_is_unreadable_rather_than_half_used(
    trained: AdapterTrained, tmp_path: Path
) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    found, ours = with_second_opinions(asked(), rows(), SPEC, None)
    candidate = trained.model_copy(update={"spec": SPEC})
    calibrate(candidate, found.evaluation, found.candidate, store, ours)
    (tmp_path / "artifacts" / "calibrations" / trained.adapter / "opinion.npz").write_bytes(b"torn")
    with pytest.raises(ValueError, match="second opinion"):
        read_calibration(store, trained.adapter)
