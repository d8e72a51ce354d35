"""The numbers of a loop: intervals, percentiles, the ledger's wealth, a cycle's page, the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.clients import GatewayAnswer
from deploy.demo.data.rows import DataRow
from deploy.demo.errors import CycleStepFailed, StepTimeout
from deploy.demo.pairs import PairLedger
from deploy.demo.report.blocks import Report
from deploy.demo.report.measure import measure
from deploy.demo.report.report import as_json, write
from deploy.demo.report.result import LearningCycle, LiveTest, LoopResult
from deploy.demo.reviewers import ReviewCounts
from deploy.demo.settings import Fault
from deploy.demo.steps import cycle
from deploy.demo.steps.cycle import CyclePage, event_of, follow, stage_in
from schemas.tasks import TaskKind, TaskSpec
from tests.unit.deploy.demo.inspections import inspection

DESK = TaskSpec(name="desk", kind=TaskKind.CLASSIFICATION, system_prompt="Name it.", labels=("a", "b"))


def answer(label: str, text: str, error: str = "", latency_ms: float = 100.0) -> GatewayAnswer:
    return GatewayAnswer(DataRow("q", label), text, "p", "base", "", 0.5, latency_ms, error)


def evidence(wins: int, labels: int) -> dict[str, Any]:
    return {"wins": wins, "losses": 0, "ties": 4, "pending": 2, "labels": labels, "wealth": 2.0**wins, "alpha": 0.00096}


def test_a_failed_request_is_a_wrong_answer() -> None:
    measured = measure([answer("a", "a"), answer("a", "b"), answer("b", "b"), answer("b", "", "503")], DESK)
    assert measured.accuracy.value == 0.5
    assert measured.failed == 1
    assert measured.by_label == {"a": (1, 2), "b": (1, 2)}
    assert ("b", "(no answer)", 1) in measured.confusions


def test_the_counts_are_the_deployer_s_and_each_further_label_is_a_point_of_the_history() -> None:
    ledger = PairLedger()
    for said in (evidence(0, 0), evidence(1, 1), evidence(1, 1), evidence(2, 2)):
        ledger.add(said)
    assert (ledger.counts().pairs, ledger.counts().wealth) == (8, 4.0)
    assert [counts.labels for counts in ledger.history] == [1, 2]


class Pages:
    """A console that shows one page after the other."""

    def __init__(self, *pages: dict[str, Any] | None) -> None:
        self.pages = list(pages)

    async def cycle(self, cycle_id: str) -> dict[str, Any] | None:
        return self.pages.pop(0) if len(self.pages) > 1 else self.pages[0]


def page(*steps: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"cycle_id": "c", "task": "t", "steps": [{"topic": t, "event": e} for t, e in steps], "progress": None}


async def followed(pages: Pages, find: Any, seconds: float = 60) -> Any:
    return await follow(pages, "c", find, seconds, lambda page: None, StepTimeout("late", "wait"))


async def test_a_cycle_is_followed_until_its_event_appears() -> None:
    pages = Pages(None, page(), page(("datasets.built.v1", {"dataset_id": "d"})))
    event, _ = await followed(pages, event_of("datasets.built"))
    assert event == {"dataset_id": "d"}


async def test_a_step_that_failed_stops_the_loop_with_its_way_out() -> None:
    failed = {"service": "trainer", "step": "training", "reason": "no disk", "way_out": "free some"}
    with pytest.raises(CycleStepFailed, match="trainer could not finish training: no disk") as error:
        await followed(Pages(page(("steps.failed.v1", failed))), event_of("adapters.trained"))
    assert error.value.way_out == "free some"


async def test_a_timeout_is_an_error_and_a_finished_cycle_is_not() -> None:
    with pytest.raises(StepTimeout):
        await followed(Pages(page()), event_of("adapters.trained"), seconds=-1.0)
    event, last = await followed(Pages(page(("cycles.finished.v1", {"reason": "x"}))), event_of("adapters.trained"))
    assert event is None
    assert last.last("cycles.finished") == {"reason": "x"}


@pytest.mark.parametrize("topic", ["adapters.evaluated.v1", "steps.failed.v1"])
async def test_what_ended_a_cycle_is_waited_for_where_the_console_reads_of_the_end_first(topic: str) -> None:
    finished = ("cycles.finished.v1", {"event_id": "2", "reason": "offline gates failed", "ended_by": "1"})
    event = {"event_id": "1", "service": "trainer", "step": "training", "reason": "no disk", "way_out": "free some"}
    pages = Pages(page(finished), page((topic, event), finished))
    if topic == "steps.failed.v1":
        with pytest.raises(CycleStepFailed, match="no disk"):
            await followed(pages, event_of("adapters.evaluated"))
    else:
        assert (await followed(pages, event_of("adapters.evaluated")))[0] == event


async def test_what_ended_a_cycle_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycle, "_SETTLING_SECONDS", -1.0)
    pages = Pages(page(("cycles.finished.v1", {"event_id": "2", "ended_by": "1"})))
    assert (await followed(pages, event_of("adapters.evaluated")))[0] is None


async def test_a_cycle_that_ended_by_another_event_is_over() -> None:
    pages = Pages(page(("datasets.built.v1", {"event_id": "1"}), ("cycles.finished.v1", {"ended_by": "1"})))
    event, _ = await followed(pages, event_of("adapters.evaluated"), seconds=-1.0)
    assert event is None


async def test_a_stage_that_was_passed_between_two_polls_is_still_found() -> None:
    changed = "rollouts.changed.v1"
    pages = Pages(page(*((changed, {"stage": stage}) for stage in ("shadow", "canary", "promoted"))))
    event, _ = await followed(pages, stage_in("canary", "rejected"))
    assert event == {"stage": "canary"}


def test_a_missing_page_has_no_events() -> None:
    assert CyclePage.of(None).events("rollouts.changed") == []


def report(promoted: bool) -> Report:
    ledger = PairLedger()
    for n in range(30):
        ledger.add(evidence(n, n))
    change = {
        "occurred_at": "2026-11-23T12:00:00Z",
        "stage": "canary",
        "reason": "wealth",
        "evidence": evidence(29, 29),
        "candidate_adapter": "c",
    }
    mode = {"name": "card lost", "size": 9, "share": 0.3, "mean_confidence": None, "exemplars": ["where <b>is</b>"]}
    result = LoopResult(
        task="t",
        promoted=promoted,
        stopped_by="" if promoted else "evaluation gate min_gain",
        evidence="" if promoted else "measured -0.1 <script>",
        before=measure([answer("a", "b")] * 8 + [answer("a", "a")] * 2, DESK),
        after=measure([answer("a", "a")] * 9 + [answer("b", "a")], DESK),
        cycle=LearningCycle(modes=[mode], inspection=inspection()),
        live_test=LiveTest([change], {"canary": 12, "promoted": 26}),
        seconds=600.0,
    )
    reviews = ReviewCounts(wrong=3)
    reviews.by_purpose.update(low_confidence=300, discordant_pair=30)
    addresses = {"console": "http://127.0.0.1:28090"}
    return Report(result, reviews, ledger, {"before": 20.0, "training": 150.0}, addresses)


def test_the_report_s_contract_has_these_keys() -> None:
    data = as_json(report(promoted=True))
    assert list(data)[:10] == [
        "promoted", "accuracy_before", "accuracy_after", "field_f1_before", "field_f1_after", "labels_spent", "pairs",
        "seconds", "steps", "task",
    ]  # fmt: skip
    assert set(data["accuracy_after"]) == {"value", "low", "high", "n"}
    assert (data["promoted"], data["labels_spent"], data["pairs"]) == (True, 330, 35)
    assert data["steps"][1] == {"name": "training", "seconds": 150.0}


def test_the_page_is_self_contained_and_escapes_what_users_wrote(tmp_path: Path) -> None:
    write(report(promoted=False), tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert text.count("<svg") == 6
    assert "&lt;script&gt;" in text
    assert "where &lt;b&gt;is" in text
    assert "src=" not in text
    assert json.loads((tmp_path / "report.json").read_text())["stopped_by"] == "evaluation gate min_gain"


def test_the_report_shows_the_inspection_of_the_data_set_and_links_its_page(tmp_path: Path) -> None:
    page = tmp_path / "quality.html"
    page.write_text("<h1>the inspection</h1>")
    made = report(promoted=False)
    made.result.cycle.inspection, made.result.cycle.inspection_page = inspection("agreement"), page
    write(made, tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    assert all(said in text for said in ("agreement", "a &lt;b&gt; c", "unknown", "copies", 'href="dataset.html"'))
    assert (tmp_path / "report" / "dataset.html").read_text() == page.read_text()
    data = json.loads((tmp_path / "report" / "report.json").read_text())
    assert data["inspection"]["left_out"] == [{"fate": "capped", "reason": "copies", "count": 2}]


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_is_expected_to_be_stopped_by_a_gate_that_names_it(fault: Fault) -> None:
    result = LoopResult(task="t", fault=fault)
    assert not result.as_expected, "stopped before the data set was inspected"
    result.cycle.inspection = inspection("min_examples")
    assert not result.as_expected, "stopped for another reason"
    result.cycle.inspection = inspection("min_examples", min(fault.gates))
    assert result.as_expected
    result.promoted = True
    assert not result.as_expected


def test_a_loop_that_failed_early_still_has_a_report(tmp_path: Path) -> None:
    write(Report(LoopResult(task="t"), ReviewCounts(), PairLedger(), {}, {}), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["accuracy_before"] is None


def test_the_report_links_the_page_of_the_evaluation_and_has_it_beside_it(tmp_path: Path) -> None:
    made = report(promoted=True)
    write(made, tmp_path / "without")
    assert "evaluation.html" not in (tmp_path / "without" / "report.html").read_text()
    made.result.cycle.evaluation_page = tmp_path / "published.html"
    made.result.cycle.evaluation_page.write_text("<h1>Passed every gate.</h1>")
    write(made, tmp_path)
    assert '<a href="evaluation.html">' in (tmp_path / "report.html").read_text()
    assert (tmp_path / "evaluation.html").read_text() == "<h1>Passed every gate.</h1>"


def test_the_page_says_first_what_the_cheap_rivals_mean_and_has_their_table(tmp_path: Path) -> None:
    made = report(promoted=True)
    made.result.cycle.evaluation = json.loads(Path("schemas/examples/adapters.evaluated.v1/passed.json").read_text())
    write(made, tmp_path)
    text = (tmp_path / "report.html").read_text()
    first = text[text.index("</h1>") :].split("</p>")[0]
    assert "A linear classifier on sentence embeddings does as well as the adapter" in first
    for said in (
        "linear classifier",
        "88.3% (77.8%–94.2%)",
        "0.011 USD",
        "320 ms",
        "600,000 answers a month",
        'data-name="approach"',
    ):
        assert said in text, said
    data = json.loads((tmp_path / "report.json").read_text())
    assert len(data["approaches"]["approaches"]) == 4


def test_the_report_has_the_table_of_inputs_that_mislead(tmp_path: Path) -> None:
    made = report(promoted=True)
    made.result.cycle.evaluation = json.loads(Path("schemas/examples/adapters.evaluated.v1/passed.json").read_text())
    write(made, tmp_path)
    text = (tmp_path / "report.html").read_text()
    for said in ("Inputs that mislead", "prompt injections", "92.0% → 72.0% (56.0%–84.0%)", "Sure: surer than half"):
        assert said in text, said
    data = json.loads((tmp_path / "report.json").read_text())
    assert [result["kind"] for result in data["adversarial"]["results"]][:2] == ["typos", "injection"]
    made.result.cycle.evaluation["adversarial"] = None
    write(made, tmp_path)
    assert "Inputs that mislead" not in (tmp_path / "report.html").read_text()
