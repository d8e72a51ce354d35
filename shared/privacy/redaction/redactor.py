"""Replaces personal data in texts by surrogates, before any of it is stored."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from schemas.conversation import MAX_SURROGATE, MAX_SURROGATES
from schemas.task_settings import RedactionSettings
from shared.privacy.redaction.detect.addresses import find_addresses
from shared.privacy.redaction.detect.custom_patterns import find_custom_patterns
from shared.privacy.redaction.detect.patterns import find_patterns
from shared.privacy.redaction.detect.people import People
from shared.privacy.redaction.repeats import compact_number, find_repeats
from shared.privacy.redaction.replace.surrogates import Surrogates
from shared.privacy.redaction.slices import TextSlice
from shared.privacy.redaction.spans import TextSpan, without_overlaps
from shared.privacy.redaction.spelling import Spelling


@dataclass(frozen=True)
class Rules:
    """What a task wants redacted. `patterns`: (name, regular expression) of the task's own kinds of personal data."""

    enabled: bool = True
    names: bool = True
    patterns: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, settings: RedactionSettings) -> Self:
        """Build the rules of a task's settings."""
        return cls(settings.enabled, settings.names, tuple((p.name, p.regex) for p in settings.patterns))


@dataclass(frozen=True)
class Redacted:
    """A text without personal data, and how many pieces were replaced, in all and by kind.

    `surrogates`: what stands in their place. Only by these can a later pass tell them from personal data. `numbers`: by
    the original, both as one word, the surrogates of the numbers, which other texts may have, too.
    """

    text: str
    count: int
    kinds: Mapping[str, int]
    surrogates: tuple[str, ...] = field(default=(), kw_only=True)
    numbers: Mapping[str, str] = field(default_factory=dict, kw_only=True, repr=False)


@dataclass(frozen=True)
class RedactedSlice(Redacted):
    """A slice of a text without personal data. `end`: where in the text the next one begins."""

    end: int


def listed_surrogates(surrogates: Iterable[str]) -> tuple[str, ...]:
    """Return the surrogates as an event lists them: each once, sorted, and no more than the contract allows.

    One that is left out is taken for personal data by a later pass, and replaced once more.
    """
    short = {surrogate for surrogate in surrogates if 0 < len(surrogate) <= MAX_SURROGATE}
    return tuple(sorted(short)[:MAX_SURROGATES])


class Redactor:
    """Finds and replaces personal data. Build one per process (250 MB, 3 s of CPU to warm up). Not thread-safe."""

    def __init__(self, key: bytes) -> None:
        """Take a `key` of at least 16 secret bytes; the same key gives the same surrogates."""
        self._surrogates = Surrogates(key)
        self._people: People | None = None

    def redact(self, texts: Sequence[str], rules: Rules, already_redacted: Sequence[str] = ()) -> list[Redacted]:
        """Return the texts without personal data, in order.

        `already_redacted`: texts that were redacted before. A finding that also stands in one of them is a surrogate
        and stays as it is: it must not get a surrogate of its own.
        """
        if not rules.enabled:
            return [Redacted(text, 0, {}) for text in texts]
        return [
            self._replaced(text, [s for s in spans if not _stands_in_any(text[s.start : s.end], already_redacted)])
            for text, spans in zip(texts, self.find(texts, rules), strict=True)
        ]

    def redact_slices(self, slices: Sequence[TextSlice], rules: Rules) -> list[RedactedSlice]:
        """Return the slices without personal data, in order. What begins in a slice is replaced with it, whole."""
        if not rules.enabled:
            return [RedactedSlice(s.text[s.start : s.end], 0, {}, s.end) for s in slices]
        found = self.find([s.window for s in slices], rules)
        return [self._replaced_slice(part, part.spans(spans)) for part, spans in zip(slices, found, strict=True)]

    def find(self, texts: Sequence[str], rules: Rules) -> list[list[TextSpan]]:
        """Find the personal data of each text: disjoint spans, sorted."""
        found: list[list[TextSpan]] = [[] for _ in texts]
        spellings = [Spelling(text) for text in texts]
        if rules.names and texts:
            self._people = self._people or People()
            found = self._people.find([spelling.visible for spelling in spellings])
        for spelling, spans in zip(spellings, found, strict=True):
            spans.extend(find_patterns(spelling.formats))
            spans.extend(find_addresses(spelling.formats))
            for name, regex in rules.patterns:
                spans.extend(find_custom_patterns(spelling.visible, name, regex))
            spans.extend(list(find_repeats(spelling.formats, spans)))
        return [
            without_overlaps(text, spelling.in_text(spans)) if spans else []
            for text, spelling, spans in zip(texts, spellings, found, strict=True)
        ]

    def _replaced(self, text: str, spans: Sequence[TextSpan]) -> Redacted:
        redacted = self._replaced_slice(TextSlice(text, 0, len(text)), spans)
        return Redacted(
            redacted.text, redacted.count, redacted.kinds, surrogates=redacted.surrogates, numbers=redacted.numbers
        )

    def _replaced_slice(self, part: TextSlice, spans: Sequence[TextSpan]) -> RedactedSlice:
        text, pieces, position = part.text, [], part.start
        found = [(span.kind, Spelling(text[span.start : span.end])) for span in spans]
        surrogates = tuple(said.written(self._surrogates.of(kind, said.plain)) for kind, said in found)
        for span, surrogate in zip(spans, surrogates, strict=True):
            pieces += [text[position : span.start], surrogate]
            position = span.end
        pieces.append(text[position : part.end])
        kinds = Counter(span.kind for span in spans)
        numbers = {
            number: compact
            for (kind, said), surrogate in zip(found, surrogates, strict=True)
            if (number := compact_number(kind, said.plain)) and (compact := compact_number(kind, surrogate))
        }
        end = max(position, part.end)
        return RedactedSlice("".join(pieces), len(spans), kinds, end, surrogates=surrogates, numbers=numbers)


def _stands_in_any(found: str, texts: Iterable[str]) -> bool:
    """Return True if one of the texts has it, and not only as a part of a word or number: "Sam" is not in "Samsung".

    Behind the sign of a line break in JSON begins a word: "Regards,\\nSam".
    """
    before = r"(?:(?<![^\W_])|(?<=\\[nrt]))" if found[:1].isalnum() else ""
    alone = re.compile(before + re.escape(found) + (r"(?![^\W_])" if found[-1:].isalnum() else ""))
    return any(found in text and alone.search(text) for text in texts)
