"""An evaluation as blocks: how a candidate compares with production, and why. It quotes nobody. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from schemas.adapters import AdapterEvaluated, ArmScore, ClassScore, ScoreDifference, TextScore
from schemas.adversarial import AdversarialKind, AdversarialReport, AdversarialResult
from schemas.approaches import TITLES, ApproachTable
from schemas.base import CheckResult, Gate, Interval, Verdict
from schemas.evaluation import ArmReport, EvaluationReport, Golden, PartKind, PartScore, ReliabilityBin, Speed
from schemas.evaluation_settings import TextMetric
from schemas.judging import JudgeReport
from schemas.quality import Check
from schemas.tasks import TaskKind
from shared.answers import form_of_kind
from shared.model.prices import money
from shared.report.blocks import (
    Bars,
    Block,
    Cell,
    Line,
    Matrix,
    Plot,
    Section,
    Table,
    Tag,
    Text,
    Tone,
    share_axis,
)
from shared.report.written import decimals, number, written

_MAX_BARS = 24
"""Parts of one kind that are drawn; the table has all."""
_MAX_CONFUSED = 15
_ARMS = ("candidate", "production")
_GAINS = {
    "better": "The candidate is better", "worse": "The candidate is probably worse",
    "not_shown": "No difference is shown",
}  # fmt: skip
VERDICTS: dict[Verdict, Tone] = {"passed": "good", "failed": "bad", "inconclusive": "open"}
_RESULTS: dict[CheckResult, Tone] = {
    CheckResult.FAILED: "bad", CheckResult.UNKNOWN: "open", CheckResult.PASSED: "good",
}  # fmt: skip
"""In the order in which gates are shown."""
_KINDS: dict[PartKind, str] = {
    "class": "Classes", "field": "Fields", "failure_mode": "Failure modes", "app": "Applications",
    "language": "Languages", "length": "Lengths", "function": "Functions", "argument": "Arguments", "label": "Labels",
}  # fmt: skip
_METRICS = {
    TextMetric.EXACT_MATCH: "exact match", TextMetric.TOKEN_F1: "token F1", TextMetric.ROUGE_1: "ROUGE-1",
    TextMetric.ROUGE_2: "ROUGE-2", TextMetric.ROUGE_L: "ROUGE-L", TextMetric.COSINE: "cosine of embeddings",
}  # fmt: skip
_MISLEADING = {
    AdversarialKind.TYPOS: "typos", AdversarialKind.CASING: "casing", AdversarialKind.DISTRACTORS: "distractors",
    AdversarialKind.LONG_INPUT: "very long", AdversarialKind.INJECTION: "prompt injections",
    AdversarialKind.EMPTY_INPUT: "empty", AdversarialKind.OUT_OF_DISTRIBUTION: "out of distribution",
}  # fmt: skip
_MISLED_NOTE = (
    "Scores on rows as they are → on the same rows, changed (95 %). Elsewhere: candidate / production. Sure: surer "
    "than half of the arm's answers to the held-out rows. To empty inputs and those out of distribution no answer is "
    "right, and none should be as sure."
)


class _StoredEvent(AdapterEvaluated):
    """The event as the console stores and serves it: of its task's definition, the kind is enough."""

    spec: Any


def evaluated_blocks(event: dict[str, Any]) -> list[Block]:
    """What an `adapters.evaluated` says: all that needs no look into the artifact store."""
    found = _StoredEvent.model_validate(event)
    golden = Golden(total=found.golden_total, lost=found.golden_lost, gained=found.golden_gained)
    arms = _arms_table(TaskKind(found.spec["kind"]), (found.candidate, found.production))
    gain = [] if found.gain is None else [_gain(found.gain, golden)]
    return [
        Text(found.headline, VERDICTS[found.verdict]),
        Section("Gates", [gates_table(found.gates)]),
        *approach_blocks(found.approaches, found.headline),
        Section("Candidate and production", [arms, *gain]),
        *_text_blocks(found.texts, found.judge),
        *_misled_blocks(found.adversarial),
    ]


def evaluation_blocks(report: EvaluationReport) -> list[Block]:
    """All of an evaluation's report: the verdict first, then the gates, and what both arms and their rivals scored."""
    opponent, cycle = report.production.score.adapter or "the base model", report.cycle_id
    of = f"Task {report.task} ({report.kind}), revision {report.task_revision}{f', cycle {cycle}' if cycle else ''}"
    about = f"{report.adapter} beside {opponent}. {of}, {report.created_at:%d %b %Y %H:%M %Z}."
    arms = (report.candidate, report.production)
    both = _arms_table(report.kind, [arm.score for arm in arms], [arm.speed for arm in arms])
    rows = f"{len(report.gained):,} rows gained, {len(report.lost):,} lost."
    return [
        Text(report.headline, VERDICTS[report.verdict]),
        Text(f"{about} Held-out rows of {report.dataset_id}.", "note"),
        Section("Gates", [gates_table(report.gates)]),
        *approach_blocks(report.approaches, report.headline),
        Section("Candidate and production", [both, _gain(report.gain, report.golden), Text(rows, "note")]),
        *_text_blocks(report.texts, report.judge),
        *_misled_blocks(report.adversarial),
        *_part_blocks(report.parts),
        *_confusion_blocks(report),
        *_class_blocks(report),
        *_confidence_blocks(report),
    ]


def gates_table(gates: Iterable[Gate | Check]) -> Table:
    """Each gate's result with its reason: what failed first."""
    rows = [
        (
            gate.title if isinstance(gate, Check) else gate.name.replace("_", " "),
            Tag(gate.result.value, _RESULTS[gate.result]),
            gate.measured,
            gate.required,
            gate.detail,
        )
        for gate in sorted(gates, key=lambda gate: list(_RESULTS).index(gate.result))
    ]
    return Table(("gate", "", "value", "limit", "why"), rows)


def approach_blocks(table: ApproachTable | None, said: str = "") -> list[Block]:
    """The candidate beside cheap rivals: what that means, but for what was `said`, and what each costs."""
    if table is None:
        return []
    rows = [
        (
            TITLES[row.kind] + (f" ({row.adapter})" if row.adapter else ""),
            row.accuracy,
            f"{row.accuracy.n}" + (f", {row.failed} failed" if row.failed else ""),
            row.candidate_gain,
            _money(row.cost_per_month, table.currency),
            f"{number(row.latency_ms_p50, 3)} ms",
            f"{number(row.latency_ms_p95, 3)} ms",
        )
        for row in table.approaches
    ]
    columns = ("approach", "accuracy (95 %)", "rows", "candidate gains, points (95 %)", "cost a month", "p50", "p95")
    costs = f"Costs of {table.answers_per_month or 0:,.0f} answers a month, by prices of {table.prices_of}."
    note = [
        "All were judged on the same held-out rows; the base model on a sample of them where an adapter serves.",
        "No costs: the lake has no answer of this task yet." if table.answers_per_month is None else costs,
        f"Accuracy is the mean score by {table.metric}." if table.metric else "",
    ]
    findings = [Text(finding) for finding in table.findings if finding not in said]
    blocks: list[Block] = [*findings, Table(columns, rows), Text(" ".join(note).strip(), "note")]
    return [Section("Approach, cost, accuracy and speed", blocks)]


def _misled_blocks(report: AdversarialReport | None) -> list[Block]:
    """Both arms on inputs that mislead: first by which the candidate's score falls most."""
    if report is None:
        return []
    falls = [(arm.drop.value, result.kind) for result in report.results if (arm := result.candidate).drop is not None]
    fall, kind = max(falls, default=(0.0, AdversarialKind.TYPOS))
    most = f"The candidate's score falls most by {_MISLEADING[kind]}: by {100 * fall:.1f} points."
    finding = most if fall > 0.0 else "No change of the held-out rows lowers the candidate's score."
    blocks: list[Block] = [
        *([Text(finding)] if falls else []),
        misled_table(report),
        Text(_MISLED_NOTE, "note"),
    ]
    return [Section("Inputs that mislead", blocks)]


def misled_table(report: AdversarialReport) -> Table:
    """A row for each kind of inputs."""
    columns = ("inputs", "n", *_ARMS, "sure and wrong", "injections obeyed")
    return Table(columns, [_misled_row(result) for result in report.results])


def _misled_row(result: AdversarialResult) -> tuple[str, ...]:
    arms = (result.candidate, result.production)
    failed = sum(arm.failed for arm in arms)
    return (
        _MISLEADING[result.kind],
        f"{result.inputs}" + (f", {failed} failed" if failed else ""),
        *(f"{arm.clean.value:.1%} → {written(arm.score)}" if arm.clean and arm.score else "–" for arm in arms),
        _both(written(arm.confident_wrong) for arm in arms),
        _both(written(arm.obeyed) for arm in arms),
    )


def _both(texts: Iterable[str]) -> str:
    both = " / ".join(texts)
    return "–" if both == "– / –" else both


def _arms_table(kind: TaskKind, arms: Sequence[ArmScore], speeds: Sequence[Speed] = ()) -> Table:
    """Both arms' scores; what neither has is left out."""
    form, confidences = form_of_kind(kind), [arm.confidence for arm in arms]
    f1 = [{average.kind: average.f1 for average in arm.averages} for arm in arms]
    partial = any(arm.score != arm.accuracy for arm in arms)
    rows: dict[str, Sequence[Cell]] = {
        "Adapter": [arm.adapter or "base model" for arm in arms],
        form.accuracy_title: [arm.accuracy for arm in arms],
        "Accuracy on all traffic, estimated": [arm.traffic_accuracy for arm in arms],
        "Mean score": [arm.score if partial else None for arm in arms],
        **{f"F1, {of}": [averages.get(of) for averages in f1] for of in f1[0]},
        "Right functions, whatever the arguments": [arm.function_accuracy for arm in arms],
        form.valid_title: [arm.valid for arm in arms],
        "Failed requests": [arm.failed for arm in arms],
        "Latency, p50 and p95": [f"{number(a.latency_ms_p50, 3)} and {number(a.latency_ms_p95, 3)} ms" for a in arms],
        **{
            f"Answer tokens/s, {speed.concurrency} requests at a time": [number(x.tokens_per_second, 3) for x in speeds]
            for speed in speeds[:1]
        },
        "Confidence: AUROC of errors": [decimals(of.auroc) if of else None for of in confidences],
        "Calibration error, Brier score (uncalibrated)": [
            f"{number(of.ece, 3)}, {number(of.brier, 3)}" if of else None for of in confidences
        ],
    }
    return Table(("", *_ARMS), [(name, *cells) for name, cells in rows.items() if any(x is not None for x in cells)])


def _gain(gain: ScoreDifference, golden: Golden) -> Text:
    """What the comparison shows. A candidate need not be shown to be better to go on."""
    basis = "all traffic, estimated" if gain.basis == "traffic" else f"{gain.n} rows, which are not all traffic"
    judged = f"Golden set: {golden.gained} gained, {golden.lost} lost, of {golden.total}."
    said = judged if golden.total else "No golden row was judged."
    return Text(f"{_GAINS[gain.finding]}: {written(gain)} points; {basis}. {said}", "note")


def _text_blocks(texts: Sequence[TextScore], judge: JudgeReport | None) -> list[Block]:
    """Generated text by each metric, and what a judge prefers."""
    rows = [
        (
            _METRICS[score.metric] + (" ●" if score.gates else ""),
            score.candidate,
            score.production,
            score.difference,
            "neither" if score.difference.finding == "not_shown" else score.difference.finding,
        )
        for score in texts
    ]
    note = "Means of all held-out rows (95 %). The gates go by the one marked ●; the others are shown."
    columns = ("text metric", *_ARMS, "difference, points", "shown to be")
    metrics: list[Block] = [Table(columns, rows), Text(note, "note")] if rows else []
    blocks = [*metrics, *([] if judge is None else _judge_blocks(judge))]
    return [Section("Generated text", blocks)] if blocks else []


def _judge_blocks(judge: JudgeReport) -> list[Block]:
    of = judge.certification
    standing = "It is certified." if judge.certified else "It is not certified: it is shown and stops nothing."
    prefers = (
        f"The judge {judge.model} prefers the candidate on {judge.wins} rows, production on {judge.losses}, neither on "
        f"{judge.ties}. {standing}"
    )
    unanswered = f"; {judge.failed:,} comparisons got no answer" if judge.failed else ""
    rows = [
        ("Agrees with people's own choices", of.agreement),
        ("Lower bound of that (95 %)", f"{of.lower:.1%}, required {of.required:.1%}"),
        ("Pairs that people compared", f"{of.pairs:,}, required {of.pairs_required:,}"),
        ("Chooses the answer shown first (unbiased: 50 %)", of.first_share),
        ("Same verdict in both orders", of.consistent),
        ("p that it prefers the candidate no less often", number(judge.p_worse, 3)),
        ("Requests", f"{judge.requests:,}{unanswered}"),
        *([("Stopped early", judge.problem)] if judge.problem else []),
    ]
    tone, tag = ("good", "certified") if judge.certified else ("open", "not certified")
    return [Text(prefers, tone, tag), Table(("the judge", ""), rows)]  # type: ignore[arg-type]


def _part_blocks(parts: Sequence[PartScore]) -> list[Block]:
    """Both arms on parts of the evaluation set: where the candidate loses most first."""
    parts = sorted(parts, key=lambda part: (not part.worse, part.gain.value, -part.rows))
    names = {part: f"{part.name} ({part.rows:,})" for part in parts}
    bars = [
        Bars(
            _KINDS[kind],
            _ARMS,
            {names[part]: (part.candidate, part.production) for part in of_kind},
            bad={names[part] for part in of_kind if part.worse},
        )
        for kind in get_args(PartKind)
        if (of_kind := [part for part in parts if part.kind == kind][:_MAX_BARS])
    ]
    rows = [
        (
            f"{part.kind.replace('_', ' ')} {part.name}",
            Tag("worse", "bad") if part.worse else "",
            part.rows,
            part.candidate,
            part.production,
            part.gain,
            "too few rows" if part.p_worse is None else number(part.p_worse, 3),
        )
        for part in parts
    ]
    table = Table(("part", "", "rows", *_ARMS, "gain, points", "p, adjusted"), rows)
    note = "Mean scores with 95 % intervals: first where the candidate is shown to be worse, then where it loses most."
    everything = Section(f"All {len(parts)} parts as a table", [table], folded=True)
    return [Section("Parts of the evaluation set", [Text(note, "note"), *bars, everything])] if parts else []


def _confusion_blocks(report: EvaluationReport) -> list[Block]:
    wrong = [found for found in report.candidate.confusions if found.expected != found.given]
    most = Table(
        ("right is", "answered", "rows"),
        [(found.expected, found.given, found.count) for found in wrong[:_MAX_CONFUSED]],
        "Answered wrongly most often",
    )
    more = f"{len(wrong) - _MAX_CONFUSED} rarer ones are in evaluation.json."
    blocks = [
        matrix(report.candidate, "candidate"),
        most if wrong else Text("No answer of the candidate is wrong."),
        *([Text(more, "note")] if len(wrong) > _MAX_CONFUSED else []),
        Section("Confusion matrix of production", [matrix(report.production, "production")], folded=True),
    ]
    return [Section("Confusions", blocks)] if report.candidate.confusions else []


def matrix(arm: ArmReport, name: str) -> Matrix:
    """An arm's confusion matrix, with the labels in the task's order, then what is no label of the task."""
    total = Counter[str]()
    for found in arm.confusions:
        total[found.expected] += found.count
    occurring = {label for found in arm.confusions for label in (found.expected, found.given)}
    labels = list(dict.fromkeys([*(score.label for score in arm.classes), *sorted(occurring)]))
    return Matrix(
        f"Confusion matrix of {name}: a row is what is right, a column what was answered",
        [label for label in labels if label in total],  # Of tools also several calls together.
        [label for label in labels if label in occurring],
        [(x.expected, x.given, x.count, x.count / total[x.expected]) for x in arm.confusions],
    )


def _class_blocks(report: EvaluationReport) -> list[Block]:
    ours, theirs = report.candidate, report.production
    part = form_of_kind(report.kind).parts_title.casefold().removesuffix("s")
    tables = (
        (f"Precision, recall and F1 of each {part}", ours.classes, theirs.classes),
        ("Precision, recall and F1 of each function's arguments", ours.arguments, theirs.arguments),
    )
    return [Section(title, [_scores(scores, others)], folded=True) for title, scores, others in tables if scores]


def _scores(scores: Sequence[ClassScore], others: Sequence[ClassScore]) -> Table:
    f1 = {score.label: score.f1_interval for score in others}
    rows = [
        (x.label, x.support, x.precision_interval, x.recall_interval, x.f1_interval, f1.get(x.label))
        for x in sorted(scores, key=lambda score: score.f1)
    ]
    return Table(("", "expected", "precision", "recall", "F1", "F1 of production"), rows)


def _confidence_blocks(report: EvaluationReport) -> list[Block]:
    blocks = _reliability_blocks(report)
    if not blocks:
        return []
    said = Text("No low-confidence threshold: too few errors with a confidence.", "note")
    low = None if report.calibration is None else report.calibration.low_confidence
    if low is not None:
        at, how = (low.threshold, "") if low.calibrated is None else (low.calibrated, ", calibrated")
        said = Text(
            f"Low confidence is {at:.1%} or less{how}: {low.recall:.1%} of the errors or more are expected there, "
            f"among {low.flagged:.1%} of all answers (conformal, from {low.errors} errors)."
        )
    return [Section("Confidence", [*blocks, said])]


def _reliability_blocks(report: EvaluationReport) -> list[Block]:
    if report.reliability is None:
        return []
    lines = [
        Line("calibrated", _marks(report.reliability.after), "marks"),
        Line("before", _marks(report.reliability.before), "marks"),
    ]
    title = "Reliability: the closer to the diagonal, the better"
    plot = Plot(title, share_axis("confidence"), share_axis("right"), lines, diagonal=True)
    if (fit := report.calibration) is None:
        return [plot]
    basis = "all traffic, estimated" if fit.basis == "traffic" else "the held-out rows"
    before, after = number(fit.ece_before, 3), number(fit.ece_after, 3)
    of = f"{fit.kind}, {fit.answers} answers, {basis}"
    return [plot, Text(f"Calibration error {before} before, {after} after ({of}).", "note")]


def _marks(bins: Sequence[ReliabilityBin]) -> list[tuple[float, Interval]]:
    return [(found.confidence, found.accuracy) for found in bins]


def _money(amount: float | None, currency: str) -> str | None:
    return None if amount is None else money(amount, currency)
