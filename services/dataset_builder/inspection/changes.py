"""How one version of a task's dataset differs from another, and whether that is worth a training. Pure.

A row is known by its predictions: an example's id changes with its answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from sys import intern
from typing import TYPE_CHECKING, NamedTuple

from schemas.datasets import Example
from schemas.quality import Changes
from schemas.tasks import TaskSpec
from shared.identity import content_hash

if TYPE_CHECKING:  # The `ratchet` command compares versions without what a build needs.
    from services.dataset_builder.pipeline import Dataset

_LONG_ANSWER = 200


class VersionRow(NamedTuple):
    """What is compared of a row. `part`: train or eval. `answer`: its text; of a long one its hash."""

    part: str
    answer: str
    weight: float


RowName = tuple[str, ...]
"""The ids of a row's predictions."""
Rows = Mapping[RowName, VersionRow]


@dataclass(frozen=True)
class Difference:
    """The rows that differ between two versions, each list sorted."""

    added: tuple[RowName, ...]
    removed: tuple[RowName, ...]
    relabelled: tuple[RowName, ...]
    moved: tuple[RowName, ...]
    reweighted: tuple[RowName, ...]

    def counts(self) -> Changes:
        return Changes(
            added=len(self.added), removed=len(self.removed), relabelled=len(self.relabelled), moved=len(self.moved),
            reweighted=len(self.reweighted),
        )  # fmt: skip


@dataclass(frozen=True)
class Parent:
    """The task's version before a build. `rows`: None where its folder is gone, so that nothing can be compared.

    `cycle_failed`: a later step of its cycle failed, so that nothing was learned from it. `parent`: the version before.
    """

    dataset_id: str
    spec: TaskSpec
    rows: Rows | None
    cycle_failed: bool = False
    parent: str | None = None

    def before(self, dataset_id: str) -> str | None:
        """Return the version before that of a build: the same rows built again are the version that they were."""
        return self.parent if self.dataset_id == dataset_id else self.dataset_id


def rows_of(part: str, examples: Iterable[Example]) -> dict[RowName, VersionRow]:
    """Return the rows of a part as they are compared. Equal texts, such as labels, are one."""
    rows = {}
    for example in examples:
        answer = example.answer
        shown = intern(answer) if len(answer) <= _LONG_ANSWER else _summary(answer)
        rows[example.prediction_ids] = VersionRow(part, shown, example.weight)
    return rows


def rows_of_dataset(dataset: Dataset) -> dict[RowName, VersionRow]:
    """Return the rows of a build as they are compared."""
    return rows_of("train", dataset.train) | rows_of("eval", dataset.eval)


def difference(before: Rows, after: Rows) -> Difference:
    """Compare two versions. A row may be in several lists, such as one that moved and was relabelled."""
    changed = sorted(name for name, row in after.items() if before.get(name, row) != row)
    return Difference(
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        relabelled=tuple(name for name in changed if before[name].answer != after[name].answer),
        moved=tuple(name for name in changed if before[name].part != after[name].part),
        reweighted=tuple(name for name in changed if before[name].weight != after[name].weight),
    )


def changes_since(parent: Parent | None, dataset: Dataset) -> Difference | None:
    """Return how a build differs from the version before; None where there is none to compare with."""
    return None if parent is None or parent.rows is None else difference(parent.rows, rows_of_dataset(dataset))


def too_little_new(dataset: Dataset, spec: TaskSpec, parent: Parent | None, found: Difference | None) -> str | None:
    """Return why a build is not worth a training; None if it is. `found`: how it differs from the parent.

    A first version is, one whose task has changed in what is trained on or how, and one after a cycle that failed. So
    is one that lost rows to forgetting or age, however few: the last adapter was trained on them.
    """
    if parent is None or found is None or parent.cycle_failed:
        return None
    if _training_inputs(parent.spec) != _training_inputs(spec):
        return None
    left_out = {prediction for row in dataset.left_out for prediction in row.prediction_ids}
    if not all(left_out.issuperset(name) for name in found.removed):  # Some are no inputs of this build any more.
        return None
    new = len({*found.added, *found.removed, *found.relabelled})
    wanted = spec.dataset.min_new_examples
    if new >= wanted:
        return None
    examples = "1 example is" if new == 1 else f"{new} examples are"
    return (
        f"{examples} new or changed since {parent.dataset_id}, and {wanted} are wanted: "
        "there is too little new to learn from"
    )


def _training_inputs(spec: TaskSpec) -> tuple[object, ...]:
    return spec.revision, spec.dataset, spec.training


def _summary(answer: str) -> str:
    return f"a text of {len(answer)} characters, {content_hash(answer)}"
