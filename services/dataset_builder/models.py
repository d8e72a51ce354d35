"""The models that a build asks: the redactor, and the one that doubts labels. Each is loaded when it is first asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from services.dataset_builder.checks.label_noise import LabelScore, LabelsToScore
from shared.jobs import Progress
from shared.model.embedding import CachedEmbedder, SentenceEmbedder
from shared.privacy.redaction import Redacted, Redactor, Rules
from shared.privacy.redaction.spans import TextSpan


class Models(Protocol):
    """What a build asks models."""

    def find(self, texts: Sequence[str], rules: Rules) -> list[list[TextSpan]]: ...
    def redact(self, texts: Sequence[str], rules: Rules, already_redacted: Sequence[str] = ()) -> list[Redacted]: ...
    def score(self, asked: LabelsToScore) -> Iterable[LabelScore]: ...


@dataclass(frozen=True)
class LocalModels:
    """`key`: of surrogates. `embedder`: the sentence encoder's folder; `embeddings`: the file that keeps the vectors of
    the task's texts from build to build. `folder`: the job's, for its progress."""

    key: bytes
    embedder: Path
    embeddings: Path
    folder: Path

    def find(self, texts: Sequence[str], rules: Rules) -> list[list[TextSpan]]:
        """See `Redactor.find`."""
        return self._redactor.find(texts, rules)

    def redact(self, texts: Sequence[str], rules: Rules, already_redacted: Sequence[str] = ()) -> list[Redacted]:
        """See `Redactor.redact`."""
        return self._redactor.redact(texts, rules, already_redacted)

    def score(self, asked: LabelsToScore) -> Iterable[LabelScore]:
        """See `checks.label_noise.Scorer`."""
        from services.dataset_builder.recipe import LabelScorer  # It loads scikit-learn: only where it is needed.

        progress = Progress(self.folder)

        def report(done: int, total: int) -> None:
            progress(2 + done / total, 4, f"embedding: {done} of {total} texts")

        return LabelScorer(CachedEmbedder(self._encoder, self.embeddings, report))(asked)

    @cached_property
    def _encoder(self) -> SentenceEmbedder:
        return SentenceEmbedder(self.embedder, fast=True)

    @cached_property
    def _redactor(self) -> Redactor:
        return Redactor(self.key)
