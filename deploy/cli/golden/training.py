"""Finds training rows that are, or nearly are, questions of a golden set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from schemas.conversation import Message, input_text
from schemas.datasets import DatasetManifest, Example
from schemas.golden import GoldenRow
from schemas.tasks import TaskSpec
from shared.model.near_copies import AskedQuestions
from shared.storage.artifacts import MANIFEST, ArtifactStore

DATASETS = "datasets"


@dataclass(frozen=True)
class TrainedOn:
    """The rows of a dataset version that are, or nearly are, given questions."""

    dataset_id: str
    train: int
    eval: int


def count_in_newest(store: ArtifactStore, spec: TaskSpec, rows: Sequence[GoldenRow]) -> TrainedOn | None:
    """Count the rows of the task's newest version that the next build leaves out because of these; None without one.

    Raises DependencyUnavailable, or OSError, while the store is away.
    """
    versions = dataset_versions(store, spec.name)
    if not versions:
        return None
    newest, index = versions[-1], AskedQuestions((row.prompt for row in rows), spec)
    counts = [sum(index.contains(row.prompt) for row in _examples(store, newest, part)) for part in ("train", "eval")]
    return TrainedOn(newest, *counts)


def never_trained_on(store: ArtifactStore, spec: TaskSpec, rows: Sequence[GoldenRow]) -> list[GoldenRow]:
    """Return those of the rows that no version of the task has in its training data, nearly either. Raises as above."""
    prompts: dict[str, tuple[Message, ...]] = {}  # Versions share most of their rows.
    for name in dataset_versions(store, spec.name):
        for example in _examples(store, name, "train"):
            prompts.setdefault(input_text(example.prompt, ()), example.prompt)
    trained = AskedQuestions(prompts.values(), spec)
    return [row for row in rows if not trained.contains(row.prompt)]


def dataset_versions(store: ArtifactStore, task: str) -> list[str]:
    """Return the task's published versions, oldest first. A folder that is no complete version is left out."""
    versions = []
    for name in store.names(DATASETS):
        try:
            manifest = DatasetManifest.model_validate_json(b"".join(store.lines(DATASETS, name, MANIFEST)))
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            continue
        if manifest.task == task:
            versions.append((manifest.created_at, name))
    return [name for _, name in sorted(versions)]


def _examples(store: ArtifactStore, name: str, part: str) -> Iterator[Example]:
    return (Example.model_validate_json(line) for line in store.lines(DATASETS, name, f"{part}.jsonl") if line.strip())
