"""Splits rows into three disjoint parts. Near-duplicates stay together, so no part has another's questions.

traffic    answered by production, then corrected by people: the candidate is trained on it
live       new traffic after the cut-off, each row once and by a user of its own: for shadow and canary
held-out   asked before and after; never corrected, never shadowed
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from deploy.demo.data.rows import DataError, DataRow, LoopData
from shared.model.near_copies import group_near_copies

HELD_OUT = "heldout"
SIMILARITY = 0.7
"""Stricter than the 0.8 of the dataset gates: a near-duplicate that they let pass does not straddle parts either."""
MAX_PER_LABEL = 300
"""Rows of a label that are used, drawn at random: finding near-duplicates among more would only cost time."""


FEWEST_CORRECTIONS = 80
"""In all: a fifth is held out of training, some are wrong on purpose, and 50 must be left to train on."""
_POOLED = 2
"""Of a large file so many times the rows that are used are looked through for near-duplicates, drawn at random."""
_AT_LEAST = FEWEST_CORRECTIONS, 40, 40
_OBJECTS_AT_MOST, _TEXTS_AT_MOST = (320, 100, 140), (200, 60, 300)
"""Rows of objects, and of generated texts, for traffic, held out, and live: 320 corrections of objects train in ten
minutes on two cores, as do 200 of longer texts. Of two texts neither is simply right, so it takes more live ones."""


@dataclass(frozen=True)
class Quota:
    """How many rows of each label each part gets: minimum and maximum."""

    traffic: tuple[int, int]
    live: tuple[int, int]
    held_out: tuple[int, int]

    @classmethod
    def of(cls, labels: int, corrections: int | None = None) -> Quota:
        """Return the quota for so many labels: at least 100 live rows and 100 to 150 held-out ones in all.

        `corrections`: the maximum per label; by default 40, fewer for many labels, so that a laptop can train on them.
        Never fewer than a data set needs.
        """
        fewest = max(12, ceil(FEWEST_CORRECTIONS / labels))
        share_of_100 = ceil(100 / labels)
        held_out = max(min(ceil(120 / labels), 150 // labels), 1)
        return cls(
            traffic=(fewest, max(fewest, corrections or min(40, 400 // labels))),
            live=(share_of_100, 2 * share_of_100),
            held_out=(min(share_of_100, held_out), held_out),
        )

    @property
    def minimum(self) -> int:
        return self.traffic[0] + self.live[0] + self.held_out[0]


@dataclass(frozen=True)
class Split:
    """The three parts, each in a seeded order."""

    traffic: tuple[DataRow, ...]
    live: tuple[DataRow, ...]
    held_out: tuple[DataRow, ...]


def split_rows(data: LoopData, seed: int, corrections: int | None = None) -> Split:
    """Split by group of near-duplicates, balanced over labels. Raises DataError if a label has too few rows.

    `corrections`: most rows per label that are answered and then corrected; default: see `Quota.of`.
    If the file has a column `part`, its rows named `heldout` are the held-out part.
    """
    rng = random.Random(seed)  # noqa: S311 - a reproducible split, not a secret
    quota = Quota.of(len(data.labels), corrections)
    groups = _groups(data, rng)
    predefined = any(row.part == HELD_OUT for row in data.rows)
    held_out: list[DataRow] = []
    pools: dict[str, list[list[DataRow]]] = defaultdict(list)
    for group in groups:
        if predefined and any(row.part == HELD_OUT for row in group):
            held_out += [row for row in group if row.part == HELD_OUT]
        else:
            pools[group[0].label].append(group)
    traffic: list[DataRow] = []
    live: list[DataRow] = []
    for label in data.labels:
        _share_out(label, pools[label], quota, predefined, (traffic, live, held_out))
    for part in (traffic, live, held_out):
        rng.shuffle(part)
    return Split(tuple(traffic), tuple(live), tuple(held_out[:150]))


def split_unlabelled(data: LoopData, seed: int, corrections: int | None = None, *, exact: bool = True) -> Split:
    """Split rows of other answers by group of near-duplicates; parts that judge get one row of each group.

    `corrections`: most rows that are answered and then corrected. `exact`: objects and calls, no generated texts.
    Raises DataError for too few rows.
    """
    at_most = _OBJECTS_AT_MOST if exact else _TEXTS_AT_MOST
    rng = random.Random(seed)  # noqa: S311 - a reproducible split, not a secret
    rows = list(data.rows)
    rng.shuffle(rows)
    del rows[_POOLED * sum(at_most) :]
    groups: dict[int, list[DataRow]] = defaultdict(list)
    for row, group in zip(rows, group_near_copies([row.text for row in rows], SIMILARITY), strict=True):
        groups[group].append(row)
    pool = list(groups.values())
    if len(pool) < sum(_AT_LEAST):
        raise DataError(
            f"{len(pool)} different texts (near-duplicates counted once); {sum(_AT_LEAST)} are needed",
            "Give more rows.",
        )
    share = min(1.0, len(pool) / sum(at_most))
    sizes = zip(_AT_LEAST, at_most, strict=True)
    _, held_out, live = (max(least, int(most * share)) for least, most in sizes)
    parts = pool[:held_out], pool[held_out : held_out + live], pool[held_out + live :]
    traffic = [row for group in parts[2] for row in group][: max(corrections or at_most[0], FEWEST_CORRECTIONS)]
    return Split(tuple(traffic), tuple(g[0] for g in parts[1]), tuple(g[0] for g in parts[0]))


def _groups(data: LoopData, rng: random.Random) -> list[list[DataRow]]:
    by_label: dict[str, list[DataRow]] = defaultdict(list)
    for row in data.rows:
        by_label[row.label].append(row)
    rows: list[DataRow] = []
    for label in data.labels:
        rng.shuffle(by_label[label])
        rows += by_label[label][:MAX_PER_LABEL]
    groups: dict[int, list[DataRow]] = defaultdict(list)
    for row, group in zip(rows, group_near_copies([row.text for row in rows], SIMILARITY), strict=True):
        groups[group].append(row)
    return list(groups.values())


def _share_out(
    label: str,
    pool: Sequence[list[DataRow]],
    quota: Quota,
    predefined: bool,
    parts: tuple[list[DataRow], list[DataRow], list[DataRow]],
) -> None:
    """Fill the minimums first, then traffic, then live. Live and held-out, which judge, get one row per group."""
    traffic, live, held_out = parts
    minimum = quota.minimum - (quota.held_out[0] if predefined else 0)
    if len(pool) < minimum:
        raise DataError(
            f"label {label!r} has {len(pool)} different texts (near-duplicates counted once); {minimum} are needed: "
            f"{quota.traffic[0]} for corrections, {quota.live[0]} live"
            + ("" if predefined else f", {quota.held_out[0]} held out"),
            "Give more rows, or choose fewer labels with --labels: the most frequent ones are taken.",
        )
    spare = len(pool) - minimum
    own = 0 if predefined else min(quota.held_out[1], quota.held_out[0] + spare)
    spare -= max(own - quota.held_out[0], 0)
    corrected = min(quota.traffic[1], quota.traffic[0] + spare)
    spare -= corrected - quota.traffic[0]
    unused = min(quota.live[1], quota.live[0] + spare)
    held_out += [group[0] for group in pool[:own]]
    live += [group[0] for group in pool[own : own + unused]]
    candidates = [row for group in pool[own + unused :] for row in group if row.label == label]
    traffic += candidates[:corrected]
