"""Events about labels: what reviewers are asked, and what they answered."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from schemas.base import Event, Identifier, Probability, Text
from schemas.conversation import Answer, Call, Surrogates

Preference = Literal["a", "b", "both_right", "both_wrong", "cannot_tell"]
_ANSWERS = "What was answered: by both arms, of a pair; by nobody, of an imported text."


class Purpose(StrEnum):
    """Why a reviewer is asked. Only tickets (`discordant_pair`) may count in a promotion.

    `audit` is a uniform sample of all traffic, confident answers too: what production is measured by. `uncalibrated` is
    a sample of the answers of an arm whose confidence means nothing yet. `disagreement` is a tie-break: two reviewers
    gave different labels, or one gave labels that others do not give to such answers; nobody is asked who has answered
    about the prediction. `suspicious_label` asks again about a label that disagrees with those of similar texts.
    `import` is of corrections alone: nobody was asked, the label came with its text from a team's own file.
    """

    LOW_CONFIDENCE = "low_confidence"
    FEEDBACK = "feedback"
    DISCORDANT_PAIR = "discordant_pair"
    TIE_BREAK = "disagreement"
    AUDIT = "audit"
    UNCALIBRATED = "uncalibrated"
    SUSPICIOUS_LABEL = "suspicious_label"
    IMPORT = "import"


class LabelRequested(Event):
    """One question for the review queue. Key: prediction_id.

    For a pair, `answers` holds both arms' answers in random order, and no field says which arm gave which: the
    reviewer is blind, and so is every event that the reviewer's page reads.
    """

    request_id: Identifier
    prediction_id: Identifier
    purpose: Purpose
    call: Call = Field(description="What was asked; `truncated` if it was too long for a question.")
    answers: tuple[Answer, ...] = Field(max_length=2, description=_ANSWERS)
    labels: tuple[str, ...] = Field(default=(), max_length=500, description="Allowed answers; empty: free text.")
    priority: float = Field(default=0.0, description="Higher first: one minus confidence, for example.")
    suggestion: Text | None = Field(default=None, description="What the user wrote that the answer should have been.")
    suggestion_surrogates: Surrogates = Field(default=(), description="What stands in it for personal data.")
    suggested_by: Identifier | None = Field(
        default=None, description="Who wrote the suggestion, if another than `user_hash`: for erasure."
    )
    inclusion_probability: Probability = Field(
        default=1.0,
        gt=0.0,
        description="How probable it was that this prediction is asked about for this purpose, fixed before it was "
        "read.",
    )
    drawn_probability: Probability | None = Field(
        default=None,
        gt=0.0,
        description="How probable it was that this prediction is asked about by the audit or for looking wrong, "
        "whichever: what labels of both samples together are weighed by. None: not by chance.",
    )
    overlap: int = Field(default=1, ge=1, le=5, description="How many reviewers are asked the same question.")
    app: Identifier | None = Field(default=None, description="The application that asked the model.")
    ticket_id: Identifier | None = None
    session_hash: Identifier | None = Field(
        default=None, description="Of the prediction's conversation, whose turns are trained on or held out together."
    )
    user_hash: Identifier | None = Field(default=None, description="Of the prediction's user, for erasure.")
    predicted_at: AwareDatetime | None = Field(default=None, description="When the prediction was made, for erasure.")

    @property
    def happened_at(self) -> datetime:
        """The time that erasure goes by: that of the prediction, since the question is made later."""
        return self.predicted_at or self.occurred_at

    @model_validator(mode="after")
    def _tickets_are_for_pairs(self) -> Self:
        if (self.purpose is Purpose.DISCORDANT_PAIR) != (self.ticket_id is not None):
            raise ValueError("ticket_id is required for discordant pairs and for nothing else")
        return self


class CorrectionSubmitted(Event):
    """A reviewer's answer, with the question repeated, so that no consumer needs to look it up. Key: prediction_id.

    Exactly one of `label` (what the answer should have been) and `preference` (which side of a pair) is given. Who
    cannot tell the label of a pair says so by the preference `cannot_tell`, which is no label and never trained on.
    """

    correction_id: Identifier
    request_id: Identifier
    prediction_id: Identifier
    purpose: Purpose
    reviewer: Identifier
    call: Call = Field(description="What was asked; `truncated` if it was too long for a question.")
    answers: tuple[Answer, ...] = Field(max_length=2, description=_ANSWERS)
    label: Text | None = Field(default=None, description="As one text, see `Answer.plain`.")
    preference: Preference | None = Field(
        default=None, description="Of a pair of free texts; of a pair of labels only `cannot_tell`."
    )
    inclusion_probability: Probability = Field(default=1.0, gt=0.0)
    drawn_probability: Probability | None = Field(default=None, gt=0.0)
    overlap: int = Field(default=1, ge=1, le=5)
    app: Identifier | None = None
    ticket_id: Identifier | None = None
    session_hash: Identifier | None = Field(
        default=None, description="Of the prediction's conversation, whose turns are trained on or held out together."
    )
    user_hash: Identifier | None = Field(default=None, description="Of the prediction's user, for erasure.")
    suggested_by: Identifier | None = Field(
        default=None,
        description="Who wrote the text that the reviewer was shown and may have taken, if another than `user_hash`: "
        "for erasure. None of labels, which are nobody's words, and of the model's own answer.",
    )
    predicted_at: AwareDatetime | None = Field(default=None, description="When the prediction was made, for erasure.")
    redactions: int = Field(default=0, ge=0, description="Personal data replaced in the reviewer's text.")
    surrogates: Surrogates = Field(default=(), description="What stands in its place.")
    weight: float = Field(default=1.0, gt=0.0, le=10.0, description="How much its row counts in training; 1: as usual.")
    seconds: float | None = Field(default=None, ge=0.0, description="Time from showing the question to the answer.")

    @property
    def happened_at(self) -> datetime:
        """The time that erasure goes by: that of the prediction, since the answer is given later."""
        return self.predicted_at or self.occurred_at

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        if (self.label is None) == (self.preference is None):
            raise ValueError("give exactly one of label and preference")
        return self
