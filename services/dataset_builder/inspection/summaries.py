"""What was measured of a build, as the parts of its report: a sentence, figures and a table each. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from schemas.datasets import Example
from schemas.quality import Cell, Measure, MeasureTable
from schemas.tasks import TaskSpec
from services.dataset_builder.building.personal_data import PersonalData
from services.dataset_builder.building.places import Exclusions
from services.dataset_builder.checks.agreement import Agreement
from services.dataset_builder.checks.distribution import MIN_AUDITS, MIN_COMPARED, Distribution
from services.dataset_builder.checks.intervals import Estimate
from services.dataset_builder.checks.label_noise import LabelNoise
from services.dataset_builder.checks.poisoning import VoterShift
from services.dataset_builder.pipeline import Build

MAX_ROWS = 200
"""How many rows a table of the report has, at most."""
_SHOWN_LABEL = 60
"""Characters of a label in a sentence: one may be a list of several."""


def summaries(build: Build, spec: TaskSpec, personal_data: PersonalData) -> tuple[Measure, ...]:
    """Return the parts of the report, in the order in which it has them."""
    measures = build.measures
    of_every_task = (_near_copies(measures.exclusions), _weights(build.dataset.train), _personal_data(personal_data))
    if not spec.labels:
        return of_every_task
    return (
        *_agreement(measures.agreement, measures.reliability, spec.dataset.min_overlaps),
        _label_noise(measures.noise),
        _distribution(measures.distribution),
        _poisoning(measures.shifts),
        *of_every_task,
    )


def _agreement(found: Agreement | None, reliability: Mapping[str, float], needed: int) -> Iterator[Measure]:
    title = "Agreement of reviewers"
    if found is None:
        summary = "Not measured: no question was answered by two people, neither seeing the other's answer."
        yield Measure(name="agreement", title=title, summary=summary)
        return
    window = f" (the newest of {found.answered})" if found.overlaps < found.answered else ""
    judged = "" if found.overlaps >= needed else f" From {needed} questions on it can stop a build."
    yield Measure(
        name="agreement",
        title=title,
        summary=f"{found.overlaps} questions{window} were answered by two people, neither seeing the other's answer: "
        f"{found.agreement.value:.0%} of the answers agree.{judged}",
        figures={
            "questions": found.overlaps,
            "agreement": found.agreement.value,
            "upper_bound": round(found.upper_bound, 4),
            "fleiss_kappa": found.kappa,
        },
        table=_table(
            ("label", "questions", "agreement", "low", "high"),
            [(c.name, c.overlaps, *_interval(c.agreement)) for c in found.classes],
        ),
    )
    people = [(a.name, a.overlaps, *_interval(a.agreement), reliability.get(a.name)) for a in found.annotators]
    shown = found.confusions[:10]
    confused = ", ".join(f"{a[:_SHOWN_LABEL]} and {b[:_SHOWN_LABEL]} ({count})" for a, b, count in shown)
    yield Measure(
        name="reviewers",
        title="Who disagrees about what",
        summary=f"Confused: {confused}." if confused else "Nobody disagreed.",
        table=_table(("reviewer", "questions", "agreement", "low", "high", "estimated_right"), people),
    )


def _label_noise(found: LabelNoise) -> Measure:
    title = "Label noise"
    if not found.judged:
        summary = f"Not measured: {found.unknown.removeprefix('unknown: ')}."
        return Measure(name="label_noise", title=title, summary=summary, figures={"rows": found.rows})
    recall = sorted(found.recall.items(), key=lambda item: (item[1][0], item[0]))
    accuracy = found.balanced_accuracy
    return Measure(
        name="label_noise",
        title=title,
        summary=f"A classifier that has not seen the row doubts {found.issues} of {found.judged} labels; "
        f"{found.description}.",
        figures={
            "rows": found.rows,
            "judged": found.judged,
            "doubted": found.issues,
            "held_back": len(found.held_back),
            "balanced_accuracy": None if accuracy is None else round(accuracy, 4),
        },
        table=_table(("label", "rows", "recognised"), [(name, n, round(share, 4)) for name, (share, n) in recall]),
    )


def _distribution(found: Distribution) -> Measure:
    title = "Labels against audited production"
    if found.psi is None:
        needed = f"{MIN_COMPARED} are needed, {MIN_AUDITS} of them of one label"
        summary = f"Not measured: {found.audits} audits are answered; {needed}."
        return Measure(name="distribution", title=title, summary=summary, figures={"audits": found.audits})
    rows = [(c.label, c.audits, c.production, c.training, round(c.training - c.production, 4)) for c in found.classes]
    return Measure(
        name="distribution",
        title=title,
        summary=f"The shares of labels that are trained on, after weights, against those that {found.audits} audits of "
        "production show. A population stability index under 0.1 is close, over 0.25 far.",
        figures={
            "audits": found.audits,
            "population_stability_index": found.psi,
        },
        table=_table(("label", "audits", "production", "training", "difference"), rows),
    )


def _poisoning(found: Sequence[VoterShift]) -> Measure:
    held_back = sum(shift.held_back for shift in found)
    return Measure(
        name="poisoning",
        title="Who moves a label too far",
        summary=f"{held_back} rows of {len(found)} reviewers, users or applications wait for a second person."
        if found
        else "Nobody labels far differently from others.",
        table=_table(
            ("who", "compared", "differ", "held_back"),
            [(str(shift.voter), shift.compared, shift.moved, shift.held_back) for shift in found],
        ),
    )


def _near_copies(found: Exclusions) -> Measure:
    summary = "No row is nearly one that is held out."
    if found.rows:
        most = f"; {found.caused} of them are nearly {found.cause}" if found.caused > 1 else ""
        summary = f"{found.rows} of {found.of} rows are nearly a held-out one, so nobody trains on them{most}."
    return Measure(
        name="near_copies",
        title="Near-copies of what is held out",
        summary=summary,
        figures={"excluded": found.rows, "share": round(found.share, 4)} if found.rows else {},
    )


def _weights(train: Sequence[Example]) -> Measure:
    weights = [example.weight for example in train]
    if set(weights) <= {1.0}:
        return Measure(name="weights", title="Weights", summary="All training rows count the same.")
    changed = sum(weight != 1.0 for weight in weights)
    return Measure(
        name="weights",
        title="Weights",
        summary=f"{changed} of {len(weights)} training rows count more or less, so that nothing drowns the rest.",
        figures={"least": min(weights), "most": max(weights)},
    )


def _personal_data(found: PersonalData) -> Measure:
    summary = "Nothing was found beside the surrogates that redaction made."
    if found.changed:
        summary = f"{found.changed} corrections had personal data that came past redaction; it was replaced."
        summary += f" {found.left} still have some." if found.left else ""
    figures: dict[str, Cell] = dict(sorted(found.kinds.items()))
    return Measure(name="personal_data", title="Personal data", summary=summary, figures=figures)


def _table(columns: tuple[str, ...], rows: Sequence[tuple[Cell, ...]]) -> MeasureTable | None:
    return MeasureTable(columns=columns, rows=tuple(rows[:MAX_ROWS])) if rows else None


def _interval(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high
