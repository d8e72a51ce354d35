"""What a build's job is given, and the file that keeps its vectors."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from schemas.failures import FailuresClustered
from schemas.tasks import TaskSpec


class BuildJob(BaseModel):
    """The input of the job's process."""

    cycle: FailuresClustered
    spec: TaskSpec
    artifacts: str
    cache: Path
    slots_folder: Path
    embedder: Path
    secrets_folder: Path
    models_folder: Path
    traffic_hours: int


def embeddings_file(cache: Path, task: str) -> Path:
    """Return the file that keeps the vectors of a task's texts from build to build."""
    return cache / "embeddings" / f"{task}.vectors"


def delete_embeddings(cache: Path, task: str) -> None:
    """Delete that file, and what a killed process has half written of it."""
    file = embeddings_file(cache, task)
    for path in (file, *file.parent.glob(f".{file.name}.*")):
        path.unlink(missing_ok=True)
