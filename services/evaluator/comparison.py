"""The answers of candidate and production to the same questions, as arrays. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median

import numpy as np
from numpy.typing import NDArray

from schemas.adapters import ScoreDifference
from schemas.tasks import TaskSpec
from services.evaluator.domain import GradedAnswers, Question
from services.evaluator.statistics.intervals import Floats, Groups, group_numbers
from services.evaluator.statistics.paired import difference
from services.evaluator.statistics.traffic import TrafficSample, traffic_sample
from shared.answers import AnswerForm, answer_form
from shared.grading.fields import FieldGrade

_MAX_APPS = 10
"""Slices by application are of the largest ones."""


@dataclass(frozen=True)
class ComparedPart:
    """A part of what is compared: the positions of its rows, and both arms' scores on them, in [0, 1]."""

    rows: NDArray[np.intp]
    candidate: Floats
    production: Floats

    @property
    def apart(self) -> Floats:
        return self.candidate - self.production


@dataclass(frozen=True)
class Comparison:
    """`candidate` and `production` answered the same `questions`.

    The confidences are uncalibrated scores by row, NaN where there is none; None of an arm that was not asked for them.
    """

    questions: Sequence[Question]
    candidate: GradedAnswers
    production: GradedAnswers
    candidate_confidence: Floats | None = None
    production_confidence: Floats | None = None

    @cached_property
    def opponent(self) -> GradedAnswers:
        """What the candidate is compared with: production's answers, graded as the candidate's where it gave none.

        A request that failed says nothing of the candidate, which must not gain by it: as in a pair on live traffic.
        """
        arms = zip(self.candidate.grades, self.production.grades, self.production.answers, strict=True)
        return replace(self.production, grades=tuple(c if answer is None else p for c, p, answer in arms))

    @property
    def lost(self) -> list[int]:
        """The positions of questions that production answers right and the candidate does not."""
        return [i for i, (c, p) in enumerate(zip(self.candidate.right, self.opponent.right, strict=True)) if p > c]

    @property
    def gained(self) -> list[int]:
        return [i for i, (c, p) in enumerate(zip(self.candidate.right, self.opponent.right, strict=True)) if c > p]

    @cached_property
    def groups(self) -> Groups:
        return group_numbers([question.group for question in self.questions])

    @cached_property
    def scores(self) -> tuple[Floats, Floats]:
        """The candidate's and its opponent's scores by row, in [0, 1]."""
        return np.array(self.candidate.scores, dtype=np.float64), np.array(self.opponent.scores, dtype=np.float64)

    @cached_property
    def apart(self) -> Floats:
        """The candidate's score less production's, by row."""
        ours, theirs = self.scores
        return ours - theirs

    @cached_property
    def traffic(self) -> TrafficSample | None:
        return traffic_of(self.questions)

    @cached_property
    def gain(self) -> ScoreDifference:
        """Return the difference of the mean scores, of all traffic where chance drew enough rows."""
        ours, theirs = self.scores
        if self.traffic is None:
            return difference(ours, theirs, self.groups, None, "rows")
        chosen = self.traffic.positions
        groups = group_numbers([self.questions[i].group for i in chosen])
        return difference(ours[chosen], theirs[chosen], groups, self.traffic.weights, "traffic")

    def parts(self, spec: TaskSpec) -> dict[str, ComparedPart]:
        """Return what is looked at by itself: classes, failure modes, applications, lengths, fields."""
        found: dict[str, list[int]] = defaultdict(list)
        apps = Counter(s for q in self.questions for s in q.slices if s.startswith("app "))
        kept = {name for name, _ in apps.most_common(_MAX_APPS)} if len(apps) > 1 else set()
        middle = median([len(question.text) for question in self.questions]) if self.questions else 0
        for position, question in enumerate(self.questions):
            if spec.choices:
                found[f"class {question.answer}"].append(position)
            for name in question.slices:
                if not name.startswith("app ") or name in kept:
                    found[name].append(position)
            found["longer inputs" if len(question.text) > middle else "shorter inputs"].append(position)
        if "longer inputs" not in found:  # All are of one length.
            found.pop("shorter inputs", None)
        ours, theirs = self.scores
        parts = {
            name: ComparedPart(np.array(rows, dtype=np.intp), ours[rows], theirs[rows]) for name, rows in found.items()
        }
        return parts | self._fields(answer_form(spec))

    def _fields(self, form: AnswerForm) -> dict[str, ComparedPart]:
        """Return each field of a JSON answer, function and argument, or one of several labels, on the rows where it is
        expected or given: its F1 on each of them."""
        arms = [
            [{field.path: field for field in grade.fields} for grade in arm.grades]
            for arm in (self.candidate, self.opponent)
        ]
        rows: dict[str, list[int]] = defaultdict(list)
        for position, (ours, theirs) in enumerate(zip(*arms, strict=True)):
            for path in sorted(ours.keys() | theirs.keys()):
                rows[path].append(position)
        return {
            f"{form.part_noun(path)} {path}": ComparedPart(
                np.array(of_field, dtype=np.intp),
                *(np.array([_field_f1(arm[position].get(path)) for position in of_field]) for arm in arms),
            )
            for path, of_field in rows.items()
        }


def _field_f1(field: FieldGrade | None) -> float:
    """Return 1 where a field is neither expected nor given."""
    return 1.0 if field is None else 2.0 * field.matched / (field.given + field.expected)


def uniform_rows(questions: Sequence[Question]) -> int:
    """Return how many rows are of samples that any answer could come into."""
    return sum(question.is_uniform and question.drawn is not None for question in questions)


def traffic_of(questions: Sequence[Question]) -> TrafficSample | None:
    """Return the rows among these that stand for all traffic, with their weights; None if too few do."""
    drawn = np.array([np.nan if question.drawn is None else question.drawn for question in questions], dtype=np.float64)
    return traffic_sample(drawn, np.array([question.is_uniform for question in questions], dtype=np.bool_))
