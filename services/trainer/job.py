"""The training job, from data set to adapter. `shared.jobs` runs it: `python -m services.trainer.job FOLDER`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from schemas.adapters import AdapterTrained, ArtifactKind
from schemas.datasets import DatasetBuilt, Example, PreferredAnswer
from schemas.task_settings import Method
from services.trainer.devices import VARIABLE, gpus_of_slot, gpus_present
from services.trainer.distributed import train_distributed
from services.trainer.domain import TrainingOutcome, TrainingRequest, check_divisible, check_labels, check_start
from services.trainer.inputs import fetch_adapters, read_pairs
from shared.conversation import chat_messages
from shared.errors import StepImpossible
from shared.files import write_atomically
from shared.identity import event_id, file_hash, folder_hash
from shared.jobs import Progress, lease, run_job
from shared.model.adapter_files import CONFIG
from shared.storage.artifacts import MANIFEST, ArtifactNotFound, ArtifactStore


class TrainingJob(BaseModel):
    """The input of the job's process. `serving`: the adapter that serves the task now; None: the base model.
    `max_trials`: of a sweep."""

    dataset: DatasetBuilt
    models_folder: Path
    artifacts: str
    cache: Path
    slots_folder: Path
    slots: int
    max_rank: int
    threads: int | None = None
    serving: str | None = None
    trackers: tuple[str, ...] = ()
    prices_file: Path | None = None
    max_trials: int = 16
    fsdp: bool = False


class Manifest(TrainingOutcome):
    """manifest.json of an adapter or a model: what it is, from what it comes, and how it was trained.

    `rank`: None of a model. `parents`: the adapters that it goes on from, or is merged of.
    """

    adapter: str
    kind: ArtifactKind
    rank: int | None
    task: str
    task_revision: str
    base_model: str
    dataset_id: str
    dataset_uri: str
    training: dict[str, object]
    parents: tuple[str, ...]
    files: dict[str, str]


class Slot:
    """The process's lease on its part of the machine's GPUs: taken once, and held until the process ends.

    Until then it may hold memory of them, also while it waits for the store that is to have the adapter.
    """

    def __init__(self) -> None:
        self._lease = ExitStack()
        self._is_held = False

    def take(self, job: TrainingJob, progress: Progress) -> None:
        """Wait for a slot, if any, and let PyTorch, which is not loaded yet, see its GPUs alone. Idempotent."""
        if self._is_held or not job.slots:
            return
        number = self._lease.enter_context(lease(job.slots_folder, job.slots, progress))
        self._is_held = True
        gpus = gpus_of_slot(number, job.slots, os.environ.get(VARIABLE), gpus_present())
        if gpus is not None:
            os.environ[VARIABLE] = gpus


def train_candidate(spec: bytes, folder: Path, progress: Progress, slot: Slot) -> AdapterTrained:
    """Train a candidate and publish it. Raises StepImpossible if the data set or the base model cannot be used.

    A process that was killed after its training left the manifest: then the result is only published. One that tries
    again, because something was away, has the `slot` still.
    """
    job = TrainingJob.model_validate_json(spec)
    store = ArtifactStore(job.artifacts, job.cache)
    result = folder / _kind(job)
    manifest = finished_manifest(result) or _train(job, store, folder, progress, slot)
    uri = store.publish(result, f"{manifest.kind}s", manifest.adapter)
    return trained_event(job.dataset, folder.name, manifest, uri)


def _kind(job: TrainingJob) -> ArtifactKind:
    return "adapter" if job.dataset.spec.training.is_adapter else "model"


def finished_manifest(result: Path) -> Manifest | None:
    """The manifest of a folder whose training has ended: it is written last. None for any other folder."""
    try:
        manifest = Manifest.model_validate_json((result / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return manifest if _hashes(result) == manifest.files else None


def delete_weights(folder: Path) -> None:
    """Delete what an ended job needed to go on after a kill: gigabytes a week, of a large model."""
    for name in ("adapter", "model", "checkpoints", "best", "sweep/weights"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _train(job: TrainingJob, store: ArtifactStore, folder: Path, progress: Progress, slot: Slot) -> Manifest:
    data = store.fetch_whole(job.dataset.uri)
    rows = read_examples(data / "train.jsonl")
    check_labels(rows, job.dataset.spec)
    request = training_request(job, store, read_pairs(data))
    slot.take(job, progress)
    from torch.cuda import device_count  # Only in this process, once it has its GPUs.

    from services.trainer import recipe

    if job.fsdp and device_count() > 1:
        check_divisible(request.spec)
        request = replace(request, gpus=device_count())

    result = folder / _kind(job)
    shutil.rmtree(result, ignore_errors=True)  # A killed process may have left files, which would be published.
    notes: tuple[str, ...] = ()
    if request.settings.sweep_hours is not None:
        from services.trainer.sweep import sweep_settings

        found = sweep_settings(request, rows, folder, progress, job.max_rank, job.max_trials)
        (folder / "furthest").unlink(missing_ok=True)  # For `shared.jobs` the training begins again at its first step.
        spec = request.spec.model_copy(update={"training": found.settings})
        request, notes = replace(request, spec=spec), (found.reason,)
    if request.gpus > 1:
        outcome = train_distributed(request, rows, folder)
    else:
        outcome = recipe.train(request, rows, folder, progress)
    outcome = outcome.model_copy(update={"notes": (*notes, *outcome.notes)})
    dataset = job.dataset.model_copy(update={"spec": request.spec})
    manifest = build_manifest(dataset, result, outcome, request.parents)
    write_atomically(result / MANIFEST, manifest.model_dump_json(indent=2).encode())
    return manifest


def training_request(job: TrainingJob, store: ArtifactStore, pairs: Sequence[PreferredAnswer]) -> TrainingRequest:
    """What the recipe is asked for. Raises StepImpossible for adapters that it cannot start from, or merge."""
    settings = job.dataset.spec.training
    start = job.serving if settings.start_from == "last" else None
    try:
        folder = None if start is None else store.fetch_whole(store.address("adapters", start))
    except ArtifactNotFound as error:
        raise StepImpossible(
            f"the adapter {start}, which the training is to go on from, is not in the artifact store",
            "Set training.start_from: base.",
        ) from error
    if folder is not None:
        check_start(folder / "adapter_config.json", job.dataset.spec)
    is_fusion = settings.method is Method.FUSION
    return TrainingRequest(
        spec=job.dataset.spec,
        base=base_model(job),
        threads=settings.threads or job.threads,
        start=folder,
        fused=fetch_adapters(store, job.dataset.spec, job.max_rank) if is_fusion else (),
        pairs=tuple(pairs),
        trackers=job.trackers,
        prices_file=job.prices_file,
    )


def build_manifest(
    dataset: DatasetBuilt, result: Path, outcome: TrainingOutcome, parents: tuple[str, ...] = ()
) -> Manifest:
    """Build the manifest of what is in a folder. Its name is a hash of its files."""
    (result / MANIFEST).unlink(missing_ok=True)  # A process that was killed before publishing may have left one.
    config = result / CONFIG
    return Manifest(
        **outcome.model_dump(),
        adapter=f"{dataset.task}-{folder_hash(result)}",
        kind="adapter" if dataset.spec.training.is_adapter else "model",
        rank=json.loads(config.read_bytes())["r"] if config.exists() else None,
        task=dataset.task,
        task_revision=dataset.task_revision,
        base_model=dataset.spec.base_model,
        dataset_id=dataset.dataset_id,
        dataset_uri=dataset.uri,
        training=dataset.spec.training.model_dump(mode="json"),
        parents=parents,
        files=_hashes(result),
    )


def _hashes(adapter: Path) -> dict[str, str]:
    """The SHA-256 of each file but the manifest."""
    files = sorted(path for path in adapter.iterdir() if path.is_file() and path.name != MANIFEST)
    return {path.name: file_hash(path) for path in files}


def trained_event(dataset: DatasetBuilt, job: str, manifest: Manifest, uri: str) -> AdapterTrained:
    """Build the event. Its id follows from the job's name, so publishing it again is idempotent."""
    return AdapterTrained(
        event_id=event_id("adapter trained", job),
        task=dataset.task,
        task_revision=dataset.task_revision,
        cycle_id=dataset.cycle_id,
        adapter=manifest.adapter,
        kind=manifest.kind,
        uri=uri,
        base_model=dataset.spec.base_model,
        dataset_id=dataset.dataset_id,
        dataset_uri=dataset.uri,
        method=str(manifest.training["method"]),  # The task's, or what a sweep found.
        rank=manifest.rank,
        steps=manifest.steps,
        train_loss=manifest.train_loss,
        validation_loss=manifest.validation_loss,
        seconds=manifest.seconds,
        data_cutoff=dataset.data_cutoff,
        spec=dataset.spec,
    )


def base_model(job: TrainingJob) -> str:
    """Return the local folder of the task's base model, or else its name on the Hugging Face hub."""
    folder = job.models_folder / job.dataset.spec.base_model
    return str(folder) if folder.is_dir() else job.dataset.spec.base_model


def read_examples(path: Path) -> list[Example]:
    """Read the rows of train.jsonl. Raises StepImpossible with the line of a row that is not one, or has media."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(Example.model_validate_json(line))
                chat_messages(rows[-1].messages)
            except ValueError as error:
                raise StepImpossible(
                    f"{path}, line {number} is not a training example: {error}", "Build the dataset again."
                ) from error
    return rows


if __name__ == "__main__":
    run_job(partial(train_candidate, slot=Slot()))
