"""A row on its way into a data set: a prediction, and the answer that people agreed on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import NamedTuple

from schemas.conversation import INSTRUCTIONS, Answer, Call, JsonObject, Message, Role, input_text
from schemas.datasets import Example, Fate, LeftOutExample, Origin
from schemas.labels import Purpose
from services.dataset_builder.building.chat_format import answer_message
from shared.conversation import chat_tools, form_asked_for, tool_choice_asked_for
from shared.identity import content_hash

USER_PREFIX = "user:"
"""Before the hash of a user among voters."""


class Opinion(NamedTuple):
    """What somebody said that an answer should have been, and how much that weighs: the log-odds of being right."""

    label: str
    given_at: datetime
    weight: float
    voter: str = ""
    origin: Origin = Origin.REVIEWER


@dataclass(frozen=True, slots=True)
class Row:
    """A row that may still be left out. `corrected_at` is the time of its first correction.

    `answers` are those that people saw, none of an imported row; `label` is what the answer should have been, as one
    text; `voters` are the reviewers and users (`user:<hash>`) who gave it, and `opinions` what the words weigh by which
    it was decided, also of those who were outvoted (`votes.decide`). `prompts`: the system prompts that the task has or
    had, which are in no input of their own.
    `rechecked`: a reviewer gave it who was asked because it looked wrong. `purpose` and `drawn_probability`: by which
    sample chance drew it, and how probable it was that chance did, by whichever, and that somebody answered.
    `session`: the hash of its conversation's id, if the application told one.
    `user_hash` and `predicted_at` say whose it is and from when, so that a version can list the people in it.
    """

    call: Call
    answers: tuple[Answer, ...]
    label: str
    prediction_id: str
    correction_ids: tuple[str, ...]
    corrected_at: datetime
    user_hash: str | None = None
    predicted_at: datetime | None = None
    voters: tuple[str, ...] = ()
    origin: Origin = Origin.REVIEWER
    app: str | None = None
    mode_id: str | None = None
    weight: float = 1.0
    opinions: tuple[Opinion, ...] = ()
    rechecked: bool = False
    purpose: Purpose | None = None
    drawn_probability: float | None = None
    session: str | None = None
    prompts: frozenset[str] = frozenset()

    @property
    def tools(self) -> tuple[JsonObject, ...]:
        return chat_tools(self.call.tools)

    @property
    def messages(self) -> tuple[Message, ...]:
        return (*self.call.messages, answer_message(self.label, self.answers, self.tools))

    @property
    def text(self) -> str:
        """What inputs are compared by."""
        return input_text(self.call.messages, self.prompts)

    @property
    def last_turn(self) -> str:
        """What an answer is about: the user's last message, what came after it, and the row's own system messages."""
        messages = self.call.messages
        last = max((number for number, message in enumerate(messages) if message.role == Role.USER), default=0)
        turn = [m for number, m in enumerate(messages) if number >= last or m.role in INSTRUCTIONS]
        return input_text(tuple(turn), self.prompts)

    @property
    def form(self) -> str:
        """What its application itself asks of an answer's form: one text is answered by another in another form."""
        asked = form_asked_for(self.call), tool_choice_asked_for(self.call), self.call.tools
        return content_hash(json.dumps(asked, sort_keys=True)) if any(asked) else ""

    @property
    def is_confirmed(self) -> bool:
        """True if a reviewer or an audit stands for the answer. A user's word alone is trained on, never held out."""
        return self.origin is not Origin.USER

    @property
    def is_drawn(self) -> bool:
        """True if chance drew its prediction for review, with a known probability: it stands for production."""
        return self.drawn_probability is not None

    @property
    def writers(self) -> tuple[tuple[str, datetime], ...]:
        """The users whose words alone the row is made of, and when each wrote last; nobody where a reviewer did."""
        if self.is_confirmed:
            return ()
        return tuple((opinion.voter.removeprefix(USER_PREFIX), opinion.given_at) for opinion in self.opinions)

    def left_out(self, fate: Fate, reason: str, detail: str = "") -> LeftOutExample:
        """Return the line of rejected.jsonl for this row."""
        return LeftOutExample(
            fate=fate,
            reason=reason,
            detail=detail,
            prediction_ids=(self.prediction_id,),
            correction_ids=self.correction_ids,
            user_hash=self.user_hash,
            predicted_at=self.predicted_at,
        )

    def example(self, group: str, *, seen: bool = False) -> Example:
        """Return the line of train.jsonl or eval.jsonl for this row."""
        return Example(
            example_id=f"ex-{content_hash(self.prediction_id, self.label)}",
            messages=self.messages,
            tools=self.tools,
            tool_choice=tool_choice_asked_for(self.call) if self.tools else None,
            response_format=form_asked_for(self.call),
            group=group,
            seen=seen,
            origin=self.origin,
            weight=self.weight,
            mode_id=self.mode_id,
            app=self.app,
            purpose=self.purpose,
            drawn_probability=self.drawn_probability,
            prediction_ids=(self.prediction_id,),
            correction_ids=self.correction_ids,
            user_hash=self.user_hash,
            predicted_at=self.predicted_at,
        )


BY_AGE: Callable[[Row], tuple[datetime, str]] = attrgetter("corrected_at", "prediction_id")
"""Sorts rows from the oldest to the newest, the same way every time."""
