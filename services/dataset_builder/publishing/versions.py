"""Reads a version that was published before, as far as a later one is compared with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from schemas.datasets import DatasetBuilt, Example
from services.dataset_builder.inspection.changes import Parent, RowName, VersionRow, rows_of
from shared.storage.artifacts import ArtifactStore

KIND = "datasets"


def read_parent(artifacts: ArtifactStore, last: tuple[DatasetBuilt, bool] | None) -> Parent | None:
    """Return the version that a build follows. Raises DependencyUnavailable while the store is away.

    `last`: the task's newest version, and whether its cycle failed later on: then nothing was learned from it.
    """
    if last is None:
        return None
    (built, cycle_failed), rows = last, None
    with contextlib.suppress(FileNotFoundError):  # Someone deleted it, after an erasure say.
        rows = read_rows(artifacts, built.dataset_id)
    return Parent(built.dataset_id, built.spec, rows, cycle_failed, built.parent)


def read_rows(artifacts: ArtifactStore, dataset_id: str) -> dict[RowName, VersionRow]:
    """Return the rows of a version. Raises FileNotFoundError if it is gone, DependencyUnavailable, or OSError."""
    train, held_out = (rows_of(part, read_examples(artifacts, dataset_id, part)) for part in ("train", "eval"))
    return train | held_out


def read_examples(artifacts: ArtifactStore, dataset_id: str, part: str) -> Iterator[Example]:
    """Yield the rows of one part, in their order."""
    for line in _lines(artifacts, dataset_id, part):
        yield Example.model_validate_json(line)


def _lines(artifacts: ArtifactStore, dataset_id: str, part: str) -> Iterator[bytes]:
    return (line for line in artifacts.lines(KIND, dataset_id, f"{part}.jsonl") if line.strip())
