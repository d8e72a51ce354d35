"""Names the users whose words are on a line beside the one who was answered, so that an erasure finds them. Pure.

A row to train on or to measure by is made of the words that its corrections gave. A line of what was left out may also
quote others on the same prediction, so it names all who wrote about it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TypeVar

from schemas.datasets import Example, LeftOutExample
from services.dataset_builder.building.votes import Vote

L = TypeVar("L", Example, LeftOutExample)


class Authors:
    """The users who wrote something, by correction and by prediction. Most builds have none."""

    def __init__(self, votes: Iterable[Vote]) -> None:
        self._of_correction: dict[str, str] = {}
        self._of_prediction: dict[str, set[str]] = defaultdict(set)
        for vote in votes:
            if vote.author_hash is not None:
                self._of_correction[vote.correction_id] = vote.author_hash
                self._of_prediction[vote.prediction_id].add(vote.author_hash)

    def name_in_rows(self, rows: Iterable[Example]) -> tuple[Example, ...]:
        """Return the rows, each with the authors of its corrections."""
        of = self._of_correction
        return tuple(_named(row, {of[name] for name in row.correction_ids if name in of}) for row in rows)

    def name_in_left_out(self, lines: Iterable[LeftOutExample]) -> tuple[LeftOutExample, ...]:
        """Return the lines, each with all who wrote about its prediction."""
        of = self._of_prediction
        return tuple(
            _named(line, {author for name in line.prediction_ids for author in of.get(name, ())}) for line in lines
        )


def _named(line: L, authors: set[str]) -> L:
    others = tuple(sorted(authors - {line.user_hash}))
    return line.model_copy(update={"author_hashes": others}) if others else line
