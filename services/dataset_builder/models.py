"""The model that doubts labels, on this machine: loaded when it is first asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from services.dataset_builder.checks.label_noise import LabelScore, LabelsToScore
from shared.jobs import Progress
from shared.model.embedding import CachedEmbedder, SentenceEmbedder


@dataclass(frozen=True)
class LocalModels:
    """`embedder`: the sentence encoder's folder; `embeddings`: the file that keeps the vectors of
    the task's texts from build to build. `folder`: the job's, for its progress."""

    embedder: Path
    embeddings: Path
    folder: Path

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
