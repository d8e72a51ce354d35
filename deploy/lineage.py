"""Finds a person's predictions, their examples in dataset versions and golden sets, and adapters trained on them.

Reads what is published: the lake's tables (schemas/lake.py), and the artifact store's folders `datasets/<id>/`,
`golden/<id>/`, `inspections/<cycle>/`, `adapters/<name>/` and `models/<name>/`, each with its manifest. Rows are found
by who was answered (`user_hash`) and by who else wrote feedback that is in them (`author_hashes`). A report quotes only
rows of its folder's rejected.jsonl, so whoever is quoted is found there. What cannot be read is reported in
`Lineage.unknown`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ValidationError

from schemas.datasets import PREFERENCES, DatasetManifest, Example, LeftOutExample, PreferredAnswer
from schemas.golden import GOLDEN, GOLDEN_ROWS, GoldenManifest, GoldenRow
from schemas.lake import PREDICTIONS
from schemas.quality import InspectionManifest
from shared.errors import DependencyUnavailable
from shared.storage.artifacts import MANIFEST, ArtifactStore

FILES: dict[str, type[Example] | type[LeftOutExample] | type[PreferredAnswer]] = {
    "train.jsonl": Example,
    "eval.jsonl": Example,
    "rejected.jsonl": LeftOutExample,
    PREFERENCES: PreferredAnswer,
}
"""A version always has the first three."""
_OF_INSPECTIONS = ("rejected.jsonl",)


class _AdapterManifest(BaseModel):
    """The fields of an adapter's manifest that are read here."""

    adapter: str
    task: str
    dataset_id: str
    training: dict[str, Any] = {}

    def rows_of(self, use: DatasetUse) -> int:
        """Return how many of these rows it was trained on: those of pairs of answers by a setting."""
        compares = self.training.get("preferences", {}).get("method", "none") != "none"
        return use.training + (use.compared if compares else 0)


@dataclass(frozen=True)
class DatasetUse:
    """A dataset version with rows of these people. Counts are rows; `people`: how many of these people are in it."""

    dataset_id: str
    task: str
    uri: str
    training: int
    held_out: int
    rejected: int
    people: int
    compared: int = 0


@dataclass(frozen=True)
class GoldenUse:
    """A golden set with rows of these people."""

    set_id: str
    task: str
    uri: str
    rows: int


@dataclass(frozen=True)
class InspectionUse:
    """The inspection of a build that a gate stopped, with left-out rows of these people; it may quote them."""

    cycle_id: str
    task: str
    uri: str
    rejected: int
    people: int


@dataclass(frozen=True)
class AdapterUse:
    """An adapter that was trained on rows of these people."""

    adapter: str
    task: str
    uri: str
    dataset_id: str
    examples: int


@dataclass
class Lineage:
    """What was made of these people's requests. `unknown`: folder → why it could not be searched."""

    datasets: list[DatasetUse] = field(default_factory=list)
    golden: list[GoldenUse] = field(default_factory=list)
    inspections: list[InspectionUse] = field(default_factory=list)
    adapters: list[AdapterUse] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)


def predictions_of(lake: str, subjects: Collection[str], tasks: Collection[str]) -> dict[str, int]:
    """Count the lake's predictions of each person in these tasks. `lake`: a folder or an s3:// URI.

    Reads one column, file by file. Raises DependencyUnavailable if the lake is missing or cannot be read.
    """
    import pyarrow as pa
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError
    from pyarrow.dataset import field

    counts = dict.fromkeys(subjects, 0)
    lake = lake.rstrip("/")
    try:
        rows = DeltaTable(f"{lake}/{PREDICTIONS}").to_pyarrow_dataset()
        # Cast, because files that delta-rs rewrote (after an erasure) have string views, which Arrow cannot compare.
        is_theirs = field("task").isin(list(tasks)) & field("user_hash").cast(pa.string()).isin(list(subjects))
        for batch in rows.scanner(columns=["user_hash"], filter=is_theirs).to_batches():
            for subject in batch.column("user_hash").to_pylist():
                counts[subject] += 1
    except TableNotFoundError as error:
        raise DependencyUnavailable(f"there is no lake at {lake}") from error
    except (DeltaError, OSError) as error:
        raise DependencyUnavailable(f"the lake at {lake} cannot be read: {error}") from error
    return counts


def lineage_of(store: ArtifactStore, subjects: Collection[str], tasks: Collection[str], until: datetime) -> Lineage:
    """Find what was made of these people's requests up to `until`."""
    lineage = Lineage()
    uses: dict[str, DatasetUse | None] = {}
    for name, content in _manifests(store, "datasets", lineage.unknown):
        try:
            manifest = DatasetManifest.model_validate_json(content)
        except ValidationError:
            lineage.unknown[f"datasets/{name}"] = "its manifest cannot be read"
            continue
        if manifest.task in tasks:
            uses[name] = _dataset_use(store, name, manifest, set(subjects), until, lineage.unknown)
    lineage.datasets = [use for use in uses.values() if use is not None]
    lineage.golden = _golden_uses(store, set(subjects), tasks, until, lineage.unknown)
    lineage.inspections = list(_inspections(store, tasks, set(subjects), until, lineage.unknown))
    for folder in ("adapters", "models"):
        _add_trained(store, folder, uses, tasks, lineage)
    return lineage


def _add_trained(
    store: ArtifactStore, folder: str, uses: Mapping[str, DatasetUse | None], tasks: Collection[str], lineage: Lineage
) -> None:
    """Add what was trained on these uses: the adapters, or the models of their own."""
    for name, content in _manifests(store, folder, lineage.unknown):
        try:
            trained = _AdapterManifest.model_validate_json(content)
        except ValidationError:
            lineage.unknown[f"{folder}/{name}"] = "its manifest cannot be read"
            continue
        if trained.task not in tasks:
            continue
        if trained.dataset_id not in uses:
            lineage.unknown[f"{folder}/{name}"] = f"its dataset {trained.dataset_id} is not in the store"
        elif (use := uses[trained.dataset_id]) is not None and (rows := trained.rows_of(use)):
            uri = store.address(folder, name)
            lineage.adapters.append(AdapterUse(name, trained.task, uri, use.dataset_id, rows))


def _dataset_use(
    store: ArtifactStore, name: str, manifest: DatasetManifest, subjects: set[str], until: datetime,
    unknown: dict[str, str],
) -> DatasetUse | None:  # fmt: skip
    files = [file for file in FILES if file != PREFERENCES or file in manifest.files]
    rows, people = _rows_of(store, f"datasets/{name}", files, subjects, until, unknown)
    if not rows:
        return None
    uri = store.address("datasets", name)
    counts = rows["train.jsonl"], rows["eval.jsonl"], rows["rejected.jsonl"]
    return DatasetUse(name, manifest.task, uri, *counts, people, rows[PREFERENCES])


def _inspections(
    store: ArtifactStore, tasks: Collection[str], subjects: set[str], until: datetime, unknown: dict[str, str]
) -> Iterator[InspectionUse]:
    for name, content in _manifests(store, "inspections", unknown):
        try:
            manifest = InspectionManifest.model_validate_json(content)
        except ValidationError:
            unknown[f"inspections/{name}"] = "its manifest cannot be read"
            continue
        if manifest.task not in tasks:
            continue
        rows, people = _rows_of(store, f"inspections/{name}", _OF_INSPECTIONS, subjects, until, unknown)
        if rows:
            uri = store.address("inspections", name)
            yield InspectionUse(name, manifest.task, uri, rows["rejected.jsonl"], people)


def _rows_of(
    store: ArtifactStore, folder: str, files: Iterable[str], subjects: set[str], until: datetime,
    unknown: dict[str, str],
) -> tuple[Counter[str], int]:  # fmt: skip
    """Count these people's rows in each file of a folder, and how many of them have any."""
    rows: Counter[str] = Counter()
    people: set[str] = set()
    kind, _, name = folder.partition("/")
    try:
        for file in files:
            for line in filter(bytes.strip, store.lines(kind, name, file)):
                row: dict[str, Any] = json.loads(line)
                if theirs := subjects.intersection((row.get("user_hash"), *row.get("author_hashes", ()))):
                    example = FILES[file].model_validate(row)
                    if example.predicted_at is None or example.predicted_at <= until:
                        rows[file] += 1
                        people |= theirs
    except (DependencyUnavailable, OSError, ValueError) as error:
        unknown[folder] = f"its rows cannot be read: {error}"
    return rows, len(people)


def _golden_uses(
    store: ArtifactStore, subjects: set[str], tasks: Collection[str], until: datetime, unknown: dict[str, str]
) -> list[GoldenUse]:
    uses = []
    for name, content in _manifests(store, GOLDEN, unknown):
        try:
            task = GoldenManifest.model_validate_json(content).task
            if task not in tasks:
                continue
            rows = [GoldenRow.model_validate_json(line) for line in store.lines(GOLDEN, name, GOLDEN_ROWS)]
        except (DependencyUnavailable, OSError, ValueError) as error:
            unknown[f"{GOLDEN}/{name}"] = f"its rows cannot be read: {error}"
            continue
        theirs = sum(row.is_of(subjects, until) for row in rows)
        if theirs:
            uses.append(GoldenUse(name, task, store.address(GOLDEN, name), theirs))
    return uses


def _manifests(store: ArtifactStore, kind: str, unknown: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and manifest of each folder. A folder without a manifest is not complete and skipped."""
    try:
        names = store.names(kind)
    except (DependencyUnavailable, OSError) as error:
        unknown[kind] = f"the artifact store cannot be read: {error}"
        return
    for name in names:
        try:
            yield name, b"".join(store.lines(kind, name, MANIFEST))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (DependencyUnavailable, OSError) as error:
            unknown[f"{kind}/{name}"] = f"its manifest cannot be read: {error}"
