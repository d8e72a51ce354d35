"""Holds back the labels of a reviewer, a user or an application that move a class too far. Pure.

A voter is compared with everybody else on similar answers: those of the same failure mode to which production gave the
same answer. Two things are looked for: a label that the voter gives there far more often than others do, and labels
that hardly anybody else gives there. Each must be beyond chance (exact binomial tests), and together they must be a
share of the voter's labels over a setting. The most extreme voters are taken out first and the rest compared again, so
that wrong labels accuse nobody else. Beside that one author's unconfirmed rows are at most a twentieth of a class.

Reviewers are compared with reviewers only: users cannot outvote them. Users edit wrong answers, so they are compared on
those alone: where the label is not what production answered. Imported rows, which production has not answered, are
compared with nothing. Without others to compare with nobody is held back, and
voters who lie together are not seen. What a second person confirmed is never held back, and nobody confirms themselves:
a reviewer's labels that wait are asked of somebody else. What users wrote reviewers are asked about anyway, by the
failure miner. Several labels of one answer count as one: the set is the class.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from schemas.datasets import Fate, LeftOutExample, Origin
from schemas.labels import LabelRequested
from schemas.tasks import TaskSpec
from services.dataset_builder.building.questions import second_opinion
from services.dataset_builder.building.rows import USER_PREFIX, Row
from services.dataset_builder.checks.intervals import binomial_tail
from shared.answers import answer_form
from shared.identity import content_hash

MOVES_CLASS = "moves_class"
"""The reason of a row that is held back because of who labelled it."""
FILLS_CLASS = "fills_class"
"""The reason of a row whose author gave too many of its class that no reviewer has confirmed."""
_MIN_MOVED = 10
"""Fewer moved labels hold nobody back."""
_MIN_OTHERS = 10
"""Fewer labels of others on similar answers are nothing to compare with."""
_RARE = 0.1
"""A label that fewer of the others give on similar answers is rare there."""
_CHANCE = 1e-6
"""A voter's labels are beyond chance if others' shares would give them with a smaller probability."""
_AS_EXTREME = 0.9
"""Voters whose share of moved labels is so much of the most extreme one's are taken out together with it."""
_MAX_CLASS_SHARE = 0.05
"""Of the training rows of a class, what one author wrote and nobody confirmed."""
_MIN_CLASS_ROWS = 3
"""So many rows of a class an author may always give."""
_SHOWN_MOVES = 3
_ASKED = 30
"""Rows of a reviewer that somebody else is asked about in one build."""

Stratum = tuple[str | None, str]
"""The failure mode, and what production answered."""
Cell = tuple[Stratum, str]
"""A stratum and a label."""


class Voter(NamedTuple):
    """Who gave labels. `kind` is reviewer, user or app; an application's labels are those of its users.

    As a text it is for gates and reports, which outlive an erasure: they name no user.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return "a user" if self.kind == "user" else f"{self.kind} {self.name}"


@dataclass(frozen=True)
class VoterShift:
    """What a held-back voter does differently.

    `compared`: labels on answers that others labelled, too; `moved`: how many of them are beyond what others' labels
    would give. `moves`: production's answer, the voter's label and how often, the commonest first.
    """

    voter: Voter
    compared: int
    moved: int
    held_back: int
    moves: tuple[tuple[str, str, int], ...]

    def __str__(self) -> str:
        shown = ", ".join(f"{answer[:40]} → {label[:40]} {count}" for answer, label, count in self.moves)
        return f"{self.voter}: {self.moved} of {self.compared} labels differ from those of others ({shown})"


@dataclass(frozen=True)
class Guarded:
    """The rows that go on, those that wait for a person, whose they are, and the questions about reviewers' own.

    Of a reviewer only some are asked about: what others confirm becomes what the next build compares with.
    """

    rows: tuple[Row, ...]
    held_back: tuple[LeftOutExample, ...] = ()
    shifts: tuple[VoterShift, ...] = ()
    questions: tuple[LabelRequested, ...] = ()


@dataclass(frozen=True)
class _Finding:
    voter: Voter
    compared: int
    moved: float
    cells: frozenset[Cell]

    @property
    def share(self) -> float:
        return self.moved / self.compared


def hold_back_voters(rows: Sequence[Row], spec: TaskSpec) -> Guarded:
    """Hold back the rows of voters whose labels moved a class, and what an author wrote beyond a share of a class."""
    going_on, shifts, held_back = list(rows), list[VoterShift](), list[LeftOutExample]()
    questions: list[LabelRequested] = []
    while findings := _most_extreme(answered := [row for row in going_on if row.answers], spec) if spec.labels else {}:
        waiting = set[str]()
        for finding, taken in _moved_rows(answered, findings):
            shifts.append(shift := _described(finding, taken, spec))
            waiting.update(row.prediction_id for row in taken)
            held_back += (row.left_out(Fate.HELD_BACK, MOVES_CLASS, str(shift)) for row in taken)
            by_reviewer = sorted((row for row in taken if row.is_confirmed), key=_rank)
            questions += (second_opinion(row, row.label, spec, row.corrected_at) for row in by_reviewer[:_ASKED])
        going_on = [row for row in going_on if row.prediction_id not in waiting]
    surplus = _unconfirmed_surplus(going_on, spec)
    held_back += (row.left_out(Fate.HELD_BACK, FILLS_CLASS, detail) for row, detail in surplus)
    waiting = {row.prediction_id for row, _ in surplus}
    return Guarded(
        rows=tuple(row for row in going_on if row.prediction_id not in waiting),
        held_back=tuple(held_back),
        shifts=tuple(shifts),
        questions=tuple(questions),
    )


def _most_extreme(rows: Sequence[Row], spec: TaskSpec) -> dict[Voter, _Finding]:
    """Return the voters whose labels differ most from the others', of those that differ by more than the setting."""
    max_shift, form = spec.dataset.max_voter_shift, answer_form(spec)
    by_voter: dict[Voter, Counter[Cell]] = defaultdict(Counter)
    corrections, reviewers = Counter[Cell](), Counter[Cell]()
    is_correction: dict[Cell, bool] = {}
    for row in rows:
        (_, answer), label = cell = _cell(row)
        if cell not in is_correction:
            is_correction[cell] = not form.same(answer, label)
        corrections[cell] += is_correction[cell]
        reviewers[cell] += row.is_confirmed
        for voter in _sole_voters(row):
            if is_correction[cell] or voter.kind == "reviewer":
                by_voter[voter][cell] += 1
    voters = Counter(voter.kind for voter in by_voter)
    pools = {"reviewer": _Pool(reviewers), "user": _Pool(corrections), "app": _Pool(corrections)}
    findings = [
        finding
        for voter, own in sorted(by_voter.items(), key=lambda item: item[0])
        if own.total() >= _MIN_MOVED and _has_peers(voter, own.total(), voters, pools[voter.kind].total)
        if (finding := _compare(voter, own, pools[voter.kind])) is not None
        if finding.moved >= max(_MIN_MOVED, max_shift * finding.compared)
    ]
    worst = max((finding.share for finding in findings), default=0.0)
    return {finding.voter: finding for finding in findings if finding.share >= _AS_EXTREME * worst}


def _moved_rows(rows: Sequence[Row], findings: Mapping[Voter, _Finding]) -> list[tuple[_Finding, list[Row]]]:
    """Return the rows that each of the voters moved. One that a user and an application moved is the user's."""
    taken: dict[Voter, list[Row]] = defaultdict(list)
    for row in rows:
        moved_by = (v for v in _sole_voters(row) if v in findings and _cell(row) in findings[v].cells)
        if (voter := next(moved_by, None)) is not None:
            taken[voter].append(row)
    return [(findings[voter], theirs) for voter, theirs in sorted(taken.items(), key=lambda item: item[0])]


class _Pool:
    """The labels that a voter is compared with, the voter's own among them: by stratum, then by label."""

    def __init__(self, cells: Counter[Cell]) -> None:
        self.strata: dict[Stratum, Counter[str]] = defaultdict(Counter)
        for (stratum, label), count in cells.items():
            self.strata[stratum][label] += count
        self.total = cells.total()


def _has_peers(voter: Voter, own: int, voters: Counter[str], pool: int) -> bool:
    """Where two voters contradict each other, neither is known to be wrong: there must be more who say otherwise."""
    if voter.kind == "reviewer":
        return voters["reviewer"] > 2 or pool - own >= 2 * own
    return voters["reviewer"] > 0 or voters[voter.kind] > 2 or pool - own >= 2 * own


def _compare(voter: Voter, own: Counter[Cell], pool: _Pool) -> _Finding | None:
    """Compare a voter's labels with the others' in the same strata; None if they differ no more than by chance."""
    by_stratum: dict[Stratum, Counter[str]] = defaultdict(Counter)
    for (stratum, label), count in own.items():
        by_stratum[stratum][label] = count
    cells, rare = set[Cell](), Counter[Cell]()
    compared, moved, expected_rare = 0, 0.0, 0.0
    for stratum, labels in sorted(by_stratum.items(), key=lambda item: (item[0][0] or "", item[0][1])):
        others = pool.strata[stratum] - labels
        total, mine = others.total(), labels.total()
        if total < _MIN_OTHERS:
            continue
        compared += mine
        expected_rare += mine * _rare_share(others)
        for label, count in sorted(labels.items()):
            share = (others[label] + 1) / (total + 2)
            if binomial_tail(count, mine, share) < _CHANCE:
                cells.add((stratum, label))
                moved += count - mine * share
            elif others[label] < _RARE * total:
                rare[stratum, label] = count
    if compared and binomial_tail(rare.total(), compared, min(1.0, (expected_rare + 1) / (compared + 2))) < _CHANCE:
        cells.update(rare)
        moved += rare.total() - expected_rare
    return _Finding(voter, compared, moved, frozenset(cells)) if cells else None


def _rare_share(labels: Counter[str]) -> float:
    """Return the share of labels that are rare among all but themselves."""
    total = labels.total()
    return sum(count for count in labels.values() if count - 1 < _RARE * (total - 1)) / total


def _described(finding: _Finding, taken: Sequence[Row], spec: TaskSpec) -> VoterShift:
    """Say what a voter does differently, in the task's labels: other answers of production may quote people."""
    answers, form = ((row, _cell(row)[0][1]) for row in taken), answer_form(spec)
    moves = Counter(
        (answer if form.labels(answer) is not None else "(another answer)", row.label) for row, answer in answers
    )
    ranked = sorted(moves.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN_MOVES]
    return VoterShift(
        voter=finding.voter,
        compared=finding.compared,
        moved=round(finding.moved),
        held_back=len(taken),
        moves=tuple((answer, label, count) for (answer, label), count in ranked),
    )


def _unconfirmed_surplus(rows: Sequence[Row], spec: TaskSpec) -> list[tuple[Row, str]]:
    """Return what one author wrote beyond a share of a class, beside the rows of it that a reviewer stands for.

    Of a task without labels all rows are one class. An application without reviewers learns from its users alone.
    Which rows wait follows from a hash of their ids.
    """
    confirmed, by_author = Counter[str](), defaultdict[tuple[str, str], list[Row]](list)
    for row in rows:
        label = row.label if spec.labels else ""
        if row.is_confirmed:
            confirmed[label] += 1
        elif len(row.voters) == 1:
            by_author[row.voters[0], label].append(row)
    if confirmed.total() < _MIN_OTHERS:
        return []
    beside = (1.0 - spec.dataset.eval_share) * _MAX_CLASS_SHARE / (1.0 - _MAX_CLASS_SHARE)
    surplus = []
    for (_, label), theirs in sorted(by_author.items()):
        limit = max(_MIN_CLASS_ROWS, int(confirmed[label] * beside))
        detail = f"an author's {len(theirs)} rows of {label[:60] or 'the task'}, unconfirmed; {limit} are trained on"
        surplus += [(row, detail) for row in sorted(theirs, key=_rank)[limit:]]
    return surplus


def _sole_voters(row: Row) -> Iterator[Voter]:
    """Yield who alone stands for the row's label.

    Nobody if a second person of the same kind gave it, too, or if a reviewer who was asked about a user's label said
    the same. Who was asked about their own label and gave it again still stands alone.
    """
    if row.rechecked and len(row.voters) > 1:
        return
    if row.origin is Origin.USER:
        if len(row.voters) == 1:
            yield Voter("user", row.voters[0].removeprefix(USER_PREFIX))
        if row.app is not None:
            yield Voter("app", row.app)
    else:
        reviewers = [voter for voter in row.voters if not voter.startswith(USER_PREFIX)]
        if len(reviewers) == 1:
            yield Voter("reviewer", reviewers[0])


def _cell(row: Row) -> Cell:
    given = {answer.plain.strip()[:200] for answer in row.answers}
    answer = given.pop() if len(given) == 1 else ""  # Of a pair nobody can tell which one production gave.
    return (row.mode_id, answer), row.label


def _rank(row: Row) -> str:
    """A number in an order that has nothing to do with what the row says or when it came."""
    return content_hash("voters", row.prediction_id)
