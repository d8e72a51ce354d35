"""Sentences with labelled personal data, and how much of it a redactor finds.

A line is a text, `\\n` a line break in it. `[[KIND:words]]` must be redacted; `[[~:words]]` may be (a town in the news,
a postcode alone) and does not count. A line without labels holds nothing to redact.
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
MINIMUM = {"structured": 0.99, "recall": 0.93, "precision": 0.95}
"""What each set must reach."""
_LABEL = re.compile(r"\[\[([A-Z_]+|~):(.*?)\]\]")
_TITLE = re.compile(r"(?:mr|mrs|ms|miss|dr|prof)\b\.? ", re.I)


@dataclass(frozen=True)
class Gold:
    """A text and the (start, end, kind) of the personal data in it."""

    text: str
    spans: tuple[tuple[int, int, str], ...]


@dataclass
class Score:
    """Labelled data found and in all, by kind; found spans that are right, wrong and missing."""

    found: Counter[str] = field(default_factory=Counter)
    labelled: Counter[str] = field(default_factory=Counter)
    right: int = 0
    wrong: list[tuple[str, str]] = field(default_factory=list)
    missed: list[tuple[str, str, str]] = field(default_factory=list)

    def recall(self, kinds: Iterable[str] | None = None) -> float:
        """Return the share of these kinds (None: all) of which no letter or digit stays; 1 if there are none."""
        kinds = list(self.labelled if kinds is None else kinds)
        labelled = sum(self.labelled[kind] for kind in kinds)
        return sum(self.found[kind] for kind in kinds) / labelled if labelled else 1.0

    @property
    def structured(self) -> float:
        """Recall of data of a fixed format: all but names, addresses and towns."""
        return self.recall(STRUCTURED)

    @property
    def precision(self) -> float:
        """Share of the found spans that overlap labelled data; those that overlap only a `~` do not count."""
        total = self.right + len(self.wrong)
        return self.right / total if total else 1.0


def read(file: Path) -> list[Gold]:
    """Read the sentences of a file."""
    return [_parsed(line.replace("\\n", "\n")) for line in file.read_text("utf-8").splitlines() if line.strip()]


def sets() -> dict[str, list[Gold]]:
    """Read all sets, by name; pii60 where it lies beside the checkout."""
    found = {file.stem: read(file) for file in sorted(SETS.glob("*.txt"))}
    if PII60.is_dir():
        found = {"pii60": read(PII60 / "pii60.txt") + read(PII60 / "neg40.txt"), **found}
    return found


def score(golds: Sequence[Gold], spans: Sequence[Sequence[TextSpan]]) -> Score:
    """Score found spans. A title ("Dr") before a name may stay; the kind of a found span does not matter."""
    result = Score()
    for gold, found in zip(golds, spans, strict=True):
        covered = bytearray(len(gold.text))
        for span in found:
            covered[span.start : span.end] = b"\x01" * (span.end - span.start)
            kinds = {kind for start, end, kind in gold.spans if start < span.end and span.start < end}
            if kinds - {"~"}:
                result.right += 1
            elif not kinds:
                result.wrong.append((gold.text[span.start : span.end], gold.text))
        for start, end, kind in gold.spans:
            if kind == "~":
                continue
            title = _TITLE.match(gold.text, start, end)
            begin = title.end() if title else start
            is_found = all(covered[i] for i in range(begin, end) if gold.text[i].isalnum())
            result.labelled[kind] += 1
            result.found[kind] += is_found
            if not is_found:
                result.missed.append((kind, gold.text[start:end], gold.text))
    return result


def shortfalls(result: Score) -> list[str]:
    """Describe what of a score is below its minimum."""
    found = {"structured": result.structured, "recall": result.recall(), "precision": result.precision}
    return [f"{k}: found {v:.3f}, expected at least {MINIMUM[k]}" for k, v in found.items() if v < MINIMUM[k]]


def _parsed(line: str) -> Gold:
    text, spans, position = "", [], 0
    for label in _LABEL.finditer(line):
        text += line[position : label.start()]
        spans.append((len(text), len(text) + len(label[2]), label[1]))
        text, position = text + label[2], label.end()
    return Gold(text + line[position:], tuple(spans))
