"""The steps from corrections to a data set, in their order. Pure.

A *vote* is one person's word on a prediction, a *row* a prediction with the answer that its votes come to, an *example*
a row as a line of a version's file. Each step returns what goes on and what it leaves out, with a fate and a reason:

    building/carry_over.py     votes that hold for today's task    superseded  other_kind, label_removed, schema_changed
    checks/reliability.py      how often each reviewer is right
    building/votes.py          one answer of a prediction          superseded  newer_opinion, outvoted, reviewers_word
                                                                   rejected    reviewers_disagree, users_disagree
    `never_trained` of shared  events that are whole               rejected    truncated, refused, media …
    building/chat_format.py    the form of a conversation          rejected    cut, wrong_end, unknown_label …
    building/length.py         its length in tokens                rejected    too_many_tokens, not_rendered
    checks/poisoning.py        who moves a class too far           held_back   moves_class, fills_class
    building/places.py         golden and adversarial questions    excluded    golden_or_adversarial
    building/conflicts.py      equal questions, other answers      rejected    conflicting_labels
                                                                   superseded  older_answer
    building/places.py         trained on, held out, or neither    excluded    same_conversation, near_unseen,
                                                                               near_trained, excluded_before
                                                                   held_back   unconfirmed
    checks/label_noise.py      labels that look wrong              held_back   suspicious_label
    building/augmentation.py   hard negatives count twice
    checks/balance.py          caps and weights of training rows   capped      copies, per_user, per_mode, per_app,
                                                                               per_reviewer
    checks/measures.py         what gates and the report read

`docs/datasets.md` says what each reason means.
What waits for a person (`held_back`, and what people disagree about) is asked, and comes back with the answer.
A new conversation is held out as a whole, by chance and for good. Of its rows those that were drawn at random for
review are *traffic*, also if they are like rows that are trained on. The others stay only if they are *unseen*: unlike
all that is trained on.
Where a gate of `inspection/` fails no version is published and no place stored: the next cycle builds anew of the same
corrections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property

from schemas.conversation import Message, input_text
from schemas.datasets import Example, Fate, LeftOutCount, LeftOutExample, PreferredAnswer
from schemas.labels import LabelRequested, Purpose
from schemas.tasks import TaskSpec
from services.dataset_builder.building.augmentation import weigh_hard_negatives
from services.dataset_builder.building.authors import Authors
from services.dataset_builder.building.carry_over import CurrentCalls, Revision, carry_over, prompts_of
from services.dataset_builder.building.chat_format import (
    Rejection,
    cut_answer_error,
    format_error,
    output_error,
)
from services.dataset_builder.building.conflicts import resolve_conflicts
from services.dataset_builder.building.length import CountTokens, length_error
from services.dataset_builder.building.places import (
    Placed,
    Places,
    adversarial_questions,
    exclude_frozen,
    place_rows,
)
from services.dataset_builder.building.preferences import edits
from services.dataset_builder.building.questions import within_budget
from services.dataset_builder.building.rows import Row
from services.dataset_builder.building.votes import OLDEST_FIRST, Vote, resolve_votes, reviewers_answers
from services.dataset_builder.checks.agreement import WINDOW, blind_overlaps, measure_agreement
from services.dataset_builder.checks.balance import balance
from services.dataset_builder.checks.distribution import audited, measure_distribution
from services.dataset_builder.checks.label_noise import Scorer, find_noise
from services.dataset_builder.checks.measures import Measures
from services.dataset_builder.checks.poisoning import hold_back_voters
from services.dataset_builder.checks.reliability import estimate_reliability
from services.dataset_builder.checks.response import ResponseRates, response_rates
from shared.answers import answer_form
from shared.conversation import never_trained
from shared.model.texts import text_hash

NO_LABEL = "(no label of the task)"


@dataclass(frozen=True)
class Dataset:
    """The result of a build: each row is in one of the three parts. Votes that do not count are left out, too."""

    train: tuple[Example, ...]
    eval: tuple[Example, ...]
    left_out: tuple[LeftOutExample, ...]

    def left_out_counts(self) -> tuple[LeftOutCount, ...]:
        counts = Counter((example.fate, example.reason) for example in self.left_out)
        return tuple(LeftOutCount(fate=fate, reason=reason, count=n) for (fate, reason), n in sorted(counts.items()))

    def left_out_by_reason(self) -> dict[str, int]:
        return dict(sorted(Counter(example.reason for example in self.left_out).items()))


@dataclass(frozen=True)
class Inputs:
    """All that a build depends on beside the scores of labels: the same of both give the same bytes on any machine.

    `votes` are those of all revisions of the task; `revisions` are its former ones by id. `places`: where earlier
    builds decided that rows belong. `modes` has the failure mode of each prediction that is in one. `golden`: the
    questions of the golden set, without their answers. `questions_drawn`: the questions that chance drew,
    by purpose, answered or not, about predictions made since `drawn_since`.
    """

    votes: Sequence[Vote]
    spec: TaskSpec
    places: Places = field(default_factory=dict)
    modes: Mapping[str, str] = field(default_factory=dict)
    golden: Sequence[tuple[Message, ...]] = ()
    revisions: Mapping[str, Revision] = field(default_factory=dict)
    questions_drawn: Mapping[Purpose, int] = field(default_factory=dict)
    drawn_since: datetime | None = None

    @property
    def frozen(self) -> tuple[tuple[Message, ...], ...]:
        """The questions of the golden set and the task's own of the adversarial set: no row is one, or nearly."""
        return (*self.golden, *adversarial_questions(self.spec))

    @cached_property
    def response(self) -> ResponseRates:
        return response_rates(self.votes, self.questions_drawn, self.drawn_since)

    @cached_property
    def prompts(self) -> frozenset[str]:
        """See `prompts_of`."""
        return prompts_of(self.spec, self.revisions)


@dataclass(frozen=True)
class Build:
    """A dataset, the places that were decided for it, and what people are to be asked about it.

    `places`: of rows that had none; they never change. `corrected`: rows by the label that their votes came to, before
    any row was left out. `edits`: what people made of production's answers.
    """

    dataset: Dataset
    places: Places = field(default_factory=dict)
    questions: tuple[LabelRequested, ...] = ()
    corrected: Mapping[str, int] = field(default_factory=dict)
    measures: Measures = field(default_factory=Measures)
    edits: Sequence[PreferredAnswer] = ()


def build_dataset(inputs: Inputs, score: Scorer | None = None, count_tokens: CountTokens | None = None) -> Build:
    """Build a dataset. The order in which corrections arrived makes no difference.

    `score` is the noise model, whose numbers differ a little from machine to machine; None: no label looks wrong.
    `count_tokens`: with the base model's tokenizer; None: nothing is too long.
    """
    spec, places, frozen = inputs.spec, inputs.places, inputs.frozen
    votes, obsolete = carry_over(sorted(inputs.votes, key=OLDEST_FIRST), spec, inputs.revisions)
    reliability = estimate_reliability(reviewers_answers(votes)) if spec.labels else {}
    rows, overruled, questions = _resolve(votes, inputs, reliability)
    valid, invalid = _validate(rows, spec, count_tokens)
    guarded = hold_back_voters(valid, spec)
    unfrozen, excluded = exclude_frozen(guarded.rows, frozen, spec, inputs.prompts)
    held_out_before = {name for name, place in places.items() if place.fate is Fate.EVAL}
    agreeing, conflicting, ties = resolve_conflicts(unfrozen, held_out_before, spec)
    placed = place_rows(agreeing, places, spec)
    in_eval = {row.prediction_id for row in placed.held_out}
    noise = find_noise([*placed.train, *placed.held_out], in_eval, spec, score)
    to_train, held_out = (
        _examples([row for row in part if row.prediction_id not in noise.held_ids], placed)
        for part in (placed.train, placed.held_out)
    )
    labels = _labels_of(votes, spec)
    audits, overlaps = audited(vote for vote in labels if vote.label != NO_LABEL), blind_overlaps(labels)
    if spec.dataset.augmentation.hard_negatives:
        to_train = weigh_hard_negatives(to_train)
    train, capped = balance(to_train, guarded.rows, spec, audits, placed.copies)

    left_out = [*obsolete, *overruled, *invalid, *guarded.held_back, *excluded, *conflicting, *placed.left_out]
    left_out += [*noise.held_back, *capped]
    left_out.sort(key=lambda r: (r.fate, r.reason, r.correction_ids))
    authors = Authors(inputs.votes)
    dataset = Dataset(authors.name_in_rows(train), authors.name_in_rows(held_out), authors.name_in_left_out(left_out))
    return Build(
        dataset,
        places=placed.decided,
        questions=within_budget([*questions, *guarded.questions, *ties, *noise.questions], spec),
        corrected=Counter(row.label for row in rows),
        measures=Measures(
            agreement=measure_agreement(overlaps, max(spec.dataset.min_overlaps, WINDOW)),
            distribution=measure_distribution(train, audits),
            shifts=guarded.shifts,
            noise=noise,
            exclusions=placed.exclusions,
            frozen=frozenset(text_hash(input_text(question, inputs.prompts)) for question in frozen),
            reliability=reliability,
            questions=inputs.response.questions,
        ),
        edits=edits(dataset.train, guarded.rows, spec.kind),
    )


def _resolve(
    votes: Sequence[Vote], inputs: Inputs, reliability: Mapping[str, float]
) -> tuple[list[Row], list[LeftOutExample], list[LabelRequested]]:
    """Choose one answer per prediction, for a model that is asked as it is today."""
    spec = inputs.spec
    rows, overruled, questions = resolve_votes(votes, spec, reliability, inputs.prompts, inputs.response.probability)
    current = CurrentCalls(spec, inputs.prompts)
    for number, row in enumerate(rows):
        call, mode_id = current(row.call), inputs.modes.get(row.prediction_id)
        if call is not row.call or mode_id is not None:
            rows[number] = replace(row, call=call, mode_id=mode_id)
    return rows, overruled, questions


def _validate(
    rows: Iterable[Row], spec: TaskSpec, count_tokens: CountTokens | None
) -> tuple[list[Row], list[LeftOutExample]]:
    valid, left_out = [], []
    for row in rows:
        if (error := _error(row, spec, count_tokens)) is None:
            valid.append(row)
        else:
            left_out.append(row.left_out(Fate.REJECTED, *error))
    return valid, left_out


def _error(row: Row, spec: TaskSpec, count_tokens: CountTokens | None) -> Rejection | None:
    """Return why a row is no example: first what it says itself, then what is wrong with its form."""
    if error := never_trained(row.call, row.answers) or cut_answer_error(row.label, row.answers, spec):
        return error
    messages, tools = row.messages, row.tools
    return (
        format_error(messages, tools, spec)
        or output_error(messages[-1], row.call.response_format, spec)
        or length_error(messages, tools, spec, count_tokens)
    )


def _labels_of(votes: Sequence[Vote], spec: TaskSpec) -> list[Vote]:
    """Return the votes with labels that can be counted and shown; none of a task without labels.

    What a person wrote that is no label counts as one that has no name: gates and reports quote nobody. Several labels
    together count as one: what is agreed on, and how frequent in production, is the set.
    """
    if not spec.labels:
        return []
    form = answer_form(spec)
    known = {label for label in {vote.label for vote in votes} if form.labels(label) is not None}
    return [vote if vote.label in known else replace(vote, label=NO_LABEL) for vote in votes]


def _examples(rows: Iterable[Row], placed: Placed) -> list[Example]:
    """The rows as lines of a version's files."""
    return [row.example(placed.groups[row.prediction_id], seen=row.prediction_id in placed.seen) for row in rows]
