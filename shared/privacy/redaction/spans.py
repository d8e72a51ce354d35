"""Spans of text that hold personal data, and how overlapping spans are resolved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_MIN_REMAINDER_CHARACTERS = 3


@dataclass(frozen=True, slots=True)
class TextSpan:
    """`text[start:end]` is personal data of `kind`. Of two that overlap the heavier wins, of equal ones the longer."""

    start: int
    end: int
    kind: str
    weight: int = 0


def without_overlaps(text: str, spans: Iterable[TextSpan]) -> list[TextSpan]:
    """Return disjoint spans, sorted. What a heavier span leaves of another stays: it is personal data too."""
    taken = bytearray(len(text))
    disjoint: list[TextSpan] = []
    for span in sorted(spans, key=lambda s: (-s.weight, s.start - s.end, s.start)):
        for start, end in _free(taken, span.start, span.end):
            piece = text[start:end]
            start += len(piece) - len(piece.lstrip(" ,;\n"))
            end = start + len(piece.strip(" ,;\n"))
            is_whole = (start, end) == (span.start, span.end)
            if start < end and (is_whole or sum(c.isalnum() for c in text[start:end]) >= _MIN_REMAINDER_CHARACTERS):
                disjoint.append(TextSpan(start, end, span.kind, span.weight))
                taken[start:end] = b"\x01" * (end - start)  # Not what was stripped: another span may cover it.
    return sorted(disjoint, key=lambda s: s.start)


def _free(taken: bytearray, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        begin = taken.find(0, start, end)
        if begin < 0:
            break
        stop = taken.find(1, begin, end)
        start = end if stop < 0 else stop
        yield begin, start


def merged(spans: Iterable[TextSpan]) -> list[TextSpan]:
    """Join those of these spans of one kind that overlap."""
    joined: list[TextSpan] = []
    for span in sorted(spans, key=lambda s: s.start):
        if joined and span.start < joined[-1].end:
            last = joined.pop()
            joined.append(TextSpan(last.start, max(last.end, span.end), last.kind, max(last.weight, span.weight)))
        else:
            joined.append(span)
    return joined
