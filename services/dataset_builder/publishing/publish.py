"""Publishes what a build made, named by its content, and the inspection of one that a gate stopped.

datasets/<dataset_id>/     train.jsonl · eval.jsonl · rejected.jsonl · preferences.jsonl (where people compared or
                           corrected generated answers)
                           quality.json · quality.html · manifest.json
inspections/<cycle_id>/    rejected.jsonl · quality.json · quality.html · manifest.json
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel

from schemas.datasets import PREFERENCES, DatasetManifest
from schemas.failures import FailuresClustered
from schemas.quality import InspectionManifest, QualityReport
from schemas.tasks import TaskSpec
from services.dataset_builder.inspection.gates import label_counts
from services.dataset_builder.inspection.report import Inspected, quality_report
from services.dataset_builder.pipeline import Dataset
from services.dataset_builder.publishing.card import CARD, dataset_card
from services.dataset_builder.publishing.versions import KIND
from shared.files import replaced_atomically, write_atomically
from shared.identity import content_hash, file_hash
from shared.report.dataset import inspection_blocks
from shared.report.html import page
from shared.storage.artifacts import MANIFEST

INSPECTIONS = "inspections"
TRAIN, EVAL, REJECTED = "train.jsonl", "eval.jsonl", "rejected.jsonl"


_STAGED = ".publishing-"


@dataclass(frozen=True)
class StagedBuild:
    """The files of a build in a folder of this machine: to be published as `name` among the artifacts of a `kind`.

    `report.passed` tells which it is: a version, or only its inspection. A folder that is already published stays as it
    is: its manifest and its report describe the first build of these rows.
    """

    dataset_id: str
    folder: Path
    kind: str
    name: str
    report: QualityReport


@contextmanager
def staged_build(inspected: Inspected, cycle: FailuresClustered, now: datetime, folder: Path) -> Iterator[StagedBuild]:
    """Write the files of a build below `folder`, and delete them in the end. Raises OSError.

    A build that passed makes a version, else its inspection. The same rows have the same id.
    See `delete_staged` for the files of a process that was killed.
    """
    dataset, spec = inspected.build.dataset, inspected.spec
    with tempfile.TemporaryDirectory(prefix=_STAGED, dir=folder) as temporary:
        staged = Path(temporary)
        for file, rows in ((TRAIN, dataset.train), (EVAL, dataset.eval), (REJECTED, dataset.left_out)):
            _write_lines(staged / file, rows)
        hashed = [EVAL, REJECTED, TRAIN]
        if inspected.preferences:
            _write_lines(staged / PREFERENCES, inspected.preferences)
            hashed.append(PREFERENCES)
        rows_hash = content_hash(spec.revision, *(staged / file for file in hashed))
        dataset_id = f"{spec.name}-{rows_hash}"
        report = quality_report(inspected, dataset_id, cycle.cycle_id, now)
        kind, published_as = (KIND, dataset_id) if report.passed else (INSPECTIONS, str(cycle.cycle_id))
        write_atomically(staged / "quality.json", report.model_dump_json(indent=2).encode())
        html = page(f"Inspection of {published_as}", inspection_blocks(report, quoted=True))
        write_atomically(staged / "quality.html", html.encode())
        files = ["quality.json", "quality.html", REJECTED]
        if report.passed:
            write_atomically(staged / CARD, dataset_card(dataset_id, "jsonl").encode())
            files = ["quality.json", "quality.html", *hashed, CARD]
            manifest: BaseModel = _manifest(report, dataset, inspected, cycle, _hashes(staged, files))
        else:
            (staged / TRAIN).unlink()
            (staged / EVAL).unlink()
            (staged / PREFERENCES).unlink(missing_ok=True)
            manifest = InspectionManifest(
                task=spec.name, cycle_id=published_as, created_at=now, files=_hashes(staged, files)
            )
        write_atomically(staged / MANIFEST, manifest.model_dump_json(indent=2).encode())
        yield StagedBuild(dataset_id, staged, kind, published_as, report)


def delete_staged(folder: Path) -> None:
    """Delete what a killed process has left in the folder: rows with people's texts."""
    for left in folder.glob(f"{_STAGED}*"):
        shutil.rmtree(left)


def _manifest(
    report: QualityReport, dataset: Dataset, inspected: Inspected, cycle: FailuresClustered, files: dict[str, str]
) -> DatasetManifest:
    spec: TaskSpec = inspected.spec
    return DatasetManifest(
        dataset_id=str(report.dataset_id),
        task=spec.name,
        task_revision=spec.revision,
        cycle_id=cycle.cycle_id,
        parent=report.parent,
        created_at=report.created_at,
        data_cutoff=cycle.data_cutoff,
        seed=spec.dataset.seed,
        files=files,
        train_examples=len(dataset.train),
        eval_examples=len(dataset.eval),
        left_out=dataset.left_out_counts(),
        labels=label_counts(dataset, spec),
        failure_modes=tuple(mode.mode_id for mode in cycle.modes),
        gates=tuple(inspected.gates),
    )


def _hashes(folder: Path, files: Iterable[str]) -> dict[str, str]:
    return {name: file_hash(folder / name) for name in files}


def _write_lines(path: Path, rows: Iterable[BaseModel]) -> None:
    """Write rows one after the other: all of them as one text would be a good part of a build's memory."""
    with replaced_atomically(path) as file:
        file.writelines(row.model_dump_json().encode() + b"\n" for row in rows)
