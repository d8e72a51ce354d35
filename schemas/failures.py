"""Events about failure modes: what the model gets wrong, clustered."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import AwareDatetime, Field, NonNegativeInt

from schemas.base import Event, Frozen, Identifier, Probability, ShortText
from schemas.cycles import Fence
from schemas.labels import Purpose

FAILURES = "failures"
"""The artifacts' kind. A folder holds manifest.json and these two:"""
MODES_FILE = "modes.jsonl"
MEMBERS_FILE = "members.jsonl"


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


class ModeMember(Frozen):
    """One line of members.jsonl: the failure mode of a suspect of this cycle, or of one that a person labelled."""

    prediction_id: Identifier
    mode_id: Identifier


class FailuresManifest(Frozen):
    """manifest.json of a folder of failure modes."""

    task: Identifier
    modes: int = Field(ge=0)
    members: int = Field(ge=0)
    files: dict[str, str] = Field(description="File name to SHA-256.")


class FailuresClustered(Event):
    """A cycle's suspects were clustered. Its dataset is built from now on. Key: task."""

    suspects: int = Field(ge=0)
    noise: int = Field(ge=0, description="Suspects that belong to no mode.")
    modes: tuple[FailureMode, ...] = Field(
        max_length=1_000, description="The largest, with short exemplars: what an event has room for. All are at `uri`."
    )
    modes_left_out: int = Field(default=0, ge=0, description="Smaller modes, which are only at `uri`.")
    uri: str | None = Field(
        default=None,
        max_length=2_000,
        description="A folder in the artifact store: modes.jsonl (lines of `FailureMode`, without exemplars) and "
        "members.jsonl (lines of `ModeMember`).",
    )
    questions_drawn: dict[Purpose, NonNegativeInt] = Field(
        default_factory=dict,
        description="Questions that chance drew about the task's predictions up to the cut-off, by purpose, answered "
        "or not.",
    )
    drawn_since: AwareDatetime | None = Field(
        default=None, description="Those about predictions made since then; None: about all."
    )
    audit_share: Probability = Field(default=0.0, description="Share of all answers that the audit asks about now.")
    data_cutoff: AwareDatetime
    fence: Fence = Field(description="Copied from `cycles.started`: corrections up to here are in the cycle.")

    def without(self, is_erased: Callable[[ExemplarSource], bool]) -> FailuresClustered:
        """Return the event without the exemplars of erased users. Older modes, which name no users, stay."""
        modes = tuple(mode.without(is_erased) if mode.sources else mode for mode in self.modes)
        return self.model_copy(update={"modes": modes})
