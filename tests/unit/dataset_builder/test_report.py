"""The inspection of a build: what quality.json says, and its page."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest

from schemas.base import CheckResult, Gate
from schemas.conversation import Answer, Call, Message, Role
from schemas.datasets import Fate
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.quality import MAX_QUOTED, MAX_SAMPLES, Measure, MeasureTable, QualityReport
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.inspection.gates import evaluate_gates
from services.dataset_builder.inspection.report import Inspected, quality_report
from services.dataset_builder.pipeline import NO_LABEL, Inputs, build_dataset
from shared.report.blocks import Section, Text
from shared.report.dataset import inspection_blocks
from shared.report.html import page
from tests.conftest import ROOT

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
SPEC = TaskSpec(name="desk", kind=TaskKind.CLASSIFICATION, system_prompt="Intent?", labels=("refund", "delivery"))
GOLDEN = ROOT / "schemas" / "examples" / "quality.json" / "stopped.json"
POISON = "<script>alert(1)</script>"


def correction(number: int, label: str, text: str = "", user: str = "u1") -> CorrectionSubmitted:
    asked = text or f"question {number} about {chr(97 + number % 26) * 9} {number * 7919}"
    return CorrectionSubmitted(
        occurred_at=NOON, task=SPEC.name, task_revision=SPEC.revision, correction_id=f"c{number}",
        request_id=f"r{number}", prediction_id=f"p{number}", purpose=Purpose.LOW_CONFIDENCE, reviewer="ana",
        call=Call(messages=(Message(role=Role.USER, content=asked),)), answers=(Answer(text="refund"),), label=label,
        user_hash=user, predicted_at=NOON,
    )  # fmt: skip


def report_of(
    corrections: list[CorrectionSubmitted], *measures: Measure, gates: tuple[Gate, ...] = ()
) -> QualityReport:
    votes = votes_of(corrections)
    build = build_dataset(Inputs(votes, SPEC))
    traffic = {"refund": 30, "delivery": 10}
    gates = gates or evaluate_gates(build, SPEC, traffic)
    return quality_report(Inspected(build, votes, SPEC, gates, traffic, measures), "desk-1", "cycle-1", NOON)


def test_the_golden_report_reads_back_byte_for_byte() -> None:
    report = QualityReport.model_validate_json(GOLDEN.read_text())
    assert report.model_dump_json(indent=2) + "\n" == GOLDEN.read_text()
    assert {check.result for check in report.checks} == set(CheckResult)
    assert {sample.fate for sample in report.samples} <= {count.fate for count in report.left_out}


def test_a_gate_that_measured_nothing_is_unknown_and_stops_nothing() -> None:
    gates = (
        Gate(name="agreement", passed=True, measured=1.0, required=">= 1"),
        Gate(name="leakage", passed=True, measured=None, required=">= .9", detail="3 overlaps; 100 are needed"),
    )
    report = report_of([correction(1, "refund")], gates=gates)
    assert [check.result for check in report.checks] == [CheckResult.PASSED, CheckResult.UNKNOWN]
    assert (report.passed, report.dataset_id) == (True, "desk-1")
    failed = report_of(
        [correction(1, "refund")], gates=(*gates, Gate(name="label_noise", passed=False, required="< 1"))
    )
    assert (failed.checks[-1].result, failed.passed, failed.dataset_id) == (CheckResult.FAILED, False, None)
    assert (failed.checks[0].way_out, bool(failed.checks[-1].way_out)) == ("", True)


def test_labels_are_counted_as_people_gave_them_and_as_they_are_trained_on() -> None:
    rows = [correction(n, SPEC.labels[n % 2]) for n in range(20)]
    copies = [correction(100 + n, "refund", text="where is my money") for n in range(5)]
    report = report_of([*rows, *copies, correction(200, "weather")])
    by_label = {balance.label: balance for balance in report.labels}
    assert list(by_label) == ["refund", "delivery", "weather"]
    refund = by_label["refund"]
    assert (refund.corrected, refund.train + refund.eval) == (15, 15)
    assert refund.weighted == sum(e for e in [1.0] * refund.train)
    assert (refund.production, by_label["weather"].production) == (0.75, 0.0)
    assert (by_label["weather"].corrected, by_label["weather"].train) == (1, 0)


def test_of_what_people_wrote_that_is_no_label_a_few_have_a_line_and_the_others_one_together() -> None:
    written = [correction(n, f"the parcel of {n}") for n in range(40)]
    report = report_of([*written, correction(50, "weather"), correction(51, "weather", text="rain")])
    assert [(row.label, row.corrected) for row in report.labels] == [
        ("refund", 0), ("delivery", 0), ("weather", 2), ("the parcel of 0", 1), ("the parcel of 1", 1),
        ("the parcel of 10", 1), ("the parcel of 11", 1), (NO_LABEL, 36),
    ]  # fmt: skip


def test_a_few_left_out_rows_of_each_reason_are_quoted_with_whose_they_are() -> None:
    bad = [correction(n, "weather", user=f"u{n}") for n in range(MAX_SAMPLES + 4)]
    long = correction(50, "x" * 400, text="y" * 10_000 + " the question")
    conflict = [
        correction(100 + n, label, text="again and again").model_copy(update={"reviewer": f"r{n}"})
        for n, label in enumerate(SPEC.labels)
    ]
    report = report_of([*bad, long, *conflict])
    by_reason = {s.reason: [t for t in report.samples if t.reason == s.reason] for s in report.samples}
    assert {reason: len(samples) for reason, samples in by_reason.items()} == {
        "unknown_label": MAX_SAMPLES, "conflicting_labels": 2
    }  # fmt: skip
    first = by_reason["unknown_label"][0]
    assert (first.fate, first.label, first.user_hash, first.predicted_at) == (Fate.REJECTED, "weather", "u0", NOON)
    assert first.text.startswith("question 0")
    (quoted,) = report_of([long]).samples
    assert (len(quoted.text), quoted.text[-12:], len(quoted.label)) == (MAX_QUOTED, "the question", MAX_QUOTED)


def test_a_word_that_does_not_count_is_quoted_itself_and_not_the_one_that_does() -> None:
    changed = correction(1, "refund"), correction(1, "delivery").model_copy(update={"correction_id": "c1-first"})
    first = changed[1].model_copy(update={"occurred_at": NOON - timedelta(minutes=1)})
    (sample,) = report_of([changed[0], first]).samples
    assert (sample.reason, sample.label, sample.detail) == ("newer_opinion", "delivery", "ana answered again")


def lamp(number: int) -> str:
    colours = "amber bronze copper denim ebony fawn green hazel ivory jade khaki lilac".split()  # noqa: SIM905
    return f"my {colours[number % 12]} lamp {number * 7919} {colours[number * 5 % 12]} {colours[number * 7 % 12]} broke"


def test_no_gate_quotes_what_people_wrote_since_events_outlive_an_erasure() -> None:
    """The report may: whoever is quoted in it is in the rejected.jsonl beside it."""
    rows = [correction(n, SPEC.labels[n % 2], text=lamp(n)) for n in range(20)]
    first = build_dataset(Inputs(votes_of(rows), SPEC))
    held_out = first.dataset.eval[0].prompt[-1].text
    rows += [correction(100 + n, SPEC.labels[n % 2], text=held_out + "!" * n) for n in range(2, 10, 2)]
    rows += [correction(200, "weather", text="what a quiet afternoon"), correction(201, "rain", text="so much rain")]
    build = build_dataset(Inputs(votes_of(rows), SPEC, first.places))
    gates = evaluate_gates(build, SPEC, {})
    report = quality_report(Inspected(build, votes_of(rows), SPEC, gates, {}), "desk-1", "cycle-1", NOON)
    (leakage,) = [check for check in report.checks if check.name == "leakage"]
    assert "near-copies of unseen held-out ones" in leakage.detail and "4 of 4 of p" in leakage.detail
    said = " ".join(f"{check.detail} {check.required}" for check in report.checks)
    assert not [words for words in ("lamp", "afternoon", "so much rain") if words in said]
    assert any("lamp" in sample.text for sample in report.samples)


def render(report: QualityReport) -> str:
    return page("Inspection of desk", inspection_blocks(report, quoted=True))


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(markup)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [value for name, value in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def test_no_text_of_a_report_becomes_markup() -> None:
    gate = Gate(name="agreement", passed=False, required=POISON, detail=POISON)
    rows = [correction(1, POISON, text=POISON), correction(2, "refund", text=POISON, user=POISON)]
    measure = Measure(
        name="noise", title=POISON, summary=POISON, figures={POISON: POISON},
        table=MeasureTable(columns=(POISON,), rows=((POISON,),)),
    )  # fmt: skip
    shown = Page(render(report_of(rows, measure, gates=(gate,))))
    assert "script" not in shown.tags
    assert shown.text.count(POISON) >= 9


def test_a_page_of_a_stopped_build_says_why_and_what_to_do_and_loads_nothing() -> None:
    report = report_of([correction(n, SPEC.labels[n % 2]) for n in range(4)])
    markup = render(report)
    shown = Page(markup)
    assert "Stopped." in shown.text
    assert "Have more answers corrected in the console, or lower dataset.min_examples." in shown.text
    assert "ratchet cycle desk" in shown.text
    assert not re.search(r"https?://|url\(", markup)


def test_a_page_shows_every_check_in_words_and_the_bars_of_every_label() -> None:
    shown = Page(render(QualityReport.model_validate_json(GOLDEN.read_text())))
    report = QualityReport.model_validate_json(GOLDEN.read_text())
    for check in report.checks:
        assert f"{check.title} {check.result.value}" in shown.text
    at = [shown.text.rindex(f"{check.title} {check.result.value}") for check in report.checks]
    assert sorted(at) == [at[1], at[2], at[0]]  # Failed, unknown, passed.
    for measure in report.measures:
        assert measure.summary in shown.text
    assert shown.tags.count("svg") == 2
    assert shown.tags.count("rect") >= 2 * len(report.labels)


def first_lines(report: QualityReport) -> list[str]:
    """What stands before the first heading, and the first line below it."""
    blocks = inspection_blocks(report)
    heading = next(n for n, block in enumerate(blocks) if isinstance(block, Section))
    section = blocks[heading]
    assert isinstance(section, Section)
    return [block.text for block in [*blocks[:heading], section.blocks[0]] if isinstance(block, Text)]


def test_the_first_lines_say_what_to_collect_what_nobody_answered_and_where_the_rows_are() -> None:
    lines = first_lines(QualityReport.model_validate_json(GOLDEN.read_text()))
    assert "13 more of other, 8 more of refund: as frequent as in production." in lines
    assert "Questions in the audit: 150 asked, 38 not answered." in lines
    assert "Questions about doubtful answers: 400 asked, 140 not answered." in lines
    assert lines[-1] == (
        "240 rows are trained on. Of the 60 held out, chance drew 45 from traffic, and 52 are unlike all that is "
        "trained on. The golden set has 20 more."
    )


def audit(number: int, label: str, **changes: object) -> CorrectionSubmitted:
    fixed = {"purpose": Purpose.AUDIT, "inclusion_probability": 0.1, "drawn_probability": 0.1, **changes}
    return correction(number, label).model_copy(update=fixed)


def test_what_to_collect_and_what_was_asked_come_from_the_build_itself() -> None:
    audits = [audit(n, SPEC.labels[n % 4 == 0]) for n in range(60)]
    loud = [correction(100 + n, "delivery") for n in range(200)]
    votes = votes_of([*audits, *loud])
    build = build_dataset(Inputs(votes, SPEC, questions_drawn={Purpose.AUDIT: 80, Purpose.UNCALIBRATED: 7}))
    report = quality_report(Inspected(build, votes, SPEC, (), {}), "desk-1", "cycle-1", NOON)
    shares = {row.label: row.audited for row in report.labels}
    assert shares == {"refund": 0.75, "delivery": 0.25}
    assert [(count.sample, count.asked, count.answered) for count in report.questions] == [
        ("audits", 80, 60), ("doubts", 7, 0)
    ]  # fmt: skip
    held_out = build.dataset.eval
    assert (
        0 < report.traffic_examples == sum(row.prediction_ids[0] < "p60" for row in held_out if row.drawn_probability)
    )
    assert report.unseen_examples == sum(not row.seen for row in held_out)
    rows = sum(row.train for row in report.labels)
    trained = next(row.weighted for row in report.labels if row.label == "refund")
    gap = round((0.75 - trained / sum(row.weighted for row in report.labels)) * rows)
    assert f"{gap} more of refund: as frequent as in production." in first_lines(report)


def test_without_audits_the_labels_with_the_fewest_rows_are_named() -> None:
    report = report_of([correction(n, "refund") for n in range(20)])
    assert any("Fewest training rows: delivery (0)." in line for line in first_lines(report))


@pytest.mark.parametrize("kind", [TaskKind.GENERATION])
def test_a_report_without_labels_and_rows_is_a_page_too(kind: TaskKind) -> None:
    spec = SPEC.model_copy(update={"kind": kind, "labels": ()})
    build = build_dataset(Inputs([], spec))
    gates = evaluate_gates(build, spec, {})
    report = quality_report(Inspected(build, [], spec, gates, {}), "desk-1", None, NOON)
    assert "Stopped." in render(report)
    assert report.labels == ()
