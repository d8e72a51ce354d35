"""The inspection of a build, quality.json: beside the rows of a version, or alone where a gate stopped the build.

    datasets/<dataset_id>/quality.json     a version that passed
    inspections/<cycle_id>/quality.json    a build that a gate stopped, with its rejected.jsonl and a manifest.json

`quality.html` in the same folder is the same for people.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from schemas.base import CheckResult, Frozen, Identifier, ShortText
from schemas.datasets import Fate, LeftOutCount

MAX_SAMPLES = 5
"""How many of the rows with one fate and reason a report quotes."""
MAX_QUOTED = 300
"""How many characters of a text a report quotes."""
Quote = Annotated[str, StringConstraints(max_length=MAX_QUOTED)]


class Check(Frozen):
    """One gate: what it measured, what it required, and what to do where it failed or could not be measured."""

    name: Identifier
    title: str = Field(max_length=200)
    result: CheckResult
    measured: float | None
    required: str = Field(max_length=200)
    detail: str = Field(default="", max_length=2_000)
    way_out: str = Field(default="", max_length=2_000, description="What an operator does; empty where it passed.")


class LabelBalance(Frozen):
    """How many rows have a label: as people gave it, and in each part of the dataset."""

    label: ShortText
    corrected: int = Field(ge=0, description="Rows that people gave this label, before anything was left out.")
    train: int = Field(ge=0)
    eval: int = Field(ge=0)
    weighted: float = Field(ge=0.0, description="Sum of the training rows' weights.")
    production: float | None = Field(
        default=None, ge=0.0, le=1.0, description="Share of production's answers; None: unknown."
    )
    audited: float | None = Field(
        default=None, ge=0.0, description="How often it is right in production, by audits; None: too few audits."
    )


class QuestionCount(Frozen):
    """How many questions chance drew for a sample, and how many of these people answered."""

    sample: Literal["audits", "doubts"]
    asked: int = Field(ge=0)
    answered: int = Field(ge=0)


Cell = str | int | float | None


class MeasureTable(Frozen):
    """A table of a measure. A cell that is None could not be measured."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...] = Field(default=(), max_length=1_000)


class Measure(Frozen):
    """One part of the inspection: agreement, label noise, distribution, poisoning, duplicates or personal data."""

    name: Identifier
    title: str = Field(max_length=200)
    summary: str = Field(max_length=2_000, description="What was found, or why nothing was measured.")
    figures: dict[str, Cell] = Field(default={}, description="Name to value; a name says its unit.")
    table: MeasureTable | None = None


class LeftOutSample(Frozen):
    """A row that was left out, quoted. It has the fields by which an erasure finds it: the folder's rejected.jsonl
    has the same row.
    """

    fate: Fate
    reason: Identifier
    detail: Quote = ""
    prediction_id: Identifier
    user_hash: Identifier | None = None
    predicted_at: AwareDatetime | None = None
    text: Quote = Field(description="The end of what the user asked, with personal data replaced.")
    label: Quote = ""


class Changes(Frozen):
    """How a version differs from another: rows by prediction. A row that moved and was relabelled counts twice."""

    added: int = Field(ge=0)
    removed: int = Field(ge=0)
    relabelled: int = Field(ge=0)
    moved: int = Field(ge=0, description="From one part to the other.")
    reweighted: int = Field(ge=0)


class QualityReport(Frozen):
    """quality.json: everything that was checked before anyone trained on a build."""

    task: Identifier
    task_revision: Identifier
    cycle_id: Identifier | None
    dataset_id: Identifier | None = Field(description="The version that passed; None: a gate stopped the build.")
    parent: Identifier | None = Field(default=None, description="The task's version before this build.")
    created_at: AwareDatetime
    passed: bool
    checks: tuple[Check, ...]
    train_examples: int = Field(ge=0)
    eval_examples: int = Field(ge=0)
    traffic_examples: int = Field(default=0, ge=0, description="Held-out rows that chance drew from production.")
    unseen_examples: int = Field(default=0, ge=0, description="Held-out rows unlike all that is trained on.")
    golden_examples: int = Field(default=0, ge=0, description="Questions of the golden set.")
    questions: tuple[QuestionCount, ...] = Field(default=(), description="Empty: how many were asked is not known.")
    left_out: tuple[LeftOutCount, ...] = ()
    labels: tuple[LabelBalance, ...] = Field(default=(), description="Empty for a task without labels.")
    changes: Changes | None = Field(default=None, description="Since the parent; None: there is none to compare with.")
    measures: tuple[Measure, ...] = ()
    samples: tuple[LeftOutSample, ...] = Field(default=(), max_length=1_000)


class InspectionManifest(Frozen):
    """manifest.json of an inspection without a version: whose it is, and its files."""

    task: Identifier
    cycle_id: Identifier
    created_at: AwareDatetime
    files: dict[str, str] = Field(description="File name to SHA-256.")
