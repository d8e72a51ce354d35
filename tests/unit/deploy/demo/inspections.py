"""Inspections of data sets for the tests of the loop."""

from __future__ import annotations

from schemas.base import CheckResult, utc_now
from schemas.datasets import Fate, LeftOutCount
from schemas.quality import Check, QualityReport


def inspection(*failed: str) -> QualityReport:
    checks = [
        Check(name=name, title=name, result=CheckResult.FAILED, measured=0.4, required=">= 0.9", detail="a <b> c")
        for name in failed
    ]
    known = Check(name="min_examples", title="Enough examples", result=CheckResult.PASSED, measured=9, required=">= 5")
    unknown = Check(name="psi", title="Distribution", result=CheckResult.UNKNOWN, measured=None, required="<= 1")
    return QualityReport(
        task="t", task_revision="1", cycle_id="c", dataset_id=None, created_at=utc_now(), passed=not failed,
        checks=(*checks, known, unknown), train_examples=9, eval_examples=3,
        left_out=(LeftOutCount(fate=Fate.CAPPED, reason="copies", count=2),),
    )  # fmt: skip
