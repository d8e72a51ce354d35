"""Finds a person's predictions, their examples in dataset versions and golden sets, and adapters trained on them.

Reads what is published: the lake's tables (schemas/lake.py), and the artifact store's folders `datasets/<id>/`,
`golden/<id>/`, `inspections/<cycle>/`, `adapters/<name>/` and `models/<name>/`, each with its manifest. Rows are found
by who was answered (`user_hash`) and by who else worded what is in them (`author_hash`, `author_hashes`). A report
quotes only rows of its folder's rejected.jsonl, so whoever is quoted is found there. What cannot be read is reported in
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

from schemas.datasets import PREFERENCES, DatasetManifest
from schemas.golden import GOLDEN, GOLDEN_ROWS, GoldenManifest
from schemas.lake import PREDICTIONS
from schemas.quality import InspectionManifest
from shared.errors import DependencyUnavailable
from shared.storage.artifacts import MANIFEST, ArtifactStore

TRAINED, HELD_OUT, LEFT_OUT = "train.jsonl", "eval.jsonl", "rejected.jsonl"
_Manifest = DatasetManifest | GoldenManifest | InspectionManifest
_MANIFESTS: dict[str, type[_Manifest]] = {
    "datasets": DatasetManifest, GOLDEN: GoldenManifest, "inspections": InspectionManifest,
}  # fmt: skip


class _AdapterManifest(BaseModel):
    """The fields of an adapter's manifest that are read here."""

    task: str
    dataset_id: str
    training: dict[str, Any] = {}

    def rows_of(self, use: Use) -> int:
        """Return how many of these rows it was trained on: those of pairs of answers by a setting."""
        compares = self.training.get("preferences", {}).get("method", "none") != "none"
        return use.rows[TRAINED] + (use.rows[PREFERENCES] if compares else 0)


@dataclass
class Use:
    """A dataset version, a golden set or the inspection of a stopped build, which may quote whom it left out.

    `rows`: by file, those of these people; `people`: who of them is in it.
    """

    name: str
    task: str
    uri: str
    rows: Counter[str] = field(default_factory=Counter)
    people: set[str] = field(default_factory=set)

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "task": self.task, "uri": self.uri, "rows": self.rows, "people": len(self.people)}


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

    datasets: list[Use] = field(default_factory=list)
    golden: list[Use] = field(default_factory=list)
    inspections: list[Use] = field(default_factory=list)
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
    unknown: dict[str, str] = {}
    found = {kind: _uses(store, kind, set(subjects), tasks, until, unknown) for kind in _MANIFESTS}
    datasets, golden, inspections = ([use for use in uses.values() if use.rows] for uses in found.values())
    trained = _trained(store, found["datasets"], tasks, unknown)
    return Lineage(datasets, golden, inspections, list(trained), unknown)


def _uses(
    store: ArtifactStore, kind: str, subjects: set[str], tasks: Collection[str], until: datetime,
    unknown: dict[str, str],
) -> dict[str, Use]:  # fmt: skip
    """Return all folders of a kind that these tasks have, by name, with the rows of these people."""
    uses: dict[str, Use] = {}
    for name, content in _manifests(store, kind, unknown):
        try:
            manifest = _MANIFESTS[kind].model_validate_json(content)
            if manifest.task in tasks:
                uses[name] = Use(name, manifest.task, store.address(kind, name))
                for file in _files_of(manifest):
                    _count(uses[name], file, store.lines(kind, name, file), subjects, until)
        except ValidationError:
            unknown[f"{kind}/{name}"] = "its manifest cannot be read"
        except (DependencyUnavailable, OSError, ValueError) as error:
            unknown[f"{kind}/{name}"] = f"its rows cannot be read: {error}"
    return uses


def _files_of(manifest: _Manifest) -> list[str]:
    if isinstance(manifest, GoldenManifest):
        return [GOLDEN_ROWS]
    if isinstance(manifest, InspectionManifest):
        return [LEFT_OUT]
    return [TRAINED, HELD_OUT, LEFT_OUT, *({PREFERENCES} & manifest.files.keys())]


def _count(use: Use, file: str, lines: Iterable[bytes], subjects: set[str], until: datetime) -> None:
    """Add the rows of a file that are of these people. Raises ValueError for a line that is no JSON."""
    for line in filter(bytes.strip, lines):
        row: dict[str, Any] = json.loads(line)
        theirs = subjects.intersection((row.get("user_hash"), row.get("author_hash"), *row.get("author_hashes", ())))
        at = row.get("predicted_at")
        if theirs and (at is None or datetime.fromisoformat(at) <= until):
            use.rows[file] += 1
            use.people |= theirs


def _trained(
    store: ArtifactStore, datasets: Mapping[str, Use], tasks: Collection[str], unknown: dict[str, str]
) -> Iterator[AdapterUse]:
    """Yield what was trained on these datasets: adapters, and models of their own."""
    for folder in ("adapters", "models"):
        for name, content in _manifests(store, folder, unknown):
            try:
                trained = _AdapterManifest.model_validate_json(content)
            except ValidationError:
                unknown[f"{folder}/{name}"] = "its manifest cannot be read"
                continue
            if trained.task not in tasks:
                continue
            if (use := datasets.get(trained.dataset_id)) is None:
                unknown[f"{folder}/{name}"] = f"its dataset {trained.dataset_id} is not in the store"
            elif rows := trained.rows_of(use):
                yield AdapterUse(name, trained.task, store.address(folder, name), use.name, rows)


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
