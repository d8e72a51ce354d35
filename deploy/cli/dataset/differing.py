"""Compares two versions, and quotes a few of the rows that differ."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from deploy.cli.dataset.versions import read_manifest
from schemas.conversation import input_text
from services.dataset_builder.inspection.changes import RowName, Rows, VersionRow, difference
from services.dataset_builder.publishing.versions import read_examples, read_rows
from shared.errors import ConfigurationError
from shared.storage.artifacts import ArtifactStore

_SHOWN_CHARS = 80


@dataclass(frozen=True)
class DifferingRow:
    """A row that differs: the version's side that has it in words, empty where it is not in it."""

    prediction: str
    before: str
    after: str
    asked: str


@dataclass(frozen=True)
class VersionComparison:
    """Kind of difference → how many rows, and the first of them."""

    before: str
    after: str
    kinds: dict[str, tuple[int, list[DifferingRow]]]

    def body(self) -> dict[str, Any]:
        kinds = {kind: {"count": n, "rows": [asdict(row) for row in rows]} for kind, (n, rows) in self.kinds.items()}
        return {"before": self.before, "after": self.after, **kinds}


def compare_versions(store: ArtifactStore, before: str, after: str, limit: int) -> VersionComparison:
    """Compare two versions of one task. Raises UnknownVersion, or ConfigurationError for versions of two tasks."""
    manifests = [read_manifest(store, name) for name in (before, after)]
    if manifests[0].task != manifests[1].task:
        tasks = " and ".join(manifest.task for manifest in manifests)
        raise ConfigurationError(f"these are versions of two tasks, {tasks}", "Name two versions of one task.")
    old, new = read_rows(store, before), read_rows(store, after)
    found = difference(old, new)
    kinds = {
        "added": found.added, "removed": found.removed, "relabelled": found.relabelled, "moved": found.moved,
        "reweighted": found.reweighted,
    }  # fmt: skip
    shown = {name for names in kinds.values() for name in names[:limit]}
    asked = _questions(store, (before, after), shown)
    return VersionComparison(
        before,
        after,
        {kind: (len(names), [_row(name, old, new, asked) for name in names[:limit]]) for kind, names in kinds.items()},
    )


def _questions(store: ArtifactStore, versions: Iterable[str], names: set[RowName]) -> dict[RowName, str]:
    """The ends of what was asked in these rows."""
    found: dict[RowName, str] = {}
    for version in versions if names else ():
        for part in ("train", "eval"):
            for example in read_examples(store, version, part):
                if example.prediction_ids in names:
                    text = " ".join(input_text(example.prompt).split())
                    found[example.prediction_ids] = text if len(text) <= _SHOWN_CHARS else f"…{text[-_SHOWN_CHARS:]}"
    return found


def _row(name: RowName, old: Rows, new: Rows, asked: dict[RowName, str]) -> DifferingRow:
    return DifferingRow("+".join(name), _side(old.get(name)), _side(new.get(name)), asked[name])


def _side(row: VersionRow | None) -> str:
    if row is None:
        return ""
    weight = "" if row.weight == 1 else f", weight {row.weight:g}"
    return f"{row.answer[:_SHOWN_CHARS]} ({row.part}{weight})"
