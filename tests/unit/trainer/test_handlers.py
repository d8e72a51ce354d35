from __future__ import annotations

import fcntl
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.adapters import AdapterTrained
from schemas.base import Event
from schemas.cycles import CycleFinished, StepFailed, StepProgressed
from schemas.datasets import DatasetBuilt
from schemas.rollouts import RolloutChanged
from services.trainer.domain import SkippedRows, TrainingOutcome, job_name
from services.trainer.handlers import Handlers, training_job
from services.trainer.job import (
    Slot,
    TrainingJob,
    base_model,
    build_manifest,
    read_examples,
    train_candidate,
    trained_event,
)
from services.trainer.main import starter
from services.trainer.settings import TrainerSettings
from shared.errors import DependencyUnavailable, StepImpossible
from shared.jobs import Job, JobFailure, JobProgress, Jobs, Progress, start_here
from shared.kafka.latest_by_key import LatestByKey
from shared.storage.artifacts import ArtifactStore

EXAMPLE = Path("schemas/examples/datasets.built.v1/built.json")


class Published:
    def __init__(self) -> None:
        self.events: list[Event] = []

    async def publish(self, event: Event) -> None:
        self.events.append(event)


def no_rollouts() -> LatestByKey[RolloutChanged]:
    return LatestByKey("rollouts.changed.v1")


@pytest.fixture
def dataset() -> DatasetBuilt:
    return DatasetBuilt.model_validate_json(EXAMPLE.read_bytes())


@pytest.fixture
def settings(tmp_path: Path) -> TrainerSettings:
    return TrainerSettings(home=tmp_path)


@pytest.fixture
def published() -> Published:
    return Published()


@pytest.fixture
def handlers(settings: TrainerSettings, published: Published) -> Handlers:
    return Handlers(settings, Jobs(settings.jobs_folder, "services.trainer.job"), published, no_rollouts())


def job_of(settings: TrainerSettings, dataset: DatasetBuilt) -> Job:
    return Job(job_name(dataset), settings.jobs_folder / job_name(dataset))


async def test_a_redelivered_dataset_is_one_job(
    handlers: Handlers, settings: TrainerSettings, dataset: DatasetBuilt, published: Published
) -> None:
    await handlers.on_dataset(dataset)
    await handlers.on_dataset(dataset)
    (path,) = settings.jobs_folder.glob("*/spec.json")
    assert TrainingJob.model_validate_json(path.read_bytes()).dataset == dataset
    assert published.events == []


async def test_a_rank_that_cannot_be_served_fails_the_step_before_any_training(
    settings: TrainerSettings, dataset: DatasetBuilt, published: Published
) -> None:
    narrow = settings.model_copy(update={"vllm_max_lora_rank": 8})
    handlers = Handlers(narrow, Jobs(settings.jobs_folder, "services.trainer.job"), published, no_rollouts())
    await handlers.on_dataset(dataset)
    await handlers.on_dataset(dataset)
    first, second = published.events
    assert isinstance(first, StepFailed)
    assert (first.step, first.cycle_id) == ("training", dataset.cycle_id)
    assert "rank 16" in first.reason
    assert first.event_id == second.event_id
    assert not list(settings.jobs_folder.glob("*"))


async def test_progress_and_failure_carry_the_cycle(
    handlers: Handlers, settings: TrainerSettings, dataset: DatasetBuilt, published: Published
) -> None:
    await handlers.on_dataset(dataset)
    job = job_of(settings, dataset)
    await handlers.on_progress(job, JobProgress(done=3, total=60, message="step 3 of 60, loss 1.200, 9 s left"))
    await handlers.on_failed(job, JobFailure(reason="no such model", way_out="check its name"))
    progressed, failed = published.events
    assert isinstance(progressed, StepProgressed)
    assert (progressed.done, progressed.total, progressed.cycle_id) == (3, 60, dataset.cycle_id)
    assert isinstance(failed, StepFailed)
    assert (failed.reason, failed.way_out, failed.cycle_id) == ("no such model", "check its name", dataset.cycle_id)


def adapter_folder(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_text('{"r": 16}')
    return folder


OUTCOME = TrainingOutcome(
    steps=60, losses=(2.0, 0.1), skipped=SkippedRows(too_long=1, not_rendered=2), train_loss=0.1, seconds=9.0,
    dtype="bfloat16",
    versions={"torch": "2"},
)  # fmt: skip


async def test_the_same_weights_have_the_same_name_and_the_event_one_id(
    handlers: Handlers, dataset: DatasetBuilt, published: Published, tmp_path: Path
) -> None:
    first = build_manifest(dataset, adapter_folder(tmp_path / "a"), OUTCOME)
    second = build_manifest(dataset, adapter_folder(tmp_path / "b"), OUTCOME)
    other = build_manifest(dataset, adapter_folder(tmp_path / "c", b"others"), OUTCOME)
    assert first.adapter == second.adapter != other.adapter
    assert first.adapter.startswith("support-desk-")
    assert (first.skipped.too_long, first.skipped.not_rendered) == (1, 2)
    assert set(first.files) == {"adapter_model.safetensors", "adapter_config.json"}
    event = trained_event(dataset, "job", first, "/artifacts/adapters/x")
    assert event.event_id == trained_event(dataset, "job", second, "/artifacts/adapters/x").event_id
    await handlers.on_done(Job("job", tmp_path), event.model_dump_json().encode())
    assert published.events == [event]
    assert isinstance(event, AdapterTrained)
    assert (event.cycle_id, event.data_cutoff, event.rank) == (dataset.cycle_id, dataset.data_cutoff, 16)


@pytest.mark.parametrize("failed", [False, True])
async def test_what_a_job_needed_to_go_on_is_deleted_once_its_end_is_published(
    settings: TrainerSettings, dataset: DatasetBuilt, tmp_path: Path, failed: bool
) -> None:
    class Away(Published):
        async def publish(self, event: Event) -> None:
            raise DependencyUnavailable("Kafka is away")

    jobs = Jobs(settings.jobs_folder, "services.trainer.job")
    handlers = Handlers(settings, jobs, Published(), no_rollouts())
    await handlers.on_dataset(dataset)
    job = job_of(settings, dataset)
    manifest = build_manifest(dataset, adapter_folder(job.folder / "adapter"), OUTCOME)
    (job.folder / "checkpoints" / "checkpoint-9").mkdir(parents=True)
    result = trained_event(dataset, job.name, manifest, "/artifacts/adapters/x").model_dump_json().encode()

    async def end(publisher: Published) -> None:
        ended = Handlers(settings, jobs, publisher, no_rollouts())
        await (ended.on_failed(job, JobFailure(reason="diverged")) if failed else ended.on_done(job, result))

    with pytest.raises(DependencyUnavailable):
        await end(Away())
    assert {path.name for path in job.folder.iterdir()} == {"adapter", "checkpoints", "spec.json"}
    await end(Published())
    assert {path.name for path in job.folder.iterdir()} == {"spec.json"}


@pytest.mark.parametrize(
    ("outcome", "cycle", "is_ended"), [("failed", None, True), ("rejected", None, False), ("failed", "another", False)]
)
async def test_the_training_of_a_cycle_that_a_person_ended_ends(
    handlers: Handlers,
    settings: TrainerSettings,
    dataset: DatasetBuilt,
    outcome: Any,
    cycle: str | None,
    is_ended: bool,
) -> None:
    await handlers.on_dataset(dataset)
    folder = job_of(settings, dataset).folder
    (folder / "checkpoints").mkdir()
    await handlers.on_finished(
        CycleFinished(
            task=dataset.task, task_revision=dataset.task_revision, cycle_id=cycle or dataset.cycle_id, outcome=outcome,
            reason="stopped by an operator", seconds=9.0,
        )
    )  # fmt: skip
    assert {path.name for path in folder.iterdir()} == {"spec.json", "announced" if is_ended else "checkpoints"}


async def test_a_dataset_that_is_read_after_the_end_of_its_cycle_is_not_trained_on(
    handlers: Handlers, settings: TrainerSettings, dataset: DatasetBuilt, published: Published
) -> None:
    """As where an operator stopped the cycle while the trainer was down: the topics have no order between them."""
    await handlers.on_finished(
        CycleFinished(
            task=dataset.task, task_revision=dataset.task_revision, cycle_id=dataset.cycle_id, outcome="failed",
            reason="stopped by an operator", seconds=9.0,
        )
    )  # fmt: skip
    await handlers.on_dataset(dataset)
    assert not list(settings.jobs_folder.glob("*/spec.json")) and not published.events
    await handlers.on_dataset(dataset.model_copy(update={"cycle_id": "the-next"}))
    assert list(settings.jobs_folder.glob("*/spec.json"))


def test_a_manifest_left_by_a_killed_process_does_not_change_the_name(dataset: DatasetBuilt, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a")
    before = build_manifest(dataset, folder, OUTCOME).adapter
    (folder / "manifest.json").write_text("{}")
    assert build_manifest(dataset, folder, OUTCOME).adapter == before


@pytest.fixture
def job(dataset: DatasetBuilt, tmp_path: Path) -> TrainingJob:
    """A job whose dataset, without rows, is in the store."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").touch()
    (tmp_path / "data" / "manifest.json").write_text("{}")
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    published = dataset.model_copy(update={"uri": store.publish(tmp_path / "data", "datasets", "d")})
    return TrainingJob(
        dataset=published, models_folder=tmp_path, artifacts=str(tmp_path / "artifacts"), cache=tmp_path / "cache",
        slots_folder=tmp_path / "slots", slots=1, max_rank=16,
    )  # fmt: skip


def use_recipe(monkeypatch: pytest.MonkeyPatch, weights: bytes | None) -> None:
    """Have a training result in these weights; None: it must not run."""

    def train(request: Any, rows: Any, folder: Path, *_: Any) -> TrainingOutcome:
        assert weights is not None, "it was trained a second time"
        (folder / "adapter").mkdir(exist_ok=True)
        (folder / "adapter" / "adapter_model.safetensors").write_bytes(weights)
        return OUTCOME

    module = SimpleNamespace(train=train)
    monkeypatch.setitem(sys.modules, "services.trainer.recipe", module)
    monkeypatch.setattr("services.trainer.recipe", module, raising=False)


@pytest.mark.parametrize("killed_in", ["ArtifactStore.publish", "trained_event"])
def test_a_job_killed_after_its_training_publishes_that_adapter_and_trains_no_other(
    job: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()

    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    use_recipe(monkeypatch, b"weights")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(f"services.trainer.job.{killed_in}", kill)
        train_candidate(job.model_dump_json().encode(), folder, Progress(folder), Slot())
    use_recipe(monkeypatch, None)
    event = train_candidate(job.model_dump_json().encode(), folder, Progress(folder), Slot())
    assert ArtifactStore(job.artifacts, job.cache).names("adapters") == [event.adapter]
    assert (event.steps, event.train_loss) == (60, 0.1)


@pytest.mark.parametrize("away", ["services.trainer.recipe.train", "services.trainer.job.ArtifactStore.publish"])
def test_a_training_keeps_its_slot_while_it_waits_for_what_is_away(
    job: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """Its process holds the GPU's memory still: the next training took the slot and had none."""
    slot, spec, folder = Slot(), job.model_dump_json().encode(), tmp_path / "job"
    folder.mkdir()

    def fail(*_: Any, **__: Any) -> None:
        raise DependencyUnavailable("the store is away")

    use_recipe(monkeypatch, b"weights")
    with monkeypatch.context() as patched, pytest.raises(DependencyUnavailable):
        patched.setattr(away, fail)
        train_candidate(spec, folder, Progress(folder), slot)
    with (job.slots_folder / "0.lock").open("ab") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    event = train_candidate(spec, folder, Progress(folder), slot)
    assert ArtifactStore(job.artifacts, job.cache).names("adapters") == [event.adapter]


@pytest.mark.parametrize("left", [".manifest.json.k2j", "manifest.json", "adapter_model.safetensors"])
def test_what_a_killed_process_left_beside_the_weights_is_not_published(
    job: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    use_recipe(monkeypatch, b"weights")
    adapters, slot = set(), Slot()
    for folder in (tmp_path / "whole", tmp_path / "killed"):
        (folder / "adapter").mkdir(parents=True)
        if folder.name == "killed":
            (folder / "adapter" / left).write_bytes(b"{")
        event = train_candidate(job.model_dump_json().encode(), folder, Progress(folder), slot)
        adapters.add(event.adapter)
        assert {path.name for path in Path(event.uri).iterdir()} == {"adapter_model.safetensors", "manifest.json"}
    assert len(adapters) == 1


def test_a_local_folder_of_the_base_model_is_preferred_to_the_hub(dataset: DatasetBuilt, tmp_path: Path) -> None:
    job = TrainingJob(
        dataset=dataset,
        models_folder=tmp_path,
        artifacts="",
        cache=tmp_path,
        slots_folder=tmp_path,
        slots=1,
        max_rank=16,
    )
    assert base_model(job) == "SmolLM2-135M-Instruct"
    (tmp_path / "SmolLM2-135M-Instruct").mkdir()
    assert base_model(job) == str(tmp_path / "SmolLM2-135M-Instruct")


def test_a_training_row_that_is_broken_or_has_a_picture_is_reported_with_its_line(tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "example_id": "e", "group": "g", "prediction_ids": [], "correction_ids": [],
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "login"}],
    }  # fmt: skip
    picture = {"type": "image_url", "media": {"kind": "image", "hash": "h"}}
    of_picture = row | {"messages": [{"role": "user", "content": [picture]}, *row["messages"][1:]]}
    path = tmp_path / "train.jsonl"
    for broken in ("{broken", json.dumps(of_picture)):
        path.write_text(f"{json.dumps(row)}\n{broken}\n")
        with pytest.raises(StepImpossible, match=r"line 2"):
            read_examples(path)


def test_ray_is_loaded_only_where_it_is_set(settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, int, int]] = []
    fake = SimpleNamespace(RayStarter=lambda *options: started.append(options))
    monkeypatch.setitem(sys.modules, "shared.ray_jobs", fake)
    assert starter(settings) is start_here and started == []
    starter(settings.model_copy(update={"trainer_ray": "ray://head:10001", "trainer_gpus": 2, "trainer_threads": 6}))
    assert started == [("ray://head:10001", 2, 6)]


def test_a_training_on_ray_takes_no_slot_of_a_machine(
    settings: TrainerSettings, dataset: DatasetBuilt, tmp_path: Path
) -> None:
    on_ray = settings.model_copy(update={"trainer_ray": "auto"})
    Slot().take(training_job(dataset, on_ray, None), Progress(tmp_path))
    assert not settings.slots_folder.exists()
