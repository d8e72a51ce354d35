"""Publishes a dataset as train.jsonl, eval.jsonl, rejected.jsonl and manifest.json, named by their content."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from schemas.base import Gate
from schemas.datasets import DatasetManifest
from schemas.failures import FailuresClustered
from schemas.tasks import TaskSpec
from services.dataset_builder.domain import Dataset
from services.dataset_builder.gates import label_counts
from shared.files import write_atomically
from shared.identity import content_hash
from shared.storage.artifacts import MANIFEST

KIND = "datasets"


class ArtifactWriter(Protocol):
    """What publishing needs of the artifact store."""

    def publish(self, folder: Path, kind: str, name: str) -> str: ...


def publish_dataset(
    artifacts: ArtifactWriter,
    dataset: Dataset,
    spec: TaskSpec,
    cycle: FailuresClustered,
    gates: Sequence[Gate],
    now: datetime,
) -> tuple[str, str]:
    """Publish the dataset's folder; returns its id and URI. The same rows have the same id.

    A folder that is already published stays as it is: its manifest describes the first build of these rows.
    """
    files = {
        "train.jsonl": _lines(dataset.train),
        "eval.jsonl": _lines(dataset.eval),
        "rejected.jsonl": _lines(dataset.rejected),
    }
    dataset_id = f"{spec.name}-{content_hash(spec.revision, *(files[name] for name in sorted(files)))}"
    manifest = DatasetManifest(
        dataset_id=dataset_id,
        task=spec.name,
        task_revision=spec.revision,
        cycle_id=cycle.cycle_id,
        created_at=now,
        data_cutoff=cycle.data_cutoff,
        seed=spec.dataset.seed,
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        train_examples=len(dataset.train),
        eval_examples=len(dataset.eval),
        rejected=dataset.rejected_by_reason(),
        labels=label_counts(dataset, spec),
        failure_modes=tuple(mode.mode_id for mode in cycle.modes),
        gates=tuple(gates),
    )
    files[MANIFEST] = manifest.model_dump_json(indent=2).encode()
    with tempfile.TemporaryDirectory(prefix="ratchet-dataset-") as folder:
        for name, data in files.items():
            write_atomically(Path(folder) / name, data)
        return dataset_id, artifacts.publish(Path(folder), KIND, dataset_id)


def _lines(rows: Sequence[BaseModel]) -> bytes:
    return b"".join(row.model_dump_json().encode() + b"\n" for row in rows)
