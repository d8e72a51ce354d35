"""Finds versions and inspections in the artifact store by their names. Reads what is published, and no service."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches

from pydantic import ValidationError

from schemas.base import CheckResult
from schemas.datasets import DatasetManifest
from schemas.quality import QualityReport
from shared.errors import RatchetError
from shared.settings import Settings
from shared.storage.artifacts import MANIFEST, ArtifactStore

VERSIONS, INSPECTIONS = "datasets", "inspections"
_SHOWN = 8


class UnknownVersion(RatchetError):
    """No version, build or task of this name is in the store."""


@dataclass(frozen=True)
class Listed:
    """A version, or a build that a gate stopped, as a line of the list."""

    name: str
    created_at: datetime
    report: QualityReport

    def checks(self) -> str:
        """The number of checks by result, such as `9 passed, 1 unknown`."""
        results = [check.result for check in self.report.checks]
        return ", ".join(f"{results.count(result)} {result}" for result in CheckResult if result in results)


def open_store() -> ArtifactStore:
    settings = Settings.load()
    return ArtifactStore(settings.artifacts_uri, settings.home / "cache")


def versions_of(store: ArtifactStore, task: str) -> list[Listed]:
    """Return the task's versions and stopped builds, oldest first. Raises UnknownVersion if there is none."""
    found = [*_listed(store, VERSIONS), *_listed(store, INSPECTIONS)]
    tasks = sorted({listed.report.task for listed in found})
    of_task = [listed for listed in found if listed.report.task == task]
    if not of_task:
        known = f"Tasks with versions: {', '.join(tasks)}" if tasks else "A cycle makes one: ratchet cycle TASK"
        raise UnknownVersion(f"no version of a task {task!r} in {store.address(VERSIONS, '')}", known)
    return sorted(of_task, key=lambda listed: (listed.created_at, listed.name))


def read_report(store: ArtifactStore, name: str) -> tuple[str, QualityReport]:
    """Return the address and the report of a version, or of a stopped build by its cycle. Raises UnknownVersion."""
    for kind in (VERSIONS, INSPECTIONS):
        if (report := _report(store, kind, name)) is not None:
            return store.address(kind, name), report
        if name in store.names(kind):
            raise UnknownVersion(
                f"the report of {store.address(kind, name)} cannot be read",
                "It is not complete, or another version of Ratchet wrote it.",
            )
    raise unknown_version(store, name, (VERSIONS, INSPECTIONS))


def read_manifest(store: ArtifactStore, name: str) -> DatasetManifest:
    """Return the manifest of a version. Raises UnknownVersion."""
    try:
        return DatasetManifest.model_validate_json(b"".join(store.lines(VERSIONS, name, MANIFEST)))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise unknown_version(store, name, (VERSIONS,)) from error
    except ValidationError as error:
        raise UnknownVersion(
            f"the manifest of {name} cannot be read", "Another version of Ratchet wrote it."
        ) from error


def unknown_version(store: ArtifactStore, name: str, kinds: tuple[str, ...]) -> UnknownVersion:
    """Return the error for a name that is not in the store, with the names nearest to it."""
    names = [found for kind in kinds for found in store.names(kind)]
    near = get_close_matches(name, names, n=_SHOWN, cutoff=0.4) or names[:_SHOWN]
    way_out = f"There are: {', '.join(near)}" if near else "There is none yet. A cycle makes one: ratchet cycle TASK"
    return UnknownVersion(f"no version {name!r} in {store.address(VERSIONS, '')}", way_out)


def _listed(store: ArtifactStore, kind: str) -> Iterator[Listed]:
    for name in store.names(kind):
        if (report := _report(store, kind, name)) is not None:
            yield Listed(name, report.created_at, report)


def _report(store: ArtifactStore, kind: str, name: str) -> QualityReport | None:
    """The report in a folder; None for a folder that is not complete or not there."""
    try:
        return QualityReport.model_validate_json(b"".join(store.lines(kind, name, "quality.json")))
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
