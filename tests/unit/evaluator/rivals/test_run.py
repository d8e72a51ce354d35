"""The table of approaches, with an engine that copies the label of the most similar example in its prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
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
from services.evaluator.rivals.classifiers import TrainingRows, tf_idf, tf_idf_classifier
from services.evaluator.rivals.run import Contest, approach_table
from services.evaluator.rivals.step import compare_rivals
from services.evaluator.verdict import Asked
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


def nearest_example(request: Request) -> Completion:
    """Answer the label whose example shares most words with the question; without examples, always the first label."""
    words = set(request.text.split())
    shots = [(len(words & set(a["content"].split())), b["content"]) for a, b in pairwise(request.messages)]
    shots = [shot for shot in shots if shot[1] in LABELS]
    answer = max(shots)[1] if shots else LABELS[0]
    return Completion(answer, None, 2, 10 * len(request.messages), "stop", 40.0)


def copying() -> FakeEngine:
    return FakeEngine(nearest_example)


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


async def test_the_table_has_both_arms_the_base_and_every_rival_each_with_its_own_n(tmp_path: Path) -> None:
    engine = copying()
    made = await table(tmp_path, contest(), engine)
    found = rows(made)
    assert set(found) == set(ApproachKind)
    assert [found[kind].accuracy.n for kind in (ApproachKind.CANDIDATE, ApproachKind.TF_IDF)] == [60, 60]
    assert [found[kind].accuracy.n for kind in (ApproachKind.FEW_SHOT, ApproachKind.RETRIEVAL_FEW_SHOT)] == [24, 24]
    assert found[ApproachKind.BASE].accuracy == found[ApproachKind.PRODUCTION].accuracy
    assert {request.model for request in engine.requests} == {"base"}, "rivals are prompts of the base model"
    assert len(engine.requests) == 48, "the base that serves is not asked again"
    assert all(request.choices == LABELS for request in engine.requests), "asked as the arms are"
    assert found[ApproachKind.CANDIDATE].candidate_gain is None
    assert made.answers_per_month is None and found[ApproachKind.CANDIDATE].cost_per_month is None


async def test_each_answer_to_a_rivals_prompt_is_progress(tmp_path: Path) -> None:
    """Of long texts thirty answers take ten minutes, and who follows a cycle takes one without progress for dead."""
    said: list[str] = []
    await table(tmp_path, contest(), copying(), report=said.append)
    for rival in ("few shot", "retrieval few shot"):
        assert [line for line in said if line.startswith(f"rivals: {rival}, ")] == [
            f"rivals: {rival}, {done} of 24 answers" for done in range(25)
        ]


async def test_rivals_learn_from_the_training_rows_and_are_judged_on_held_out_ones(tmp_path: Path) -> None:
    compared = contest()
    found = rows(await table(tmp_path, compared, copying()))
    for kind in (ApproachKind.TF_IDF, ApproachKind.EMBEDDING, ApproachKind.RETRIEVAL_FEW_SHOT):
        assert found[kind].accuracy.value > 0.9, kind
    assert found[ApproachKind.BASE].accuracy.value == pytest.approx(1 / 3)
    shuffled = Contest(**{**vars(compared), "train": [
        e.model_copy(update={"messages": (*e.messages[:-1], Message(role=Role.ASSISTANT, content=LABELS[(n + 1) % 3]))})
        for n, e in enumerate(compared.train)
    ]})  # fmt: skip
    wrong = rows(await table(tmp_path, shuffled, copying()))
    for kind in (ApproachKind.TF_IDF, ApproachKind.EMBEDDING, ApproachKind.RETRIEVAL_FEW_SHOT):
        assert wrong[kind].accuracy.value < 0.1, kind


async def test_the_base_is_asked_where_an_adapter_serves(tmp_path: Path) -> None:
    engine = copying()
    found = rows(await table(tmp_path, contest(production="desk-1"), engine))
    assert found[ApproachKind.PRODUCTION].adapter == "desk-1"
    assert (found[ApproachKind.BASE].adapter, found[ApproachKind.BASE].accuracy.n) == (None, 24)
    assert len(engine.requests) == 72


async def test_a_prompt_has_the_instructions_first_then_examples_then_the_question(tmp_path: Path) -> None:
    engine = copying()
    await table(tmp_path, contest(), engine)
    prompts = [request.messages for request in engine.requests]
    fixed, retrieved = prompts[:24], prompts[24:]
    assert all([m["role"] for m in p].count("system") == 1 and p[0]["role"] == "system" for p in prompts)
    assert all(p[-1]["role"] == "user" for p in prompts)
    assert len({str(p[:-1]) for p in fixed}) == 1, "the same examples before every question"
    for prompt in retrieved:
        (label,) = {m["content"] for m in prompt if m["role"] == "assistant"}
        assert set(WORDS[label]) & set(prompt[-1]["content"].split()), "of its own before each"
    assert {m["content"] for m in fixed[0] if m["role"] == "assistant"} == set(LABELS)


async def test_a_linear_classifier_that_does_as_well_is_the_first_thing_said(tmp_path: Path) -> None:
    made = await table(tmp_path, contest(candidate_right=0.8), copying())
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
    found = rows(await table(tmp_path, replace(compared, questions=asked, train=learned), copying()))
    for kind in (ApproachKind.TF_IDF, ApproachKind.EMBEDDING):
        assert found[kind].accuracy.value > 0.9, kind


async def test_without_the_sentence_encoder_the_rest_is_compared_and_the_gap_is_named(tmp_path: Path) -> None:
    made = await table(tmp_path, contest(), copying(), MissingEmbedder())
    assert set(ApproachKind) - set(rows(made)) == {ApproachKind.EMBEDDING, ApproachKind.RETRIEVAL_FEW_SHOT}
    assert any("the embedding model is not in /models" in said for said in made.findings)
    assert made.curve is None


async def test_a_store_that_says_much_of_its_error_costs_the_costs_alone_and_is_quoted_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(lake: str, task: str, now: datetime) -> Volume:
        raise DependencyUnavailable("the lake does not answer: <Token>secret</Token>" + "x" * 2_000)

    monkeypatch.setattr("services.evaluator.rivals.run.task_volume", refused)
    made = await table(tmp_path, contest(), copying())
    assert "Without costs: the lake does not answer; the evaluator's log says why." in made.findings
    assert made.answers_per_month is None and "secret" not in made.model_dump_json()


async def test_a_broken_price_list_costs_the_costs_alone(tmp_path: Path) -> None:
    """It ended an evaluation whose arms had all been asked."""
    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: EUR\n")
    made = await table(tmp_path, contest(), copying(), prices=prices)
    assert made.answers_per_month is None
    assert all(row.cost_per_month is None for row in made.approaches)
    assert any(said.startswith(f"Without costs: the prices in {prices} are not valid") for said in made.findings)


async def test_an_engine_that_fails_for_a_rival_stops_nothing_and_its_answers_are_wrong(tmp_path: Path) -> None:
    found = rows(await table(tmp_path, contest(), FakeEngine(lambda request: DependencyUnavailable("away"))))
    few_shot = found[ApproachKind.FEW_SHOT]
    assert (few_shot.failed, few_shot.accuracy.value) == (24, 0.0)


async def test_a_rival_that_fails_now_and_then_is_asked_as_often_as_an_arm(tmp_path: Path) -> None:
    compared = contest(production="desk-1")
    away = DependencyUnavailable("busy")
    errors: dict[str, list[Exception]] = {
        q.text: [away] * 3 for q in compared.questions
    }  # All before the base answers.
    found = rows(await table(tmp_path, compared, FakeEngine(nearest_example, errors)))
    assert found[ApproachKind.BASE].failed == 0
    assert found[ApproachKind.BASE].accuracy.value > 0.2, "it says the first of three labels"


async def test_text_has_prompts_as_rivals_and_no_classifier(tmp_path: Path) -> None:
    free = TaskSpec.model_validate(
        {"name": "reply", "kind": "generation", "system_prompt": "Say.", "base_model": "base"}
    )
    made = await table(tmp_path, contest(free), copying())
    assert made.metric == "rouge_l"
    assert not {ApproachKind.TF_IDF, ApproachKind.EMBEDDING} & set(rows(made))
    assert made.curve is None
    assert rows(made)[ApproachKind.RETRIEVAL_FEW_SHOT].accuracy.value > 0.9


async def test_p95_and_the_time_of_a_replica_are_those_of_the_answers(tmp_path: Path) -> None:
    compared = contest()
    measured = compared.measured(ApproachKind.CANDIDATE, compared.candidate, range(60))
    assert measured.seconds == pytest.approx(30.5 / 1000 / 4), "four at a time share a replica"
    of_two = replace(compared, replicas=2).measured(ApproachKind.CANDIDATE, compared.candidate, range(60))
    assert of_two.seconds == pytest.approx(30.5 / 1000 / 2), "two at a time are on each"
    of_many = replace(compared, replicas=9).measured(ApproachKind.CANDIDATE, compared.candidate, range(60))
    assert of_many.seconds == pytest.approx(30.5 / 1000), "an answer keeps one replica busy at most"
    found = rows(await table(tmp_path, compared, copying()))
    assert (found[ApproachKind.CANDIDATE].latency_ms_p50, found[ApproachKind.CANDIDATE].latency_ms_p95) == (30.5, 57.0)
    assert found[ApproachKind.TF_IDF].latency_ms_p95 > 0


async def test_a_killed_job_does_not_measure_again_what_it_has_written(tmp_path: Path) -> None:
    """No engine and no encoder are there: the table can only be the one in the folder."""
    compared = contest()
    made = await table(tmp_path, compared, copying())
    (tmp_path / "approaches.json").write_text(made.model_dump_json())
    job = EvaluationJob(
        trained=compared.trained, production=None, vllm=("http://127.0.0.1:1",), artifacts="", cache=tmp_path,
        slots_folder=tmp_path, slots=1, concurrency=1, timeout_seconds=1.0, max_rank=16, embedder=tmp_path, lake="",
    )  # fmt: skip
    asked = Asked(compared.questions, (), compared.candidate, compared.production)
    assert await compare_rivals(job, compared.train, asked, tmp_path, Progress(tmp_path)) == made


def test_a_classifier_of_hundreds_of_classes_has_the_fewer_features() -> None:
    """Each set of labels is a class of a task with several at once: all features for each would be gigabytes."""
    texts = [f"{text_of(LABELS[n % 3], n)} {n * 7919}" for n in range(120)]
    train = TrainingRows(texts, [f"set {n % 60}" for n in range(120)], [1.0] * 120, texts)
    assert tf_idf(300).max_features * 300 <= 4_000_000
    assert (tf_idf(77).max_features, tf_idf(10).max_features) == (50_000, 50_000)
    assert len(tf_idf_classifier(train, texts[:3]).answers) == 3
