"""Sentences with their personal data marked, and how much of it a redactor finds.

A line is a text, `\\n` a line break in it. `[[KIND:words]]` must go; `[[~:words]]` may go or stay (a town in the news,
a postcode alone) and counts for nothing. A line without marks has nothing that may go.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.privacy.redaction.spans import TextSpan
from tests.conftest import ROOT

SETS = Path(__file__).parent / "data" / "redaction"
PII60 = ROOT.parent / "shared" / "data" / "pii60"
MISSING = (
    f"pii60 is not here: put pii60.txt and neg40.txt in {Path('..', 'shared', 'data', 'pii60')} beside the checkout"
)
STRUCTURED = ("EMAIL", "PHONE", "CREDIT_CARD", "IBAN", "ACCOUNT", "SSN", "ID", "IP", "DOB", "CRYPTO")
LEAST = {"structured": 0.99, "recall": 0.93, "precision": 0.95}
"""What each set must have."""
_MARK = re.compile(r"\[\[([A-Z_]+|~):(.*?)\]\]")
_TITLE = re.compile(r"(?:mr|mrs|ms|miss|dr|prof)\b\.? ", re.I)


@dataclass(frozen=True)
class Gold:
    """A text and the (start, end, kind) of what is marked in it."""

    text: str
    marks: tuple[tuple[int, int, str], ...]


@dataclass
class Score:
    """Found and all marks by kind; spans that hit no mark; spans in all that count."""

    found: Counter[str] = field(default_factory=Counter)
    marked: Counter[str] = field(default_factory=Counter)
    right: int = 0
    wrong: list[tuple[str, str]] = field(default_factory=list)
    missed: list[tuple[str, str, str]] = field(default_factory=list)

    def recall(self, kinds: Iterable[str] | None = None) -> float:
        """Share of the marks of these kinds (None: all) of which not one letter or digit stays; 1 if there is none."""
        wanted = list(self.marked if kinds is None else kinds)
        marked = sum(self.marked[kind] for kind in wanted)
        return sum(self.found[kind] for kind in wanted) / marked if marked else 1.0

    @property
    def structured(self) -> float:
        """Recall of what has a form: all but names, addresses and towns."""
        return self.recall(STRUCTURED)

    @property
    def precision(self) -> float:
        """Share of what was replaced that overlaps a mark; what overlaps only a `~` is left out."""
        total = self.right + len(self.wrong)
        return self.right / total if total else 1.0


def read(file: Path) -> list[Gold]:
    """The sentences of a file."""
    return [_parsed(line.replace("\\n", "\n")) for line in file.read_text("utf-8").splitlines() if line.strip()]


def sets() -> dict[str, list[Gold]]:
    """Every set there is, by name; pii60 where it lies beside the checkout."""
    found = {file.stem: read(file) for file in sorted(SETS.glob("*.txt"))}
    if PII60.is_dir():
        found = {"pii60": read(PII60 / "pii60.txt") + read(PII60 / "neg40.txt"), **found}
    return found


def score(golds: Sequence[Gold], spans: Sequence[Sequence[TextSpan]]) -> Score:
    """How these spans do. A title ("Dr") before a name may stay. The kind that a span was given does not matter."""
    result = Score()
    for gold, found in zip(golds, spans, strict=True):
        covered = bytearray(len(gold.text))
        for span in found:
            covered[span.start : span.end] = b"\x01" * (span.end - span.start)
            hit = {kind for start, end, kind in gold.marks if start < span.end and span.start < end}
            if hit - {"~"}:
                result.right += 1
            elif not hit:
                result.wrong.append((gold.text[span.start : span.end], gold.text))
        for start, end, kind in gold.marks:
            if kind == "~":
                continue
            title = _TITLE.match(gold.text, start, end)
            begin = title.end() if title else start
            whole = all(covered[i] for i in range(begin, end) if gold.text[i].isalnum())
            result.marked[kind] += 1
            result.found[kind] += whole
            if not whole:
                result.missed.append((kind, gold.text[start:end], gold.text))
    return result


def below(result: Score) -> list[str]:
    """What of a score is less than it must be, in words."""
    found = {"structured": result.structured, "recall": result.recall(), "precision": result.precision}
    return [f"{k}: found {v:.3f}, expected at least {LEAST[k]}" for k, v in found.items() if v < LEAST[k]]


def _parsed(line: str) -> Gold:
    text, marks, position = "", [], 0
    for mark in _MARK.finditer(line):
        text += line[position : mark.start()]
        marks.append((len(text), len(text) + len(mark[2]), mark[1]))
        text, position = text + mark[2], mark.end()
    return Gold(text + line[position:], tuple(marks))
