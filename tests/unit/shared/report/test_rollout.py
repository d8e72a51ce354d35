"""A rollout's events are rendered as a plot of the wealth, the evidence as it is now, and its moves."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.report.blocks import Plot
from shared.report.html import fragment
from shared.report.rollout import evidence_texts, rollout_blocks
from tests.unit.shared.report.reading import printed, rows_of

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def changed(minute: float, wealth: float, stage: str = "shadow", reason: str = "passed", **more: Any) -> dict[str, Any]:
    evidence = {
        "wins": 7, "ties": 40, "losses": 2, "pending": 3, "labels": 11, "unidentified": 0, "wealth": wealth,
        "alpha": 0.001, "gain_low": -0.012, "gain_high": 0.25, "labels_expected": 88,
    }  # fmt: skip
    return {
        "occurred_at": (NOON + timedelta(minutes=minute)).isoformat(), "stage": stage, "reason": reason,
        "primary_adapter": None, "candidate_adapter": "a1", "moved_by": "ratchet", "paused": "", "canary_percent": 5,
        "evidence": evidence | more.pop("evidence", {}),
        "spec": {"rollout": {"canary_wealth": 20.0}}, **more,
    }  # fmt: skip


def plot_of(events: list[dict[str, Any]]) -> Plot:
    (plot,) = [block for block in rollout_blocks(events) if isinstance(block, Plot)]
    return plot


def line(events: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """The points of the wealth's line, in pixels."""
    ((path,),) = (re.findall(r'<path d="([^"]+)"', str(fragment([plot_of(events)]))),)
    x0, y0 = map(float, re.findall(r"M([\d.]+) ([\d.]+)", path)[0])
    return [(x0, y0)] + [(float(x), float(y)) for x, y in re.findall(r"H([\d.]+)V([\d.]+)", path)]


def card_of(*events: dict[str, Any]) -> str:
    return printed(*rollout_blocks(events))


def test_the_plot_shows_the_wealth_over_time_against_both_thresholds() -> None:
    events = [changed(0, 1), changed(30, 20), changed(40, 1_000), changed(60, 1_000, "canary", "earned")]
    plot, points = plot_of(events), line(events)
    assert plot.levels == [(20.0, "canary"), (1_000.0, "everyone, 1/α")]
    assert points[2][1] < points[1][1] < points[0][1]
    (x0, x1, x2, x3) = (x for x, _ in points)
    assert (x1 - x0) / (x3 - x0) == pytest.approx(0.5, abs=0.01)
    assert (x2 - x0) / (x3 - x0) == pytest.approx(2 / 3, abs=0.01)
    assert plot.moments == [(0.0, "shadow"), (3_600.0, "canary, 5 %")]
    assert plot.x.ticks[1][1].endswith("after 1 h 0 min")


def test_the_time_of_control_after_a_promotion_is_told_by_its_own_pairs() -> None:
    since = {"control_labels": 14, "control_gain_low": -0.01, "control_gain_high": 0.31, "guards": 3.5}
    promoted = changed(9, 1_000, "promoted", canary_percent=95, previous_adapter="a0", control=True, evidence=since)
    card = card_of(changed(0, 1), promoted)
    assert "with 5 % of users still on a0 as control" in card
    assert "-1.0 to +31.0 points by 14 labels" in card and "guards 3.5 of 20" in card
    assert "as control" not in card_of(changed(0, 1), promoted | {"control": False})


@pytest.mark.parametrize("wealth", [0.0, 1e-9, 1.0, 1e300])
def test_any_wealth_and_a_single_event_fit_into_the_plot(wealth: float) -> None:
    drawn = str(fragment([plot_of([changed(0, wealth)])]))
    assert "nan" not in drawn and "inf" not in drawn and drawn.count("<circle") == 1
    assert all(0 <= y <= 240 for _, y in line([changed(0, 1), changed(0, wealth)]))


def test_the_card_has_the_evidence_as_it_is_now() -> None:
    events = [changed(0, 1), changed(1, 12.5, evidence={"unidentified": 4})]
    assert rows_of(rollout_blocks(events), "when")[0][3] == "1"
    shown = str(fragment(rollout_blocks(events)))
    for figure in ("12.5", "1,000", "7", "40", "2", "3", "11", "88"):
        assert f"<b>{figure}</b>" in shown
    assert "-1.2 to +25.0 points" in shown
    assert "4 tickets are of unknown authors" in shown and "warning" not in shown
    assert "warning: less sure <0.4>" in card_of(changed(0, 1, evidence={"warning": "less sure <0.4>"}))
    unknown = str(fragment(rollout_blocks([changed(0, 1, evidence={"labels_expected": None})])))
    assert "<b>–</b><span>labels expected" in unknown and "unknown authors" not in unknown


def test_newer_evidence_is_a_point_and_no_move() -> None:
    in_canary = [changed(minute, 25, "canary", "earned") for minute in (3, 4)]
    moves = rows_of(rollout_blocks([changed(0, 1), changed(1, 5), changed(2, 9), *in_canary]), "when")
    assert [(move[2], move[-1]) for move in moves] == [("shadow", "passed"), ("canary, 5 %", "earned")]


def test_each_step_of_a_canary_is_a_move_and_a_line_of_the_plot() -> None:
    steps = [changed(minute, 2_000, "canary", "earned", canary_percent=p) for minute, p in ((2, 5), (3, 5), (4, 25))]
    events = [changed(0, 1), *steps]
    stages = ["shadow", "canary, 5 %", "canary, 25 %"]
    assert [move[2] for move in rows_of(rollout_blocks(events), "when")] == stages
    assert [name for _, name in plot_of(events).moments] == stages


def test_a_pause_is_shown_with_its_reason_and_who_made_it() -> None:
    card = card_of(changed(0, 1, reason="why", paused="a freeze", moved_by="ana"))
    assert "paused: a freeze" in card and "shadow (paused)" in card and "ana" in card
    assert "paused" not in card_of(changed(0, 1))


def test_the_margin_is_shown_where_a_task_promotes_what_is_merely_not_worse() -> None:
    assert "merely not worse" not in card_of(changed(0, 1))
    margin = {"margin_left": 0.007, "non_inferiority_wealth": 12.34, "margin_debited": 0.013}
    (note,) = evidence_texts(changed(0, 1, evidence=margin)["evidence"])
    assert "0.7 points are left for candidates that are merely not worse" in note.text
    assert "being worse by more 12.3 of 1,000" in note.text
    assert "Promoted as not worse by more than 1.3 points." in note.text
