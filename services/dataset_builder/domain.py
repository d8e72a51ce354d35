"""Corrections to examples: who agrees, what is sound, what was there before, who goes where. Pure.

resolve      one answer a prediction, or `reviewers_disagree`
check        the chat format's rules, each with its reason
deduplicate  the same text once; with two answers, not at all
split        near-copies into one group, each group into one part, for ever
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from schemas.base import Message, Role, input_text
from schemas.datasets import Example, RejectedExample
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.tasks import TaskKind, TaskSpec
from shared.identity import content_hash, event_id
from shared.model.near_duplicates import group_near_duplicates, text_hash

MAX_MESSAGES = 64
DUPLICATE = "duplicate"


@dataclass(frozen=True)
class Proposal:
    """An example that nothing was held against yet. `since`: when its first correction was made.

    `user_hash`, `predicted_at`: whose it is, so that a version tells on whom it was trained.
    """

    messages: tuple[Message, ...]
    prediction_id: str
    correction_ids: tuple[str, ...]
    since: datetime
    user_hash: str | None = None
    predicted_at: datetime | None = None

    @property
    def text(self) -> str:
        return input_text(self.messages[:-1])

    @property
    def answer(self) -> str:
        return self.messages[-1].content

    def rejected(self, reason: str, detail: str = "") -> RejectedExample:
        return RejectedExample(
            reason=reason,
            detail=detail,
            prediction_ids=(self.prediction_id,),
            correction_ids=self.correction_ids,
            user_hash=self.user_hash,
            predicted_at=self.predicted_at,
        )


@dataclass(frozen=True)
class Dataset:
    """What a build made of all corrections. Every correction with a label is in exactly one of the three."""

    train: tuple[Example, ...]
    eval: tuple[Example, ...]
    rejected: tuple[RejectedExample, ...]

    def rejected_by_reason(self) -> dict[str, int]:
        return dict(sorted(Counter(one.reason for one in self.rejected).items()))


def build_dataset(corrections: Iterable[CorrectionSubmitted], spec: TaskSpec) -> Dataset:
    """All steps in turn. The same corrections give the same data set, in whatever order they come."""
    proposals, rejected = resolve(corrections, spec.kind)
    sound = []
    for proposal in proposals:
        problem = check(proposal.messages, spec)
        if problem is None:
            sound.append(proposal)
        else:
            rejected.append(proposal.rejected(*problem))
    unique, doubles = deduplicate(sound, spec.kind)
    train, held_out = split(unique, spec)
    everything = sorted([*rejected, *doubles], key=lambda r: (r.reason, r.correction_ids))
    return Dataset(tuple(train), tuple(held_out), tuple(everything))


def votes_of(corrections: Iterable[CorrectionSubmitted]) -> dict[str, list[CorrectionSubmitted]]:
    """The last label of each reviewer, by prediction, oldest first. A preference between two answers is no label."""
    last: dict[str, dict[str, CorrectionSubmitted]] = {}
    for vote in sorted(corrections, key=lambda c: (c.occurred_at, c.correction_id)):
        if vote.label is not None:
            by_reviewer = last.setdefault(vote.prediction_id, {})
            by_reviewer.pop(vote.reviewer, None)
            by_reviewer[vote.reviewer] = vote
    return {prediction_id: list(by_reviewer.values()) for prediction_id, by_reviewer in last.items()}


def winner(answers: Sequence[str]) -> str | None:
    """The answer that all give, or of three and more the answer that most give; None if there is neither."""
    (best, count), *others = Counter(answers).most_common()
    if not others:
        return best
    return best if len(answers) >= 3 and count * 2 > len(answers) else None


def resolve(corrections: Iterable[CorrectionSubmitted], kind: TaskKind) -> tuple[list[Proposal], list[RejectedExample]]:
    """One answer a prediction. Free texts never match to the letter: of those, the last one counts."""
    proposals, rejected = [], []
    for prediction_id, votes in sorted(votes_of(corrections).items()):
        answers = [(vote.label or "").strip() for vote in votes]
        agreed = winner(answers) if kind is TaskKind.CLASSIFICATION else answers[-1]
        if agreed is None:
            said = ", ".join(f"{vote.reviewer}: {answer}" for vote, answer in zip(votes, answers, strict=True))
            ids = tuple(vote.correction_id for vote in votes)
            rejected.append(
                RejectedExample(
                    reason="reviewers_disagree",
                    detail=said,
                    prediction_ids=(prediction_id,),
                    correction_ids=ids,
                    user_hash=votes[0].user_hash,
                    predicted_at=votes[0].predicted_at,
                )
            )
            continue
        agreeing = [vote for vote, answer in zip(votes, answers, strict=True) if answer == agreed]
        messages = (*votes[0].messages, Message(role=Role.ASSISTANT, content=agreed))
        ids = tuple(vote.correction_id for vote in agreeing)
        first = votes[0]
        whose = (first.user_hash, first.predicted_at)
        proposals.append(Proposal(messages, prediction_id, ids, first.occurred_at, *whose))
    return proposals, rejected


def third_opinion(votes: Sequence[CorrectionSubmitted], spec: TaskSpec) -> LabelRequested | None:
    """The question to one more person where two people disagree on a label; None where there is no need."""
    if spec.kind is not TaskKind.CLASSIFICATION or len(votes) < 2:
        return None
    if winner([(vote.label or "").strip() for vote in votes]) is not None:
        return None
    first = votes[0]
    request_id = str(event_id("third opinion", first.prediction_id, len(votes)))
    return LabelRequested(
        event_id=event_id("labels.requested", request_id),
        task=spec.name,
        task_revision=spec.revision,
        request_id=request_id,
        prediction_id=first.prediction_id,
        purpose=Purpose.DISAGREEMENT,
        messages=first.messages,
        answers=first.answers[:1],
        labels=spec.labels,
        priority=2.0,  # Above all single doubts: two labels are paid for and wait for this one.
        user_hash=first.user_hash,
        predicted_at=first.predicted_at,
    )


def check(messages: Sequence[Message], spec: TaskSpec) -> tuple[str, str] | None:
    """What is wrong with a chat example, as reason and detail; None if it is sound."""
    roles = [message.role for message in messages]
    rules = spec.dataset
    if len(messages) > MAX_MESSAGES:
        return "too_many_messages", f"{len(messages)} messages; {MAX_MESSAGES} at most"
    if roles[0] not in (Role.SYSTEM, Role.USER):
        return "wrong_start", f"starts with {roles[0]}; system or user must be first"
    if roles[-1] is not Role.ASSISTANT:
        return "wrong_end", f"ends with {roles[-1]}; the assistant's answer must be last"
    if Role.SYSTEM in roles[1:]:
        return "misplaced_system", "a system message after the first place"
    turns = roles[1:] if roles[0] is Role.SYSTEM else roles
    if any(role is not (Role.USER, Role.ASSISTANT)[i % 2] for i, role in enumerate(turns)):
        return "roles_do_not_alternate", " ".join(roles)
    empty = [i for i, message in enumerate(messages) if not message.content.strip()]
    if empty:
        return "empty_content", f"message {empty[0]} is empty"
    length = len(messages[-1].content)
    if length < rules.min_answer_chars:
        return "answer_too_short", f"{length} characters; at least {rules.min_answer_chars}"
    if length > rules.max_answer_chars:
        return "answer_too_long", f"{length} characters; at most {rules.max_answer_chars}"
    if spec.labels and messages[-1].content not in spec.labels:
        return "unknown_label", f"{messages[-1].content[:100]!r} is not a label of the task"
    return None


def deduplicate(proposals: Sequence[Proposal], kind: TaskKind) -> tuple[list[Proposal], list[RejectedExample]]:
    """The oldest of each text stays. Of a text with several labels, the majority's; without one, none."""
    by_text: dict[str, list[Proposal]] = {}
    for proposal in sorted(proposals, key=_age):
        by_text.setdefault(text_hash(proposal.text), []).append(proposal)
    kept, rejected = [], []
    for same in by_text.values():
        answers = [proposal.answer for proposal in same]
        right = winner(answers) if kind is TaskKind.CLASSIFICATION else answers[0]
        first = next((p for p in same if p.answer == right), None)
        if first is not None:
            kept.append(first)
        for proposal in same:
            if proposal is first:
                continue
            if kind is TaskKind.CLASSIFICATION and proposal.answer != right:
                seen = ", ".join(f"{answer} ({count})" for answer, count in Counter(answers).most_common())
                rejected.append(proposal.rejected("conflicting_labels", f"the same text was labelled {seen}"))
            else:
                rejected.append(proposal.rejected(DUPLICATE, f"same text as in {same[0].prediction_id}"))
    return kept, rejected


def split(proposals: Sequence[Proposal], spec: TaskSpec) -> tuple[list[Example], list[Example]]:
    """Train and eval. A group is named after its oldest text, and its name and the seed say where it goes.

    So a group that grows stays where it was: what was once held out is never trained on. Where chance left a part
    empty, the group nearest to the line crosses it.
    """
    ordered = sorted(proposals, key=_age)
    firsts = group_near_duplicates([proposal.text for proposal in ordered], spec.dataset.near_copy_similarity)
    names = [text_hash(ordered[first].text) for first in firsts]
    place = {name: _place(spec.dataset.seed, name) for name in names}
    held_out = {name for name in place if place[name] < spec.dataset.eval_share}
    if len(place) > 1 and not held_out:
        held_out = {min(place, key=lambda name: place[name])}
    if len(place) > 1 and len(held_out) == len(place):
        held_out.discard(max(place, key=lambda name: place[name]))
    train: list[Example] = []
    evaluation: list[Example] = []
    for proposal, name in zip(ordered, names, strict=True):
        (evaluation if name in held_out else train).append(_example(proposal, name))
    return train, evaluation


def _example(proposal: Proposal, group: str) -> Example:
    return Example(
        example_id=f"ex-{content_hash(proposal.prediction_id, proposal.answer)}",
        messages=proposal.messages,
        group=group,
        prediction_ids=(proposal.prediction_id,),
        correction_ids=proposal.correction_ids,
        user_hash=proposal.user_hash,
        predicted_at=proposal.predicted_at,
    )


def _age(proposal: Proposal) -> tuple[datetime, str]:
    return proposal.since, proposal.prediction_id


def _place(seed: int, group: str) -> float:
    """A number in [0, 1) that follows from the seed and the group."""
    return int(content_hash(str(seed), group, length=8), 16) / 16**8
