"""The inspection of a data set as blocks: what was checked, and where its rows ended. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.base import CheckResult
from schemas.quality import LabelBalance, Measure, QualityReport
from shared.report.blocks import Bars, Block, Section, Share, Table, Text
from shared.report.evaluation import gates_table
from shared.report.written import number


def inspection_blocks(report: QualityReport, quoted: bool = False) -> list[Block]:
    """All of an inspection. Where `quoted`, it quotes people: see `LeftOutSample`."""
    cycle = f", cycle {report.cycle_id}" if report.cycle_id else ""
    about = f"Task {report.task}, revision {report.task_revision}{cycle}, {report.created_at:%d %b %Y %H:%M %Z}."
    return [
        Text(_verdict(report), "good" if report.passed else "bad"),
        Text(f"{report.dataset_id or 'No version'}. {about}", "note"),
        *(Text(step, "open", "to do") for step in _next_steps(report)),
        Section("Checks", [gates_table(report.checks)]),
        Section("Where the rows ended", [*_places(report), Text(_changes(report), "note")]),
        *_label_blocks(report.labels),
        *(_measure(measure) for measure in report.measures),
        *([Section("Rows left out, by reason", _quotes(report))] if quoted else []),
    ]


def _verdict(report: QualityReport) -> str:
    titles = {result: [check.title for check in report.checks if check.result is result] for result in CheckResult}
    unknown = titles[CheckResult.UNKNOWN]
    passed = f"Passed. {report.train_examples:,} examples are trained on, {report.eval_examples:,} are held out."
    stopped = f"Stopped. Nobody trains on these rows. Failed: {', '.join(titles[CheckResult.FAILED])}."
    return (passed if report.passed else stopped) + (f" Not known yet: {', '.join(unknown)}." if unknown else "")


def _next_steps(report: QualityReport) -> list[str]:
    results = (CheckResult.FAILED, CheckResult.UNKNOWN)
    steps = [check.way_out for result in results for check in report.checks if check.result is result]
    again = "" if report.passed else f"Then start a new cycle: ratchet cycle {report.task}"
    return [step for step in dict.fromkeys([*steps, again]) if step]


def _places(report: QualityReport) -> list[Block]:
    """How many rows ended in each place: the two parts, then what was left out, by fate and reason."""
    places = [("training", "", report.train_examples), ("held out", "", report.eval_examples)]
    places += [(x.fate.replace("_", " "), x.reason.replace("_", " "), x.count) for x in report.left_out]
    most = max(count for *_, count in places) or 1
    bars = Bars("Rows", ("rows",), {": ".join(filter(None, (end, why))): (count,) for end, why, count in places}, most)
    return [bars, Section("As a table", [Table(("end in", "because", "rows"), places)], folded=True)]


def _changes(report: QualityReport) -> str:
    if (found := report.changes) is not None:
        return (
            f"Since {report.parent}: {found.added:,} rows added, {found.removed:,} removed, {found.relabelled:,} "
            f"relabelled, {found.moved:,} moved to the other part, {found.reweighted:,} with another weight."
        )
    if report.parent:
        return f"The version before, {report.parent}, is not in the store: the two cannot be compared."
    return "This is the task's first version."


def _label_blocks(labels: Sequence[LabelBalance]) -> list[Block]:
    if not labels:
        return []
    corrected = sum(row.corrected for row in labels) or 1
    weighted = sum(row.weighted for row in labels) or 1.0
    shares: dict[str, list[float | None]] = {
        row.label: [
            None if share is None else Share(share)
            for share in (row.corrected / corrected, row.weighted / weighted, row.production)
        ]
        for row in labels
    }
    most = max(share or 0.0 for of_label in shares.values() for share in of_label) or 1.0
    series = ("as people gave it", "trained on, after weights", "production's answers")
    bars = Bars("Share of each label", series, shares, most)
    rows = [
        (row.label, row.corrected, row.train, number(row.weighted), row.eval, shares[row.label][2]) for row in labels
    ]
    columns = ("label", "as people gave it", "training", "after weights", "held out", "production")
    numbers = Section("Numbers of each label", [Table(columns, rows)], folded=True)
    return [Section("Labels before and after", [bars, numbers])]


def _measure(measure: Measure) -> Section:
    figures = [(name.replace("_", " "), value) for name, value in measure.figures.items()]
    blocks: list[Block] = [Text(measure.summary), *([Table(("", ""), figures)] if figures else [])]
    if measure.table and measure.table.rows:
        columns = [column.replace("_", " ") for column in measure.table.columns]
        rows = Table(columns, measure.table.rows)
        blocks.append(Section(f"{len(measure.table.rows):,} rows", [rows], folded=True))
    return Section(measure.title, blocks)


def _quotes(report: QualityReport) -> list[Block]:
    """Each reason with some of its rows: the largest first."""
    blocks: list[Block] = []
    for found in sorted(report.left_out, key=lambda count: (-count.count, count.fate, count.reason)):
        quotes = [
            (sample.text, sample.label, sample.detail, sample.prediction_id)
            for sample in report.samples
            if (sample.fate, sample.reason) == (found.fate, found.reason)
        ]
        shown = f"{len(quotes)} of {found.count:,} shown; rejected.jsonl lists all."
        rest = Text(shown if len(quotes) < found.count else "", "note")
        title = f"{found.fate}: {found.reason}: {found.count:,}".replace("_", " ")
        table = Table(("asked", "labelled", "detail", "prediction"), quotes)
        blocks.append(Section(title, [table, rest], folded=True))
    return blocks or [Text("None.")]
