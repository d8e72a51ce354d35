"""The table of approaches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from schemas.adapters import AdapterTrained
from schemas.approaches import Approach, ApproachKind, ApproachTable
from schemas.conversation import Message, Role
from schemas.datasets import Example
from schemas.tasks import TaskKind, TaskSpec
from services.evaluator.domain import Question
from services.evaluator.job_input import EvaluationJob
from services.evaluator.recipe import ArmAnswers
from services.evaluator.rivals.run import Contest, approach_table, compare_rivals
from services.evaluator.verdict import Asked
from shared.conversation import comparable_text
from shared.errors import DependencyUnavailable
from shared.jobs import Progress
from shared.model.embedding import Vectors
from shared.model.inference import Completion
from shared.storage.volume import Volume
from tests.unit.evaluator.engine import FakeEngine, Request

TRAINED = AdapterTrained.model_validate_json(Path("schemas/examples/adapters.trained.v1/lora.json").read_bytes())
LABELS = ("refund", "login", "delivery")
WORDS = {"refund": ("money", "back", "charge"), "login": ("password", "account", "locked"),
         "delivery": ("parcel", "late", "courier")}  # fmt: skip
SPEC = TaskSpec.model_validate(
    {"name": "desk", "kind": "classification", "system_prompt": "Say.", "labels": LABELS, "base_model": "base"}
)
SYSTEM = Message(role=Role.SYSTEM, content="Say.")


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.evaluator.rivals.run.ASKED_ROWS", 24)


def text_of(label: str, number: int) -> str:
    words = WORDS[label]
    return f"my {words[number % 3]} and {words[(number + 1) % 3]} number {number}"


def examples(count: int) -> list[Example]:
    return [
        Example(
            example_id=f"e{n}", group=f"g{n}", prediction_ids=(), correction_ids=(),
            messages=(
                SYSTEM, Message(role=Role.USER, content=text_of(LABELS[n % 3], n)),
                Message(role=Role.ASSISTANT, content=LABELS[n % 3]),
            ),
        )
        for n in range(count)
    ]  # fmt: skip


def questions(count: int) -> list[Question]:
    return [
        Question((SYSTEM, Message(role=Role.USER, content=text_of(LABELS[n % 3], 1_000 + n))), LABELS[n % 3])
        for n in range(count)
    ]


def first_label(request: Request) -> Completion:
    """The base model, which knows nothing."""
    return Completion(LABELS[0], None, 2, 10 * len(request.messages), "stop", 40.0)


def base() -> FakeEngine:
    return FakeEngine(first_label)


class WordEmbedder:
    """One direction for each word: texts with words in common are near each other."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), 384), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                vectors[row, sum(word.encode()) % 384] += 1.0
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)


class MissingEmbedder:
    def embed(self, texts: Sequence[str]) -> Vectors:
        raise DependencyUnavailable("the embedding model is not in /models")


def contest(spec: TaskSpec = SPEC, production: str | None = None, candidate_right: float = 1.0) -> Contest:
    asked = questions(60)
    right = round(candidate_right * len(asked))
    good = tuple(q.answer if n < right else "wrong" for n, q in enumerate(asked))
    times = tuple(float(n) for n in range(1, 61))
    return Contest(
        trained=TRAINED.model_copy(update={"spec": spec, "base_model": "base", "task": "desk"}),
        production_adapter=production, questions=asked,
        candidate=ArmAnswers(answers=(*good, "golden"), latencies_ms=times),
        production=ArmAnswers(answers=(LABELS[0],) * 60, latencies_ms=times),
        train=examples(120), concurrency=4,
    )  # fmt: skip


async def table(
    tmp_path: Path,
    compared: Contest,
    engine: FakeEngine,
    embedder: WordEmbedder | MissingEmbedder | None = None,
    prices: Path | None = None,
    report: Callable[[str], None] = lambda said: None,
) -> ApproachTable:
    job = SimpleNamespace(lake=str(tmp_path / "lake"), prices_file=prices)
    return await approach_table(engine, embedder or WordEmbedder(), compared, job, report)


def rows(made: ApproachTable) -> dict[ApproachKind, Approach]:
    return {row.kind: row for row in made.approaches}


async def test_the_table_has_both_arms_the_base_and_the_linear_classifier_each_with_its_own_n(tmp_path: Path) -> None:
    engine = base()
    made = await table(tmp_path, contest(), engine)
    found = rows(made)
    assert set(found) == set(ApproachKind)
    assert [found[kind].accuracy.n for kind in (ApproachKind.CANDIDATE, ApproachKind.LINEAR)] == [60, 60]
    assert found[ApproachKind.BASE].accuracy == found[ApproachKind.PRODUCTION].accuracy
    assert engine.requests == [], "the base that serves is not asked again"
    assert found[ApproachKind.CANDIDATE].candidate_gain is None
    assert made.answers_per_month is None and found[ApproachKind.CANDIDATE].cost_per_month is None


async def test_each_answer_of_the_base_is_progress(tmp_path: Path) -> None:
    """Of long texts thirty answers take ten minutes, and who follows a cycle takes one without progress for dead."""
    said: list[str] = []
    await table(tmp_path, contest(production="desk-1"), base(), report=said.append)
    assert said[:-1] == [f"rivals: base, {done} of 24 answers" for done in range(1, 25)]


async def test_the_classifier_learns_from_the_training_rows_and_is_judged_on_held_out_ones(tmp_path: Path) -> None:
    compared = contest()
    found = rows(await table(tmp_path, compared, base()))
    assert found[ApproachKind.LINEAR].accuracy.value > 0.9
    assert found[ApproachKind.BASE].accuracy.value == pytest.approx(1 / 3)
    learned = [
        e.model_copy(update={"messages": (*e.messages[:-1], Message(role=Role.ASSISTANT, content=LABELS[(n + 1) % 3]))})
        for n, e in enumerate(compared.train)
    ]
    wrong = rows(await table(tmp_path, replace(compared, train=learned), base()))
    assert wrong[ApproachKind.LINEAR].accuracy.value < 0.1


async def test_the_classifier_reads_a_document_that_stands_where_instructions_do() -> None:
    """Each question was the same sentence to it, so that the adapter seemed to beat it."""
    messages = (Message(role=Role.SYSTEM, content="The tenant pays."), Message(role=Role.USER, content="Classify it."))
    assert "The tenant pays." in comparable_text(messages, {"Say."})


async def test_the_base_is_asked_where_an_adapter_serves(tmp_path: Path) -> None:
    engine = base()
    found = rows(await table(tmp_path, contest(production="desk-1"), engine))
    assert found[ApproachKind.PRODUCTION].adapter == "desk-1"
    assert (found[ApproachKind.BASE].adapter, found[ApproachKind.BASE].accuracy.n) == (None, 24)
    assert len(engine.requests) == 24
    assert all(request.choices == LABELS for request in engine.requests), "asked as the arms are"


async def test_a_linear_classifier_that_does_as_well_is_the_first_thing_said(tmp_path: Path) -> None:
    made = await table(tmp_path, contest(candidate_right=0.8), base())
    assert made.findings[0].startswith("A linear classifier on ")
    assert "does better than the adapter" in made.findings[0]


async def test_classifiers_take_a_set_of_labels_as_a_class(tmp_path: Path) -> None:
    """Also where the training set has the labels in another order than the question's answer."""
    compared = contest(SPEC.model_copy(update={"kind": TaskKind.MULTI_LABEL}))
    sets = {label: json.dumps([label, LABELS[0]] if label != LABELS[0] else []) for label in LABELS}
    turned = {label: json.dumps(json.loads(text)[::-1]) for label, text in sets.items()}
    asked = [replace(question, answer=turned[question.answer]) for question in compared.questions]
    learned = [
        e.model_copy(update={"messages": (*e.messages[:-1], Message(role=Role.ASSISTANT, content=sets[e.answer]))})
        for e in compared.train
    ]
    found = rows(await table(tmp_path, replace(compared, questions=asked, train=learned), base()))
    assert found[ApproachKind.LINEAR].accuracy.value > 0.9


async def test_without_the_sentence_encoder_the_rest_is_compared_and_the_gap_is_named(tmp_path: Path) -> None:
    made = await table(tmp_path, contest(), base(), MissingEmbedder())
    assert set(ApproachKind) - set(rows(made)) == {ApproachKind.LINEAR}
    assert any("the embedding model is not in /models" in said for said in made.findings)


async def test_a_store_that_says_much_of_its_error_costs_the_costs_alone_and_is_quoted_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(lake: str, task: str, now: datetime) -> Volume:
        raise DependencyUnavailable("the lake does not answer: <Token>secret</Token>" + "x" * 2_000)

    monkeypatch.setattr("services.evaluator.rivals.run.task_volume", refused)
    made = await table(tmp_path, contest(), base())
    assert "Without costs: the lake does not answer; the evaluator's log says why." in made.findings
    assert made.answers_per_month is None and "secret" not in made.model_dump_json()


async def test_a_broken_price_list_costs_the_costs_alone(tmp_path: Path) -> None:
    """It ended an evaluation whose arms had all been asked."""
    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: EUR\n")
    made = await table(tmp_path, contest(), base(), prices=prices)
    assert made.answers_per_month is None
    assert all(row.cost_per_month is None for row in made.approaches)
    assert any(said.startswith(f"Without costs: the prices in {prices} are not valid") for said in made.findings)


async def test_an_engine_that_fails_for_a_rival_stops_nothing_and_its_answers_are_wrong(tmp_path: Path) -> None:
    away = FakeEngine(lambda request: DependencyUnavailable("away"))
    found = rows(await table(tmp_path, contest(production="desk-1"), away))[ApproachKind.BASE]
    assert (found.failed, found.accuracy.value) == (24, 0.0)


async def test_a_rival_that_fails_now_and_then_is_asked_as_often_as_an_arm(tmp_path: Path) -> None:
    compared = contest(production="desk-1")
    away = DependencyUnavailable("busy")
    errors: dict[str, list[Exception]] = {
        q.text: [away] * 3 for q in compared.questions
    }  # All before the base answers.
    found = rows(await table(tmp_path, compared, FakeEngine(first_label, errors)))
    assert found[ApproachKind.BASE].failed == 0
    assert found[ApproachKind.BASE].accuracy.value > 0.2, "it says the first of three labels"


async def test_text_has_the_base_as_its_rival_and_no_classifier(tmp_path: Path) -> None:
    free = TaskSpec.model_validate(
        {"name": "reply", "kind": "generation", "system_prompt": "Say.", "base_model": "base"}
    )
    made = await table(tmp_path, contest(free), base())
    assert made.metric == "rouge_l"
    assert set(rows(made)) == {ApproachKind.CANDIDATE, ApproachKind.PRODUCTION, ApproachKind.BASE}


async def test_p95_and_the_time_of_a_replica_are_those_of_the_answers(tmp_path: Path) -> None:
    compared = contest()
    measured = compared.measured(ApproachKind.CANDIDATE, compared.candidate, range(60))
    assert measured.seconds == pytest.approx(30.5 / 1000 / 4), "four at a time share a replica"
    of_two = replace(compared, replicas=2).measured(ApproachKind.CANDIDATE, compared.candidate, range(60))
    assert of_two.seconds == pytest.approx(30.5 / 1000 / 2), "two at a time are on each"
    of_many = replace(compared, replicas=9).measured(ApproachKind.CANDIDATE, compared.candidate, range(60))
    assert of_many.seconds == pytest.approx(30.5 / 1000), "an answer keeps one replica busy at most"
    found = rows(await table(tmp_path, compared, base()))
    assert (found[ApproachKind.CANDIDATE].latency_ms_p50, found[ApproachKind.CANDIDATE].latency_ms_p95) == (30.5, 57.0)
    assert found[ApproachKind.LINEAR].latency_ms_p95 > 0


async def test_a_killed_job_does_not_measure_again_what_it_has_written(tmp_path: Path) -> None:
    """No engine and no encoder are there: the table can only be the one in the folder."""
    compared = contest()
    made = await table(tmp_path, compared, base())
    (tmp_path / "approaches.json").write_text(made.model_dump_json())
    job = EvaluationJob(
        trained=compared.trained, production=None, vllm=("http://127.0.0.1:1",), artifacts="", cache=tmp_path,
        slots_folder=tmp_path, slots=1, concurrency=1, timeout_seconds=1.0, max_rank=16, embedder=tmp_path, lake="",
    )  # fmt: skip
    asked = Asked(compared.questions, (), compared.candidate, compared.production)
    assert await compare_rivals(job, compared.train, asked, tmp_path, Progress(tmp_path)) == made
