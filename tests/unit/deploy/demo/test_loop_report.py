from __future__ import annotations

from typing import Any

import pytest

from shared.report.blocks import Link, Table, Text
from shared.report.html import page
from tests.e2e.loop_report import APPROACHES, MISLEADING, problems

BLOCKS = [Text("x"), Text("y", "good"), Table(("approach",), [("a",)]), Link("Inspection", "dataset.html")]
PAGE = page("support-desk", BLOCKS) + "<svg></svg>" * 5
MEASURED = [
    {"kind": kind, "accuracy": {"n": 40}, "latency_ms_p95": 9.0, "cost_per_month": 0.2} for kind in sorted(APPROACHES)
]
ATTACKED = [{"kind": kind, "candidate": {"confident_wrong": {"value": 0.1}}} for kind in sorted(MISLEADING)]
SOUND: dict[str, Any] = {
    "promoted": True, "stopped_by": None, "evidence": None, "labels_spent": 700, "pairs": 100,
    "accuracy_before": {"value": 0.12, "low": 0.08, "high": 0.18, "n": 140},
    "accuracy_after": {"value": 0.92, "low": 0.86, "high": 0.95, "n": 140},
    "served_after": {"primary": 140}, "task": "support-desk",
    "inspection": {"checks": [{"result": "passed"}, {"result": "unknown"}]}, "approaches": {"approaches": MEASURED},
    "adversarial": {"results": ATTACKED},
}  # fmt: skip


def test_a_promoted_loop_with_its_plots_is_sound() -> None:
    assert problems(SOUND, PAGE) == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"promoted": False, "stopped_by": "gate"}, "nothing was promoted"),
        ({"accuracy_after": None}, "nothing was promoted"),
        ({"accuracy_after": {"value": 0.3, "low": 0.2, "high": 0.4, "n": 140}}, "accuracy rose"),
        ({"pairs": 0}, "no pair"),
        ({"labels_spent": 0}, "no label"),
        ({"served_after": {"base": 140}}, "does not answer"),
        ({"approaches": None}, "approaches lacks"),
        ({"approaches": {"approaches": MEASURED[1:]}}, "approaches lacks ['base']"),
        ({"approaches": {"approaches": [{**row, "cost_per_month": None} for row in MEASURED]}}, "costs a month"),
        ({"inspection": None}, "not inspected"),
        ({"adversarial": None}, "adversarial report lacks"),
        ({"adversarial": {"results": ATTACKED[1:]}}, "adversarial report lacks ['casing']"),
        ({"inspection": {"checks": [{"result": "failed"}]}}, "did not pass"),
    ],
)
def test_each_planted_fault_of_a_report_is_named(fault: dict[str, Any], said: str) -> None:
    assert said in " ".join(problems({**SOUND, **fault}, PAGE))


def test_a_page_without_plots_or_of_another_task_is_named() -> None:
    assert len(problems(SOUND, "<h1>another</h1>")) == 4
