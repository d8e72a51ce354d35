"""Caps and weights of training rows, so that no source and no wrong frequency of a class floods them. Pure.

    copies      near-copies of one text are left out beyond a number
    sources     a user, a failure mode, an application or a reviewer over its share is weighed down, to 0.2 at the
                least; what that does not reach is left out
    classes     count more or less, within bounds, where audits say that they are not so frequent in production; of
                several labels a class is their set

Which rows are left out follows from a hash of their ids: neither the order of arrival nor chance decides. Small
sources are left alone, and so are texts and labels beside which there is hardly anything to drown out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from schemas.datasets import Example, Fate, LeftOutExample
from schemas.tasks import TaskSpec
from services.dataset_builder.building.rows import Row
from services.dataset_builder.checks.distribution import MIN_AUDITS, Audits, weights_by_label
from services.dataset_builder.checks.intervals import proportion
from shared.identity import content_hash

MIN_WEIGHT = 0.2
MAX_WEIGHT = 5.0
_MIN_ROWS = 100
"""A source with fewer rows is never too loud, and fewer rows of others are nothing to weigh it against."""

Parts = tuple[list[Example], list[LeftOutExample]]
"""The rows that go on, and those that are left out."""


def balance(
    train: Sequence[Example],
    rows: Iterable[Row],
    spec: TaskSpec,
    audits: Audits,
    copies: Mapping[str, str] = MappingProxyType({}),
) -> Parts:
    """Return the training rows with their weights, and those that are left out. `rows` say who gave them.

    `copies`: the group of near-copies of a prediction, where its example is in a group with turns of its conversation.
    """
    rules = spec.dataset.balance
    within = [_weighted(example, 1.0) for example in train]
    kept, left_out = _cap_copies(within, rules.max_copies, copies, by_label=bool(spec.labels))
    only_voter = {row.prediction_id: row.voters[0] for row in rows if len(row.voters) == 1}
    sources: tuple[tuple[str, float, Callable[[Example], str | None]], ...] = (
        ("per_user", rules.max_user_share, lambda example: example.user_hash),
        ("per_mode", rules.max_mode_share, lambda example: example.mode_id),
        ("per_app", rules.max_app_share, lambda example: example.app),
        ("per_reviewer", rules.max_reviewer_share, lambda example: only_voter.get(example.prediction_ids[0])),
    )
    for reason, share, source in sources:
        kept, too_many = _limit_sources(kept, reason, share, source)
        left_out += too_many
    if spec.labels:
        kept = _weigh_classes(kept, audits, rules.max_class_weight, spec.dataset.min_examples_per_label)
    return kept, left_out


def _cap_copies(train: Sequence[Example], maximum: int, copies: Mapping[str, str], *, by_label: bool) -> Parts:
    """Near-copies with another label are no copies: a word makes a difference there, and that is to be learned."""
    groups = [copies.get(example.prediction_ids[0], example.group) for example in train]
    sizes = Counter(groups)
    by_group: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for example, group in zip(train, groups, strict=True):
        if sizes[group] > maximum:  # Hardly any: lists of all groups would be a good part of a build's memory.
            by_group[group, example.answer if by_label else ""].append(example)
    surplus = {}
    for members in by_group.values():
        for example in sorted(members, key=_rank)[maximum:] if len(members) > maximum else ():
            surplus[example.example_id] = f"one of {len(members)} near-copies, {maximum} of which are trained on"
    return _parted(train, "copies", surplus)


def _limit_sources(
    train: Sequence[Example], reason: str, share: float, source: Callable[[Example], str | None]
) -> Parts:
    """Weigh the rows of sources over their share down; leave out what exceeds it even with the least weight."""
    by_source: dict[str, list[Example]] = defaultdict(list)
    for example in train:
        if (name := source(example)) is not None:
            by_source[name].append(example)
    factors: dict[str, float] = {}
    surplus: dict[str, str] = {}
    for name, theirs in by_source.items():
        others = len(train) - len(theirs)
        limit = max(_MIN_ROWS, round(others * share / (1.0 - share))) if share < 1.0 else len(theirs)
        if others < _MIN_ROWS or len(theirs) <= limit:
            continue
        ranked = sorted(theirs, key=_rank)
        kept = ranked[: round(limit / MIN_WEIGHT)]
        factors.update({example.example_id: limit / len(kept) for example in kept})
        detail = f"one of {len(theirs)} rows of {name}, which may count as {limit}"
        surplus.update({example.example_id: detail for example in ranked[len(kept) :]})
    if not factors:
        return list(train), []
    going_on, left_out = _parted(train, reason, surplus)
    return [_weighted(example, factors.get(example.example_id, 1.0)) for example in going_on], left_out


def _weigh_classes(train: Sequence[Example], audits: Audits, max_weight: float, min_rows: int) -> list[Example]:
    """Weigh classes toward their share of production where audits show another than theirs, beyond chance.

    A class with too few rows is left as it is: each row would count as many.
    """
    counts, weighted = Counter(example.answer for example in train), weights_by_label(train)
    total = sum(weighted.values())
    factors: dict[str, float] = {}
    for labels in audits.classes(weighted).values() if train else ():
        share = sum(weighted.get(label, 0.0) for label in labels) / total
        if not share or sum(audits.counts.get(label, 0.0) for label in labels) < MIN_AUDITS:
            continue
        production = proportion(audits.share(labels) * audits.effective, audits.effective)
        if not production.low <= share <= production.high:
            factor = min(max(production.value / share, 1.0 / max_weight), max_weight)
            factors.update(dict.fromkeys((label for label in labels if counts[label] >= min_rows), factor))
    return [_weighted(example, factors[example.answer]) if example.answer in factors else example for example in train]


def _parted(train: Sequence[Example], reason: str, surplus: Mapping[str, str]) -> Parts:
    """Split the rows; `surplus` has the detail for each example that is left out."""
    kept = [example for example in train if example.example_id not in surplus]
    left_out = [
        LeftOutExample(
            fate=Fate.CAPPED,
            reason=reason,
            detail=surplus[example.example_id],
            prediction_ids=example.prediction_ids,
            correction_ids=example.correction_ids,
            user_hash=example.user_hash,
            predicted_at=example.predicted_at,
        )
        for example in train
        if example.example_id in surplus
    ]
    return kept, left_out


def _weighted(example: Example, factor: float) -> Example:
    weight = round(min(max(example.weight * factor, MIN_WEIGHT), MAX_WEIGHT), 4)
    return example if weight == example.weight else example.model_copy(update={"weight": weight})


def _rank(example: Example) -> str:
    """A number in an order that has nothing to do with what the example says or when it came."""
    return content_hash("balance", example.example_id)
