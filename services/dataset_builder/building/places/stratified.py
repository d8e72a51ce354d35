"""Which of the rows that may be held out are. Pure, and the same in whatever order the rows arrived.

Each label gives its share of what is new and what a reviewer stands for, rounded such that the sum is right over labels
and builds. What users alone wrote is never held out, and does not count: however much comes, it takes no reviewer's row
out of training. Rows are chosen by a hash of their id, those with few near-copies first: each near-copy of a held-out
row is lost for training, and no more are lost than are held out. The turns of a conversation are chosen together. Where
that finds too few, each text with its copies. A label with too few rows is left as it is: all of them are trained on.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from schemas.tasks import TaskSpec
from services.dataset_builder.building.places.conversations import Conversations
from services.dataset_builder.building.places.similar import SimilarRows
from services.dataset_builder.building.rows import Row
from shared.answers import answer_form
from shared.identity import content_hash

_MAX_SKIPPED = 64
"""Of a label, how many loud rows are looked at in vain: then the rest of them is as loud."""
_MOST_COPIES = 2
"""Times as many as are to be held out of a label, a text may have copies that are held out with it."""
_LOUD = 64
"""Estimated near-copies from which a row is not even looked at."""


def choose_held_out(
    free: Sequence[Row],
    new: Sequence[Row],
    placed: Iterable[Row],
    held_out: Iterable[Row],
    similar: SimilarRows,
    conversations: Conversations,
    spec: TaskSpec,
) -> list[Row]:
    """Choose from the `free` rows. `new` are all without a place, `placed` the others, `held_out` those of them."""
    new_names = {row.prediction_id for row in new}
    crowds = similar.crowds()

    def rank(row: Row) -> tuple[int, str, str]:
        return (
            crowds[row.prediction_id].bit_length() // 2,
            content_hash(str(spec.dataset.seed), conversations.of(row)[0]),
            row.prediction_id,
        )

    placed = list(placed)
    stratum_of = answer_form(spec).strata([row.label for row in (*new, *placed)])

    def stratum(row: Row) -> str:
        return stratum_of(row.label)

    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(free, key=rank):
        by_label[stratum(row)].append(row)
    parts = (new, placed, held_out)
    fresh, old, held = (Counter(stratum(row) for row in rows if row.is_confirmed) for rows in parts)
    wanted = _quotas(fresh, old, held, spec)
    by_name = {row.prediction_id: row for row in free}
    draw = _Draw(by_name, new_names, wanted, stratum, similar, conversations, largest=wanted.total() + 1)
    for label in sorted(by_label):
        draw.choose(by_label[label], label, spare=1)
    for label in sorted(by_label):
        if wanted[label] > 0:  # Nothing is lost where copies are held out with their text.
            draw.copies = _by_text(by_label[label])
            draw.choose(by_label[label], label, spare=1)
    if not draw.chosen and not held and by_label and len(new) + len(placed) > 1:  # One of the commonest label.
        label = max(sorted(by_label), key=lambda label: fresh[label] + old[label])
        draw.wanted[label], draw.largest = 1, len(new) // 2
        draw.choose(by_label[label], label, spare=0)
    return draw.chosen


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


@dataclass
class _Draw:
    """Chooses rows label by label. `free`: those that may be held out; `new`: all without a place.

    `wanted`: how many of each label are still to be held out. `taken`: chosen or lost rows. `largest`: how many rows a
    conversation may have that is held out as a whole. `copies`: predictions by text, where copies go together, too.
    """

    free: Mapping[str, Row]
    new: Collection[str]
    wanted: Counter[str]
    stratum: Callable[[Row], str]
    similar: SimilarRows
    conversations: Conversations
    largest: int
    copies: Mapping[str, Sequence[str]] = field(default_factory=dict)
    chosen: list[Row] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    def choose(self, rows: Sequence[Row], label: str, spare: int) -> None:
        """Choose from the rows of a label, with up to `spare` more near-copies than are chosen."""
        chosen = lost = skipped = 0
        for row in rows:
            if self.wanted[label] <= 0 or skipped >= _MAX_SKIPPED:
                break
            if row.prediction_id in self.taken or self._is_long(row):
                continue
            allowed = chosen + spare - lost
            found = self._together(row, label, allowed)
            if found is None:
                skipped += 1
                continue
            together, cost = found
            lost += len(cost)
            chosen += len(together)
            self.chosen += together
            self.wanted.subtract(map(self.stratum, together))
            self.taken.update(cost, (row.prediction_id for row in together))

    def _is_long(self, row: Row) -> bool:
        """Return True if the row's conversation is too long to be held out. It says nothing of the rows behind it."""
        return len(self.conversations.of(row)) > max(self.largest, 1)

    def _together(self, row: Row, label: str, allowed: int) -> tuple[list[Row], set[str]] | None:
        """Return the rows that are held out if this one is, and those that are lost; None if they are too many."""
        names, copies = self.conversations.of(row), self.copies.get(row.text_hash, ())
        if len(copies) > _MOST_COPIES * self.wanted[label]:
            return None
        names = sorted({*names, *copies})
        together = [self.free[name] for name in names if name in self.free and name not in self.taken]
        if any(self.similar.crowd(other) > allowed + _LOUD for other in together):
            return None
        near = {name for other in together for name in self.similar.near(other)}.union(names)
        near -= {other.prediction_id for other in together}
        lost = {name for name in near if name in self.new and name not in self.taken}
        return (together, lost) if len(lost) <= allowed else None


def _by_text(rows: Iterable[Row]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        found[row.text_hash].append(row.prediction_id)
    return found
