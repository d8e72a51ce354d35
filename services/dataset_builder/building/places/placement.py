"""Which rows are trained on and which are held out: decided once for each row, and stored. Pure.

Only rows that were chosen to be held out attract, pair by pair:

    near a held-out row                      excluded, for ever
    near one that is trained on, too         excluded: it would be a bridge between them
    near a row that is trained on            trained on
    near none of them                        the stratified choice below decides

The turns of a conversation belong together (`conversations`): a new one is held out with a held-out one, or excluded
where it cannot be, and trained on with one that is trained on.

So what was held out is never trained on, nor its near-copies, and what was trained on is never held out, whatever
arrives later, grows old, is forgotten or is set otherwise. A held-out row attracts by its stored fingerprint when its
text is gone. A text that is equal to one with a place gets that place, also where templates or settings have changed
what is compared. Who asks to be forgotten takes all of it with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from schemas.datasets import Example, Fate, LeftOutExample
from schemas.labels import LabelRequested
from schemas.tasks import TaskSpec
from services.dataset_builder.building.compact import Compactor
from services.dataset_builder.building.places.conversations import Conversations, own_turn
from services.dataset_builder.building.places.place import Exclusions, Place, Places
from services.dataset_builder.building.places.similar import SimilarRows
from services.dataset_builder.building.places.stratified import choose_held_out
from services.dataset_builder.building.rows import BY_AGE, Row
from shared.model.near_duplicates import join_pairs

NEAR_HELD_OUT = "near_held_out"
BRIDGE = "bridge"
SAME_CONVERSATION = "same_conversation"
UNCONFIRMED = "unconfirmed"
_UNCONFIRMED = "held out, and no reviewer stands for its answer any more"


@dataclass(frozen=True)
class Placed:
    """The rows by place, and the places that were decided now."""

    train: list[Row]
    held_out: list[Row]
    left_out: list[LeftOutExample]
    decided: dict[str, Place] = field(default_factory=dict)
    exclusions: Exclusions = field(default_factory=Exclusions)
    questions: tuple[LabelRequested, ...] = ()
    """To people, about near-copies with different labels."""
    conversations: Conversations | None = None


def place_rows(
    rows: Sequence[Row], places: Places, similar: SimilarRows, spec: TaskSpec, others: Sequence[Row] = ()
) -> Placed:
    """Place rows, which come oldest first. Those that have a place keep it.

    `others`: rows that this build leaves out; where they have a place they attract. `similar` knows all of them, and
    the fingerprints of `places`.
    """
    by_fate: dict[Fate | None, list[Row]] = {fate: [] for fate in (Fate.TRAIN, Fate.EVAL, Fate.EXCLUDED, None)}
    for row in rows:
        by_fate[places[row.prediction_id].fate if row.prediction_id in places else None].append(row)
    new, trained, held, excluded_before = by_fate[None], by_fate[Fate.TRAIN], by_fate[Fate.EVAL], by_fate[Fate.EXCLUDED]
    near_held = similar.near_any([*trained, *excluded_before, *new], similar.mask_of(places, Fate.EVAL))
    near_trained = similar.near_any(new, similar.mask_of(places, Fate.TRAIN))
    _add_equal(near_held, (*trained, *new), _by_hash(places, (Fate.EVAL, Fate.EXCLUDED)))
    _add_equal(near_trained, new, _by_hash(places, (Fate.TRAIN,)))
    others = [row for row in others if row.prediction_id in places]
    conversations = Conversations([*rows, *others], places)
    names_of_held = frozenset(name for name, place in places.items() if place.fate is Fate.EVAL)
    in_held = conversations.with_any([*trained, *excluded_before, *new], names_of_held)
    names = (row.prediction_id for row in (*trained, *others))
    names_of_trained = frozenset(name for name in names if places[name].fate is Fate.TRAIN)
    in_trained = conversations.with_any(new, names_of_trained)
    with_trained = near_trained.keys() | in_trained.keys()
    apart = near_held.keys() | with_trained
    chosen = [row for row in new if row.prediction_id in in_held.keys() - apart and row.is_confirmed]
    _add_near(near_held, chosen, similar)
    unplaced = [row for row in new if row.prediction_id not in near_held.keys() | in_held.keys()]
    free = [row for row in unplaced if row.prediction_id not in with_trained and row.is_confirmed]
    in_eval = [*held, *chosen]
    chosen += choose_held_out(free, unplaced, [*trained, *in_eval], in_eval, similar, conversations, spec)
    chosen_names = frozenset(row.prediction_id for row in chosen)
    in_held |= conversations.with_any(new, chosen_names)
    _add_near(near_held, chosen, similar)
    _add_equal(near_held, (*trained, *new), {row.text_hash: row.prediction_id for row in (*chosen, *held)})

    lost = (near_held.keys() | in_held.keys()) - chosen_names
    excluded = [row for row in (*trained, *new) if row.prediction_id in lost]
    not_trained = {row.prediction_id for row in excluded} | chosen_names
    train = [row for row in (*trained, *new) if row.prediction_id not in not_trained]
    fates = dict.fromkeys((row.prediction_id for row in excluded), Fate.EXCLUDED) | dict.fromkeys(
        chosen_names, Fate.EVAL
    )
    left_out = [_excluded(row, near_held, near_trained, in_held) for row in (*excluded, *excluded_before)]
    left_out += [row.left_out(Fate.HELD_BACK, UNCONFIRMED, _UNCONFIRMED) for row in held if not row.is_confirmed]
    attracted = in_held | near_held
    attracting = [
        attracted[row.prediction_id] for row in (*excluded, *excluded_before) if row.prediction_id in attracted
    ]
    return Placed(
        train,
        [row for row in (*held, *chosen) if row.is_confirmed],
        left_out,
        {row.prediction_id: _decide(row, fates.get(row.prediction_id, Fate.TRAIN), similar, spec) for row in new},
        _exclusions(attracting, rows),
        conversations=conversations,
    )


def _add_near(near: dict[str, str], rows: Iterable[Row], similar: SimilarRows) -> None:
    """Add the rows that are near-copies of these."""
    for row in rows:
        for name in similar.near(row):
            near.setdefault(name, row.prediction_id)


def _by_hash(places: Places, fates: Collection[Fate]) -> dict[str, str]:
    """Return the predictions that have such a place, by the hash of their texts, also of those that are gone."""
    return {place.text_hash: name for name, place in places.items() if place.fate in fates and place.text_hash}


def _add_equal(near: dict[str, str], rows: Iterable[Row], known: Mapping[str, str]) -> None:
    """Add the rows whose text is one of these, by hash: what is compared of equal texts may differ."""
    for row in rows:
        if (name := known.get(row.text_hash)) is not None:
            near.setdefault(row.prediction_id, name)


def _decide(row: Row, fate: Fate, similar: SimilarRows, spec: TaskSpec) -> Place:
    fingerprint, whole = similar.fingerprints(row) if fate is Fate.EVAL else (None, None)
    return Place(
        fate=fate,
        similarity=spec.dataset.near_copy_similarity,
        user_hash=row.user_hash,
        happened_at=row.predicted_at or row.corrected_at,
        text_hash=row.text_hash,
        fingerprint=fingerprint,
        whole=whole,
        turn=" ".join(own_turn(row)) if fate is Fate.EVAL else "",
        writers=row.writers,
    )


def group_rows(placed: Placed, similar: SimilarRows) -> tuple[Iterator[tuple[Row, str]], dict[str, str]]:
    """Return the rows to train on and the held-out ones, oldest first, each with its group; and the groups of
    near-copies alone, by prediction, where they are others.

    A group is named by the first text that near-copies, or turns of one conversation, join its rows with: what is said
    of so many rows counts both as one.
    """
    rows = sorted((*placed.train, *placed.held_out), key=BY_AGE)
    copies = firsts = similar.groups(rows)
    if placed.conversations is not None and (turns := placed.conversations.pairs(rows)):
        firsts = join_pairs(len(rows), [*enumerate(copies), *turns])
    others = {
        row.prediction_id: rows[copy].text_hash
        for row, copy, first in zip(rows, copies, firsts, strict=True)
        if copy != first
    }
    return ((row, rows[first].text_hash) for row, first in zip(rows, firsts, strict=True)), others


def make_examples(grouped: Iterable[tuple[Row, str]], placed: Placed) -> tuple[list[Example], list[Example]]:
    """Return the rows to train on and the held-out ones as examples."""
    held = {row.prediction_id for row in placed.held_out}
    parts: tuple[list[Example], list[Example]] = ([], [])
    compact = Compactor()
    for row, group in grouped:
        example = row.example(group)
        compact(example.messages[-1])  # Made for the example; the others are the call's, which are compact already.
        compact.share_form(example)
        parts[row.prediction_id in held].append(compact.share_field_set(example))
    return parts


def _excluded(
    row: Row, near_held: Mapping[str, str], near_trained: Mapping[str, str], in_held: Mapping[str, str]
) -> LeftOutExample:
    name = row.prediction_id
    if name in in_held and name not in near_held:
        detail = f"another turn of the conversation of the held-out {in_held[name]}"
        return row.left_out(Fate.EXCLUDED, SAME_CONVERSATION, detail)
    detail = f"nearly the held-out {near_held[name]}" if name in near_held else "nearly a row that was held out once"
    if name in near_trained:
        return row.left_out(Fate.EXCLUDED, BRIDGE, f"{detail}, and nearly {near_trained[name]}, which is trained on")
    return row.left_out(Fate.EXCLUDED, NEAR_HELD_OUT, detail)


def _exclusions(attracting: Sequence[str], rows: Sequence[Row]) -> Exclusions:
    if not attracting:
        return Exclusions(of=len(rows))
    name, caused = min(Counter(attracting).items(), key=lambda item: (-item[1], item[0]))
    return Exclusions(len(attracting), len(rows), name, caused)
