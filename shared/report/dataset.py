"""The inspection of a data set as blocks: what was checked, and where its rows ended. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.base import CheckResult
from schemas.quality import LabelBalance, Measure, QualityReport, QuestionCount
from shared.report.blocks import Bars, Block, Section, Share, Table, Text
from shared.report.evaluation import gates_table
from shared.report.written import number

_WISHED = 5
_SHOWN = 10


def inspection_blocks(report: QualityReport, quoted: bool = False) -> list[Block]:
    """All of an inspection. Where `quoted`, it quotes people: see `LeftOutSample`."""
    cycle = f", cycle {report.cycle_id}" if report.cycle_id else ""
    about = f"Task {report.task}, revision {report.task_revision}{cycle}, {report.created_at:%d %b %Y %H:%M %Z}."
    return [
        Text(_verdict(report), "good" if report.passed else "bad"),
        Text(f"{report.dataset_id or 'No version'}. {about}", "note"),
        *(Text(step, "open", "to do") for step in _next_steps(report)),
        *(Text(wish, "open", "collect next") for wish in _wishes(report.labels)),
        *(Text(_unanswered(count), "note") for count in report.questions),
        Section("Rows by place", [Text(_held_out(report)), *_places(report), Text(_changes(report), "note")]),
        *_label_blocks(report.labels),
        Section("Checks", [gates_table(report.checks)]),
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


def _wishes(labels: Sequence[LabelBalance]) -> list[str]:
    """Rows of which labels would help most: those rarer in training than in production, as far as audits tell, else
    those with the fewest rows."""
    if not labels:
        return []
    rows = sum(row.train for row in labels)
    if any(row.audited for row in labels):
        audited, trained = _shares([row.audited for row in labels]), _shares([row.weighted for row in labels])
        gaps = {
            row.label: round(((right or 0.0) - (learnt or 0.0)) * rows)
            for row, right, learnt in zip(labels, audited, trained, strict=True)
        }
        most = sorted((label for label, gap in gaps.items() if gap >= 1), key=lambda label: (-gaps[label], label))
        wished = [f"{gaps[label]:,} more of {label}" for label in most[:_WISHED]]
        return [f"{', '.join(wished)}: as frequent as in production."] if wished else []
    fewest = sorted(labels, key=lambda row: row.train)[: min(_WISHED, len(labels) // 2)]
    few = ", ".join(f"{row.label} ({row.train:,})" for row in fewest)
    return [f"Audits do not tell yet how frequent each label is. Fewest training rows: {few}."] if few else []


def _unanswered(count: QuestionCount) -> str:
    sample = {"audits": "in the audit", "doubts": "about doubtful answers"}[count.sample]
    return f"Questions {sample}: {count.asked:,} asked, {max(count.asked - count.answered, 0):,} not answered."


def _held_out(report: QualityReport) -> str:
    golden = f" The golden set has {report.golden_examples:,} more." if report.golden_examples else ""
    return (
        f"{report.train_examples:,} rows are trained on. Of the {report.eval_examples:,} held out, chance drew "
        f"{report.traffic_examples:,} from traffic, and {report.unseen_examples:,} are unlike all that is trained on."
        f"{golden}"
    )


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
    audited, produced = _shares([row.audited for row in labels]), _shares([row.production for row in labels])
    trained = _shares([row.weighted for row in labels])
    known = audited if any(audited) else produced
    apart = {
        row.label: abs((is_known or 0.0) - (is_trained or 0.0))
        for row, is_known, is_trained in zip(labels, known, trained, strict=True)
    }
    shares = dict(zip(apart, zip(audited, produced, trained, strict=True), strict=True))
    shown = sorted(apart, key=lambda label: -apart[label])[:_SHOWN]
    series = ("production, by audits", "production's own answers", "trained on, after weights")
    most = max(share or 0.0 for label in shown for share in shares[label]) or 1.0
    title = "Share of each label" if len(shown) == len(labels) else f"The {_SHOWN} labels whose shares differ most"
    bars = Bars(title, series, {label: shares[label] for label in shown}, most)
    rows = [(row.label, row.corrected, row.train, number(row.weighted), row.eval, *shares[row.label]) for row in labels]
    columns = ("label", "as people gave it", "training", "after weights", "held out", *series)
    numbers = Section("Numbers of each label", [Table(columns, rows)], folded=True)
    return [Section("Labels in production and in training", [bars, numbers])]


def _shares(values: Sequence[float | None]) -> list[Share | None]:
    """Each value's share of their sum; None where it is not known."""
    total = sum(value or 0.0 for value in values) or 1.0
    return [None if value is None else Share(value / total) for value in values]


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
