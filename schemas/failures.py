"""Failure modes: what the model gets wrong, grouped."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import AwareDatetime, Field

from schemas.base import Event, Frozen, Identifier, Probability, Text
from schemas.cycles import Fence


class ExemplarSource(Frozen):
    """Whose an exemplar is, and when it was asked: to forget by, and to trace it back."""

    prediction_id: Identifier
    user_hash: Identifier | None = None
    predicted_at: AwareDatetime


class FailureMode(Frozen):
    """One cluster of suspects. Its id stays the same from week to week while its centroid does."""

    mode_id: Identifier
    name: str = Field(max_length=200, description="The words that tell it from the others (c-TF-IDF).")
    words: tuple[str, ...] = Field(max_length=20)
    exemplars: tuple[Text, ...] = Field(max_length=10, description="The inputs nearest to the centre; first: medoid.")
    sources: tuple[ExemplarSource, ...] = Field(default=(), max_length=10, description="Parallel to the exemplars.")
    size: int = Field(ge=1)
    share: Probability = Field(description="Of the cycle's suspects.")
    mean_confidence: Probability | None = None
    is_new: bool = True

    def without(self, gone: Callable[[ExemplarSource], bool]) -> FailureMode:
        """The mode without the exemplars of some people. Counts, name and words are of many people, and stay."""
        pairs = zip(self.exemplars, self.sources, strict=False)
        kept = [(text, source) for text, source in pairs if not gone(source)]
        exemplars, sources = tuple(text for text, _ in kept), tuple(source for _, source in kept)
        return self.model_copy(update={"exemplars": exemplars, "sources": sources})


class FailuresClustered(Event):
    """A cycle's suspects, clustered. The dataset of the cycle is built from this moment on. Key: task."""

    suspects: int = Field(ge=0)
    noise: int = Field(ge=0, description="Suspects that belong to no mode.")
    modes: tuple[FailureMode, ...] = Field(max_length=1_000)
    data_cutoff: AwareDatetime
    fence: Fence = Field(description="Copied from `cycles.started`: corrections up to here are in the cycle.")

    def without(self, gone: Callable[[ExemplarSource], bool]) -> FailuresClustered:
        """The same clustering without the exemplars of some people. Older ones, which do not say whose, stay."""
        modes = tuple(mode.without(gone) if mode.sources else mode for mode in self.modes)
        return self.model_copy(update={"modes": modes})
