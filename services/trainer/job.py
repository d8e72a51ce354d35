"""The training job, from dataset to adapter. `shared.jobs` runs it: `python -m services.trainer.job FOLDER`."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from schemas.adapters import AdapterTrained
from schemas.datasets import DatasetBuilt, Example
from services.trainer.devices import VARIABLE, gpus_of_slot, gpus_present
from services.trainer.domain import TrainingOutcome
from shared.conversation import chat_messages
from shared.errors import StepImpossible
from shared.files import write_atomically
from shared.identity import event_id, file_hash, folder_hash
from shared.jobs import Progress, lease, run_job
from shared.storage.artifacts import MANIFEST, ArtifactStore


class TrainingJob(BaseModel):
    """The input of the job's process."""

    dataset: DatasetBuilt
    models_folder: Path
    artifacts: str
    cache: Path
    slots_folder: Path
    slots: int
    threads: int | None = None


class AdapterManifest(BaseModel):
    """manifest.json of an adapter: how it was trained.

    `losses`: by step, the mean per answer token in nats. `too_long` and `not_rendered`: rows that were skipped because
    they exceed `max_length`, or because the base model's chat template does not take them. `dtype`: the data type of
    the frozen base model, which follows from the machine.
    """

    adapter: str
    task: str
    task_revision: str
    base_model: str
    dataset_id: str
    dataset_uri: str
    training: dict[str, object]
    steps: int
    too_long: int
    not_rendered: int
    train_loss: float
    losses: tuple[float, ...]
    seconds: float
    dtype: str
    versions: dict[str, str]
    files: dict[str, str]


class Slot:
    """The process's lease on its part of the machine's GPUs: taken once, and held until the process ends.

    Until then it may hold memory of them, also while it waits for the store that is to have the adapter.
    """

    def __init__(self) -> None:
        self._lease = ExitStack()
        self._is_held = False

    def take(self, job: TrainingJob, progress: Progress) -> None:
        """Wait for a slot, and let PyTorch, which is not loaded yet, see its GPUs alone. Idempotent."""
        if self._is_held:
            return
        number = self._lease.enter_context(lease(job.slots_folder, job.slots, progress))
        self._is_held = True
        gpus = gpus_of_slot(number, job.slots, os.environ.get(VARIABLE), gpus_present())
        if gpus is not None:
            os.environ[VARIABLE] = gpus


def train_adapter(spec: bytes, folder: Path, progress: Progress, slot: Slot) -> AdapterTrained:
    """Train an adapter and publish it. Raises StepImpossible if the dataset or the base model cannot be used.

    A process that was killed after its training left the manifest: then the adapter is only published. One that tries
    again, because something was away, has the `slot` still.
    """
    job = TrainingJob.model_validate_json(spec)
    store = ArtifactStore(job.artifacts, job.cache)
    adapter = folder / "adapter"
    manifest = finished_manifest(adapter) or _train(job, store, folder, progress, slot)
    uri = store.publish(adapter, "adapters", manifest.adapter)
    return trained_event(job.dataset, folder.name, manifest, uri)


def finished_manifest(adapter: Path) -> AdapterManifest | None:
    """Return the manifest of a folder whose training has ended: it is written last. None for any other folder."""
    try:
        manifest = AdapterManifest.model_validate_json((adapter / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return manifest if _hashes(adapter) == manifest.files else None


def delete_weights(folder: Path) -> None:
    """Delete what an ended job needed to go on after a kill: hundreds of megabytes a week, of a large model."""
    for name in ("adapter", "checkpoints"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _train(job: TrainingJob, store: ArtifactStore, folder: Path, progress: Progress, slot: Slot) -> AdapterManifest:
    rows = read_examples(store.fetch_whole(job.dataset.uri) / "train.jsonl")
    slot.take(job, progress)
    from services.trainer import recipe  # Loads torch: only in this process, once it has its GPUs.

    adapter = folder / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)  # A killed process may have left files, which would be published.
    outcome = recipe.train(rows, job.dataset.spec, base_model(job), folder, progress, job.threads)
    manifest = build_manifest(job.dataset, adapter, outcome)
    write_atomically(adapter / MANIFEST, manifest.model_dump_json(indent=2).encode())
    return manifest


def build_manifest(dataset: DatasetBuilt, adapter: Path, outcome: TrainingOutcome) -> AdapterManifest:
    """Build the manifest of the adapter in a folder. The adapter's name is a hash of its files."""
    (adapter / MANIFEST).unlink(missing_ok=True)  # A process that was killed before publishing may have left one.
    return AdapterManifest(
        adapter=f"{dataset.task}-{folder_hash(adapter)}",
        task=dataset.task,
        task_revision=dataset.task_revision,
        base_model=dataset.spec.base_model,
        dataset_id=dataset.dataset_id,
        dataset_uri=dataset.uri,
        training=dataset.spec.training.model_dump(mode="json"),
        steps=outcome.steps,
        too_long=outcome.skipped.too_long,
        not_rendered=outcome.skipped.not_rendered,
        train_loss=outcome.train_loss,
        losses=outcome.losses,
        seconds=outcome.seconds,
        dtype=outcome.dtype,
        versions=outcome.versions,
        files=_hashes(adapter),
    )


def _hashes(adapter: Path) -> dict[str, str]:
    """Return the SHA-256 of each file but the manifest."""
    files = sorted(path for path in adapter.iterdir() if path.is_file() and path.name != MANIFEST)
    return {path.name: file_hash(path) for path in files}


def trained_event(dataset: DatasetBuilt, job: str, manifest: AdapterManifest, uri: str) -> AdapterTrained:
    """Build the event. Its id follows from the job's name, so publishing it again is idempotent."""
    return AdapterTrained(
        event_id=event_id("adapter trained", job),
        task=dataset.task,
        task_revision=dataset.task_revision,
        cycle_id=dataset.cycle_id,
        adapter=manifest.adapter,
        uri=uri,
        base_model=dataset.spec.base_model,
        dataset_id=dataset.dataset_id,
        dataset_uri=dataset.uri,
        method=dataset.spec.training.method,
        rank=dataset.spec.training.r,
        steps=manifest.steps,
        train_loss=manifest.train_loss,
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
    run_job(partial(train_adapter, slot=Slot()))
