"""Benchmark of redaction: recall, precision and speed, beside plain Presidio with the same model.

Recall by kind and precision on pii60 and on the sets in `data/redaction/` (its README says where each comes from); then
texts of 30 to 60 words per second, in batches, on one core. Presidio only finds, Ratchet replaces too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from shared.privacy.redaction import Redactor, Rules
from shared.privacy.redaction.spans import TextSpan
from tests.benchmarks import gold
from tests.benchmarks.gold import Gold, Score
from tests.benchmarks.table import Measured, compare, report

_WORDS, _BATCH, _PAIRS = 30, 128, 5
_IGNORED_KINDS = ("DATE_TIME", "NRP", "URL")
"""Ignored in Presidio's precision, to be fair: it finds every date, nationality and link."""
_RULES = Rules()


def main() -> None:
    """Run, report, and exit with 1 if a set is below a minimum."""
    redactor, presidio = Redactor(b"a key of the benchmark's own"), _presidio()
    measured: list[Measured] = []
    shortfalls: list[str] = []
    sets = gold.sets()
    if "pii60" not in sets:
        Console().print(gold.MISSING, style="yellow")
    for name, golds in sets.items():
        texts = [g.text for g in golds]
        ours = gold.score(golds, redactor.find(texts, _RULES))
        theirs, fair = gold.score(golds, presidio(texts)), gold.score(golds, presidio(texts, _IGNORED_KINDS))
        _show(name, golds, ours, theirs, fair)
        measured += _figures(name, ours)
        measured.append(Measured(f"{name}: Presidio's recall", "share", theirs.recall()))
        measured.append(Measured(f"{name}: Presidio's precision", "share", fair.precision))
        shortfalls += [f"{name}: {shortfall}" for shortfall in gold.shortfalls(ours)]
    texts = _long(golds for golds in sets.values())

    def replace() -> None:
        for start in range(0, len(texts), _BATCH):
            redactor.redact(texts[start : start + _BATCH], _RULES)

    def find() -> None:
        presidio(texts)

    speed = compare("redaction, batched", "Presidio, finding only", "texts/s", len(texts), replace, find, _PAIRS)
    measured.append(Measured("texts of 30 to 60 words", "texts/s of CPU", _rate(replace, len(texts))))
    report([speed], "redaction", measured)
    if shortfalls:
        raise SystemExit("\n".join(shortfalls))


def _figures(name: str, score: Score) -> list[Measured]:
    return [
        Measured(f"{name}: recall, structured", "share", score.structured),
        Measured(f"{name}: recall", "share", score.recall()),
        Measured(f"{name}: precision", "share", score.precision),
    ]


def _show(name: str, golds: Sequence[Gold], ours: Score, theirs: Score, fair: Score) -> None:
    """Print a table of one set."""
    table = Table("kind", "labelled", "ours", "Presidio", title=f"{name}: {len(golds)} texts, share found")
    for kind in sorted(ours.labelled):
        table.add_row(kind, str(ours.labelled[kind]), f"{ours.recall([kind]):.3f}", f"{theirs.recall([kind]):.3f}")
    table.add_section()
    structured = sum(ours.labelled[kind] for kind in gold.STRUCTURED)
    table.add_row("structured", str(structured), f"{ours.structured:.3f}", f"{theirs.structured:.3f}")
    table.add_row("all", str(ours.labelled.total()), f"{ours.recall():.3f}", f"{theirs.recall():.3f}")
    table.add_row("precision", "", f"{ours.precision:.3f}", f"{fair.precision:.3f}")
    Console().print(table)


def _presidio() -> Callable[..., list[list[TextSpan]]]:
    """Build Presidio's analyser with its defaults on the same spaCy model; its own engine would download one."""
    import spacy
    from presidio_analyzer import AnalyzerEngine, BatchAnalyzerEngine
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    from shared.privacy.redaction.data.language_model import model_folder

    class Loaded(SpacyNlpEngine):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.nlp = {"en": spacy.load(model_folder())}

    batch = BatchAnalyzerEngine(AnalyzerEngine(nlp_engine=Loaded(), supported_languages=["en"]))

    def find(texts: Sequence[str], without: Sequence[str] = ()) -> list[list[TextSpan]]:
        found: list[list[Any]] = batch.analyze_iterator(list(texts), language="en", batch_size=_BATCH)
        return [[TextSpan(r.start, r.end, r.entity_type) for r in rs if r.entity_type not in without] for rs in found]

    return find


def _long(sets: Iterable[Sequence[Gold]]) -> list[str]:
    """Join the sentences of all sets to texts of at least 30 words, like messages of a chat."""
    texts: list[str] = []
    words: list[str] = []
    for sentence in (g.text for golds in sets for g in golds if len(g.text.split()) <= _WORDS):
        words.append(sentence)
        if len(" ".join(words).split()) >= _WORDS:
            texts.append(" ".join(words))
            words = []
    return texts


def _rate(work: Callable[[], object], count: int) -> float:
    """Return texts per second of CPU, as an otherwise idle core would do."""
    started = time.process_time()
    work()
    return count / (time.process_time() - started)


if __name__ == "__main__":
    main()
