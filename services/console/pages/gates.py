"""Gates as a table, as a part of a cycle's page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas.base import CheckResult, Gate
from services.console.pages.layout import Markup, number, table, tag


def gates_table(gates: Sequence[dict[str, Any]]) -> str:
    """Return each gate's result with its reason; nothing without gates."""
    if not gates:
        return ""
    rows = [
        (g["name"].replace("_", " "), _gate_tag(g), number(g["measured"], 3), g["required"], g["detail"])
        for g in gates
    ]  # fmt: skip
    return table(("Gate", "", "Measured", "Required", ""), rows)


_RESULT_KINDS = {CheckResult.PASSED: "good", CheckResult.FAILED: "bad", CheckResult.UNKNOWN: "open"}


def _gate_tag(gate: dict[str, Any]) -> Markup:
    result = Gate.model_validate(gate).result
    return tag(result, _RESULT_KINDS[result])
