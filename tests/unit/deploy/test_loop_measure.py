"""Numbers of a turn: intervals, percentiles, the ledger's wealth, a cycle's page, the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.demo.clients import Asked
from deploy.demo.data.csv_file import Row
from deploy.demo.pairs import PairLedger
from deploy.demo.report.measure import measure, percentile, wilson
from deploy.demo.report.report import Report, as_json, write
from deploy.demo.reviewers import Tally
from deploy.demo.state import Result
from deploy.demo.steps.cycle import CyclePage, StepBroke, StepLate, event_of, follow, rejected_examples, stage_in
from deploy.demo.steps.rollback import Switched
from schemas.base import utc_now
from schemas.labels import CorrectionSubmitted
from schemas.rollouts import ShadowCompared
from services.deployer.betting import wealth

MESSAGES = ({"role": "user", "content": "where is it"},)


def asked(label: str, text: str, ok: bool = True, latency_ms: float = 100.0) -> Asked:
    return Asked(Row("q", label), "u", ok, text, "p", "base", "", 0.5, latency_ms)


def pair(n: int, production: str, candidate: str | None, rollout: str = "r1") -> ShadowCompared:
    return ShadowCompared.model_validate({
        "task": "t", "task_revision": "1", "pair_id": f"pair{n}", "rollout_id": rollout, "prediction_id": f"p{n}",
        "messages": MESSAGES, "production_adapter": None, "candidate_adapter": "c", "production_answer": production,
        "candidate_answer": candidate, "agree": production == candidate, "logged_at": utc_now(),
        "candidate_latency_ms": 1.0,
    })  # fmt: skip


def label(n: int, said: str) -> CorrectionSubmitted:
    return CorrectionSubmitted.model_validate({
        "task": "t", "task_revision": "1", "correction_id": str(uuid4()), "request_id": f"r{n}",
        "prediction_id": f"p{n}", "purpose": "discordant_pair", "reviewer": "ada", "messages": MESSAGES,
        "answers": ("x", "y"), "label": said, "ticket_id": f"t{n}",
    })  # fmt: skip


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 100, 0.7222, 0.8749), (19, 100, 0.1251, 0.2778)],
)
def test_wilson_intervals_are_those_of_the_books(right: int, n: int, low: float, high: float) -> None:
    interval = wilson(right, n)
    assert interval.low == pytest.approx(low, abs=1e-4)
    assert interval.high == pytest.approx(high, abs=1e-4)


@given(st.integers(0, 500), st.integers(0, 500))
def test_an_interval_holds_its_share_and_stays_within_0_and_1(right: int, wrong: int) -> None:
    interval = wilson(right, right + wrong)
    assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.95), percentile([], 0.5)) == (50.0, 95.0, 0.0)


def test_a_failed_request_is_a_wrong_answer() -> None:
    found = measure([asked("a", "a"), asked("a", "b"), asked("b", "b"), asked("b", "", ok=False)])
    assert found.accuracy.value == 0.5
    assert found.failed == 1
    assert found.by_label == {"a": (1, 2), "b": (1, 2)}
    assert ("b", "(no answer)", 1) in found.confusions


def test_the_ledger_s_wealth_is_the_deployer_s() -> None:
    ledger = PairLedger()
    for n in range(12):
        ledger.add_pair(pair(n, "wrong", "right"))
    ledger.add_pair(pair(12, "same", "same"))
    for n in range(11):
        ledger.add_label(label(n, "right"))
    standing = ledger.standing()
    assert (standing.pairs, standing.agree, standing.wins, standing.pending) == (13, 1, 11, 1)
    assert standing.wealth == pytest.approx(wealth(11, 0, 0))
    ledger.add_label(label(11, "wrong"))
    assert ledger.standing().losses == 1
    assert len(ledger.history) == 12


def test_a_label_on_no_pair_and_a_label_read_twice_change_nothing() -> None:
    ledger = PairLedger()
    ledger.add_pair(pair(1, "a", "b"))
    ledger.add_label(label(77, "a"))
    twice = label(1, "c")
    ledger.add_label(twice)
    ledger.add_label(twice)
    assert (ledger.standing().ties, len(ledger.history)) == (1, 1)


def test_a_pair_of_another_rollout_is_not_counted() -> None:
    ledger = PairLedger()
    ledger.rollout_id = "r2"
    ledger.add_pair(pair(1, "a", "b", rollout="r1"))
    assert ledger.standing().pairs == 0


class Pages:
    """A console that tells one page after the other."""

    def __init__(self, *pages: dict[str, Any] | None) -> None:
        self.pages = list(pages)

    async def cycle(self, cycle_id: str) -> dict[str, Any] | None:
        return self.pages.pop(0) if len(self.pages) > 1 else self.pages[0]


def page(*steps: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"cycle_id": "c", "task": "t", "steps": [{"topic": t, "event": e} for t, e in steps], "progress": None}


async def found(pages: Pages, find: Any, seconds: float = 5.0) -> Any:
    return await follow(pages, "c", find, seconds, lambda page: None, StepLate("late", "wait"))


async def test_a_cycle_is_followed_until_its_event_is_there() -> None:
    pages = Pages(None, page(), page(("datasets.built.v1", {"dataset_id": "d"})))
    event, _ = await found(pages, event_of("datasets.built"))
    assert event == {"dataset_id": "d"}


async def test_a_step_that_gave_up_stops_the_turn_with_its_way_out() -> None:
    failed = {"service": "trainer", "step": "training", "reason": "no disk", "way_out": "free some"}
    with pytest.raises(StepBroke, match="trainer could not finish training: no disk") as error:
        await found(Pages(page(("steps.failed.v1", failed))), event_of("adapters.trained"))
    assert error.value.way_out == "free some"


async def test_a_late_step_is_an_error_and_a_cycle_that_is_over_is_not() -> None:
    with pytest.raises(StepLate):
        await found(Pages(page()), event_of("adapters.trained"), seconds=-1.0)
    event, last = await found(Pages(page(("cycles.finished.v1", {"reason": "x"}))), event_of("adapters.trained"))
    assert event is None
    assert last.last("cycles.finished") == {"reason": "x"}


async def test_a_stage_that_was_passed_between_two_looks_is_still_seen() -> None:
    changed = "rollouts.changed.v1"
    pages = Pages(page(*((changed, {"stage": stage}) for stage in ("shadow", "canary", "promoted"))))
    event, _ = await found(pages, stage_in("canary", "rejected"))
    assert event == {"stage": "canary"}


def test_rejected_rows_are_counted_by_reason_with_an_example_each(tmp_path: Path) -> None:
    lines = [{"reason": "duplicate", "detail": f"d{n}"} for n in range(3)] + [{"reason": "empty", "detail": "e"}]
    (tmp_path / "rejected.jsonl").write_text("\n".join(map(json.dumps, lines)))
    reasons, examples = rejected_examples(str(tmp_path))
    assert reasons == {"duplicate": 3, "empty": 1}
    assert [row["detail"] for row in examples] == ["d0", "e"]
    assert rejected_examples("s3://elsewhere/d")[1] == []


def test_a_page_without_anything_is_empty() -> None:
    assert CyclePage.of(None).stages == []


def report(promoted: bool) -> Report:
    ledger = PairLedger()
    for n in range(30):
        ledger.add_pair(pair(n, "wrong", "right"))
        ledger.add_label(label(n, "right"))
    evidence = {"wins": 30, "losses": 0, "ties": 0, "pending": 0, "wealth": 2000.0, "alpha": 0.00096}
    result = Result(
        task="t",
        promoted=promoted,
        stopped_by="" if promoted else "evaluation gate min_gain",
        evidence="" if promoted else "measured -0.1 <script>",
        before=measure([asked("a", "b")] * 8 + [asked("a", "a")] * 2),
        after=measure([asked("a", "a")] * 9 + [asked("b", "a")]),
        modes=[
            {"name": "card lost", "size": 9, "share": 0.3, "mean_confidence": None, "exemplars": ["where <b>is</b>"]}
        ],
        rollouts=[{"stage": "canary", "reason": "wealth", "evidence": evidence, "candidate_adapter": "c"}],
        stage_labels={"canary": 12, "promoted": 26},
        rejected={"duplicate": 2},
        switched=[Switched("rollback on", "rollback", "", 0.8)],
        seconds=600.0,
    )
    tally = Tally(wrong=3)
    tally.by_purpose.update(low_confidence=300, discordant_pair=30)
    addresses = {"console": "http://127.0.0.1:28090"}
    return Report(result, tally, ledger.history, ledger.standing(), {"before": 20.0, "training": 150.0}, addresses)


def test_the_report_s_contract_has_these_keys() -> None:
    data = as_json(report(promoted=True))
    assert list(data)[:8] == [
        "promoted", "accuracy_before", "accuracy_after", "labels_spent", "pairs", "seconds", "steps", "task",
    ]  # fmt: skip
    assert set(data["accuracy_after"]) == {"value", "low", "high", "n"}
    assert (data["promoted"], data["labels_spent"], data["pairs"]) == (True, 330, 30)
    assert data["steps"][1] == {"name": "training", "seconds": 150.0}


def test_the_page_is_self_contained_and_escapes_what_users_wrote(tmp_path: Path) -> None:
    write(report(promoted=False), tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert text.count("<svg") == 5
    assert "&lt;script&gt;" in text
    assert "where &lt;b&gt;is" in text
    assert "src=" not in text
    assert json.loads((tmp_path / "report.json").read_text())["stopped_by"] == "evaluation gate min_gain"


def test_a_turn_that_broke_early_still_has_a_report(tmp_path: Path) -> None:
    write(Report(Result(task="t"), Tally(), [], PairLedger().standing(), {}, {}), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["accuracy_before"] is None
