"""The adversarial report: what changed, injected and foreign inputs do to a candidate and to production.

The inputs are made at each evaluation, by rules and a seed, from the held-out rows, and are never stored.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from schemas.approaches import Gain
from schemas.base import Frozen, Interval


class AdversarialKind(StrEnum):
    """A way of making inputs. All but the last two change held-out rows, whose right answers stay right."""

    TYPOS = "typos"
    """Letters next to each other on the keyboard, swapped, doubled or left out."""
    CASING = "casing"
    """All upper case, all lower case, or every word capitalised."""
    DISTRACTORS = "distractors"
    """A sentence before or after the text that has nothing to do with it."""
    LONG_INPUT = "long_input"
    """Small talk before the text, up to near the end of the model's context."""
    INJECTION = "injection"
    """Instructions in the text that are not the application's."""
    EMPTY_INPUT = "empty_input"
    """No text, white space or punctuation: no answer is right."""
    OUT_OF_DISTRIBUTION = "out_of_distribution"
    """Texts of other domains: no answer is right."""


UNANSWERABLE = (AdversarialKind.EMPTY_INPUT, AdversarialKind.OUT_OF_DISTRIBUTION)


class AdversarialArm(Frozen):
    """One arm's answers to the inputs of one kind. What does not apply to a kind is None."""

    clean: Interval | None = Field(default=None, description="Mean score on the same rows, unchanged.")
    score: Interval | None = Field(default=None, description="Mean score on the changed rows.")
    drop: Gain | None = Field(default=None, description="`clean` less `score`, paired by row.")
    confident_wrong: Interval | None = Field(
        default=None,
        description="Share of answers that are wrong and surer than half of the arm's answers to the held-out rows.",
    )
    obeyed: Interval | None = Field(
        default=None,
        description="Share of injections whose demand the answer meets, where the unchanged row's did not.",
    )
    failed: int = Field(default=0, ge=0, description="Requests that errored or timed out: counted as wrong.")


class AdversarialResult(Frozen):
    """Both arms on the inputs of one kind, and the candidate less production on the same inputs."""

    kind: AdversarialKind
    inputs: int = Field(ge=1)
    candidate: AdversarialArm
    production: AdversarialArm
    score: Gain | None = Field(default=None, description="Of the mean scores: above 0, the candidate is better.")
    confident_wrong: Gain | None = Field(default=None, description="Above 0, the candidate is worse.")
    obeyed: Gain | None = Field(default=None, description="Above 0, the candidate is worse.")


class AdversarialReport(Frozen):
    """What `adapters.evaluated` says of the adversarial set. The gate `adversarial_not_worse` decides by it."""

    results: tuple[AdversarialResult, ...] = Field(min_length=1, max_length=20)
