"""The report of an evaluation has everything of the verdict, its page shows it, and neither quotes anyone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from schemas.adapters import AdapterEvaluated
from schemas.evaluation import EVALUATION_PAGE, EvaluationManifest, EvaluationReport
from schemas.evaluation_settings import TextMetric
from services.evaluator.report.publish import publish_report
from services.evaluator.verdict import evaluated_event
from shared.report.blocks import Text
from shared.report.evaluation import evaluation_blocks, matrix
from shared.report.html import page
from shared.storage.artifacts import ArtifactStore
from tests.unit.evaluator.arms import FREE
from tests.unit.evaluator.reports import (
    JUDGE,
    classification,
    desk,
    extraction,
    generation,
    multi_label,
    tools,
    trained,
)


@pytest.fixture(scope="module")
def of_many() -> EvaluationReport:
    return classification()


@pytest.fixture(scope="module")
def of_four() -> EvaluationReport:
    return classification(4, 240)


def render(report: EvaluationReport) -> str:
    return page("Evaluation", evaluation_blocks(report))


class Page(HTMLParser):
    """The texts and elements of a page, and whether every element is closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.classes: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.classes += [value or "" for name, value in attributes if name == "class"]
        if tag not in ("meta", "i"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.classes += [value or "" for name, value in attributes if name == "class"]

    def handle_endtag(self, tag: str) -> None:
        if tag != "i":
            assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        self.texts.append(text)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def test_the_confusions_of_a_label_add_up_to_its_rows_and_its_recall(of_many: EvaluationReport) -> None:
    arm = of_many.candidate
    assert sum(cell.count for cell in arm.confusions) == 616
    for score in arm.classes:
        of_label = [cell for cell in arm.confusions if cell.expected == score.label]
        right = sum(cell.count for cell in of_label if cell.given == score.label)
        assert sum(cell.count for cell in of_label) == score.support
        assert right / score.support == pytest.approx(score.recall)


def test_parts_have_both_arms_and_the_one_where_the_candidate_is_worse_comes_first(of_four: EvaluationReport) -> None:
    worst, *others = of_four.parts
    assert (worst.kind, worst.name, worst.worse) == ("class", "cash question 3", True)
    assert (worst.candidate.value, worst.gain.high < 0.0) == (0.0, True)
    assert not any(part.worse for part in others)
    assert {part.kind for part in of_four.parts} == {"class", "failure_mode", "app", "length"}
    assert sum(part.rows for part in of_four.parts if part.kind == "app") == 240


def test_lost_and_gained_rows_are_named_and_nobody_is_quoted(of_four: EvaluationReport) -> None:
    assert of_four.lost and of_four.gained and not set(of_four.lost) & set(of_four.gained)
    (gate,) = [gate for gate in of_four.gates if gate.name == "not_worse"]
    assert f"loses {len(of_four.lost)}" in gate.detail
    for text in (of_four.model_dump_json(), render(of_four)):
        assert "about it" not in text and "Question 1" not in text


def test_the_first_line_says_the_verdict_and_that_a_linear_classifier_does_as_well(of_four: EvaluationReport) -> None:
    assert of_four.headline.startswith("Stopped by parts not worse. The candidate is right on ")
    assert "A linear classifier on sentence embeddings does as well as the adapter" in of_four.headline
    first, *_ = evaluation_blocks(of_four)
    assert first == Text(of_four.headline, "bad") and of_four.headline in Page(render(of_four)).texts


@pytest.mark.parametrize("make", [extraction, multi_label, tools, generation, lambda: classification(2, 20)])
def test_a_page_of_any_kind_has_each_gate_with_its_reason(make) -> None:  # type: ignore[no-untyped-def]
    report = make()
    page = Page(render(report))
    for gate in report.gates:
        assert gate.name.replace("_", " ") in page.texts and gate.required in page.texts and gate.detail in page.texts
    for word in ("None", "nan", "Undefined"):
        assert not re.search(rf"\b{word}\b", page.text)
    assert ("matrix" in page.classes) == bool(report.candidate.confusions)


def test_an_extraction_has_its_fields_instead_of_a_confusion_matrix() -> None:
    report = extraction()
    assert {score.label for score in report.candidate.classes} == {"name", "city", "total"}
    page = Page(render(report))
    assert "Fields" in page.texts and "Precision, recall and F1 of each field" in page.texts
    assert "Answers by the schema" in page.texts


def test_generated_text_has_every_metric_and_the_judge_with_what_its_certification_rests_on() -> None:
    report = generation()
    page = Page(render(report))
    assert [score.metric for score in report.texts] == [*TextMetric]
    for said in (
        "text metric", "difference, points", "shown to be",
        "ROUGE-L ●", "ROUGE-2", "token F1", "exact match", "cosine of embeddings",
        "82.0% (60.6%–93.1%)", "11.0% (3.2%–31.3%)", "+71.0 (+47.7 to +75.0)", "not certified",
        "73.8% (61.6%–83.2%)", "63.4%, required 80.0%", "61, required 50", "70.3% (61.6%–77.8%)", "0.982",
        "169; 7 comparisons got no answer", "No answer in 60 s",
    ):  # fmt: skip
        assert said in page.texts, said
    assert "The judge <gpt> prefers the candidate on 11 rows, production on 4, neither on 5." in page.text
    assert "it is shown and stops nothing" in page.text
    certified = report.model_copy(update={"judge": JUDGE.model_copy(update={"certified": True})})
    assert "certified" in Page(render(certified)).texts and "it is shown and stops" not in render(certified)


def test_the_golden_set_is_counted_as_far_as_it_is_judged() -> None:
    by_score = FREE.model_copy(update={"evaluation": FREE.evaluation.model_copy(update={"golden_score": 0.5})})
    judged, unjudged = generation(by_score, golden=8), generation(golden=8)
    assert (judged.golden.total, judged.golden.gained, judged.golden.lost) == (8, 8, 0)
    assert "Golden set: 8 gained, 0 lost, of 8." in Page(render(judged)).text
    assert (unjudged.golden.total, unjudged.golden.gained) == (0, 0)
    assert "No golden row was judged." in Page(render(unjudged)).text and "unknown" in Page(render(unjudged)).texts


def test_text_metrics_and_a_judge_are_of_generated_text_alone(of_four: EvaluationReport) -> None:
    for report in (of_four, tools(), generation().model_copy(update={"texts": (), "judge": None})):
        page = Page(render(report))
        assert not {"Generated text", "text metric", "the judge"} & set(page.texts)
    judged = Page(render(generation().model_copy(update={"texts": ()})))
    assert "the judge" in judged.texts and "text metric" not in judged.texts


def test_calls_have_a_table_of_functions_and_one_of_their_arguments_with_production_beside() -> None:
    report = tools()
    assert {score.label for score in report.candidate.arguments} == {"book_table", "set_light"}
    page = Page(render(report))
    start = page.texts.index("Precision, recall and F1 of each function's arguments")
    table = [text for text in page.texts[start:] if text.strip()][1:]
    assert table[:5] == ["expected", "precision", "recall", "F1", "F1 of production"]
    assert table[5:11] == [
        "set_light", "40", *["50.0% (29.9%–70.1%)"] * 3, "100.0% (83.9%–100.0%)",
    ]  # fmt: skip
    assert table[11] == "book_table" and "Precision, recall and F1 of each function" in page.texts
    assert "Right functions, whatever the arguments" in page.texts and "Calls that can be run" in page.texts
    assert "each function's arguments" not in render(extraction())


def test_several_labels_have_micro_and_macro_f1_the_share_of_whole_sets_and_each_label() -> None:
    report = multi_label()
    page = Page(render(report))
    for said in (
        "Subset accuracy: the whole set is right", "F1, micro", "F1, macro", "Labels",
        "Answers that are a list of labels", "Precision, recall and F1 of each label",
    ):  # fmt: skip
        assert said in page.texts
    assert report.headline.startswith("Passed every gate. The candidate scores ")


def test_the_page_has_what_misled_either_arm(of_four: EvaluationReport) -> None:
    assert of_four.adversarial is not None
    page = Page(render(of_four))
    for said in (
        "out of distribution",
        "The candidate's score falls most by prompt injections: by 30.0 points.",
    ):
        assert said in page.texts, said
    assert "Inputs that mislead" not in render(of_four.model_copy(update={"adversarial": None}))


def test_text_in_a_report_is_escaped_and_nothing_is_loaded(of_four: EvaluationReport) -> None:
    page = render(of_four)
    assert "&lt;b&gt;a mode&lt;/b&gt;" in page and "<b>a mode" not in page
    assert not re.search(r"https?://|src=|<script|@import", page)
    assert "default-src 'none'" in page


def test_a_matrix_has_every_confusion_in_the_order_of_the_labels(of_many: EvaluationReport) -> None:
    shown = matrix(of_many.candidate, "candidate")
    assert shown.rows == [score.label for score in of_many.candidate.classes] and len(shown.rows) == 77
    assert len(shown.cells) == len(of_many.candidate.confusions)
    assert ("cash question 3", "cash question 8", 8, 1.0) in shown.cells


def test_an_answer_that_is_no_label_has_a_column_and_no_row(of_four: EvaluationReport) -> None:
    (first, *others) = of_four.candidate.confusions
    none = first.model_copy(update={"given": "(no label)"})
    shown = matrix(of_four.candidate.model_copy(update={"confusions": (none, *others)}), "candidate")
    assert "(no label)" in shown.columns and "(no label)" not in shown.rows


def test_a_matrix_of_calls_has_a_row_for_several_together(of_four: EvaluationReport) -> None:
    """They were left out, and the page said that nothing was."""
    (first, *others) = of_four.candidate.confusions
    both = first.model_copy(update={"expected": "a b", "given": "a b"})
    shown = matrix(of_four.candidate.model_copy(update={"confusions": (both, *others)}), "candidate")
    assert "a b" in shown.rows and ("a b", "a b", both.count, 1.0) in shown.cells


def test_a_report_and_its_page_are_published_and_the_event_has_its_address(
    of_many: EvaluationReport, tmp_path: Path
) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    uri = publish_report(of_many, store, tmp_path / "report")
    folder = tmp_path / "artifacts" / "evaluations" / of_many.evaluation
    assert uri == str(folder)
    assert EvaluationReport.model_validate_json((folder / "evaluation.json").read_bytes()) == of_many
    assert of_many.headline in Page((folder / EVALUATION_PAGE).read_text()).texts
    manifest = EvaluationManifest.model_validate_json((folder / "manifest.json").read_bytes())
    assert set(manifest.files) == {"evaluation.json", "evaluation.html"}
    event = evaluated_event(trained(desk(77)), of_many, uri)
    assert (event.report, event.verdict, event.candidate) == (uri, of_many.verdict, of_many.candidate.score)
    assert event.calibration == of_many.calibration


def test_an_event_stays_small_however_many_labels_there_are(of_many: EvaluationReport) -> None:
    def size(report: EvaluationReport, labels: int) -> int:
        event = evaluated_event(trained(desk(labels)), report, "uri").model_dump(mode="json")
        return len(json.dumps({name: value for name, value in event.items() if name != "spec"}))

    assert len(of_many.model_dump_json()) > 100_000
    assert size(of_many, 77) < 13_000
    assert set(AdapterEvaluated.model_fields) >= {"report", "headline"}
