"""A training by hand: the job that the cycle runs, in this process, with its progress on the terminal."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deploy.cli.dataset.versions import VERSIONS, UnknownVersion, read_manifest, versions_of
from deploy.cli.output import stderr
from schemas.adapters import AdapterTrained
from schemas.datasets import DatasetBuilt, DatasetManifest
from schemas.task_settings import TrainingSettings
from schemas.tasks import TaskSpec
from services.trainer.domain import check_servable, job_name
from services.trainer.job import Slot, TrainingJob, delete_weights, train_candidate
from shared.errors import ConfigurationError, RatchetError, describe_validation_error
from shared.files import write_atomically
from shared.jobs import Progress, lease
from shared.storage.artifacts import ArtifactStore


def dataset_of(store: ArtifactStore, spec: TaskSpec, name: str | None) -> DatasetManifest:
    """Return the manifest of this version of the task's data set; None: of the newest one.

    Raises RatchetError if there is none, or if it is of another revision of the task: of other labels, say.
    """
    passed = [] if name else [version for version in versions_of(store, spec.name) if version.report.passed]
    if name is None and not passed:
        reason = f"no version of {spec.name} passed its gates"
        raise RatchetError(reason, f"Which builds were stopped, and why: ratchet dataset list {spec.name}")
    manifest = read_manifest(store, name or passed[-1].name)
    if manifest.task != spec.name:
        raise RatchetError(f"{manifest.dataset_id} is of the task {manifest.task}, not of {spec.name}")
    if manifest.task_revision != spec.revision:
        raise RatchetError(
            f"{manifest.dataset_id} is of revision {manifest.task_revision} of {spec.name}, which is now at revision "
            f"{spec.revision}: its labels, prompt, base model or form of answers changed since",
            f"Build a version of today's task: ratchet cycle {spec.name}",
        )
    return manifest


def rows_of(store: ArtifactStore, spec: TaskSpec, name: str | None) -> int:
    """Return how many rows this version has to train on; before the first one, as many as a cycle needs."""
    try:
        return dataset_of(store, spec, name).train_examples
    except UnknownVersion:
        return spec.dataset.min_examples


def changed_settings(settings: TrainingSettings, changes: Sequence[str]) -> TrainingSettings:
    """Return a task's training settings with those of `--set KEY=VALUE`. Raises ConfigurationError."""
    values = settings.model_dump()
    for change in changes:
        key, equals, text = change.partition("=")
        *sections, last = key.split(".")
        place: Any = values
        for section in sections:
            place = place.get(section, {}) if isinstance(place, dict) else {}
        if not equals or not isinstance(place, dict) or last not in place:
            raise ConfigurationError(
                f"--set {change}: expected KEY=VALUE with a key of `training`",
                f"Keys: {', '.join(TrainingSettings.model_fields)}. deploy/tasks/template.yaml explains them.",
            )
        try:
            place[last] = YAML(typ="safe", pure=True).load(text)
        except YAMLError as error:
            raise ConfigurationError(f"--set {change}: not a value of YAML: {text}") from error
    try:
        return TrainingSettings.model_validate(values)
    except ValidationError as error:
        reason = f"--set: {describe_validation_error(error)}"
        raise ConfigurationError(reason, "deploy/tasks/template.yaml explains every key of `training`.") from error


def dataset_event(store: ArtifactStore, manifest: DatasetManifest, spec: TaskSpec) -> DatasetBuilt:
    """Return the event that announced the version, without its cycle."""
    return DatasetBuilt(
        task=manifest.task,
        task_revision=manifest.task_revision,
        dataset_id=manifest.dataset_id,
        uri=store.address(VERSIONS, manifest.dataset_id),
        train_examples=manifest.train_examples,
        eval_examples=manifest.eval_examples,
        data_cutoff=manifest.data_cutoff,
        spec=spec,
    )


def run_here(job: TrainingJob, folder: Path) -> tuple[AdapterTrained, Path]:
    """Run the job in this process and publish its result in the store. Returns it, and the job's folder.

    One that was killed goes on; one that has ended is not run again. Raises StepImpossible as the trainer's job does.
    """
    check_servable(job.dataset.spec, job.max_rank)
    folder /= job_name(job.dataset)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # As the trainer sets it; before PyTorch is loaded.
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore", FutureWarning)  # What libraries tell one another.
    with _bar(folder) as progress, lease(folder, 1, progress):
        result = folder / "result.json"
        if not result.exists():
            event = train_candidate(job.model_dump_json().encode(), folder, progress, Slot())
            write_atomically(result, event.model_dump_json().encode())
            delete_weights(folder)
        return AdapterTrained.model_validate_json(result.read_bytes()), folder


class _BarProgress(Progress):
    """A job's progress that is also a bar on the terminal."""

    def __init__(self, folder: Path, bar: Bar) -> None:
        super().__init__(folder)
        self._bar, self._task = bar, bar.add_task("starting", total=None, validation="")
        self._validation = ""

    def __call__(
        self,
        done: float,
        total: float,
        message: str = "",
        loss: float | None = None,
        validation_loss: float | None = None,
    ) -> None:
        super().__call__(done, total, message, loss, validation_loss)
        if validation_loss is not None:
            self._validation = f"validation loss {validation_loss:.3f}"
        self._bar.update(self._task, completed=done, total=total, description=message, validation=self._validation)


@contextmanager
def _bar(folder: Path) -> Iterator[_BarProgress]:
    folder.mkdir(parents=True, exist_ok=True)
    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.fields[validation]}"))
    with Bar(*columns, TextColumn("{task.description}", markup=False), console=stderr) as bar:
        yield _BarProgress(folder, bar)
