"""Gates of many parts, which share one level: none of them may be shown to be worse. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from schemas.base import Gate
from services.evaluator.comparison import ComparedPart
from services.evaluator.parts.judged import Judged, judge_parts
from services.evaluator.statistics.intervals import Groups

_MAX_NAMED = 5


def parts_gate(
    name: str, required: str, what: str, parts: Mapping[str, ComparedPart], groups: Groups, level: float
) -> Gate:
    """Stop a candidate that is shown to be worse in a part (paired tests, Holm). `what`: what the parts are, in words.

    `groups`: of all rows. Parts that are too small to show anything are named, and small ones judged together. If no
    part at all is judged alone and they show nothing, it stays unknown how each of them fares.
    """
    found = judge_parts(groups, parts, level)
    small = [f"{part} ({size})" for part, size in found.too_small.items()]
    few = f" Too few rows to judge (under {found.needed}): {_listed(small)}." if small else ""
    pool = "" if found.p_together is None else _together(found, parts)
    if not found.p_values and not found.together_worse:
        return unknown(name, required, f"{few}{pool}".strip(), found.needed - max(found.too_small.values(), default=0))
    shown = _listed([_shown(part, parts[part]) for part in found.worse])
    detail = f"{len(found.p_values)} of {len(parts)} {what} judged. Worse: {shown or 'none'}.{few}{pool}"
    p_values = [*found.p_values.values(), *([] if found.p_together is None else [found.p_together])]
    passed = not found.worse and not found.together_worse
    return Gate(name=name, passed=passed, measured=min(p_values), required=required, detail=detail[:2_000])


def unknown(name: str, required: str, detail: str, labels: int) -> Gate:
    """Return a gate that stops nothing, and that so many more labelled rows would decide."""
    return Gate(
        name=name,
        passed=True,
        required=required,
        detail=f"Unknown: {labels} more labelled rows would decide. {detail}"[:2_000],
        labels_needed=labels,
    )


def _together(found: Judged, parts: Mapping[str, ComparedPart]) -> str:
    """Say how the small parts fare together, and if they are worse, which lose most."""
    which = "Together" if len(found.pooled) == len(found.too_small) else f"The {len(found.pooled)} smallest together"
    if not found.together_worse:
        return f" {which}: p = {found.p_together:.2g}."
    most = sorted((float(parts[part].apart.sum()), part) for part in found.pooled)
    lost = [_shown(part, parts[part]) for apart, part in most if apart < 0.0]
    return f" {which} worse (p = {found.p_together:.2g}): {_listed(lost)}."


def _shown(name: str, part: ComparedPart) -> str:
    lost, gained = int((part.apart < 0).sum()), int((part.apart > 0).sum())
    before, after = float(part.production.mean()), float(part.candidate.mean())
    return f"{name[:120]}: {before:.0%} → {after:.0%} of {len(part.rows)} rows ({lost} lost, {gained} gained)"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return "; ".join(names[:_MAX_NAMED]) + more
