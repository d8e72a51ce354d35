"""Which rows of a build ask nearly the same, also as rows that were held out once and as questions of frozen sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from schemas.conversation import Message
from schemas.datasets import Fate
from schemas.tasks import TaskSpec
from services.dataset_builder.building.places.place import Places
from services.dataset_builder.building.rows import Row
from shared.model.near_duplicates import NearTexts
from shared.model.question_sketches import QuestionSketches, question_of
from shared.model.sketches import Sketch, Sketches

_AT_ONCE = 4_096
"""Fingerprints that become sketches together."""

Mask = npt.NDArray[np.bool_]


class SimilarRows:
    """An index of rows, by prediction and by number, that all steps of a build share: sketching takes the time."""

    def __init__(
        self,
        rows: Sequence[Row],
        spec: TaskSpec,
        places: Places = MappingProxyType({}),
        frozen: Iterable[Sequence[Message]] = (),
        prompts: frozenset[str] = frozenset(),
        others: Sequence[Row] = (),
        sketches: QuestionSketches | None = None,
    ) -> None:
        """`places`: of earlier builds. `others`: rows with a place that this build leaves out, in dispute, say; they
        attract as before. Other held-out rows that are not in `rows` are here as fingerprints.

        `frozen` are questions that no row may be like; `prompts`: the task's own system prompts. Questions are
        near-copies from the task's `near_copy_similarity` on, and copies of a held-out one from the lowest that any
        version had: each promised it to all that it held out. `sketches`: of all these questions and maybe more.
        """
        known_rows = [*rows, *others]
        self._prompts = prompts
        questions = [
            question_of(messages, prompts) for messages in (*(row.call.messages for row in known_rows), *frozen)
        ]
        sketches = sketches or QuestionSketches(questions, spec.dataset)
        self._numbers = {row.prediction_id: number for number, row in enumerate(known_rows)}
        held_out = {name: place for name, place in places.items() if place.fate is Fate.EVAL}
        gone = [name for name, place in held_out.items() if name not in self._numbers and place.fingerprint]
        in_part = [name for name in gone if held_out[name].whole]
        stored = [held_out[name].fingerprint or b"" for name in gone]
        stored += [held_out[name].whole or b"" for name in in_part]
        self._numbers |= {name: number for number, name in enumerate(gone, start=len(questions))}
        self._wholes = {name: number for number, name in enumerate(in_part, start=len(questions) + len(gone))}
        starts = range(0, len(stored), _AT_ONCE)
        known = (
            Sketches.of([Sketch.from_bytes(data) for data in stored[start : start + _AT_ONCE]]) for start in starts
        )
        similarity = np.full(len(questions) + len(stored), spec.dataset.near_copy_similarity)
        promised = [of[name] for of in (self._numbers, self._wholes) for name in held_out if name in of]
        similarity[promised] = min((place.similarity for place in places.values()), default=1.0)
        similarity = np.minimum(similarity, spec.dataset.near_copy_similarity)
        # By number; a frozen question is no prediction.
        self._ids = [*(row.prediction_id for row in known_rows), *([""] * (len(questions) - len(known_rows)))]
        self._ids += [*gone, *in_part]
        self.frozen = np.zeros(len(similarity), dtype=bool)
        self.frozen[len(known_rows) : len(questions)] = True
        self._sketcher, sketched = sketches.take(questions)
        del questions  # They are large.
        self.texts = NearTexts(chain(sketched, known), similarity)

    def mask(self, predictions: Iterable[str]) -> Mask:
        """Return which numbers are those of these predictions."""
        chosen = np.zeros(len(self.texts), dtype=bool)
        for name in predictions:
            chosen[self._numbers[name]] = True
            if name in self._wholes:
                chosen[self._wholes[name]] = True
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
        return {name: sizes[number] - 1 for name, number in self._numbers.items()}

    def near(self, row: Row) -> list[str]:
        """Return the predictions whose questions are near-copies of a row's."""
        return [name for number in self.texts.near(self.number(row)).tolist() if (name := self._ids[number])]

    def near_any(self, rows: Iterable[Row], among: Mask) -> dict[str, str]:
        """Return for each row that has a near-copy among those of the mask one of them; "" for a frozen question."""
        found = self.texts.nearest_of((self.number(row) for row in rows), among)
        return {self._ids[number]: self._ids[other] for number, other in found.items()}

    def groups(self, rows: Sequence[Row]) -> list[int]:
        """Return for each row the index of the first of these rows that a chain of near-copies joins it with."""
        groups = self.texts.groups(self.mask(row.prediction_id for row in rows))
        first: dict[int, int] = {}
        return [first.setdefault(groups[self.number(row)], index) for index, row in enumerate(rows)]

    def differing_pairs(self, rows: Sequence[Row]) -> list[tuple[Row, Row]]:
        """Return pairs of these rows that are near-copies and have different labels."""
        by_number = {self.number(row): row for row in rows}
        labels = [by_number[number].label if number in by_number else None for number in range(len(self.texts))]
        return [(by_number[a], by_number[b]) for a, b in self.texts.pairs(labels).tolist()]

    def fingerprints(self, row: Row) -> tuple[bytes, bytes | None]:
        """Return what is stored of a held-out row, so that it attracts its near-copies when its text is gone.

        The second one, of all of its text, is for when a template that it is behind, or `user_part`, is gone as well.
        """
        question = question_of(row.call.messages, self._prompts)
        compared, whole = self._sketcher.sketch(question), self._sketcher.sketch_whole(question)
        both = compared.to_bytes(), whole.to_bytes()
        return both[0], both[1] if both[1] != both[0] else None
