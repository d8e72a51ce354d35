from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from schemas.adapters import AdapterEvaluated, AdapterTrained, Calibration, EvaluationRequested
from schemas.base import Event
from schemas.conversation import Media, Message, Part, Role
from schemas.cycles import CycleFinished, StepFailed, StepProgressed
from schemas.datasets import Example
from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskSpec
from services.evaluator.domain import Question, job_name
from services.evaluator.handlers import Handlers
from services.evaluator.job import calibrate, read_examples
from services.evaluator.job_input import EvaluationJob
from services.evaluator.recipe import ArmAnswers
from services.evaluator.settings import EvaluatorSettings
from services.evaluator.verdict import Asked, Extras, evaluated_event, evaluation_report
from shared.errors import DependencyUnavailable, StepImpossible
from shared.jobs import Job, JobFailure, JobProgress, Jobs
from shared.kafka.delivery import TopicPartition
from shared.kafka.latest_by_key import LatestByKey
from shared.storage.artifacts import ArtifactStore
from tests.unit.evaluator.reports import NOON, approaches

PROMOTED = Path("schemas/examples/rollouts.changed.v1/promoted.json").read_bytes()

REQUESTED = Path("schemas/examples/evaluations.requested.v1/its-turn.json").read_bytes()


class Published:
    def __init__(self) -> None:
        self.events: list[Event] = []

    async def publish(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def trained() -> AdapterTrained:
    return AdapterTrained.model_validate_json(Path("schemas/examples/adapters.trained.v1/lora.json").read_bytes())


@pytest.fixture
def settings(tmp_path: Path) -> EvaluatorSettings:
    return EvaluatorSettings(home=tmp_path)


@pytest.fixture
def published() -> Published:
    return Published()


@pytest.fixture
async def rollouts() -> LatestByKey[RolloutChanged]:
    """Read to its end: there is none yet."""
    table: LatestByKey[RolloutChanged] = LatestByKey("rollouts.changed.v1")
    await table.read_to({})
    return table


@pytest.fixture
def handlers(settings: EvaluatorSettings, published: Published, rollouts: LatestByKey[RolloutChanged]) -> Handlers:
    jobs = Jobs(settings.jobs_folder, "services.evaluator.job")
    return Handlers(settings, jobs, published, rollouts, table_seconds=0.05)


def submitted(settings: EvaluatorSettings) -> EvaluationJob:
    (path,) = settings.jobs_folder.glob("*/spec.json")
    return EvaluationJob.model_validate_json(path.read_bytes())


async def test_a_task_without_a_rollout_is_compared_with_the_base(
    handlers: Handlers, settings: EvaluatorSettings, trained: AdapterTrained
) -> None:
    await handlers.on_adapter(trained)
    await handlers.on_adapter(trained)
    job = submitted(settings)
    assert (job.trained, job.production) == (trained, None)


async def test_the_job_is_told_where_the_encoder_the_lake_and_the_prices_are(
    settings: EvaluatorSettings, published: Published, rollouts: LatestByKey[RolloutChanged], trained: AdapterTrained
) -> None:
    chosen = settings.model_copy(update={"prices_file": Path("own.yaml"), "lake": "s3://lake"})
    jobs = Jobs(settings.jobs_folder, "services.evaluator.job")
    await Handlers(chosen, jobs, published, rollouts, table_seconds=0.05).on_adapter(trained)
    told = submitted(settings)
    assert (told.prices_file, told.lake) == (Path("own.yaml"), "s3://lake")
    assert told.embedder == settings.home / "models" / "all-MiniLM-L6-v2"


async def test_the_job_is_told_where_whole_models_are_served(
    settings: EvaluatorSettings, published: Published, rollouts: LatestByKey[RolloutChanged], trained: AdapterTrained
) -> None:
    assert settings.model_urls == settings.vllm_urls
    chosen = settings.model_copy(update={"models": "http://models:28001/"})
    jobs = Jobs(settings.jobs_folder, "services.evaluator.job")
    await Handlers(chosen, jobs, published, rollouts, table_seconds=0.05).on_adapter(trained)
    job = submitted(settings)
    assert (job.models, job.vllm) == (("http://models:28001",), settings.vllm_urls)


@pytest.mark.parametrize("is_again", [False, True])
async def test_the_evaluation_of_a_cycle_that_a_person_ended_ends_but_not_that_of_a_waiting_candidate(
    handlers: Handlers, settings: EvaluatorSettings, trained: AdapterTrained, is_again: bool
) -> None:
    asked = EvaluationRequested.model_validate_json(REQUESTED)
    await (handlers.on_requested(asked) if is_again else handlers.on_adapter(trained))
    job = submitted(settings).trained
    assert type(job) is (EvaluationRequested if is_again else AdapterTrained)
    for outcome in ("rejected", "failed"):
        assert not list(settings.jobs_folder.glob("*/announced"))
        await handlers.on_finished(
            CycleFinished(
                task=job.task, task_revision=job.task_revision, cycle_id=job.cycle_id, outcome=outcome, reason="r",
                seconds=9.0,
            )
        )  # fmt: skip
    assert len(list(settings.jobs_folder.glob("*/announced"))) == (not is_again)


async def test_an_adapter_that_is_read_after_the_end_of_its_cycle_is_not_evaluated_unless_its_turn_has_come(
    handlers: Handlers, settings: EvaluatorSettings, trained: AdapterTrained
) -> None:
    await handlers.on_finished(
        CycleFinished(
            task=trained.task, task_revision=trained.task_revision, cycle_id=trained.cycle_id, outcome="failed",
            reason="r", seconds=9.0,
        )
    )  # fmt: skip
    await handlers.on_adapter(trained)
    assert not list(settings.jobs_folder.glob("*/spec.json"))
    asked = EvaluationRequested.model_validate_json(REQUESTED)
    await handlers.on_requested(asked.model_copy(update={"cycle_id": trained.cycle_id}))
    assert isinstance(submitted(settings).trained, EvaluationRequested)


async def test_the_opponent_is_the_current_primary(
    handlers: Handlers, settings: EvaluatorSettings, trained: AdapterTrained, rollouts: LatestByKey[RolloutChanged]
) -> None:
    data = json.loads(PROMOTED)
    data["spec"]["base_model"] = trained.base_model
    await rollouts.put(trained.task, RolloutChanged.model_validate(data))
    await handlers.on_adapter(trained)
    assert submitted(settings).production == data["primary_adapter"]


async def test_an_adapter_that_is_delivered_again_after_a_promotion_keeps_its_evaluation(
    handlers: Handlers, settings: EvaluatorSettings, trained: AdapterTrained, rollouts: LatestByKey[RolloutChanged]
) -> None:
    """A second verdict would have it compared once more, with fresh evidence."""
    data = json.loads(PROMOTED)
    data["spec"]["base_model"] = trained.base_model
    await handlers.on_adapter(trained)
    await rollouts.put(trained.task, RolloutChanged.model_validate(data))
    await handlers.on_adapter(trained)
    assert submitted(settings).production is None


async def test_one_whose_turn_has_come_is_compared_with_the_adapter_that_the_deployer_names_each_time_it_asks(
    handlers: Handlers, settings: EvaluatorSettings, trained: AdapterTrained
) -> None:
    """Not with what the evaluator's own table says, which may be behind; and the first verdict is no answer again."""
    await handlers.on_adapter(trained)
    asked = EvaluationRequested.model_validate_json(REQUESTED)
    for event in (asked, asked, asked.model_copy(update={"event_id": uuid4(), "against": None})):
        await handlers.on_requested(event)
    jobs = [EvaluationJob.model_validate_json(path.read_bytes()) for path in settings.jobs_folder.glob("*/spec.json")]
    assert sorted((type(job.trained).__name__, job.production) for job in jobs if job.production) == [
        ("EvaluationRequested", asked.against)
    ]
    assert sorted(type(job.trained).__name__ for job in jobs if job.production is None) == [
        "AdapterTrained", "EvaluationRequested",
    ]  # fmt: skip


async def test_the_opponent_is_not_guessed_while_the_rollouts_are_being_read(
    settings: EvaluatorSettings, published: Published, trained: AdapterTrained
) -> None:
    """After a restart the table took longer than three seconds, and the base model was taken for production."""
    table: LatestByKey[RolloutChanged] = LatestByKey("rollouts.changed.v1")
    handlers = Handlers(settings, Jobs(settings.jobs_folder, "services.evaluator.job"), published, table, 0.05)
    with pytest.raises(DependencyUnavailable, match=r"rollouts\.changed\.v1 is not read to its end yet"):
        await handlers.on_adapter(trained)
    assert not list(settings.jobs_folder.glob("*/spec.json"))
    reading = asyncio.create_task(table.read_to({TopicPartition("rollouts.changed.v1", 0): 7}))
    data = json.loads(PROMOTED)
    data["spec"]["base_model"] = trained.base_model
    await table.put(trained.task, RolloutChanged.model_validate(data))
    await table.advance(0, 7)
    await reading
    await handlers.on_adapter(trained)
    assert submitted(settings).production == data["primary_adapter"]


async def test_progress_and_failure_carry_the_cycle(
    handlers: Handlers, settings: EvaluatorSettings, trained: AdapterTrained, published: Published
) -> None:
    await handlers.on_adapter(trained)
    name = job_name(trained, None)
    job = Job(name, settings.jobs_folder / name)
    await handlers.on_progress(job, JobProgress(done=7, total=160, message="candidate: 7 of 80 answers"))
    await handlers.on_failed(job, JobFailure(reason="vLLM is away", way_out="start it"))
    progressed, failed = published.events
    assert isinstance(progressed, StepProgressed)
    assert (progressed.step, progressed.cycle_id) == ("evaluation", trained.cycle_id)
    assert isinstance(failed, StepFailed)
    assert (failed.step, failed.reason, failed.cycle_id) == ("evaluation", "vLLM is away", trained.cycle_id)


async def test_the_verdict_has_one_event_id_and_the_scores_of_both_arms(
    handlers: Handlers, settings: EvaluatorSettings, trained: AdapterTrained, published: Published, tmp_path: Path
) -> None:
    await handlers.on_adapter(trained)
    labels = trained.spec.labels
    asked = [
        Question((Message(role=Role.USER, content=f"{label} {number}"),), label)
        for label in labels
        for number in range(10)
    ]
    right = ArmAnswers(answers=tuple(q.answer for q in asked), latencies_ms=(5.0,) * len(asked))
    wrong = ArmAnswers(answers=(labels[0],) * len(asked), latencies_ms=(3.0,) * len(asked))
    job = submitted(settings)
    both = Asked(asked, [], right, wrong)
    report = evaluation_report(job.trained, job.production, "job", both, Extras(approaches(len(asked))), NOON)
    event, second = (evaluated_event(job.trained, report, "/store/evaluations/job") for _ in "ab")
    assert event.event_id == second.event_id
    assert (event.verdict, event.report) == ("inconclusive", "/store/evaluations/job"), "no row was drawn by chance"
    assert event.headline == report.headline
    assert (event.candidate.adapter, event.production.adapter) == (trained.adapter, None)
    assert (event.candidate.accuracy.value, event.production.accuracy.value) == (1.0, pytest.approx(1 / len(labels)))
    assert (event.golden_lost, event.golden_gained, event.golden_total) == (0, 0, 0)
    await handlers.on_done(Job("job", tmp_path), event.model_dump_json().encode())
    assert published.events == [AdapterEvaluated.model_validate_json(event.model_dump_json())]


def asked(trained: AdapterTrained) -> list[Question]:
    labels = trained.spec.labels
    return [Question((Message(role=Role.USER, content=f"{n}"),), labels[n % len(labels)]) for n in range(40)]


def half_right(questions: list[Question], score: float) -> ArmAnswers:
    answers = tuple(q.answer if n % 2 else "wrong" for n, q in enumerate(questions))
    return ArmAnswers(answers=answers, latencies_ms=(1.0,) * len(answers), scores=(score,) * len(answers))


def test_the_calibration_is_stored_beside_the_adapter_and_the_first_one_stays(
    trained: AdapterTrained, tmp_path: Path
) -> None:
    store, questions = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache"), asked(trained)
    first, reliability = calibrate(trained, questions, half_right(questions, 0.9), store)
    assert first is not None and reliability is not None
    (of_all,) = reliability.before  # They are of one confidence.
    assert (of_all.confidence, of_all.accuracy.value, of_all.accuracy.n) == (pytest.approx(0.9), 0.5, 40)
    assert (first.answers, first.temperature > 1.5, first.ece_before) == (40, True, pytest.approx(0.4))
    stored = tmp_path / "artifacts" / "calibrations" / trained.adapter / "calibration.json"
    assert Calibration.model_validate_json(stored.read_bytes()) == first
    assert calibrate(trained, questions, half_right(questions, 0.6), store)[0] == first


@pytest.mark.parametrize(("recall", "threshold"), [(0.5, 0.525), (0.9, 0.925)])
def test_the_task_says_what_share_of_the_errors_lies_below_its_threshold_of_low_confidence(
    recall: float, threshold: float, trained: AdapterTrained, tmp_path: Path
) -> None:
    """The twenty errors are those of even numbers; 21 times the recall of them, rounded up, lie at or below it."""
    store, questions = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache"), asked(trained)
    wanted = trained.spec.evaluation.model_copy(update={"low_confidence_recall": recall})
    task = trained.model_copy(update={"spec": trained.spec.model_copy(update={"evaluation": wanted})})
    answers = half_right(questions, 0.9).model_copy(update={"scores": tuple((n + 1) / 40 for n in range(40))})
    found, _ = calibrate(task, questions, answers, store)
    assert found is not None and found.low_confidence is not None
    assert (found.low_confidence.recall, found.low_confidence.threshold) == (recall, pytest.approx(threshold))


def test_the_calibration_is_of_traffic_where_chance_drew_enough_rows(trained: AdapterTrained, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    audits = [replace(question, drawn=0.1, is_uniform=True) for question in asked(trained) * 4]
    suspects = [replace(question, drawn=None) for question in asked(trained)]
    found, _ = calibrate(trained, [*audits, *suspects], half_right([*audits, *suspects], 0.9), store)
    assert found is not None
    assert (found.basis, found.answers) == ("traffic", 160)


def test_golden_answers_are_not_used_for_calibration(trained: AdapterTrained, tmp_path: Path) -> None:
    store, questions = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache"), asked(trained)
    few = questions[:10]
    assert calibrate(trained, few, half_right(questions, 0.9), store) == (None, None)


def test_generation_tasks_and_answers_without_scores_have_no_calibration(
    trained: AdapterTrained, tmp_path: Path
) -> None:
    store, questions = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache"), asked(trained)
    older = half_right(questions, 0.9).model_copy(update={"scores": ()})
    assert calibrate(trained, questions, older, store) == (None, None)
    free = TaskSpec.model_validate({"name": "reply", "kind": "generation", "system_prompt": "Reply."})
    writer = trained.model_copy(update={"spec": free})
    assert calibrate(writer, questions, half_right(questions, 0.9), store) == (None, None)
    assert not (tmp_path / "artifacts").exists()


def test_an_empty_evaluation_set_fails_the_step(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text("")
    with pytest.raises(StepImpossible, match="nothing to evaluate on"):
        read_examples(path)


def test_a_row_with_a_picture_fails_the_step(tmp_path: Path) -> None:
    picture = Part(type="image_url", media=Media(kind="image", hash="h"))
    messages = (Message(role=Role.USER, content=(picture,)), Message(role=Role.ASSISTANT, content="login"))
    row = Example(example_id="e", messages=messages, group="g", prediction_ids=(), correction_ids=())
    path = tmp_path / "eval.jsonl"
    path.write_text(row.model_dump_json() + "\n")
    with pytest.raises(StepImpossible, match="image_url"):
        read_examples(path)
