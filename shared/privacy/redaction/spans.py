"""Where in a text something personal stands, and which of two findings that overlap holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_SHORTEST_REST = 3


@dataclass(frozen=True, slots=True)
class TextSpan:
    """`text[start:end]` is of `kind`. Where two overlap the one of the higher `weight` holds, of equals the longer."""

    start: int
    end: int
    kind: str
    weight: int = 0


def without_overlaps(text: str, spans: Iterable[TextSpan]) -> list[TextSpan]:
    """Disjoint spans, sorted. Of a span that a heavier one cuts, the rest stays: it was found to be personal too."""
    taken = bytearray(len(text))
    kept: list[TextSpan] = []
    for span in sorted(spans, key=lambda s: (-s.weight, s.start - s.end, s.start)):
        for start, end in _free(taken, span.start, span.end):
            piece = text[start:end]
            left = len(piece) - len(piece.lstrip(" ,;\n"))
            start, end = start + left, start + left + len(piece.strip(" ,;\n"))
            whole = (start, end) == (span.start, span.end)
            if start < end and (whole or sum(c.isalnum() for c in text[start:end]) >= _SHORTEST_REST):
                kept.append(TextSpan(start, end, span.kind, span.weight))
                taken[start:end] = b"\x01" * (end - start)  # Not what was let go: another may have it as a whole.
    return sorted(kept, key=lambda s: s.start)


def _free(taken: bytearray, start: int, end: int) -> list[tuple[int, int]]:
    pieces: list[tuple[int, int]] = []
    while start < end:
        begin = taken.find(0, start, end)
        if begin < 0:
            break
        stop = taken.find(1, begin, end)
        start = end if stop < 0 else stop
        pieces.append((begin, start))
    return pieces


def merged(spans: Iterable[TextSpan]) -> list[TextSpan]:
    """Spans of one kind, those that overlap joined to one."""
    joined: list[TextSpan] = []
    for span in sorted(spans, key=lambda s: s.start):
        if joined and span.start < joined[-1].end:
            last = joined.pop()
            joined.append(TextSpan(last.start, max(last.end, span.end), last.kind, max(last.weight, span.weight)))
        else:
            joined.append(span)
    return joined
