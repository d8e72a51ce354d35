"""Labels that look wrong: which are held back until a person has confirmed them, and how many there are. Pure.

A model that has not seen a row says how probable its label is, and which other label is most probable (`recipe.py`). A
label is suspicious if the other one is at least four times as probable and a quarter more so, in probability. On
Banking77 with 15 % wrong labels that finds nine in ten, and seven in eight of what it finds are wrong.

Each build scores its labels anew. A label is settled, and never asked about again, once two reviewers gave it, or one
who was asked because it looked wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from schemas.datasets import Fate, LeftOutExample
from schemas.labels import LabelRequested
from schemas.tasks import TaskSpec
from services.dataset_builder.building.questions import label_again
from services.dataset_builder.building.rows import USER_PREFIX, Row
from shared.identity import content_hash

SUSPICIOUS = "suspicious_label"
"""The reason of a row that is held back because its label looks wrong."""
MIN_RATIO = 4.0
MIN_LEAD = 0.25
MIN_ROWS = 50
"""From fewer rows nothing is learned, so nothing looks wrong."""
MIN_LABEL_ROWS = 5
"""A label with fewer rows is neither learned nor suspicious: in each of five parts there must be one."""
MAX_MODEL_ROWS = 10_000
"""Rows that the model learns from. More make it slower and hardly better."""
_TEXT_CHARS = 1_000
"""What the sentence encoder takes in: the end of the last turn, where the question is."""
_SHOWN = 5
_ASKED_IN_EVAL, _ASKED_IN_TRAIN = 3.0, 1.0
"""Priorities: a wrong label in the evaluation set biases every verdict; a third opinion has 2."""


@dataclass(frozen=True, slots=True)
class LabelledText:
    """What the model sees of a row."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class LabelScore:
    """What a model that has not seen the row thinks of its label.

    `given`, `rival_probability`: probabilities of the label and of the most probable other one, `rival`. `is_issue`:
    cleanlab's judgement, for the rows that the model was fitted on in other parts; None for the others.
    """

    given: float
    rival: str
    rival_probability: float
    is_issue: bool | None

    @property
    def is_suspicious(self) -> bool:
        lead = self.rival_probability - self.given
        return lead >= MIN_LEAD and self.rival_probability >= MIN_RATIO * self.given

    @property
    def looks_wrong(self) -> bool:
        """What is counted: cleanlab's judgement; of a row that it has not judged, whether the label is suspicious."""
        return self.is_suspicious if self.is_issue is None else self.is_issue

    @property
    def doubt(self) -> float:
        """The rival's share of both probabilities: 0.8 and more where the label is suspicious."""
        both = self.given + self.rival_probability
        return self.rival_probability / both if both else 0.0


ScoredRow = tuple[Row, LabelScore]


@dataclass(frozen=True)
class LabelsToScore:
    """What the noise model is asked: it is fitted on `learned`, of which each label has at least five rows.

    They are scored too, each by a model that has not seen it. `others`: further rows to be scored.
    """

    learned: Sequence[LabelledText]
    others: Sequence[LabelledText] = ()


Scorer = Callable[[LabelsToScore], Iterable[LabelScore]]
"""The noise model (`recipe.py`). It returns the scores of the rows that it learned from, then those of the others, one
by one as they are asked for: at once those of a large task would have 20 MB."""


@dataclass(frozen=True)
class LabelNoise:
    """What was found. `judged`: rows with a score, of which `issues` have a label that looks wrong and is not settled.

    `recall`: of each label, the share of its rows to which the model gives it, unseen; of so many rows. `confused`:
    label and rival of the rows that are held back, with their number, the commonest first.
    """

    rows: int = 0
    judged: int = 0
    issues: int = 0
    recall: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    held_back: tuple[LeftOutExample, ...] = ()
    confused: tuple[tuple[str, str, int], ...] = ()
    questions: tuple[LabelRequested, ...] = ()
    has_sets: bool = False

    @cached_property
    def held_ids(self) -> frozenset[str]:
        return frozenset(row.prediction_ids[0] for row in self.held_back)

    @property
    def balanced_accuracy(self) -> float | None:
        """The mean recall of the labels: how well a text tells its label, however frequent it is."""
        return sum(recall for recall, _ in self.recall.values()) / len(self.recall) if len(self.recall) >= 2 else None

    @property
    def description(self) -> str:
        """How many labels are held back, and which are taken for which."""
        shown = ", ".join(f"{label[:60]} for {rival[:60]} {n}" for label, rival, n in self.confused[:_SHOWN])
        return f"{len(self.held_back)} are held back" + (f" ({shown})" if shown else "")

    @property
    def unknown(self) -> str:
        """Why there is nothing to say, and what is needed."""
        if self.has_sets:  # Sets that share labels would look like mistakes for each other.
            return "unknown: answers have several labels, and the model tells one from another"
        return (
            f"unknown: {MIN_ROWS} rows of labels with at least {MIN_LABEL_ROWS} rows each are needed, and of "
            f"{self.rows} rows too few are; have more answers corrected"
        )


def find_noise(rows: Sequence[Row], held_out: Collection[str], spec: TaskSpec, score: Scorer | None) -> LabelNoise:
    """Score the labels, and hold back the suspicious ones.

    `held_out`: the ids of the evaluation set's predictions. `score`: None gives none. The order of the rows makes no
    difference.
    """
    if not spec.choices:
        return LabelNoise(rows=len(rows), has_sets=bool(spec.labels))
    ordered = sorted(rows, key=lambda row: content_hash("noise", row.prediction_id))
    judged = _scored(ordered, score)
    found = [(row, given) for row, given in judged if given.is_suspicious and not _is_settled(row)]
    held = _bounded(found, Counter(row.label for row in ordered))
    return LabelNoise(
        rows=len(ordered),
        judged=len(judged),
        issues=sum(given.looks_wrong and not _is_settled(row) for row, given in judged),
        recall=_recall(judged),
        held_back=tuple(row.left_out(Fate.HELD_BACK, SUSPICIOUS, _detail(row, given)) for row, given in held),
        confused=_confused(held),
        questions=tuple(
            label_again(
                row,
                row.label,
                spec,
                (_ASKED_IN_EVAL if row.prediction_id in held_out else _ASKED_IN_TRAIN) + given.doubt,
                row.corrected_at,
            )
            for row, given in held
        ),
    )


def _scored(rows: Sequence[Row], score: Scorer | None) -> list[ScoredRow]:
    """Return the rows that can be scored, with their scores. `rows`: in a random order."""
    learned = _model_rows(rows)
    labels, in_model = {row.label for row in learned}, {row.prediction_id for row in learned}
    if score is None or len(learned) < MIN_ROWS or len(labels) < 2:
        return []
    others = [row for row in rows if row.label in labels and row.prediction_id not in in_model]
    found = score(LabelsToScore([_labelled(row) for row in learned], [_labelled(row) for row in others]))
    return list(zip((*learned, *others), found, strict=True))


def _model_rows(rows: Sequence[Row]) -> list[Row]:
    """Choose what the model learns from: labels with enough rows, each with at most its share of the maximum."""
    counts = Counter(row.label for row in rows)
    quota = _quota([count for count in counts.values() if count >= MIN_LABEL_ROWS])
    taken = Counter[str]()
    chosen = []
    for row in rows:
        if counts[row.label] >= MIN_LABEL_ROWS and taken[row.label] < quota:
            taken[row.label] += 1
            chosen.append(row)
    return chosen


def _quota(counts: Sequence[int]) -> int:
    """Return how many rows a label may have, so that all together have at most the maximum. Rare labels have all."""
    remaining = MAX_MODEL_ROWS
    for labels_left, count in zip(range(len(counts), 0, -1), sorted(counts), strict=True):
        if count > remaining // labels_left:
            return max(MIN_LABEL_ROWS, remaining // labels_left)
        remaining -= count
    return MAX_MODEL_ROWS


def _bounded(found: Sequence[ScoredRow], counts: Mapping[str, int]) -> list[ScoredRow]:
    """Hold back at most half the rows of a label, the most suspicious first: no label disappears."""
    taken = Counter[str]()
    held = []
    for row, given in sorted(found, key=lambda item: (-item[1].doubt, item[0].prediction_id)):
        if taken[row.label] < counts[row.label] // 2:
            taken[row.label] += 1
            held.append((row, given))
    return held


def _recall(judged: Iterable[ScoredRow]) -> dict[str, tuple[float, int]]:
    right, total = Counter[str](), Counter[str]()
    for row, score in judged:
        total[row.label] += 1
        right[row.label] += score.given >= score.rival_probability
    return {label: (right[label] / n, n) for label, n in sorted(total.items())}


def _confused(held: Iterable[ScoredRow]) -> tuple[tuple[str, str, int], ...]:
    counts = Counter((row.label, given.rival) for row, given in held)
    return tuple(
        (label, rival, n) for (label, rival), n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _detail(row: Row, score: LabelScore) -> str:
    return f"{row.label[:100]} ({score.given:.0%}) looks more like {score.rival[:100]} ({score.rival_probability:.0%})"


def _is_settled(row: Row) -> bool:
    reviewers = [voter for voter in row.voters if not voter.startswith(USER_PREFIX)]
    return row.rechecked or len(reviewers) >= 2


def _labelled(row: Row) -> LabelledText:
    return LabelledText(row.last_turn[-_TEXT_CHARS:], row.label)
