"""Training rows beside the answers that people corrected: none unless the task asks for them, and each says so. Pure.

    audited         answers of production that an audit showed right, so that a model that is trained on its failures
                    does not forget the rest; without them the audits are only measured by
    hard negatives  rows of a failure mode with another label than most of it: alike, and not the same; they count twice

No text is made up: every row is a prediction that a person has looked at. The evaluation set stays as it is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from schemas.datasets import Example, Fate, LeftOutExample, Origin
from schemas.labels import Purpose
from schemas.task_settings import AugmentationSettings
from schemas.tasks import TaskKind
from services.dataset_builder.building.compact import replaced
from services.dataset_builder.building.votes import Vote, by_prediction
from shared.answers import form_of_kind

HARD_NEGATIVE_WEIGHT = 2.0
RIGHT_ALREADY = "right_already"


def shown_right(votes: Iterable[Vote], kind: TaskKind) -> frozenset[str]:
    """Return the predictions that were only looked at because of an audit, and that everybody found right."""
    return frozenset(
        prediction_id
        for prediction_id, cast in by_prediction(votes).items()
        if all(_confirms(vote, kind) for vote in cast)
    )


def augment(
    train: Sequence[Example], right: Collection[str], rules: AugmentationSettings
) -> tuple[list[Example], list[LeftOutExample]]:
    """Return the training rows with their origins, and those left out. `right`: see `shown_right`."""
    kept, left_out = [], []
    for example in train:
        if example.prediction_ids[0] not in right:
            kept.append(example)
        elif rules.audited:
            kept.append(replaced(example, origin=Origin.AUDITED))
        else:
            left_out.append(_left_out(example))
    return (_with_hard_negatives(kept) if rules.hard_negatives else kept), left_out


def _with_hard_negatives(train: Sequence[Example]) -> list[Example]:
    """Mark the rows of a failure mode whose label is not its commonest one; of labels that tie, none is."""
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        if example.mode_id is not None:
            labels[example.mode_id][example.answer] += 1
    usual = {mode: _commonest(counts) for mode, counts in labels.items()}
    return [
        replaced(example, origin=Origin.HARD_NEGATIVE, weight=example.weight * HARD_NEGATIVE_WEIGHT)
        if example.origin is Origin.REVIEWER
        and example.mode_id is not None
        and usual[example.mode_id] not in (None, example.answer)
        else example
        for example in train
    ]


def _commonest(counts: Counter[str]) -> str | None:
    (label, most), *others = counts.most_common(2)
    return None if others and others[0][1] == most else label


def _confirms(vote: Vote, kind: TaskKind) -> bool:
    return vote.purpose is Purpose.AUDIT and any(
        form_of_kind(kind).same(answer.plain, vote.label) for answer in vote.answers
    )


def _left_out(example: Example) -> LeftOutExample:
    return LeftOutExample(
        fate=Fate.CAPPED,
        reason=RIGHT_ALREADY,
        detail="an audit showed production's answer right; dataset.augmentation.audited trains on such answers",
        prediction_ids=example.prediction_ids,
        correction_ids=example.correction_ids,
        user_hash=example.user_hash,
        predicted_at=example.predicted_at,
    )
