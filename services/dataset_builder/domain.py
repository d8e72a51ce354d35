"""The rules that turn corrections into examples. Pure.

resolve_answers  one answer per prediction, or `reviewers_disagree`
_error           what can never be trained on, and the chat format's rules, each with its reason
deduplicate      each text once; a text with conflicting labels not at all
split            near-duplicates into one group, each group always into the same part
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from schemas.conversation import Answer, Call, JsonObject, Message, input_text
from schemas.datasets import Example, RejectedExample
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.chat_format import Rejection, answer_message, cut_answer_error, format_error
from shared.conversation import chat_tools, comparable_text, never_trained
from shared.identity import content_hash, event_id
from shared.model.near_duplicates import group_near_duplicates, text_hash

DUPLICATE = "duplicate"


@dataclass(frozen=True)
class DraftExample:
    """An example that may still be rejected. `corrected_at` is the time of its first correction.

    `answers` are those that people saw; `label` is what the answer should have been, as one text. `user_hash` and
    `predicted_at` say whose it is and from when, so that a version can list the people in it.
    """

    call: Call
    answers: tuple[Answer, ...]
    label: str
    prediction_id: str
    correction_ids: tuple[str, ...]
    corrected_at: datetime
    user_hash: str | None = None
    predicted_at: datetime | None = None

    @property
    def tools(self) -> tuple[JsonObject, ...]:
        return chat_tools(self.call.tools)

    @property
    def messages(self) -> tuple[Message, ...]:
        return (*self.call.messages, answer_message(self.label, self.answers, self.tools))

    @property
    def text(self) -> str:
        return input_text(self.call.messages)

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
    """The result of a build. Every prediction with a label is in exactly one of the three parts."""

    train: tuple[Example, ...]
    eval: tuple[Example, ...]
    rejected: tuple[RejectedExample, ...]

    def rejected_by_reason(self) -> dict[str, int]:
        return dict(sorted(Counter(example.reason for example in self.rejected).items()))


def build_dataset(corrections: Iterable[CorrectionSubmitted], spec: TaskSpec) -> Dataset:
    """Build a dataset. The same corrections give the same dataset, in whatever order they arrive."""
    drafts, rejected = resolve_answers(corrections, spec.kind)
    valid = []
    for draft in drafts:
        error = _error(draft, spec)
        if error is None:
            valid.append(draft)
        else:
            rejected.append(draft.rejected(*error))
    unique, duplicates = deduplicate(valid, spec.kind)
    train, held_out = split(unique, spec)
    all_rejected = sorted([*rejected, *duplicates], key=lambda r: (r.reason, r.correction_ids))
    return Dataset(tuple(train), tuple(held_out), tuple(all_rejected))


def votes_by_prediction(corrections: Iterable[CorrectionSubmitted]) -> dict[str, list[CorrectionSubmitted]]:
    """Return each reviewer's last label, by prediction, oldest first. A preference between two answers is no label."""
    last: dict[str, dict[str, CorrectionSubmitted]] = {}
    for vote in sorted(corrections, key=lambda c: (c.occurred_at, c.correction_id)):
        if vote.label is not None:
            by_reviewer = last.setdefault(vote.prediction_id, {})
            by_reviewer.pop(vote.reviewer, None)
            by_reviewer[vote.reviewer] = vote
    return {prediction_id: list(by_reviewer.values()) for prediction_id, by_reviewer in last.items()}


def agreed_answer(answers: Sequence[str]) -> str | None:
    """Return the answer that all give, or of three or more the one that a majority gives; None without agreement."""
    (best, count), *rest = Counter(answers).most_common()
    if not rest:
        return best
    return best if len(answers) >= 3 and count * 2 > len(answers) else None


def resolve_answers(
    corrections: Iterable[CorrectionSubmitted], kind: TaskKind
) -> tuple[list[DraftExample], list[RejectedExample]]:
    """Choose one answer per prediction. Free texts are rarely identical, so the last one counts."""
    drafts, rejected = [], []
    for prediction_id, votes in sorted(votes_by_prediction(corrections).items()):
        answers = [(vote.label or "").strip() for vote in votes]
        agreed = agreed_answer(answers) if kind is TaskKind.CLASSIFICATION else answers[-1]
        first = votes[0]
        agreeing = [vote for vote, answer in zip(votes, answers, strict=True) if agreed in (None, answer)]
        draft = DraftExample(
            call=first.call,
            answers=tuple(answer for vote in agreeing for answer in vote.answers),
            label=agreed or "",
            prediction_id=prediction_id,
            correction_ids=tuple(vote.correction_id for vote in agreeing),
            corrected_at=first.occurred_at,
            user_hash=first.user_hash,
            predicted_at=first.predicted_at,
        )
        if agreed is None and never_trained(draft.call, draft.answers) is None:
            detail = ", ".join(f"{vote.reviewer}: {answer[:100]}" for vote, answer in zip(votes, answers, strict=True))
            rejected.append(draft.rejected("reviewers_disagree", detail))
        else:
            drafts.append(draft)
    return drafts, rejected


def tie_break_question(votes: Sequence[CorrectionSubmitted], spec: TaskSpec) -> LabelRequested | None:
    """Return the tie-break, a question to one more reviewer, if two disagree on a label, else None.

    None, too, where no label can become a training row.
    """
    if spec.kind is not TaskKind.CLASSIFICATION or len(votes) < 2:
        return None
    if agreed_answer([(vote.label or "").strip() for vote in votes]) is not None:
        return None
    first = votes[0]
    if never_trained(first.call, first.answers) is not None:
        return None
    request_id = str(event_id("tie-break", first.prediction_id, len(votes)))
    return LabelRequested(
        event_id=event_id("labels.requested", request_id),
        task=spec.name,
        task_revision=spec.revision,
        request_id=request_id,
        prediction_id=first.prediction_id,
        purpose=Purpose.TIE_BREAK,
        call=first.call,
        answers=first.answers[:1],
        labels=spec.labels,
        priority=2.0,  # Above every question of a single doubt: two labels are paid for and wait for this one.
        user_hash=first.user_hash,
        predicted_at=first.predicted_at,
    )


def _error(draft: DraftExample, spec: TaskSpec) -> Rejection | None:
    """Return why a draft is no example: first what it says itself, then what is wrong with its form."""
    return (
        never_trained(draft.call, draft.answers)
        or cut_answer_error(draft.label, draft.answers, spec)
        or format_error(draft.messages, draft.tools, spec)
    )


def deduplicate(drafts: Sequence[DraftExample], kind: TaskKind) -> tuple[list[DraftExample], list[RejectedExample]]:
    """Keep the oldest example of each text. Of a text with several labels: the majority's, or none without one."""
    by_text: dict[str, list[DraftExample]] = {}
    for draft in sorted(drafts, key=_age):
        by_text.setdefault(text_hash(draft.text), []).append(draft)
    unique, rejected = [], []
    for same_text in by_text.values():
        answers = [draft.label for draft in same_text]
        agreed = agreed_answer(answers) if kind is TaskKind.CLASSIFICATION else answers[0]
        first = next((draft for draft in same_text if draft.label == agreed), None)
        if first is not None:
            unique.append(first)
        for draft in same_text:
            if draft is first:
                continue
            if kind is TaskKind.CLASSIFICATION and draft.label != agreed:
                counts = ", ".join(f"{answer} ({count})" for answer, count in Counter(answers).most_common())
                rejected.append(draft.rejected("conflicting_labels", f"the same text was labelled {counts}"))
            else:
                rejected.append(draft.rejected(DUPLICATE, f"same text as in {same_text[0].prediction_id}"))
    return unique, rejected


def split(drafts: Sequence[DraftExample], spec: TaskSpec) -> tuple[list[Example], list[Example]]:
    """Split into train and eval by group. A group is named after its oldest text; name and seed decide its part.

    So a group that grows stays where it was: what was once held out is not trained on, unless a part would be empty:
    then the group nearest to the boundary moves into it.
    """
    ordered = sorted(drafts, key=_age)
    texts = (comparable_text(draft.call.messages) for draft in ordered)
    firsts = group_near_duplicates(texts, spec.dataset.near_copy_similarity)
    names = [text_hash(ordered[first].text) for first in firsts]
    points = {name: _split_point(spec.dataset.seed, name) for name in names}
    held_out = {name for name in points if points[name] < spec.dataset.eval_share}
    if len(points) > 1 and not held_out:
        held_out = {min(points, key=lambda name: points[name])}
    if len(points) > 1 and len(held_out) == len(points):
        held_out.discard(max(points, key=lambda name: points[name]))
    train: list[Example] = []
    evaluation: list[Example] = []
    for draft, name in zip(ordered, names, strict=True):
        (evaluation if name in held_out else train).append(_example(draft, name))
    return train, evaluation


def _example(draft: DraftExample, group: str) -> Example:
    return Example(
        example_id=f"ex-{content_hash(draft.prediction_id, draft.label)}",
        messages=draft.messages,
        tools=draft.tools,
        group=group,
        prediction_ids=(draft.prediction_id,),
        correction_ids=draft.correction_ids,
        user_hash=draft.user_hash,
        predicted_at=draft.predicted_at,
    )


def _age(draft: DraftExample) -> tuple[datetime, str]:
    return draft.corrected_at, draft.prediction_id


def _split_point(seed: int, group: str) -> float:
    """Return a number in [0, 1) that follows from the seed and the group."""
    return int(content_hash(str(seed), group, length=8), 16) / 16**8
