"""Generated texts are scored by every metric, and a candidate may not be worse by the one that its task names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from schemas.adapters import AdapterEvaluated, AdapterTrained
from schemas.base import utc_now
from schemas.conversation import Message, Role
from schemas.evaluation_settings import TextMetric
from schemas.tasks import TaskSpec
from services.evaluator.adversarial.cases import adversarial_cases
from services.evaluator.adversarial.misled import AdversarialAnswers
from services.evaluator.domain import Question
from services.evaluator.recipe import ArmAnswers
from services.evaluator.texts.metrics import cosines
from services.evaluator.texts.step import text_scores
from services.evaluator.verdict import Asked, Extras, evaluated_event, evaluation_report
from shared.errors import DependencyUnavailable
from shared.model.embedding import Vectors
from tests.unit.evaluator.arms import gate
from tests.unit.evaluator.reports import NOON, approaches

WORDS = ("parcel", "refund", "invoice", "courier", "address", "tomorrow", "account", "password")


class BagEncoder:
    """An encoder of texts by the words that they have, whatever their order."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        rows = [np.sum(self._tokens(text), axis=0) for text in texts]
        return np.array([row / max(float(np.linalg.norm(row)), 1e-9) for row in rows], dtype=np.float32)

    def _tokens(self, text: str) -> Vectors:
        return np.array([np.eye(len(WORDS))[WORDS.index(word)] for word in text.split()], dtype=np.float32)


class WordEncoder(BagEncoder):
    """The same of any text."""

    def _tokens(self, text: str) -> Vectors:
        return np.array([np.eye(len(WORDS))[len(word) % len(WORDS)] for word in text.split()], dtype=np.float32)


class NoEncoder:
    def embed(self, texts: Sequence[str]) -> Vectors:
        raise DependencyUnavailable("the embedding model is not there")


def task(**evaluation: Any) -> TaskSpec:
    return TaskSpec.model_validate(
        {"name": "reply", "kind": "generation", "system_prompt": "Reply.", "evaluation": evaluation}
    )


def asked(candidate: Sequence[str | None], production: Sequence[str | None], right: Sequence[str]) -> Asked:
    questions = [
        Question((Message(role=Role.USER, content=f"question {number}"),), text) for number, text in enumerate(right)
    ]
    arms = (ArmAnswers(answers=tuple(answers), latencies_ms=()) for answers in (candidate, production))
    return Asked(questions, (), *arms)


def evaluated(found: Asked, spec: TaskSpec) -> AdapterEvaluated:
    trained = AdapterTrained(
        task="reply", task_revision=spec.revision, cycle_id="c1", adapter="reply-1", uri="u", base_model="base",
        dataset_id="d", dataset_uri="u", method="lora", rank=8, steps=1, train_loss=0.1, seconds=1.0,
        data_cutoff=utc_now(), spec=spec,
    )  # fmt: skip
    found = replace(found, texts=text_scores(found, BagEncoder()))
    report = evaluation_report(trained, None, "job", found, Extras(approaches(len(found.evaluation))), NOON)
    return evaluated_event(trained, report, "/store/evaluations/job")


RIGHT = [f"{WORDS[n % 8]} {WORDS[(n + 3) % 8]} {WORDS[(n + 5) % 8]} {WORDS[(n + 6) % 8]}" for n in range(40)]
REVERSED = [" ".join(reversed(text.split())) for text in RIGHT]
NEAR = [" ".join([*text.split()[:3], text.split()[0]]) for text in RIGHT]


@pytest.mark.parametrize(("metric", "stopped"), [("rouge_l", True), ("rouge_2", True), ("cosine", False)])
def test_a_candidate_that_turns_words_around_is_stopped_by_the_metrics_that_see_their_order(
    metric: str, stopped: bool
) -> None:
    event = evaluated(asked(REVERSED, NEAR, RIGHT), task(text_metric=metric))
    assert gate(event.gates, "not_worse").passed is not stopped
    (gating,) = [row for row in event.texts if row.gates]
    assert gating.metric == metric
    assert event.candidate.score == gating.candidate
    assert event.gain is not None and event.gain.value == pytest.approx(gating.difference.value)


@pytest.mark.parametrize("metric", ["rouge_l", "cosine"])
def test_what_changed_inputs_cost_is_told_by_one_metric(metric: str) -> None:
    """Answered with the same texts, changed rows were compared with others by another metric: a fall of 75 points."""
    spec = task(text_metric=metric, adversarial={"rows": 32, "kinds": ["typos"]})
    found = asked(REVERSED, REVERSED, RIGHT)
    cases = adversarial_cases(found.evaluation, spec, None)
    same = ArmAnswers(answers=tuple(REVERSED[case.source or 0] for case in cases), latencies_ms=())
    event = evaluated(replace(found, adversarial=AdversarialAnswers(cases, same, same)), spec)
    assert event.adversarial is not None
    drops = [result.candidate.drop.value for result in event.adversarial.results if result.candidate.drop is not None]
    assert drops and all(drop == pytest.approx(0.0) for drop in drops)


def test_every_metric_is_shown_with_intervals_and_the_paired_difference() -> None:
    event = evaluated(asked(NEAR, REVERSED, RIGHT), task())
    assert [row.metric for row in event.texts] == list(TextMetric)
    for row in event.texts:
        assert row.candidate.low <= row.candidate.value <= row.candidate.high
        assert row.difference.value == pytest.approx(row.candidate.value - row.production.value)
    by_metric = {row.metric: row for row in event.texts}
    assert by_metric[TextMetric.ROUGE_L].difference.finding == "better"
    assert by_metric[TextMetric.COSINE].difference.finding == "worse"


def test_a_request_that_failed_is_worth_nothing_by_any_metric() -> None:
    scores = text_scores(asked([None], ["parcel refund"], ["parcel refund"]), BagEncoder())
    assert {float(candidate[0]) for candidate, _ in scores.values()} == {0.0}
    assert [float(production[0]) for _, production in scores.values()] == pytest.approx([1.0] * len(TextMetric))


def test_texts_that_production_left_unanswered_make_no_metric_better() -> None:
    event = evaluated(asked(NEAR, [None] * 8 + NEAR[8:], RIGHT), task())
    assert len(event.texts) == len(TextMetric)
    for row in event.texts:
        assert row.candidate.value >= row.production.value
        assert (row.difference.value, row.difference.finding) == (0.0, "not_shown")


def test_text_beside_other_calls_is_worth_nothing_by_any_metric() -> None:
    call = '[{"name":"refund","arguments":"{}"}]'
    expected = f"parcel refund\n{call}"
    found = asked([f"parcel refund\n{call.replace('refund', 'invoice')}"], [expected], [expected])
    scores = text_scores(found, WordEncoder())
    assert {float(candidate[0]) for candidate, _ in scores.values()} == {0.0}
    assert [float(production[0]) for _, production in scores.values()] == pytest.approx([1.0] * len(TextMetric))


def test_without_the_encoder_the_job_waits_for_it() -> None:
    with pytest.raises(DependencyUnavailable):
        text_scores(asked(NEAR, REVERSED, RIGHT), NoEncoder())


def test_a_cosine_below_zero_is_worth_nothing() -> None:
    class Opposite(BagEncoder):
        def embed(self, texts: Sequence[str]) -> Vectors:
            return np.array([[1.0], [-1.0]], dtype=np.float32)

    assert cosines(["parcel"], ["refund"], Opposite()).tolist() == [0.0]
