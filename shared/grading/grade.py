"""What a grade says of an answer; `shared.answers` grades each kind of answers."""

from __future__ import annotations

from dataclasses import dataclass

from shared.grading.fields import FieldGrade


@dataclass(frozen=True)
class Grade:
    """`score`: in [0, 1], 1 for a right answer. `right`: as a whole.

    `valid`: whether the answer is one of its task at all; `fields`: what of it is right.
    """

    score: float
    right: bool
    valid: bool = True
    fields: tuple[FieldGrade, ...] = ()


WRONG = Grade(0.0, False)
RIGHT = Grade(1.0, True)
