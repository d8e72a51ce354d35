"""Which of the rows that may be held out are. Pure, and the same in whatever order the rows arrived.

Each label gives its share of what is new, rounded such that the sum is right over labels and builds. Rows are chosen by
a hash of their id, those with few near-copies first: each near-copy of a held-out row is lost for training, and no
more are lost than are held out. A label with too few rows is left as it is: all of them are trained on.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from schemas.tasks import TaskKind, TaskSpec
from schemas.tools import NO_CALL
from services.dataset_builder.building.places.similar import SimilarRows
from services.dataset_builder.building.rows import Row
from shared.grading.labels import labels_of
from shared.identity import content_hash

_MAX_SKIPPED = 64
"""Of a label, how many loud rows are looked at in vain: then the rest of them is as loud."""
_LOUD = 64
"""Estimated near-copies from which a row is not even looked at."""


def choose_held_out(
    free: Sequence[Row],
    new: Sequence[Row],
    placed: Iterable[Row],
    held_out: Iterable[Row],
    similar: SimilarRows,
    spec: TaskSpec,
) -> list[Row]:
    """Choose from the `free` rows. `new` are all without a place, `placed` the others, `held_out` those of them."""
    new_names = {row.prediction_id for row in new}
    crowds = similar.crowds()

    def rank(row: Row) -> tuple[int, str]:
        return crowds[row.prediction_id].bit_length() // 2, content_hash(str(spec.dataset.seed), row.prediction_id)

    placed = list(placed)
    stratum = _strata([*new, *placed], spec)
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(free, key=rank):
        by_label[stratum(row)].append(row)
    fresh, old, held = (Counter(map(stratum, rows)) for rows in (new, placed, held_out))
    wanted = _quotas(fresh, old, held, spec)
    taken: set[str] = set()
    chosen: list[Row] = []
    for label in sorted(by_label):
        chosen += _choose(by_label[label], wanted[label], 1, taken, new_names, similar)
    if (
        not chosen and not held and by_label and fresh.total() + old.total() > 1
    ):  # Few rows: one of the commonest label.
        largest = max(sorted(by_label), key=lambda label: fresh[label] + old[label])
        return _choose(by_label[largest], 1, 0, taken, new_names, similar)
    return chosen


def _strata(rows: Sequence[Row], spec: TaskSpec) -> Callable[[Row], str]:
    """Return what says the part of `rows` that each is held out of: its label, of calls their functions, of several
    labels the rarest; one for all other rows.

    Sets of labels are too many to hold rows out of each. By the rarest label, common ones get their share too, as in
    iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011).
    """
    if spec.kind is TaskKind.TOOLS:
        return lambda row: " ".join(sorted({call.name for call in row.messages[-1].tool_calls})) or NO_CALL
    if spec.kind is not TaskKind.MULTI_LABEL:
        return lambda row: row.label if spec.labels else ""
    times = Counter(label for row in rows for label in labels_of(row.label, spec) or ())
    return lambda row: min(labels_of(row.label, spec) or ("",), key=lambda label: (times[label], label))


def _quotas(
    new: Mapping[str, int], placed: Mapping[str, int], held_out: Mapping[str, int], spec: TaskSpec
) -> Counter[str]:
    """Return how many rows of each label are to be held out of the new ones.

    What earlier builds rounded away is made up for, but never by more than this build's own rounding: a changed share
    holds for what is new.
    """
    share, least = spec.dataset.eval_share, spec.dataset.min_examples_per_label
    quotas: Counter[str] = Counter()
    owed, given = 0.0, 0
    for label in sorted(new):
        fresh, old, held = new[label], placed.get(label, 0), held_out.get(label, 0)
        spare = fresh + old - held - least
        if spare <= 0:
            continue
        exact = share * fresh
        owed += min(max(share * (old + fresh) - held, math.floor(exact)), math.ceil(exact))
        quota = min(max(math.floor(owed + 0.5) - given, 0), spare, math.ceil(exact))
        quotas[label] = quota
        given += quota
    return quotas


def _choose(
    rows: Sequence[Row], quota: int, spare: int, taken: set[str], new: set[str], similar: SimilarRows
) -> list[Row]:
    """Choose up to `quota` rows, with up to `spare` more near-copies than they are. `taken`: chosen or lost rows."""
    chosen: list[Row] = []
    lost = skipped = 0
    for row in rows:
        if len(chosen) >= quota or skipped >= _MAX_SKIPPED:
            break
        if row.prediction_id in taken:
            continue
        allowed = len(chosen) + spare - lost
        near = similar.near(row) if similar.crowd(row) <= allowed + _LOUD else None
        cost = 0 if near is None else sum(1 for name in near if name in new and name not in taken)
        if near is None or cost > allowed:
            skipped += 1
            continue
        lost += cost
        chosen.append(row)
        taken.update((row.prediction_id, *near))
    return chosen
