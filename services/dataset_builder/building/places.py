"""Where a row belongs: trained on, held out, or neither. Decided once for each group of rows, and stored. Pure.

A group is a conversation: a model that was trained on one turn is asked about the next one with an unfair hint.

    1 group    turns of a session; without its id, rows that share a question with its answer        `group_rows`
    2 draw     each new group is held out with the probability `eval_share`, the same for all        `draw_groups`
    3 part     of a held-out group, what chance drew for review stands for production, whatever is
               trained on; any other row is held out only where nothing like it is trained on
    4 exclude  a training row that is nearly an unseen held-out row leaves training

So held-out rows are of two parts. *Traffic* is a sample of production: each row's probability is known, its text may be
trained on as production's next request may be. *Unseen* rows are unlike everything that is trained on, now and later.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from schemas.conversation import INSTRUCTIONS, Message, Role
from schemas.datasets import Fate, LeftOutExample
from schemas.tasks import TaskSpec
from services.dataset_builder.building.rows import BY_AGE, Row
from shared.answers import answer_form
from shared.identity import content_hash
from shared.model.groups import Groups
from shared.model.near_copies import NearCopies, Question, Shingles, question_of
from shared.model.texts import fold

NEAR_UNSEEN = "near_unseen"
NEAR_TRAINED = "near_trained"
SAME_CONVERSATION = "same_conversation"
EXCLUDED_BEFORE = "excluded_before"
UNCONFIRMED = "unconfirmed"
GOLDEN_OR_ADVERSARIAL = "golden_or_adversarial"
_SCRIPT = 8
"""A question with its answer after which so many conversations end is a greeting or a menu, and joins nothing."""
_HASH_CHARS = 16


@dataclass(frozen=True, slots=True)
class Place:
    """What is decided about a row: `fate` is train, eval or excluded; `group` names its conversation.

    An unseen held-out row has its `fingerprint`, the shingles of its own text, so that it keeps near-copies out of
    training when its text has expired. `user_hash` and `happened_at` (of the prediction) say whose it is. `writers`: if
    no reviewer stands for the row, the users who wrote its words, and when the last time; they are not stored.
    """

    fate: Fate
    group: str
    user_hash: str | None
    happened_at: datetime
    fingerprint: bytes | None = None
    writers: tuple[tuple[str, datetime], ...] = field(default=(), compare=False)


Places = Mapping[str, Place]
"""By prediction."""


@dataclass(frozen=True)
class Exclusions:
    """How many rows are near-copies of unseen held-out ones, and the prediction that attracts the most of them.

    Its text is not quoted: gates are in events, which no erasure reaches. The report quotes what it attracts.
    """

    rows: int = 0
    of: int = 0
    cause: str = ""
    caused: int = 0

    @property
    def share(self) -> float:
        return self.rows / self.of if self.of else 0.0


@dataclass(frozen=True)
class Placed:
    """The rows by place, oldest first, and the places that were decided now.

    `groups`: of each prediction. `copies`: the group of near-copies of each, of which only so many are trained on.
    `seen`: the held-out predictions whose text, or nearly, is trained on.
    """

    train: list[Row]
    held_out: list[Row]
    left_out: list[LeftOutExample]
    decided: dict[str, Place] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    seen: frozenset[str] = frozenset()
    exclusions: Exclusions = field(default_factory=Exclusions)


def place_rows(rows: Iterable[Row], places: Places, spec: TaskSpec) -> Placed:
    """Place rows. Those that have a place keep it; the order in which they come makes no difference."""
    rows = sorted(rows, key=BY_AGE)
    groups, fates = group_rows(rows, places)
    similar = _Similar(rows, groups, spec)
    new: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.prediction_id not in places and not fates[groups[row.prediction_id]]:
            new[groups[row.prediction_id]].append(row)
    for group in draw_groups(new, similar, spec):
        fates[group].add(Fate.EVAL)

    before, to_train, to_hold_out = defaultdict[Fate, list[Row]](list), list[Row](), list[Row]()
    reasons: dict[str, tuple[str, str]] = {}
    for row in rows:
        place, of_group = places.get(row.prediction_id), fates[groups[row.prediction_id]]
        if place is not None and (place.fate is not Fate.TRAIN or Fate.EVAL not in of_group):
            before[place.fate].append(row)
        elif Fate.EVAL not in of_group:
            to_train.append(row)
        elif place is None and row.is_confirmed and Fate.TRAIN not in of_group:
            to_hold_out.append(row)
        else:
            reasons[row.prediction_id] = SAME_CONVERSATION, "another turn of a held-out conversation"

    may_be_near = [*before[Fate.TRAIN], *before[Fate.EXCLUDED], *to_train]
    near_unseen = _near_unseen(may_be_near, before[Fate.EVAL], places, spec)
    reasons |= {row.prediction_id: (EXCLUDED_BEFORE, "an earlier build excluded it") for row in before[Fate.EXCLUDED]}
    reasons |= {name: (NEAR_UNSEEN, f"nearly the held-out {other}") for name, other in near_unseen.items()}
    train = [row for row in (*before[Fate.TRAIN], *to_train) if row.prediction_id not in near_unseen]
    trained = similar.numbers(train)
    seen = {row.prediction_id for row in (*before[Fate.EVAL], *to_hold_out) if similar.is_near(row, trained)}
    detail = "in a held-out group, and nearly a row that is trained on"
    useless = {row.prediction_id for row in to_hold_out if row.prediction_id in seen and not row.is_drawn}
    reasons |= {name: (NEAR_TRAINED, detail) for name in useless}
    held_out = [*before[Fate.EVAL], *(row for row in to_hold_out if row.prediction_id not in useless)]

    left_out = [
        row.left_out(Fate.EXCLUDED, *reasons[row.prediction_id]) for row in rows if row.prediction_id in reasons
    ]
    detail = "held out, and no reviewer stands for its answer any more"
    left_out += [row.left_out(Fate.HELD_BACK, UNCONFIRMED, detail) for row in held_out if not row.is_confirmed]
    unseen = {row.prediction_id for row in held_out} - seen
    fate = dict.fromkeys((row.prediction_id for row in held_out), Fate.EVAL) | dict.fromkeys(reasons, Fate.EXCLUDED)
    return Placed(
        train=sorted(train, key=BY_AGE),
        held_out=sorted((row for row in held_out if row.is_confirmed), key=BY_AGE),
        left_out=left_out,
        decided={
            row.prediction_id: Place(
                fate=fate.get(row.prediction_id, Fate.TRAIN),
                group=groups[row.prediction_id],
                user_hash=row.user_hash,
                happened_at=row.predicted_at or row.corrected_at,
                fingerprint=Shingles.of(asked(row, spec)).to_bytes() if row.prediction_id in unseen else None,
                writers=row.writers,
            )
            for row in rows
            if row.prediction_id not in places
        },
        groups=groups,
        copies=similar.copies(),
        seen=frozenset(seen),
        exclusions=_exclusions(near_unseen, len(rows)),
    )


class _Similar:
    """Which rows ask nearly the same."""

    def __init__(self, rows: Sequence[Row], groups: Mapping[str, str], spec: TaskSpec) -> None:
        self._index = NearCopies(spec.dataset.near_copy_similarity)
        self._numbers = {row.prediction_id: self._index.add(asked(row, spec)) for row in rows}
        self._groups: dict[int, set[str]] = defaultdict(set)
        for name, number in self._numbers.items():
            self._groups[number].add(groups[name])

    def numbers(self, rows: Iterable[Row]) -> set[int]:
        """The numbers of the rows' questions."""
        return {self._numbers[row.prediction_id] for row in rows}

    def copies(self) -> dict[str, str]:
        """The group of near-copies of each prediction."""
        groups = self._index.groups()
        return {name: str(groups[number]) for name, number in self._numbers.items()}

    def is_near(self, row: Row, others: Collection[int]) -> bool:
        """True if a row asks nearly what is among these questions."""
        number = self._numbers[row.prediction_id]
        return number in others or any(other in others for other in self._index.near_others(number))

    def is_alone(self, row: Row) -> bool:
        """True if no row of another group asks nearly the same."""
        number = self._numbers[row.prediction_id]
        own = self._groups[number]
        return len(own) == 1 and all(self._groups[other] == own for other in self._index.near_others(number))


def exclude_frozen(
    rows: Sequence[Row], questions: Sequence[Sequence[Message]], spec: TaskSpec, prompts: Collection[str]
) -> tuple[list[Row], list[LeftOutExample]]:
    """The rows that are unlike all questions of frozen sets (golden, adversarial), and the others, left out.

    Those keep the place they have, and get none: who takes the question out of the set has the row back.
    """
    index = NearCopies(spec.dataset.near_copy_similarity)
    for messages in questions:
        index.add(question_of(messages, prompts, spec.dataset.user_part))
    near = {row.prediction_id for row in rows if index.contains(asked(row, spec))} if questions else set[str]()
    detail = "a question of the golden or the adversarial set, or nearly one"
    return (
        [row for row in rows if row.prediction_id not in near],
        [row.left_out(Fate.EXCLUDED, GOLDEN_OR_ADVERSARIAL, detail) for row in rows if row.prediction_id in near],
    )


def adversarial_questions(spec: TaskSpec) -> list[tuple[Message, ...]]:
    """The texts that the task's settings add to the adversarial set, an injection with every label it may ask for."""
    settings = spec.evaluation.adversarial
    texts = [text.replace("{target}", label) for text in settings.injections for label in spec.labels or ("",)]
    unique = dict.fromkeys((*texts, *settings.out_of_distribution))
    return [(Message(role=Role.USER, content=text),) for text in unique]


def asked(row: Row, spec: TaskSpec) -> Question:
    """What a row is compared with others by."""
    return question_of(row.call.messages, row.prompts, spec.dataset.user_part)


def group_rows(rows: Sequence[Row], places: Places) -> tuple[dict[str, str], dict[str, set[Fate]]]:
    """The group of each prediction, and by group whether any row of it is trained on, or held out.

    Rows of a session are one group. Rows without a session join where one's question with its answer is in the other's
    history: so a later turn joins an earlier one, however much of the history it brings. A stored group keeps its name.
    """
    own = {row.prediction_id: _hash("group", row.session or row.prediction_id) for row in rows}
    exchanges = _exchanges_that_join(row for row in rows if row.session is None)
    stored = {place.group for place in places.values()}
    others = {*own.values(), *(key for keys in exchanges.values() for key in keys)} - stored
    names = [*sorted(stored), *sorted(others)]  # The same name wins in whatever order rows come.
    numbers = {name: number for number, name in enumerate(names)}
    joined = Groups(len(names))
    for row in rows:
        number = numbers[own[row.prediction_id]]
        if row.prediction_id in places:
            joined.join(number, numbers[places[row.prediction_id].group])
        for key in exchanges.get(row.prediction_id, ()):
            joined.join(number, numbers[key])
    fates: dict[str, set[Fate]] = defaultdict(set)
    for place in places.values():
        if place.fate is not Fate.EXCLUDED:
            fates[names[joined[numbers[place.group]]]].add(place.fate)
    return {name: names[joined[numbers[group]]] for name, group in own.items()}, fates


def _exchanges_that_join(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Of each prediction the questions with their answers by which rows of one conversation find each other."""
    exchanges = {row.prediction_id: _exchanges(row) for row in rows}
    history = {key for past, _ in exchanges.values() for key in past}
    ends = Counter(key for past, last in exchanges.values() if history.isdisjoint(last) for key in past)
    joining = {key for key in history if ends[key] < _SCRIPT}
    return {name: [key for key in (*past, *last) if key in joining] for name, (past, last) in exchanges.items()}


def _exchanges(row: Row) -> tuple[list[str], list[str]]:
    """The answered questions of a row's history, and its own question with each answer that people saw; of an imported
    row, which has none, with its label."""
    past, question, answer = list[str](), "", ""
    for message in row.call.messages:
        if message.role in INSTRUCTIONS:
            continue
        if message.role != Role.USER:
            answer = f"{answer} {message.text}"
            continue
        if question and answer:
            past.append(_exchange(question, answer))
        question, answer = message.text, ""
    given = dict.fromkeys(item.plain for item in row.answers) or (row.label,)
    return past, [_exchange(question, f"{answer} {text}") for text in given] if question else []


def _exchange(question: str, answer: str) -> str:
    return _hash(fold(question), fold(answer))


def _hash(*parts: str) -> str:
    return content_hash(*parts, length=_HASH_CHARS)


def draw_groups(groups: Mapping[str, Sequence[Row]], similar: _Similar, spec: TaskSpec) -> list[str]:
    """Draw the new groups that are held out, each with the probability `eval_share`.

    A systematic sample (Särndal, Swensson & Wretman 1992, 3.4.1) in the order of the answers, so that each answer has
    its share to within one. Not drawn are groups in which no reviewer stands for an answer, those that are more than
    the share of all rows by themselves, and those without a row of production's sample that are like other rows: of
    these nothing would be learned, neither of production nor of what is unseen.
    """
    share, seed = spec.dataset.eval_share, str(spec.dataset.seed)
    most = max(1.0, share * sum(map(len, groups.values())))
    confirmed = {name: [row for row in rows if row.is_confirmed] for name, rows in groups.items() if len(rows) <= most}
    drawable = {
        name: rows
        for name, rows in confirmed.items()
        if rows and (any(row.is_drawn for row in rows) or all(map(similar.is_alone, rows)))
    }
    stratum = answer_form(spec).strata([row.label for rows in drawable.values() for row in rows])
    frame = sorted((stratum(rows[0].label), content_hash(seed, group), group) for group, rows in drawable.items())
    start = _uniform("start", seed, *sorted(group for *_, group in frame)[:1])
    ends = [math.floor(start + number * share) for number in range(len(frame) + 1)]
    return [group for (*_, group), before, after in zip(frame, ends, ends[1:], strict=False) if after > before]


def _uniform(*parts: str) -> float:
    """A number in [0, 1) that follows from texts."""
    return int(content_hash(*parts, length=13), 16) / 16**13


def _near_unseen(rows: Iterable[Row], held_out: Iterable[Row], places: Places, spec: TaskSpec) -> dict[str, str]:
    """For each row that is nearly an unseen held-out one the prediction of that one.

    Also where the text of that one has expired, or is left out of this build.
    """
    index, names = NearCopies(spec.dataset.near_copy_similarity), dict[int, str]()
    for name, place in sorted(places.items()):
        if place.fingerprint is not None:
            names.setdefault(index.add_shingles(Shingles.from_bytes(place.fingerprint)), name)
    for row in held_out:  # By what is compared of it today, too.
        if places[row.prediction_id].fingerprint is not None:
            names.setdefault(index.add(asked(row, spec)), row.prediction_id)
    found = ((row, next(index.near(asked(row, spec)), None)) for row in rows) if names else ()
    return {row.prediction_id: names[number] for row, number in found if number is not None}


def _exclusions(near: Mapping[str, str], rows: int) -> Exclusions:
    if not near:
        return Exclusions(of=rows)
    name, caused = min(Counter(near.values()).items(), key=lambda item: (-item[1], item[0]))
    return Exclusions(len(near), rows, name, caused)
