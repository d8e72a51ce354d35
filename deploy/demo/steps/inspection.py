"""Shows the inspection of a data set: what was checked, what was left out and why. It is read from quality.json."""

from __future__ import annotations

from pathlib import Path

from deploy.demo.state import LoopContext
from schemas.base import CheckResult
from schemas.quality import QualityReport

REPORT, PAGE = "quality.json", "quality.html"
_SHOWN = 110
"""Characters of a detail or an example in the terminal."""


async def show_inspection(loop: LoopContext, uri: str) -> None:
    """Show the inspection in a published folder, and remember it for the report. Its page is linked there.

    A folder that this machine has no access to is not shown: the console has the same.
    """
    folder = await loop.fetch(uri)
    if folder is None or not (folder / REPORT).is_file():
        return
    inspection = QualityReport.model_validate_json((folder / REPORT).read_bytes())
    loop.result.cycle.inspection, loop.result.cycle.inspection_page = inspection, _existing(folder / PAGE)
    loop.terminal.table(
        f"Inspection of the data set: {'passed' if inspection.passed else 'stopped'}",
        ("check", "", "measured", "required", ""),
        (
            (check.title, check.result.value, _number(check.measured), check.required, check.detail[:_SHOWN])
            for check in sorted(inspection.checks, key=lambda check: check.result is not CheckResult.FAILED)
        ),
    )
    if inspection.left_out:
        examples = {(sample.fate, sample.reason): sample.detail or sample.text for sample in inspection.samples}
        loop.terminal.table(
            "Left out",
            ("where it ended", "reason", "rows", "for example"),
            (
                (row.fate.value, row.reason, row.count, examples.get((row.fate, row.reason), "")[:_SHOWN])
                for row in inspection.left_out
            ),
        )


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
