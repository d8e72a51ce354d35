"""Templates: long passages that many texts share, such as a prompt around the question or a retrieved document.

Two different questions behind one long template look alike by all their characters, so what differs is compared alone.
A passage counts as a template only where the texts have something of their own at the same place in it (a slot): copies
of one text with a typo here and there share long passages too, and must still be found alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shared.model.buckets import ranges
from shared.model.texts import SHINGLE, Hashes, code_points, rolling_hashes

WINDOW = 32
"""Characters that must be the same for a passage to be shared."""
MIN_LENGTH = 96
"""Shorter texts have no template: their question is a good part of them."""
MIN_TEXTS = 8
"""Texts that must share a passage before it is a template."""
MIN_OWN = 12
"""Shingles that a text must have of its own at one place: 9 characters. A number in a slot makes no other question."""
_MIN_CONTENTS = 4
_NEARBY = 24
"""Shingles in which the own parts begin: many questions have their first words in common."""
_SAMPLED = 64
"""Windows of a text that are counted at first: those with the smallest hashes, so that texts choose the same ones."""
_LOOKED_AT = 48
"""Texts with one passage that are looked at closely."""
_CHARACTERS = 1_000_000
"""Characters of texts that are hashed together, at least."""
_PARTS = WINDOW // SHINGLE
_SPAN = WINDOW - SHINGLE + 1
_FACTORS = np.random.default_rng(20).integers(0, 2**64, _PARTS, dtype=np.uint64) | np.uint64(1)

Windows = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
Slot = tuple[str, int]
"""A place: "after" or "before", and the hash of a window that is near it."""


class OwnPart(NamedTuple):
    """What a text has in its slots: its shingles, and the places of its characters."""

    shingles: Hashes
    characters: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Templates:
    """Shared passages as sorted hashes of their windows, how many of the texts that were looked at have each, and the
    windows near which texts differ."""

    windows: Windows = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    slots: frozenset[Slot] = frozenset()

    def own_parts(self, hashes: Hashes, starts: npt.NDArray[np.int64]) -> dict[int, OwnPart]:
        """Return what each text that is behind a template has in its slots, by the text's number.

        `hashes`: the rolling hashes of texts one after the other; `starts`: where each text starts (`code_points`).
        """
        lengths = np.diff(starts) - SHINGLE + 1
        long = np.flatnonzero(lengths >= MIN_LENGTH)
        if not self.slots or not len(long):
            return {}
        found: dict[int, OwnPart] = {}
        hashes = hashes[ranges(starts[long], lengths[long])]
        all_windows = _windows(hashes)
        texts = _split(hashes, all_windows, lengths[long])
        # Most texts have nothing that is beside a slot, which is seen of all of them at once.
        for number in self._with_slots(all_windows, lengths[long]):
            (own, windows), number = texts[number], int(long[number])
            runs = self._own_runs_at_slots(own, windows, self) or self._own_runs_at_slots(
                own, windows, self.core(windows)
            )
            if runs:
                characters = np.concatenate([run.characters(len(own)) for run in runs])
                found[number] = OwnPart(np.concatenate([run.of for run in runs]), starts[number] + characters)
        return found

    def _with_slots(self, windows: Windows, lengths: npt.NDArray[np.int64]) -> list[int]:
        """Return which texts have a window that is beside a slot. `windows`: of all texts, one after the other."""
        beside = np.unique(np.array([window for _, window in self.slots], dtype=np.uint64))
        ends = np.cumsum(lengths)
        places = np.flatnonzero(_are_among(windows, beside))
        owners = np.searchsorted(ends, places, side="right")
        found: list[int] = np.unique(owners[places <= ends[owners] - _SPAN]).tolist()  # The others are in two texts.
        return found

    def _own_runs_at_slots(self, hashes: Hashes, windows: Windows, shared: Templates) -> list[_Run]:
        runs = _own_runs(hashes, shared.has(windows))
        return [run for run in runs if not self.slots.isdisjoint(run.slots(windows[run.beside]))]

    def has(self, windows: Windows) -> Mask:
        """Return which windows of some texts are among the shared ones."""
        return _are_among(windows, self.windows) if len(self.windows) else np.zeros(len(windows), dtype=bool)

    def count(self, window: int) -> int:
        """Return how many of the texts that were looked at have a window: less than `MIN_TEXTS` if it is not shared."""
        place = int(np.searchsorted(self.windows, np.uint64(window)))
        is_shared = place < len(self.windows) and int(self.windows[place]) == window
        return int(self.counts[place]) if is_shared else MIN_TEXTS - 1

    def core(self, windows: Windows) -> Templates:
        """Return those of a text's passages that are nearly as frequent as its most frequent one.

        Of many questions behind one template eight begin alike, so that beginnings are shared passages, too. A question
        that has too little besides would be compared with its template, which nearly all of it is.
        """
        if not len(self.windows):
            return self
        at = np.minimum(np.searchsorted(self.windows, windows), len(self.windows) - 1)
        at = np.unique(at[self.windows[at] == windows])
        counts = self.counts[at]
        return replace(self, windows=self.windows[at[4 * counts >= 3 * counts.max(initial=0)]])


def find_templates(folded: Sequence[str]) -> Templates:
    """Return the templates of folded texts. Copies of a text count once, and their order makes no difference."""
    texts = sorted({text for text in folded if len(text) >= MIN_LENGTH}, key=_rank)
    if len(texts) < MIN_TEXTS:
        return Templates()
    looked_at = [both for part in _portions([texts[number] for number in _texts_that_share(texts)]) for both in part]
    if not looked_at:
        return Templates()
    sizes = [len(found) for _, found in looked_at]
    windows = np.concatenate([found for _, found in looked_at])
    ranks, distinct, having = _ranks(windows, np.repeat(np.arange(len(sizes)), sizes))
    is_frequent = having >= MIN_TEXTS
    shared = Templates(distinct[is_frequent], having[is_frequent])
    ends = np.cumsum(sizes)[:-1]
    is_counted, is_shared = np.split(ranks < _LOOKED_AT, ends), np.split(shared.has(windows), ends)
    return replace(shared, slots=_slots(looked_at, shared, is_counted, is_shared))


def _slots(
    looked_at: Sequence[tuple[Hashes, Windows]],
    shared: Templates,
    is_counted: Sequence[Mask],
    is_shared: Sequence[Mask],
) -> frozenset[Slot]:
    """Return the places at which most texts that share what is beside them go on differently.

    `is_counted`, `is_shared`: of each text's windows. Of each window only the first texts count: those behind them were
    chosen for what is rare.
    """
    contents: dict[bytes, int] = {}
    beside: dict[str, list[Windows]] = {"after": [], "before": []}
    runs_of: dict[str, list[tuple[int, int, int]]] = {"after": [], "before": []}
    for number, (hashes, found) in enumerate(looked_at):
        runs = list(_own_runs(hashes, is_shared[number])) or list(_own_runs(hashes, shared.core(found).has(found)))
        for run in runs:
            places = found[run.beside][is_counted[number][run.beside]]
            beside[run.side].append(places)
            content = contents.setdefault(run.of.tobytes(), len(contents))
            runs_of[run.side].append((number, content, len(places)))
    slots = set[Slot]()
    for side in beside:
        places = np.concatenate([np.zeros(0, dtype=np.uint64), *beside[side]])
        if not len(places):
            continue
        texts, parts, counts = np.array(runs_of[side], dtype=np.int64).T
        distinct, of_texts = _counts(places, np.repeat(texts, counts))
        _, of_parts = _counts(places, np.repeat(parts, counts))
        many = np.flatnonzero(of_parts >= _MIN_CONTENTS)
        slots.update(
            (side, window)
            for window, texts_there in zip(distinct[many].tolist(), of_texts[many].tolist(), strict=True)
            if texts_there >= _most_by_typos(min(shared.count(window), _LOOKED_AT))
        )
    return frozenset(slots)


def _counts(windows: Windows, values: npt.NDArray[np.int64]) -> tuple[Windows, npt.NDArray[np.int64]]:
    """Return the distinct windows, sorted, and how many distinct values each has."""
    order, is_first, is_new = _sorted_pairs(windows, values)
    starts = np.flatnonzero(is_first)
    return windows[order[starts]], np.add.reduceat(is_new, starts, dtype=np.int64)


def _ranks(
    windows: Windows, owners: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], Windows, npt.NDArray[np.int64]]:
    """Return for each window of some texts how many texts before its own have it, too; and `_counts`.

    `owners`: the texts, in order.
    """
    order, is_first, is_text = _sorted_pairs(windows, owners)
    texts, starts = np.cumsum(is_text), np.flatnonzero(is_first)
    ranks = np.zeros(len(order), dtype=np.int64)
    ranks[order] = texts - texts[starts][np.cumsum(is_first) - 1]
    return ranks, windows[order[starts]], np.add.reduceat(is_text, starts, dtype=np.int64)


def _sorted_pairs(windows: Windows, values: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Mask, Mask]:
    """Return the order of pairs by window, then by value; which are the first of their window, and of their pair."""
    order = np.lexsort((values, windows))
    windows, values = windows[order], values[order]
    is_first = np.concatenate(([True], windows[1:] != windows[:-1]))
    return order, is_first, is_first | np.concatenate(([True], values[1:] != values[:-1]))


def _most_by_typos(texts: int) -> float:
    """Return how many of some texts differ near one place if all are copies with typos in 2 % of their characters.

    The mean and four standard deviations (there are many places), near an end of a text: no window fits behind a typo.
    """
    share = 1.0 - 0.98**_NEARBY
    return float(texts * share + 4.0 * np.sqrt(texts * share * (1.0 - share)))


def _texts_that_share(texts: Sequence[str]) -> list[int]:
    """Return a few texts for each passage that at least `MIN_TEXTS` share."""
    samples = [_smallest(windows) for part in _portions(texts) for _, windows in part]
    owners = np.repeat(np.arange(len(texts)), [len(sample) for sample in samples])
    windows = np.concatenate(samples)
    order = np.lexsort((owners, windows))
    _, starts, counts = np.unique(windows[order], return_index=True, return_counts=True)
    chosen = np.zeros(len(texts), dtype=bool)
    for start, count in zip(starts[counts >= MIN_TEXTS], counts[counts >= MIN_TEXTS], strict=True):
        having = owners[order[start : start + count]]
        missing = _LOOKED_AT - np.count_nonzero(chosen[having])
        chosen[having[~chosen[having]][: max(missing, 0)]] = True
    found: list[int] = np.flatnonzero(chosen).tolist()
    return found


class _Run(NamedTuple):
    """Shingles that a text has of its own from a place on, and at which of its windows: "after" or "before" them."""

    of: Hashes
    start: int
    side: str
    beside: slice

    def slots(self, windows: Windows) -> set[Slot]:
        return {(self.side, window) for window in windows.tolist()}

    def characters(self, shingles: int) -> npt.NDArray[np.int64]:
        """Return the places of the characters that are in no shingle of the template. `shingles`: of the whole text."""
        end = self.start + len(self.of)
        overlap = SHINGLE - 1
        return np.arange(self.start + overlap * (self.start > 0), end + overlap * (end == shingles))


def _own_runs(hashes: Hashes, is_shared: npt.NDArray[np.bool_]) -> Iterator[_Run]:
    """Yield each run of at least `MIN_OWN` shingles that no shared window has. `is_shared`: which of the text's are."""
    hits = np.flatnonzero(is_shared)
    if not len(hits):
        return
    covered = np.zeros(len(hashes) + 1, dtype=np.int64)
    covered[hits] += 1
    covered[hits + _SPAN] -= 1
    own = np.cumsum(covered[:-1]) == 0
    edges = np.flatnonzero(np.diff(np.concatenate(([False], own, [False])).astype(np.int8)))
    for start, end in edges.reshape(-1, 2).tolist():
        if end - start < MIN_OWN:
            continue
        if start:
            yield _Run(hashes[start:end], start, "after", slice(max(start - _SPAN - _NEARBY, 0), start - _SPAN + 1))
        else:
            yield _Run(hashes[start:end], start, "before", slice(end, end + _NEARBY))


def _rank(text: str) -> bytes:
    """Sorts texts in an order that has nothing to do with how they begin: the first ones are a sample."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _portions(texts: Sequence[str]) -> Iterator[list[tuple[Hashes, Windows]]]:
    """Yield the hashes and the windows of some texts, in order: taken together they are computed much faster."""
    start, size = 0, 0
    for number, text in enumerate(texts, start=1):
        size += len(text)
        if size >= _CHARACTERS or number == len(texts):
            characters, starts = code_points(texts[start:number])
            hashes = rolling_hashes(characters)
            lengths = np.diff(starts) - SHINGLE + 1
            together = hashes[ranges(starts[:-1], lengths)]
            yield _split(together, _windows(together), lengths)
            start, size = number, 0


def _are_among(windows: Windows, known: Windows) -> npt.NDArray[np.bool_]:
    """Return which windows are among the known ones, of which there is at least one, sorted."""
    found: npt.NDArray[np.bool_] = known[np.minimum(np.searchsorted(known, windows), len(known) - 1)] == windows
    return found


def _split(hashes: Hashes, windows: Windows, lengths: npt.NDArray[np.int64]) -> list[tuple[Hashes, Windows]]:
    """Return the hashes and the windows of each of some texts, given those of all, one text after the other."""
    ends = np.cumsum(lengths)
    return [
        (hashes[start:end], windows[start : max(end - _SPAN + 1, start)])
        for start, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True)
    ]


def _windows(hashes: Hashes) -> Windows:
    """Return the hash of each run of `WINDOW` characters, given the hashes of its runs of four."""
    count = max(len(hashes) - _SPAN + 1, 0)
    windows = np.zeros(count, dtype=np.uint64)
    for part, factor in enumerate(_FACTORS):
        windows += hashes[part * SHINGLE : part * SHINGLE + count].astype(np.uint64) * factor
    return windows


def _smallest(windows: Windows) -> Windows:
    return np.unique(windows)[:_SAMPLED].copy()  # A part of it would keep all of it.
