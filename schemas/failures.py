"""Failure modes: what the model gets wrong, grouped."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from schemas.base import Event, Frozen, Identifier, Probability, Text
from schemas.cycles import Fence


class FailureMode(Frozen):
    """One cluster of suspects. Its id stays the same from week to week while its centroid does."""

    mode_id: Identifier
    name: str = Field(max_length=200, description="The words that tell it from the others (c-TF-IDF).")
    words: tuple[str, ...] = Field(max_length=20)
    exemplars: tuple[Text, ...] = Field(max_length=10, description="The inputs nearest to the centre; first: medoid.")
    size: int = Field(ge=1)
    share: Probability = Field(description="Of the cycle's suspects.")
    mean_confidence: Probability | None = None
    is_new: bool = True


class FailuresClustered(Event):
    """A cycle's suspects, clustered. The dataset of the cycle is built from this moment on. Key: task."""

    suspects: int = Field(ge=0)
    noise: int = Field(ge=0, description="Suspects that belong to no mode.")
    modes: tuple[FailureMode, ...] = Field(max_length=1_000)
    data_cutoff: AwareDatetime
    fence: Fence = Field(description="Copied from `cycles.started`: corrections up to here are in the cycle.")
