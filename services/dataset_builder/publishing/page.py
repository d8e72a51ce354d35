"""Renders an inspection as quality.html: one file that loads nothing, with its plots drawn by the template as SVG."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from schemas.base import CheckResult
from schemas.quality import LabelBalance, LeftOutSample, QualityReport

WORDS = {CheckResult.FAILED: "failed", CheckResult.UNKNOWN: "unknown", CheckResult.PASSED: "passed"}
"""In the order in which the page has them."""


@dataclass(frozen=True)
class Bar:
    """One label's shares before and after: of what people gave, of the training weight, of production's answers."""

    label: str
    before: float
    after: float
    production: float | None


@dataclass(frozen=True)
class LeftOutGroup:
    """The rows with one fate and reason: how many, and some of them."""

    fate: str
    reason: str
    count: int
    samples: tuple[LeftOutSample, ...]


def render(report: QualityReport) -> str:
    """Return the page. Every text of the report is escaped."""
    bars = _bars(report.labels)
    widest = max((share for bar in bars for share in (bar.before, bar.after, bar.production or 0.0)), default=0.0)
    return _template().render(
        report=report,
        checks=sorted(report.checks, key=lambda check: list(WORDS).index(check.result)),
        words=WORDS,
        bars=bars,
        widest=widest or 1.0,
        places=_places(report),
        left_out=_left_out(report),
        next_steps=_next_steps(report),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("services.dataset_builder.publishing", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["words"] = lambda name: name.replace("_", " ")
    environment.filters["number"] = _number
    return environment.get_template("quality.html.j2")


def _bars(labels: tuple[LabelBalance, ...]) -> list[Bar]:
    corrected, weight = sum(x.corrected for x in labels), sum(x.weighted for x in labels)
    return [
        Bar(
            label=x.label,
            before=x.corrected / corrected if corrected else 0.0,
            after=x.weighted / weight if weight else 0.0,
            production=x.production,
        )
        for x in labels
    ]


def _places(report: QualityReport) -> list[tuple[str, int]]:
    """How many rows ended in each place: the two parts, then the fates of the rows that were left out."""
    places = [("training", report.train_examples), ("held out", report.eval_examples)]
    by_fate = groupby(sorted(report.left_out, key=lambda count: count.fate), key=lambda count: count.fate)
    return places + [(fate.replace("_", " "), sum(c.count for c in counts)) for fate, counts in by_fate]


def _left_out(report: QualityReport) -> list[LeftOutGroup]:
    """The groups of left-out rows, the largest first."""
    samples: dict[tuple[str, str], list[LeftOutSample]] = {}
    for sample in report.samples:
        samples.setdefault((sample.fate, sample.reason), []).append(sample)
    ordered = sorted(report.left_out, key=lambda c: (-c.count, c.fate, c.reason))
    return [LeftOutGroup(c.fate, c.reason, c.count, tuple(samples.get((c.fate, c.reason), ()))) for c in ordered]


def _next_steps(report: QualityReport) -> list[str]:
    steps = [check.way_out for check in report.checks if check.result is CheckResult.FAILED]
    steps += [check.way_out for check in report.checks if check.result is CheckResult.UNKNOWN]
    if not report.passed:
        steps.append(f"Then start a new cycle: ratchet cycle {report.task}")
    return [step for step in dict.fromkeys(steps) if step]


def _number(value: str | int | float | None) -> str:
    """A number with separators and at most four digits after the point; – for None, a text as it is."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value:,}"
