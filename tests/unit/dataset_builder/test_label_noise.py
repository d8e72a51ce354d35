"""Labels that look wrong wait for a person, those of the evaluation set first; a settled one is not asked again."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from schemas.conversation import Message, Role
from schemas.datasets import Fate
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.task_settings import FailureSettings
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.votes import resolve_votes, votes_of
from services.dataset_builder.checks import label_noise
from services.dataset_builder.checks.label_noise import (
    SUSPICIOUS,
    LabelledText,
    LabelScore,
    LabelsToScore,
    Scorer,
    find_noise,
)
from services.dataset_builder.checks.measures import Measures
from services.dataset_builder.inspection.gates import evaluate_gates
from services.dataset_builder.pipeline import Build, Dataset, Inputs, build_dataset
from tests.unit.dataset_builder.voting import correction

SPEC = TaskSpec(name="t", kind=TaskKind.CLASSIFICATION, system_prompt="", labels=("a", "b", "c"))
WORDS = {"a": "apple", "b": "banana", "c": "cherry"}


class WordModel:
    """A noise model that knows which label a text is about, and remembers what it was asked."""

    def __init__(self, rival_probability: float = 0.9) -> None:
        self.learned: list[list[LabelledText]] = []
        self.scored_only: list[list[LabelledText]] = []
        self._rival = rival_probability

    def __call__(self, asked: LabelsToScore) -> list[LabelScore]:
        self.learned.append(list(asked.learned))
        self.scored_only.append(list(asked.others))
        judged = [self._score(row, judged=True) for row in asked.learned]
        return judged + [self._score(row, judged=False) for row in asked.others]

    def _score(self, row: LabelledText, *, judged: bool) -> LabelScore:
        about = next(label for label, word in WORDS.items() if word in row.text)
        if about == row.label:
            return LabelScore(self._rival, "c" if about != "c" else "a", 0.05, False if judged else None)
        return LabelScore(0.05, about, self._rival, True if judged else None)


def corrections_of(count: int, wrong: Iterable[int] = (), first: int = 0) -> list[CorrectionSubmitted]:
    """Questions about a fruit each, in turn; of the wrong ones the label is that of the next fruit."""
    chance, wrong = random.Random(first), set(wrong)
    made = []
    for number in range(first, first + count):
        about = SPEC.labels[number % 3]
        label = SPEC.labels[(number + 1) % 3] if number in wrong else about
        text = f"{WORDS[about]} {''.join(chance.choices('defghijklmno', k=30))}"
        made.append(relabelled(correction(number, label, minute=number), text=text))
    return made


def relabelled(event: CorrectionSubmitted, text: str = "", **update: object) -> CorrectionSubmitted:
    call = event.call
    if text:
        call = call.model_copy(update={"messages": (call.messages[0].model_copy(update={"content": text}),)})
    return event.model_copy(update={"task_revision": SPEC.revision, "call": call, **update})


def built(
    corrections: Sequence[CorrectionSubmitted], score: Scorer | None, before: Build | None = None, spec: TaskSpec = SPEC
) -> Build:
    """Build on the places of all builds before; the result has all places so far, as the database does."""
    known = {} if before is None else before.places
    build = build_dataset(Inputs(votes_of(corrections), spec, known), score)
    return replace(build, places={**known, **build.places})


def held(build: Build) -> set[str]:
    return {row.prediction_ids[0] for row in build.dataset.left_out if row.reason == SUSPICIOUS}


def test_suspicious_labels_are_held_back_and_asked_about_those_of_the_evaluation_set_first() -> None:
    rows, wrong = corrections_of(120), range(0, 24, 2)
    clean = built(rows, WordModel())
    build = built(corrections_of(120, wrong), WordModel())
    assert held(clean) == set()
    assert held(build) == {f"p{number}" for number in wrong}
    assert {row.fate for row in build.dataset.left_out if row.reason == SUSPICIOUS} == {Fate.HELD_BACK}
    assert len(build.dataset.train) + len(build.dataset.eval) == 120 - len(wrong)
    held_out = {name for name, place in build.places.items() if place.fate is Fate.EVAL}
    questions = [q for q in build.questions if q.purpose is Purpose.SUSPICIOUS_LABEL]
    assert {q.prediction_id for q in questions} == held(build)
    assert held_out & held(build), "the planted errors are on both sides"
    others = max(q.priority for q in questions if q.prediction_id not in held_out)
    assert all(q.priority >= others for q in questions if q.prediction_id in held_out)


def test_a_reviewers_confirming_answer_settles_a_label_and_nobody_is_asked_again() -> None:
    rows, model = corrections_of(120, wrong=[4]), WordModel()
    first = built(rows, model)
    asked_again = relabelled(
        rows[4],
        correction_id="again",
        reviewer="ana",
        purpose=Purpose.SUSPICIOUS_LABEL,
        occurred_at=rows[-1].occurred_at,
    )
    assert held(first) == {"p4"}
    for confirmation in (asked_again, relabelled(asked_again, reviewer="ben", purpose=Purpose.LOW_CONFIDENCE)):
        second = built([*rows, confirmation], model, first)
        assert held(second) == set()
        assert second.questions == ()
        assert "p4" in {e.prediction_ids[0] for e in (*second.dataset.train, *second.dataset.eval)}


def test_an_unanswered_question_stays_the_same_and_the_row_keeps_waiting() -> None:
    rows, model = corrections_of(120, wrong=[4, 7]), WordModel()
    first = built(rows, model)
    second = built([*rows, *corrections_of(10, first=120)], model, first)
    assert [q.prediction_id for q in first.questions] != []
    assert {q.request_id for q in second.questions} == {q.request_id for q in first.questions}
    assert held(second) == held(first) == {"p4", "p7"}


def test_the_order_of_the_rows_makes_no_difference() -> None:
    rows = corrections_of(120, wrong=[4, 7])
    first, shuffled = built(rows, WordModel()), built(random.Random(1).sample(rows, len(rows)), WordModel())
    assert (shuffled.dataset, shuffled.questions) == (first.dataset, first.questions)
    assert shuffled.measures.noise == first.measures.noise


def test_at_most_half_the_rows_of_a_label_are_held_back_the_most_suspicious_first() -> None:
    rows = corrections_of(120, wrong=range(0, 120, 3))
    build = built(rows, WordModel())
    assert len(held(build)) == 40, "of the 80 rows that are called b"
    lonely = built([row for row in rows if row.label != "b" or int(row.prediction_id[1:]) % 3 == 0], WordModel())
    assert len(held(lonely)) == 20


def test_a_days_budget_of_questions_is_asked_now_and_the_rest_once_they_are_answered() -> None:
    rows = corrections_of(120, wrong=range(0, 30, 3))
    spec = SPEC.model_copy(update={"failures": FailureSettings(review_budget_per_day=4)})
    first = built(rows, WordModel(), spec=spec)
    asked = {q.prediction_id for q in first.questions}
    answers = [
        relabelled(row, correction_id=f"again {row.correction_id}", reviewer="ben") for row in rows
        if row.prediction_id in asked
    ]  # fmt: skip
    second = built([*rows, *answers], WordModel(), first, spec)
    assert len(held(first)) == 10
    assert len({q.request_id for q in (*first.questions, *second.questions)}) == 8
    in_eval = {name for name, place in first.places.items() if place.fate is Fate.EVAL} & held(first)
    assert 0 < len(in_eval) <= 4
    assert in_eval <= {q.prediction_id for q in first.questions}, "those of the evaluation set first"


def test_a_label_is_judged_by_the_last_turn_and_its_document_not_by_what_was_asked_before() -> None:
    model, document = WordModel(), Message(role=Role.SYSTEM, content="The customer is in Oslo.")
    before = (Message(role=Role.USER, content="where is it?"), Message(role=Role.ASSISTANT, content="on its way"))
    rows = [
        replace(row, call=row.call.model_copy(update={"messages": (*before, document, *row.call.messages)}))
        for row in resolve_votes(votes_of(corrections_of(120)), SPEC, {})[0]
    ]
    find_noise(rows, (), SPEC, model)
    texts = [row.text for row in model.learned[0]]
    assert len(texts) == 120
    assert not [text for text in texts if "where is it" in text or "on its way" in text]
    assert not [text for text in texts if "Oslo" not in text]


def test_few_rows_a_rare_label_and_a_free_text_are_not_scored() -> None:
    model = WordModel()
    few = built(corrections_of(49, wrong=[1]), model)
    assert (model.learned, held(few), few.measures.noise.judged) == ([], set(), 0)
    rare = [row for row in corrections_of(120, wrong=[2, 5]) if row.label != "c" or row.prediction_id in ("p8", "p11")]
    build = built(rare, model)
    assert {row.label for row in model.learned[0]} == {"a", "b"}
    assert "c" not in build.measures.noise.recall
    writing = TaskSpec(name="t", kind=TaskKind.GENERATION, system_prompt="")
    free = [relabelled(row, task_revision=writing.revision) for row in corrections_of(60)]
    assert built(free, model, spec=writing).measures.noise.judged == 0
    assert built(corrections_of(60), None).measures.noise.judged == 0


MAX_MODEL_ROWS = 1_000


@pytest.fixture(autouse=True)
def models_learn_from_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_noise, "MAX_MODEL_ROWS", MAX_MODEL_ROWS)


def test_a_large_set_is_learned_from_a_bounded_sample_that_has_all_rows_of_rare_labels() -> None:
    model = WordModel()
    row = resolve_votes(votes_of(corrections_of(1)), SPEC, {})[0][0]
    rows = [
        replace(row, prediction_id=f"p{n}", label="c" if n < 50 else "ab"[n % 2]) for n in range(MAX_MODEL_ROWS + 200)
    ]
    noise = find_noise(rows, (), SPEC, model)
    learned = [row.label for row in model.learned[0]]
    assert (len(learned), learned.count("c")) == (MAX_MODEL_ROWS, 50)
    assert len(model.scored_only[0]) == 200
    assert noise.judged == MAX_MODEL_ROWS + 200


def test_wrong_labels_of_a_large_set_count_whether_learned_from_or_not() -> None:
    right = resolve_votes(votes_of(corrections_of(3)), SPEC, {})[0]
    rows = [replace(right[n % 3], prediction_id=f"p{n}") for n in range(MAX_MODEL_ROWS)]
    labels = {row.label: SPEC.labels[(number + 1) % 3] for number, row in enumerate(right)}
    wrong = [replace(right[n % 3], prediction_id=f"new{n}", label=labels[right[n % 3].label]) for n in range(600)]
    found = find_noise([*rows, *wrong], (), SPEC, WordModel())
    assert (found.judged, found.issues) == (MAX_MODEL_ROWS + 600, 600)
    gates = evaluate_gates(Build(Dataset((), (), ()), measures=Measures(noise=found)), SPEC, {})
    assert "label_noise" in {gate.name for gate in gates if not gate.passed}
