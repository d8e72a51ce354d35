"""Gates of many parts, which share one level: none of them may be shown to be worse. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from schemas.base import Gate
from services.evaluator.comparison import Part
from services.evaluator.statistics.intervals import Groups
from services.evaluator.statistics.paired import holm, p_worse, rows_to_show

_MAX_NAMED = 5


def parts_gate(name: str, required: str, what: str, parts: Mapping[str, Part], groups: Groups, level: float) -> Gate:
    """Stop a candidate that is shown to be worse in a part (paired tests, Holm). `what`: what the parts are, in words.

    `groups`: of all rows. Parts that are too small to show anything are named and not judged.
    """
    sizes = {part: len(set(groups[found.rows].tolist())) for part, found in parts.items()}
    by_size = sorted(parts, key=lambda part: (-sizes[part], part))
    count, needed = _judged([sizes[part] for part in by_size], level)
    judged = by_size[:count]
    small = [f"{part} ({sizes[part]})" for part in by_size[count:]]
    few = f" Too few rows to judge (under {needed}): {_listed(small)}." if small else ""
    if not judged:
        return unknown(name, required, few.strip(), needed - max(sizes.values(), default=0))
    adjusted = holm([p_worse(parts[part].apart, groups[parts[part].rows]) for part in judged])
    worse = [part for part, p in sorted(zip(judged, adjusted, strict=True), key=lambda pair: pair[1]) if p < level]
    shown = _listed([_shown(part, parts[part]) for part in worse])
    detail = f"{len(judged)} of {len(parts)} {what} judged. Worse: {shown or 'none'}.{few}"
    return Gate(name=name, passed=not worse, measured=min(adjusted), required=required, detail=detail[:2_000])


def unknown(name: str, required: str, detail: str, labels: int) -> Gate:
    """Return a gate that stops nothing, and that so many more labelled rows would decide."""
    return Gate(
        name=name,
        passed=True,
        required=required,
        detail=f"Unknown: {labels} more labelled rows would decide. {detail}"[:2_000],
        labels_needed=labels,
    )


def _judged(sizes: Sequence[int], level: float) -> tuple[int, int]:
    """Return how many parts are judged, whose sizes come largest first, and how many rows the next ones would need.

    As many as possible, so that each would be shown to be worse among so many if all of its rows were lost. Of parts of
    one size all are judged or none.
    """
    count = 0
    for size in sorted(set(sizes)):
        as_large = sum(other >= size for other in sizes)
        if size >= rows_to_show(level / as_large):
            count = as_large
            break
    more = sum(size >= sizes[count] for size in sizes) if count < len(sizes) else count
    return count, rows_to_show(level / more)


def _shown(name: str, part: Part) -> str:
    lost, gained = int((part.apart < 0).sum()), int((part.apart > 0).sum())
    before, after = float(part.production.mean()), float(part.candidate.mean())
    return f"{name[:120]}: {before:.0%} → {after:.0%} of {len(part.rows)} rows ({lost} lost, {gained} gained)"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return "; ".join(names[:_MAX_NAMED]) + more
