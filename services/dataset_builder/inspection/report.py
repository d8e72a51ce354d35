"""Assembles the inspection of a build, quality.json, from what was built and measured. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from schemas.base import CheckResult, Gate
from schemas.conversation import input_text
from schemas.datasets import LeftOutExample, PreferredAnswer
from schemas.quality import (
    MAX_QUOTED,
    MAX_SAMPLES,
    Check,
    LabelBalance,
    LeftOutSample,
    Measure,
    QualityReport,
)
from schemas.tasks import TaskSpec
from services.dataset_builder.building.votes import Vote
from services.dataset_builder.checks.distribution import weights_by_label
from services.dataset_builder.inspection.changes import Difference, Parent, changes_since
from services.dataset_builder.inspection.gates import BY_NAME, advice
from services.dataset_builder.pipeline import NO_LABEL, Build
from shared.answers import answer_form


@dataclass(frozen=True)
class Inspected:
    """A build with what was measured of it.

    `votes`: what it was made from. `traffic`: how often production gave each answer. `preferences`: people's
    choices between two answers, and their edits.
    """

    build: Build
    votes: Sequence[Vote]
    spec: TaskSpec
    gates: tuple[Gate, ...]
    traffic: Mapping[str, int]
    measures: Sequence[Measure] = ()
    parent: Parent | None = None
    preferences: Sequence[PreferredAnswer] = ()

    @cached_property
    def difference(self) -> Difference | None:
        """How it differs from the version before."""
        return changes_since(self.parent, self.build.dataset)


def quality_report(inspected: Inspected, dataset_id: str, cycle_id: str | None, created_at: datetime) -> QualityReport:
    """Return the report of a build that would be the version `dataset_id`, if it passes."""
    dataset, spec, parent = inspected.build.dataset, inspected.spec, inspected.parent
    passed = all(gate.passed for gate in inspected.gates)
    return QualityReport(
        task=spec.name,
        task_revision=spec.revision,
        cycle_id=cycle_id,
        dataset_id=dataset_id if passed else None,
        parent=None if parent is None else parent.before(dataset_id),
        created_at=created_at,
        passed=passed,
        checks=tuple(map(_check, inspected.gates)),
        train_examples=len(dataset.train),
        eval_examples=len(dataset.eval),
        traffic_examples=sum(row.drawn_probability is not None for row in dataset.eval),
        unseen_examples=sum(not row.seen for row in dataset.eval),
        golden_examples=len(inspected.build.measures.frozen),
        questions=inspected.build.measures.questions,
        left_out=dataset.left_out_counts(),
        labels=_labels(inspected) if spec.labels else (),
        changes=None if inspected.difference is None else inspected.difference.counts(),
        measures=tuple(inspected.measures),
        samples=tuple(_samples(dataset.left_out, inspected.votes)),
    )


def _check(gate: Gate) -> Check:
    return Check(
        name=gate.name,
        title=BY_NAME[gate.name].title,
        result=gate.result,
        measured=None if gate.measured is None else round(gate.measured, 4),
        required=gate.required,
        detail=gate.detail,
        way_out="" if gate.result is CheckResult.PASSED else advice(gate),
    )


def _labels(inspected: Inspected) -> tuple[LabelBalance, ...]:
    """The task's labels in their order, then what people wrote that is none: the most frequent few, and the others
    together. A row with several counts for each."""
    dataset, spec = inspected.build.dataset, inspected.spec
    corrected, traffic, train, held_out, weighted, audited = (
        answer_form(spec).counts_by_label(counts)
        for counts in (
            inspected.build.corrected,
            inspected.traffic,
            Counter(example.answer for example in dataset.train),
            Counter(example.answer for example in dataset.eval),
            weights_by_label(dataset.train),
            inspected.build.measures.distribution.production,
        )
    )
    others = sorted(
        {*corrected, *train, *held_out} - {*spec.labels, ""}, key=lambda name: (-corrected.get(name, 0), name)
    )
    if len(others) > MAX_SAMPLES:
        for counts in (corrected, train, held_out, weighted):
            counts[NO_LABEL] = sum(counts.get(label, 0) for label in others[MAX_SAMPLES:])
        others = [*others[:MAX_SAMPLES], NO_LABEL]
    asked = sum(inspected.traffic.values())
    return tuple(
        LabelBalance(
            label=label[:MAX_QUOTED],
            corrected=round(corrected.get(label, 0)),
            train=round(train.get(label, 0)),
            eval=round(held_out.get(label, 0)),
            weighted=round(weighted.get(label, 0.0), 3),
            production=round(traffic.get(label, 0) / asked, 4) if asked else None,
            audited=round(audited.get(label, 0.0), 4) if audited else None,
        )
        for label in (*spec.labels, *others)
    )


def _samples(left_out: Iterable[LeftOutExample], votes: Iterable[Vote]) -> Iterable[LeftOutSample]:
    """The first rows of each fate and reason, in the order of rejected.jsonl, with the texts that they have.

    The label is that of the row, or of the word that was left out: another one may count for its prediction.
    """
    chosen: dict[tuple[str, str], list[LeftOutExample]] = {}
    for row in left_out:
        rows = chosen.setdefault((row.fate.value, row.reason), [])
        if len(rows) < MAX_SAMPLES and row.prediction_ids:
            rows.append(row)
    wanted = {name for rows in chosen.values() for row in rows for name in row.correction_ids[-1:]}
    newest = {vote.correction_id: vote for vote in votes if vote.correction_id in wanted}
    for rows in chosen.values():
        for row in rows:
            yield _sample(row, newest.get(row.correction_ids[-1]) if row.correction_ids else None)


def _sample(row: LeftOutExample, vote: Vote | None) -> LeftOutSample:
    return LeftOutSample(
        fate=row.fate,
        reason=row.reason,
        detail=_quote(row.detail),
        prediction_id=row.prediction_ids[0],
        user_hash=row.user_hash,
        predicted_at=row.predicted_at,
        text="" if vote is None else _quote(input_text(vote.call.messages), from_end=True),
        label="" if vote is None else _quote(vote.label),
    )


def _quote(text: str, *, from_end: bool = False) -> str:
    """The start or the end of a text: what was asked stands at the end of a conversation."""
    if len(text) <= MAX_QUOTED:
        return text
    return f"…{text[1 - MAX_QUOTED :]}" if from_end else f"{text[: MAX_QUOTED - 1]}…"
