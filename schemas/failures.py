"""Events about failure modes: what the model gets wrong, clustered."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import AwareDatetime, Field

from schemas.base import Event, Frozen, Identifier, Probability, ShortText
from schemas.cycles import Fence


class ExemplarSource(Frozen):
    """The prediction and user behind an exemplar: for erasure, and for tracing it back."""

    prediction_id: Identifier
    user_hash: Identifier | None = None
    predicted_at: AwareDatetime


class FailureMode(Frozen):
    """One cluster of suspects. Its id stays the same from week to week while its centroid stays near."""

    mode_id: Identifier
    name: str = Field(max_length=200, description="The words that distinguish it from the other modes (c-TF-IDF).")
    words: tuple[str, ...] = Field(max_length=20)
    exemplars: tuple[ShortText, ...] = Field(
        max_length=10, description="Inputs nearest to the centre; first the medoid."
    )
    sources: tuple[ExemplarSource, ...] = Field(default=(), max_length=10, description="Parallel to the exemplars.")
    size: int = Field(ge=1)
    share: Probability = Field(description="The mode's share of the cycle's suspects.")
    mean_confidence: Probability | None = None
    is_new: bool = True

    def without(self, is_erased: Callable[[ExemplarSource], bool]) -> FailureMode:
        """Return the mode without the exemplars of erased users. Counts, name and words come from many, and stay."""
        pairs = zip(self.exemplars, self.sources, strict=False)
        left = [(text, source) for text, source in pairs if not is_erased(source)]
        exemplars, sources = tuple(text for text, _ in left), tuple(source for _, source in left)
        return self.model_copy(update={"exemplars": exemplars, "sources": sources})


class FailuresClustered(Event):
    """A cycle's suspects were clustered. Its dataset is built from now on. Key: task."""

    suspects: int = Field(ge=0)
    noise: int = Field(ge=0, description="Suspects that belong to no mode.")
    modes: tuple[FailureMode, ...] = Field(max_length=1_000)
    data_cutoff: AwareDatetime
    fence: Fence = Field(description="Copied from `cycles.started`: corrections up to here are in the cycle.")

    def without(self, is_erased: Callable[[ExemplarSource], bool]) -> FailuresClustered:
        """Return the event without the exemplars of erased users. Older modes, which name no users, stay."""
        modes = tuple(mode.without(is_erased) if mode.sources else mode for mode in self.modes)
        return self.model_copy(update={"modes": modes})
