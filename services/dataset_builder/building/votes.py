"""Which answer counts: several people may have answered one question, and one person several times. Pure.

A person's newer word takes the place of their older one, and a reviewer's word that of a user. Who labelled a pair and
then cannot tell has taken the label back. Of what is left, each opinion weighs as much as its giver is reliable, and
half as much for every 90 days that it is older than the newest: so an old majority does not win for ever. Where that
decides nothing, one more reviewer is asked.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from operator import attrgetter

from pydantic import AwareDatetime

from schemas.base import Frozen, Identifier, Text
from schemas.conversation import Answer, Call, Surrogates
from schemas.datasets import Fate, LeftOutExample, Origin
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.questions import tie_break
from services.dataset_builder.building.rows import USER_PREFIX, Opinion, Row
from shared.conversation import never_trained

PRIOR_RELIABILITY = 0.95
HALF_LIFE = timedelta(days=90)
SURE = 0.8
"""How probable a label must be, among those that were given, so that nobody else is asked."""
_MIN_RELIABILITY, _MAX_RELIABILITY = 0.5, 0.99
"""An unreliable reviewer weighs nothing rather than less than nothing, and nobody outweighs any two others."""
USER_CORRECTION = "feedback-"
"""The id of a user's correction begins with it."""
_SHOWN_CHARS, _SHOWN_VOTES = 100, 10


class UserCorrection(Frozen):
    """What a user wrote that an answer should have been (`feedback.given`), with the prediction that it is about.

    `author_hash` is the user who wrote it, `user_hash` the one who was answered: either may ask to be forgotten.
    `author` is who has said it: without a user the application, whose key it came with.
    """

    correction_id: Identifier
    task: Identifier
    task_revision: Identifier
    prediction_id: Identifier
    occurred_at: AwareDatetime
    call: Call
    answers: tuple[Answer, ...]
    label: Text
    author_hash: Identifier | None
    user_hash: Identifier | None
    predicted_at: AwareDatetime
    app: Identifier | None = None
    session_hash: Identifier | None = None
    surrogates: Surrogates = ()

    @property
    def author(self) -> str:
        return self.author_hash or self.user_hash or self.app or "(anonymous)"

    @property
    def happened_at(self) -> datetime:
        """The time that retention goes by: that of the prediction."""
        return self.predicted_at


@dataclass(frozen=True, slots=True)
class Vote:
    """One word of one person on a prediction: what a build keeps of a correction, since it holds all of them.

    `label` is trimmed, and has the name of today if it was renamed. `purpose` is None of a user's own correction.
    `author_hash` is the user who wrote it, if that is known; of a reviewer's the one whose text they were shown.
    `request_id` is that of a question that several reviewers are asked, or of a pair, else None.
    """

    correction_id: str
    prediction_id: str
    task_revision: str
    occurred_at: datetime
    call: Call
    answers: tuple[Answer, ...]
    label: str
    voter: str
    origin: Origin
    user_hash: str | None
    predicted_at: datetime | None
    app: str | None
    purpose: Purpose | None = None
    request_id: str | None = None
    inclusion_probability: float = 1.0
    drawn_probability: float | None = None
    author_hash: str | None = None
    session: str | None = None
    weight: float = 1.0

    def left_out(self, fate: Fate, reason: str, detail: str = "") -> LeftOutExample:
        """Return the line of rejected.jsonl for this vote, whose prediction may still be a row."""
        return LeftOutExample(
            fate=fate,
            reason=reason,
            detail=detail,
            prediction_ids=(self.prediction_id,),
            correction_ids=(self.correction_id,),
            user_hash=self.user_hash,
            predicted_at=self.predicted_at,
        )


OLDEST_FIRST: Callable[[Vote], tuple[datetime, str]] = attrgetter("occurred_at", "correction_id")
"""Sorts votes from the oldest to the newest, the same way every time."""


def votes_of(corrections: Iterable[CorrectionSubmitted], user_corrections: Iterable[UserCorrection] = ()) -> list[Vote]:
    """Return the votes, oldest first. A preference between two answers is no label, hence no vote."""
    votes = []
    for given in corrections:
        if given.label is not None:
            votes.append(_vote(given, given.label, given.reviewer, Origin.REVIEWER))
    for word in user_corrections:
        votes.append(_vote(word, word.label, f"{USER_PREFIX}{word.author}", Origin.USER))
    return sorted(votes, key=OLDEST_FIRST)


class Withdrawals:
    """Labels that reviewers took back: who labelled a pair may see later that they cannot tell."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], datetime] = {}

    def add(self, corrections: Iterable[CorrectionSubmitted]) -> None:
        """Note who could not tell about which pair, and when."""
        for given in corrections:
            if given.preference == "cannot_tell":
                key = (given.request_id, given.reviewer)
                self._since[key] = max(given.occurred_at, self._since.get(key, given.occurred_at))

    def left_of(self, votes: Iterable[Vote]) -> list[Vote]:
        """Return the votes without those that were taken back."""
        return [vote for vote in votes if not self._covers(vote)]

    def _covers(self, vote: Vote) -> bool:
        since = self._since.get((vote.request_id, vote.voter)) if vote.request_id is not None else None
        return since is not None and vote.occurred_at < since


def _vote(word: CorrectionSubmitted | UserCorrection, label: str, voter: str, origin: Origin) -> Vote:
    asked = word if isinstance(word, CorrectionSubmitted) else None
    return Vote(
        correction_id=word.correction_id,
        prediction_id=word.prediction_id,
        task_revision=word.task_revision,
        occurred_at=word.occurred_at,
        call=word.call,
        answers=word.answers,
        label=label.strip(),
        voter=voter,
        origin=origin,
        user_hash=word.user_hash,
        predicted_at=word.predicted_at,
        app=word.app,
        purpose=asked.purpose if asked else None,
        request_id=asked.request_id if asked and (asked.overlap > 1 or asked.ticket_id) else None,
        inclusion_probability=asked.inclusion_probability if asked else 1.0,
        drawn_probability=asked.drawn_probability if asked else None,
        author_hash=word.author_hash if isinstance(word, UserCorrection) else word.suggested_by,
        session=word.session_hash,
        weight=asked.weight if asked else 1.0,
    )


def resolve_votes(
    votes: Iterable[Vote],
    spec: TaskSpec,
    reliability: Mapping[str, float],
    prompts: frozenset[str] = frozenset(),
    probability: Callable[[Vote], float | None] = attrgetter("drawn_probability"),
) -> tuple[list[Row], list[LeftOutExample], list[LabelRequested]]:
    """Choose one answer for each prediction. `prompts`: see `Row`.

    Returns the rows, the votes and the disputed predictions that are left out, and the questions to one more reviewer.
    `reliability`: see `estimate_reliability`; whoever is not in it has the prior. `probability`: see `ResponseRates`.
    """
    rows, left_out, questions = [], list[LeftOutExample](), list[LabelRequested]()
    for prediction_id, cast in sorted(by_prediction(votes).items()):
        newest, older = newest_of_each(cast)
        left_out += [v.left_out(Fate.SUPERSEDED, "newer_opinion", f"{v.voter} answered again") for v in older]
        reviewers = [vote for vote in newest if vote.origin is Origin.REVIEWER]
        deciding = reviewers or newest
        opinions = {vote.voter: opinion_of(vote, spec, reliability) for vote in deciding}
        agreed = decide(list(opinions.values()), spec.kind)
        label = deciding[-1].label if agreed is None else agreed
        supporting = [vote for vote in newest if agreed is None or vote.label == agreed]
        row = _row(prediction_id, cast, label, supporting, opinions, spec, prompts, probability)
        if agreed is None and never_trained(row.call, row.answers) is None:
            reason = "reviewers_disagree" if reviewers else "users_disagree"
            left_out.append(row.left_out(Fate.REJECTED, reason, _tally(deciding)))
            questions += [question] if (question := third_opinion(reviewers, spec, reliability)) else []
            continue
        rows.append(row)
        others = (vote for vote in newest if vote not in supporting)
        left_out += [_overruled(vote, row, "outvoted" if vote in deciding else "reviewers_word") for vote in others]
    return rows, left_out, questions


def decide(opinions: Sequence[Opinion], kind: TaskKind) -> str | None:
    """Return the label that opinions on one question come to; None: one more is needed.

    Several labels are decided on as a whole. Free texts and objects are rarely identical: of those the weightiest
    counts, hence the newest unless it weighs less.
    """
    totals = weigh(opinions) if len(opinions) > 1 else {opinion.label: opinion.weight for opinion in opinions}
    if len(totals) == 1:
        return next(iter(totals))
    if not kind.has_labels:
        last = {opinion.label: opinion.given_at for opinion in sorted(opinions, key=lambda o: (o.given_at, o.label))}
        return max(totals, key=lambda label: (totals[label], last[label], label))
    best = max(totals.values())
    chances = {label: math.exp(total - best) for label, total in totals.items()}
    surest = max(sorted(totals), key=lambda label: totals[label])
    return surest if chances[surest] / sum(chances.values()) >= SURE else None


def joint(opinions: Iterable[Opinion]) -> list[Opinion]:
    """What opinions on copies of one question come to: each person's newest, and no user's beside a reviewer's."""
    ordered = sorted(opinions, key=lambda opinion: (opinion.given_at, opinion.label))
    newest = {opinion.voter: opinion for opinion in ordered}.values()
    return [opinion for opinion in newest if opinion.origin is not Origin.USER] or list(newest)


def weigh(opinions: Iterable[Opinion]) -> dict[str, float]:
    """Return the log-odds of each label: the sum of its opinions', which lose half of it every 90 days.

    A power prior (Ibrahim & Chen 2000, Statistical Science 15(1), 46–60): an older likelihood is raised to a power.
    """
    ordered = sorted(opinions, key=lambda opinion: (opinion.given_at, opinion.label, opinion.weight))
    totals: dict[str, float] = defaultdict(float)
    for opinion in ordered:
        totals[opinion.label] += opinion.weight * 0.5 ** ((ordered[-1].given_at - opinion.given_at) / HALF_LIFE)
    return {label: round(total, 9) for label, total in totals.items()}


def opinion_of(vote: Vote, spec: TaskSpec, reliability: Mapping[str, float]) -> Opinion:
    """Return what a vote weighs: the log-odds that its giver is right. A user's word weighs `dataset.user_weight`."""
    share = min(max(reliability.get(vote.voter, PRIOR_RELIABILITY), _MIN_RELIABILITY), _MAX_RELIABILITY)
    weight = math.log(share / (1.0 - share)) * (spec.dataset.user_weight if vote.origin is Origin.USER else 1.0)
    return Opinion(vote.label, vote.occurred_at, weight, vote.voter, vote.origin)


def by_prediction(votes: Iterable[Vote]) -> dict[str, list[Vote]]:
    """Return the votes of each prediction, oldest first."""
    found: dict[str, list[Vote]] = defaultdict(list)
    for vote in sorted(votes, key=OLDEST_FIRST):
        found[vote.prediction_id].append(vote)
    return dict(found)


def newest_of_each(votes: Sequence[Vote]) -> tuple[list[Vote], list[Vote]]:
    """Return the newest vote of each person, and those that they replace; both oldest first. `votes`: oldest first."""
    newest = {vote.voter: vote for vote in votes}
    kept = [vote for vote in votes if newest[vote.voter] is vote]
    return kept, [vote for vote in votes if newest[vote.voter] is not vote]


def reviewers_answers(votes: Iterable[Vote]) -> list[tuple[str, str, str]]:
    """Return each reviewer's newest label by prediction: what `estimate_reliability` reads."""
    return [
        (prediction_id, vote.voter, vote.label)
        for prediction_id, cast in by_prediction(votes).items()
        for vote in newest_of_each(cast)[0]
        if vote.origin is Origin.REVIEWER
    ]


def third_opinion(votes: Sequence[Vote], spec: TaskSpec, reliability: Mapping[str, float]) -> LabelRequested | None:
    """Return the question to one more reviewer if these votes on one prediction decide nothing, else None.

    `votes` are reviewers', one of each. None, too, where no label can become a training row. The same reviewers have
    the same question, whoever notices it.
    """
    if len(votes) < 2 or decide([opinion_of(vote, spec, reliability) for vote in votes], spec.kind) is not None:
        return None
    first = votes[0]
    if never_trained(first.call, first.answers) is not None:
        return None
    return tie_break(first, {vote.voter for vote in votes}, spec, votes[-1].occurred_at)


def _row(
    prediction_id: str,
    cast: Sequence[Vote],
    label: str,
    supporting: Sequence[Vote],
    opinions: Mapping[str, Opinion],
    spec: TaskSpec,
    prompts: frozenset[str],
    probability: Callable[[Vote], float | None],
) -> Row:
    """`opinions`: of those who decide, by voter, of whom there are none but reviewers or none but users.

    Whose word counts does not change that chance drew the prediction: any vote on it may say so.
    """
    # Nearly all predictions have one vote: tuples of lists take half the time of tuples of generators.
    oldest, first = cast[0], supporting[0]
    drawn = [vote for vote in cast if vote.drawn_probability is not None]
    origin = next(iter(opinions.values())).origin
    return Row(
        call=oldest.call,
        answers=first.answers if len(supporting) == 1 else tuple(chain(*(vote.answers for vote in supporting))),
        label=label,
        prediction_id=prediction_id,
        correction_ids=tuple([vote.correction_id for vote in supporting]),
        corrected_at=oldest.occurred_at,
        user_hash=oldest.user_hash or _first([vote.user_hash for vote in supporting]),
        predicted_at=oldest.predicted_at,
        voters=tuple([vote.voter for vote in supporting]),
        origin=origin,
        app=first.app or _first([vote.app for vote in supporting]),
        weight=oldest.weight * (spec.dataset.user_weight if origin is Origin.USER else 1.0),
        opinions=tuple(opinions.values()),
        rechecked=Purpose.SUSPICIOUS_LABEL in [vote.purpose for vote in supporting],
        purpose=drawn[0].purpose if drawn else None,
        drawn_probability=probability(drawn[0]) if drawn else None,
        session=_first([vote.session for vote in cast]),
        prompts=prompts,
    )


def _first(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if value), None)


def _overruled(vote: Vote, row: Row, reason: str) -> LeftOutExample:
    given, agreed = vote.label[:_SHOWN_CHARS], row.label[:_SHOWN_CHARS]
    return vote.left_out(Fate.SUPERSEDED, reason, f"{vote.voter} wrote {given!r}; what counts is {agreed!r}")


def _tally(votes: Sequence[Vote]) -> str:
    return ", ".join(f"{vote.voter}: {vote.label[:_SHOWN_CHARS]}" for vote in votes[:_SHOWN_VOTES])
