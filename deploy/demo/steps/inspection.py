"""Shows the inspection of a data set: what was checked, what was left out and why. It is read from quality.json."""

from __future__ import annotations

from pathlib import Path

from deploy.demo.state import LoopContext
from schemas.quality import QualityReport
from shared.report.dataset import inspection_blocks

REPORT, PAGE = "quality.json", "quality.html"


async def show_inspection(loop: LoopContext, uri: str) -> None:
    """Show the inspection in a published folder, and remember it for the report. Its page is linked there.

    A folder that this machine has no access to is not shown: the console has the same.
    """
    folder = await loop.fetch(uri)
    if folder is None or not (folder / REPORT).is_file():
        return
    inspection = QualityReport.model_validate_json((folder / REPORT).read_bytes())
    loop.result.cycle.inspection, loop.result.cycle.inspection_page = inspection, _existing(folder / PAGE)
    loop.terminal.show(*inspection_blocks(inspection))


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
