"""Which rows of a build ask nearly the same, also as rows that were held out once and as questions of frozen sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from schemas.conversation import Message
from schemas.datasets import Fate
from schemas.tasks import TaskSpec
from services.dataset_builder.building.places.place import Places
from services.dataset_builder.building.rows import Row
from shared.conversation import comparable_text
from shared.model.near_duplicates import NearTexts
from shared.model.sketches import Sketch, Sketches, sketch_folded, sketch_texts
from shared.model.templates import find_templates
from shared.model.texts import fold

_AT_ONCE = 4_096
"""Fingerprints that become sketches together."""

Mask = npt.NDArray[np.bool_]


class SimilarRows:
    """An index of rows, by prediction and by number, that all steps of a build share: sketching takes the time."""

    def __init__(
        self,
        rows: Sequence[Row],
        spec: TaskSpec,
        similarity: float,
        fingerprints: Mapping[str, bytes],
        frozen: Iterable[Sequence[Message]] = (),
    ) -> None:
        """`fingerprints` are of held-out rows that are not in `rows`; `frozen` are questions that no row may be like.

        `similarity`: the Jaccard similarity of shingles from which two questions are near-copies.
        """
        self._user_part = spec.dataset.user_part
        asked = [fold(self._text(row.call.messages)) for row in rows]
        asked += [fold(self._text(messages)) for messages in frozen]
        self._templates = find_templates(asked)
        stored = [Sketch.from_bytes(data) for data in fingerprints.values()]
        starts = range(0, len(stored), _AT_ONCE)
        known = (Sketches.of(stored[start : start + _AT_ONCE]) for start in starts)
        self.texts = NearTexts(chain(sketch_folded(asked, self._templates), known), similarity)
        self._numbers = {row.prediction_id: number for number, row in enumerate(rows)}
        self._numbers |= {name: number for number, name in enumerate(fingerprints, start=len(asked))}
        self._ids = {number: name for name, number in self._numbers.items()}
        self.frozen = np.zeros(len(self.texts), dtype=bool)
        self.frozen[len(rows) : len(asked)] = True

    def mask(self, predictions: Iterable[str]) -> Mask:
        """Return which numbers are those of these predictions."""
        chosen = np.zeros(len(self.texts), dtype=bool)
        chosen[[self._numbers[name] for name in predictions]] = True
        return chosen

    def mask_of(self, places: Places, fate: Fate) -> Mask:
        """Return which numbers are those of predictions with this place."""
        return self.mask(name for name, place in places.items() if place.fate is fate and name in self._numbers)

    def number(self, row: Row) -> int:
        return self._numbers[row.prediction_id]

    def crowd(self, row: Row) -> float:
        """Estimate how many near-copies a row's question has."""
        return self.texts.crowd(self.number(row))

    def crowds(self) -> dict[str, int]:
        """Return for each prediction an upper guess of the number of its near-copies."""
        sizes = self.texts.bucket_sizes().tolist()
        return {name: sizes[number] - 1 for number, name in self._ids.items()}

    def near(self, row: Row) -> list[str]:
        """Return the predictions whose questions are near-copies of a row's."""
        return [self._ids[number] for number in self.texts.near(self.number(row)).tolist() if number in self._ids]

    def near_any(self, rows: Iterable[Row], among: Mask) -> dict[str, str]:
        """Return for each row that has a near-copy among those of the mask one of them; "" for a frozen question."""
        found = self.texts.nearest_of((self.number(row) for row in rows), among)
        return {self._ids[number]: self._ids.get(other, "") for number, other in found.items()}

    def groups(self, rows: Sequence[Row]) -> list[int]:
        """Return for each row the index of the first of these rows that a chain of near-copies joins it with."""
        groups = self.texts.groups(self.mask(row.prediction_id for row in rows))
        first: dict[int, int] = {}
        return [first.setdefault(groups[self.number(row)], index) for index, row in enumerate(rows)]

    def differing_pairs(self, rows: Sequence[Row]) -> list[tuple[Row, Row]]:
        """Return pairs of these rows that are near-copies and have different labels."""
        by_number = {self.number(row): row for row in rows}
        labels = [by_number[number].label if number in by_number else "" for number in range(len(self.texts))]
        pairs = self.texts.pairs(labels).tolist()
        return [(by_number[a], by_number[b]) for a, b in pairs if a in by_number and b in by_number]

    def fingerprint(self, row: Row) -> bytes:
        """Return what is stored of a held-out row, so that it attracts its near-copies when its text is gone."""
        (sketch,) = sketch_texts([self._text(row.call.messages)], self._templates)
        return sketch.to_bytes()

    def _text(self, messages: Sequence[Message]) -> str:
        return comparable_text(messages, self._user_part)
