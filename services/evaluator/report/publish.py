"""Publishes a report and its page: `evaluations/<evaluation>/` in the artifact store (schemas/evaluation.py)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from schemas.evaluation import EVALUATION_FILE, EVALUATION_PAGE, EVALUATIONS, EvaluationManifest, EvaluationReport
from shared.files import write_atomically
from shared.report.evaluation import evaluation_blocks
from shared.report.html import page
from shared.storage.artifacts import MANIFEST, ArtifactStore


def publish_report(report: EvaluationReport, store: ArtifactStore, folder: Path) -> str:
    """Write the files into `folder` and publish them; returns the address. The first report of a name stays."""
    files = {
        EVALUATION_FILE: report.model_dump_json(indent=2).encode(),
        EVALUATION_PAGE: page(f"Evaluation of {report.adapter}", evaluation_blocks(report)).encode(),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
    manifest = EvaluationManifest(
        evaluation=report.evaluation,
        task=report.task,
        adapter=report.adapter,
        created_at=report.created_at,
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    )
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=2).encode())
    return store.publish(folder, EVALUATIONS, report.evaluation)


def read_report(store: ArtifactStore, uri: str) -> EvaluationReport:
    """Return the report that is published at an address."""
    return EvaluationReport.model_validate_json((store.fetch(uri) / EVALUATION_FILE).read_bytes())
