"""What becomes of copies and near-copies that people labelled differently: they must not both stay. Pure.

    equal questions         the votes on all of them decide (`votes.decide`), each person's newest once, and a user's
                            only where no reviewer looked; whoever lost is left out
    nearly equal ones       the same, but whoever lost waits for one more opinion: a word may make all the difference.
                            Where two people stand for each of the labels, the questions do differ, and both stay

Where votes decide nothing, one more reviewer is asked. Copies with the same label all go on: how many of them are
trained on is a cap (`balance`), and copies of a held-out row are excluded (`placement`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from schemas.datasets import Fate, LeftOutExample, Origin
from schemas.labels import LabelRequested
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.places.similar import SimilarRows
from services.dataset_builder.building.questions import tie_break
from services.dataset_builder.building.rows import BY_AGE, Row
from services.dataset_builder.building.votes import decide, joint
from shared.model.near_duplicates import join_pairs

CONFLICTING_COPIES = "conflicting_labels"
CONFLICTING_NEAR_COPIES = "conflicting_near_copies"
OLDER_ANSWER = "older_answer"
_MAX_QUESTIONS = 3
"""Of one conflict: the answers to a few decide it."""

Resolved = tuple[list[Row], list[LeftOutExample], list[LabelRequested]]


def resolve_copies(rows: Sequence[Row], held_out: Collection[str], similar: SimilarRows, spec: TaskSpec) -> Resolved:
    """Return the rows that go on, those that do not, and questions to one more reviewer.

    `held_out`: the predictions that are held out already; a newer answer takes the place of no held-out one.
    """
    if not spec.labels:
        kept, left_out = _newest_answers(rows, held_out)
        return kept, left_out, []
    kept, left_out, questions = _equal(rows, spec)
    unlike, waiting, more = _nearly_equal(kept, similar, spec)
    return unlike, [*left_out, *waiting], [*questions, *more]


def _newest_answers(rows: Sequence[Row], held_out: Collection[str]) -> tuple[list[Row], list[LeftOutExample]]:
    """Of different free texts in answer to the same question the weightiest is trained on, hence mostly the newest.

    What asks for another form (a JSON schema of the application's, tools) is another question about the text.
    """
    kept, left_out = [], []
    for copies in _by_text(rows, of_one_form=True):
        best = _decided(copies, TaskKind.GENERATION, equal=True)
        for row in copies:
            if row.label == best or row.prediction_id in held_out:
                kept.append(row)
            else:
                detail = "the same question has a newer answer, or one that weighs more"
                left_out.append(row.left_out(Fate.SUPERSEDED, OLDER_ANSWER, detail))
    return kept, left_out


def _equal(rows: Sequence[Row], spec: TaskSpec) -> Resolved:
    kept, left_out, questions = list[Row](), list[LeftOutExample](), list[LabelRequested]()
    for copies in _by_text(rows):
        if len({row.label for row in copies}) == 1:
            kept += copies
            continue
        agreed = _decided(copies, spec.kind, equal=True)
        detail = f"the same text was labelled {_tally(copies)}"
        kept += [row for row in copies if row.label == agreed]
        losers = [row for row in copies if row.label != agreed]
        left_out += [row.left_out(Fate.REJECTED, CONFLICTING_COPIES, detail) for row in losers]
        if agreed is None:
            questions += _ask(copies, spec, 1)
    return kept, left_out, questions


def _nearly_equal(rows: Sequence[Row], similar: SimilarRows, spec: TaskSpec) -> Resolved:
    pairs = [pair for pair in similar.differing_pairs(rows) if not all(map(_is_confirmed, pair))]
    left_out, questions = list[LeftOutExample](), list[LabelRequested]()
    lost: set[str] = set()
    for conflict in _joined(pairs):
        agreed = _decided(conflict, spec.kind, equal=False)
        losers = [row for row in conflict if row.label != agreed]
        lost.update(row.prediction_id for row in losers)
        detail = f"nearly the same text was labelled {_tally(conflict)}"
        left_out += [row.left_out(Fate.HELD_BACK, CONFLICTING_NEAR_COPIES, detail) for row in losers]
        questions += _ask(losers, spec, 1 if agreed is None else _MAX_QUESTIONS)
    return [row for row in rows if row.prediction_id not in lost], left_out, questions


def _decided(copies: Sequence[Row], kind: TaskKind, *, equal: bool) -> str | None:
    """Return the label of one of the copies that the votes on all of them come to, those of the outvoted too; or None.

    A label that the votes on each copy turned down counts, and wins nothing: no row has it. Of free texts, which mostly
    differ, those of rows alone count.
    """
    labels = {row.label for row in copies}
    opinions = (opinion for row in copies for opinion in row.opinions if kind.has_labels or opinion.label in labels)
    agreed = decide(joint(opinions, equal=equal), kind)
    return agreed if agreed in labels else None


def _by_text(rows: Iterable[Row], *, of_one_form: bool = False) -> list[list[Row]]:
    by_text: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_text[row.text_hash, row.form if of_one_form else ""].append(row)
    return list(by_text.values())


def _is_confirmed(row: Row) -> bool:
    return len(set(row.voters)) >= 2


def _joined(pairs: Sequence[tuple[Row, Row]]) -> list[list[Row]]:
    """Return the rows that chains of pairs join, each list from the oldest to the newest."""
    rows = sorted({row.prediction_id: row for pair in pairs for row in pair}.values(), key=BY_AGE)
    numbers = {row.prediction_id: number for number, row in enumerate(rows)}
    joined = join_pairs(
        len(rows), [(numbers[left.prediction_id], numbers[right.prediction_id]) for left, right in pairs]
    )
    conflicts: dict[int, list[Row]] = defaultdict(list)
    for row, first in zip(rows, joined, strict=True):
        conflicts[first].append(row)
    return list(conflicts.values())


def _ask(rows: Sequence[Row], spec: TaskSpec, count: int) -> list[LabelRequested]:
    """Ask about the rows that the fewest reviewers have looked at, the oldest first."""
    return [_question(row, spec) for row in sorted(rows, key=lambda row: (len(_reviewers(row)), BY_AGE(row)))[:count]]


def _question(row: Row, spec: TaskSpec) -> LabelRequested:
    at = max(opinion.given_at for opinion in row.opinions) if row.opinions else row.corrected_at
    return tie_break(row, _reviewers(row), spec, at)


def _reviewers(row: Row) -> set[str]:
    return {opinion.voter for opinion in row.opinions if opinion.origin is not Origin.USER}


def _tally(rows: Iterable[Row]) -> str:
    return ", ".join(f"{label} ({count})" for label, count in Counter(row.label for row in rows).most_common(10))
