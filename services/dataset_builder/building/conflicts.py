"""What becomes of equal questions that people answered differently: the answers must not both stay. Pure.

The votes on all of them decide (`votes.decide`), each person's newest once, and a user's only where no reviewer looked.
Whoever lost is left out. Where votes decide nothing, one more reviewer is asked. Nearly equal questions may differ in
the word that matters, so both stay: which of their labels look wrong is asked of the noise model (`label_noise`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from schemas.datasets import Fate, LeftOutExample, Origin
from schemas.labels import LabelRequested
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.questions import tie_break
from services.dataset_builder.building.rows import BY_AGE, Row
from services.dataset_builder.building.votes import decide, joint
from shared.model.texts import text_hash

CONFLICTING_COPIES = "conflicting_labels"
OLDER_ANSWER = "older_answer"

Resolved = tuple[list[Row], list[LeftOutExample], list[LabelRequested]]


def resolve_conflicts(rows: Sequence[Row], held_out: Collection[str], spec: TaskSpec) -> Resolved:
    """The rows that go on, those that do not, and questions to one more reviewer.

    `held_out`: the predictions that are held out already; a newer answer takes the place of no held-out one.
    """
    if spec.labels:
        return _equal(rows, spec)
    kept, left_out = _newest_answers(rows, held_out)
    return kept, left_out, []


def _newest_answers(rows: Sequence[Row], held_out: Collection[str]) -> tuple[list[Row], list[LeftOutExample]]:
    """Of different free texts in answer to the same question the weightiest is trained on, hence mostly the newest.

    What asks for another form (a JSON schema of the application's, tools) is another question about the text.
    """
    kept, left_out = [], []
    for copies in _by_text(rows, of_one_form=True):
        best = _decided(copies, TaskKind.GENERATION)
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
        agreed = _decided(copies, spec.kind)
        detail = f"the same text was labelled {_tally(copies)}"
        kept += [row for row in copies if row.label == agreed]
        losers = [row for row in copies if row.label != agreed]
        left_out += [row.left_out(Fate.REJECTED, CONFLICTING_COPIES, detail) for row in losers]
        if agreed is None:
            questions.append(_question(min(copies, key=lambda row: (len(_reviewers(row)), BY_AGE(row))), spec))
    return kept, left_out, questions


def _decided(copies: Sequence[Row], kind: TaskKind) -> str | None:
    """Return the label of one of the copies that the votes on all of them come to, those of the outvoted too; or None.

    A label that the votes on each copy turned down counts, and wins nothing: no row has it. Of free texts, which mostly
    differ, those of rows alone count.
    """
    labels = {row.label for row in copies}
    opinions = (opinion for row in copies for opinion in row.opinions if kind.has_labels or opinion.label in labels)
    agreed = decide(joint(opinions), kind)
    return agreed if agreed in labels else None


def _by_text(rows: Iterable[Row], *, of_one_form: bool = False) -> list[list[Row]]:
    by_text: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_text[text_hash(row.text), row.form if of_one_form else ""].append(row)
    return list(by_text.values())


def _question(row: Row, spec: TaskSpec) -> LabelRequested:
    at = max(opinion.given_at for opinion in row.opinions) if row.opinions else row.corrected_at
    return tie_break(row, _reviewers(row), spec, at)


def _reviewers(row: Row) -> set[str]:
    return {opinion.voter for opinion in row.opinions if opinion.origin is not Origin.USER}


def _tally(rows: Iterable[Row]) -> str:
    return ", ".join(f"{label} ({count})" for label, count in Counter(row.label for row in rows).most_common(10))
