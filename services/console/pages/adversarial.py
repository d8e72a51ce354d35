"""What changed, injected and foreign inputs do to both arms, as a part of a cycle's page. Pure."""

from __future__ import annotations

from html import escape
from typing import Any

from schemas.adversarial import AdversarialReport
from services.console.pages.layout import Markup, muted, table
from shared.grading.adversarial_table import COLUMNS, NOTE, adversarial_finding, adversarial_rows


def adversarial_parts(event: dict[str, Any]) -> list[str]:
    """Return the table of the adversarial set, folded; nothing where an evaluation has none.

    `event`: an `adapters.evaluated`.
    """
    if (found := event.get("adversarial")) is None:
        return []
    report = AdversarialReport.model_validate(found)
    title = "Inputs that mislead: typos, casing, distractors, long, injections, foreign"
    rows = [(t.name, t.inputs, t.candidate, t.production) for t in report.techniques]
    techniques = (
        table(("Injections by technique", "Inputs", "Obeyed by candidate", "By production"), rows) if rows else ""
    )
    body = table(COLUMNS, adversarial_rows(report)) + muted(NOTE) + techniques
    return [
        Markup(f"<p>{escape(adversarial_finding(report))}</p>"),
        f"<details><summary class='small muted'>{title}</summary>{body}</details>",
    ]
