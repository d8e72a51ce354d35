"""Makes the requests of a run, each with its marker and what the ledger says of it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from schemas.base import utc_now
from schemas.predictions import Confidence, PredictionSubmitted
from tests.chaos.ledger import MARKER_PREFIX, Sent
from tests.chaos.load.answers import Special, StandInAnswer, seed_of
from tests.chaos.load.apis import PATHS, answer_said, body_of, said_of, with_system
from tests.chaos.load.conversations import Call, Conversations, Object
from tests.chaos.load.direct import event_calls, event_messages
from tests.chaos.load.people import Texts
from tests.chaos.system import System

LOW_SHARE = 0.005
_CONFIDENCE = {True: 0.3, False: 0.95}
_STRUCTURED_SHARE = {"predictions": 0.05, "direct": 0.2}
_TICKET_SHARE = 0.5
_BOTH_WAYS_SHARE = 0.1
_SESSIONS = 500


@dataclass(frozen=True)
class Request:
    """A request to a gateway. `leaves`: the client disconnects in the middle of the stream."""

    sent: Sent
    path: str
    body: Object
    leaves: bool = False


@dataclass(frozen=True)
class _MadeElsewhere:
    """An answer of another model. `facts`: fields that have one name everywhere."""

    marker: str
    task: str
    user: str | None
    session: str | None
    call: Call
    answer: Object
    confidence: float
    facts: Object
    metadata: Object

    def sent(self, messages: list[Object], app: str | None = None) -> Sent:
        """What the ledger says. `messages`: as they are logged."""
        facts = dict(self.facts)
        usage = (facts.pop("prompt_tokens", 0), facts.pop("answer_tokens", 0), 0, 0)
        said = {
            "api": "external", "messages": messages, **self._asked, **facts, "variant": "external", "app": app,
            "metadata": self.metadata, "session": self.session, "usage": usage,
            "answers": [{**self.answer, "confidence": self.confidence}],
        }  # fmt: skip
        channel = self.marker.removeprefix(MARKER_PREFIX).partition("-")[0]
        return Sent(self.marker, channel, self.task, self.user, self.confidence == _CONFIDENCE[True], said)

    def body(self) -> Object:
        """The body of /v1/predictions."""
        given = {"user": self.user, "session": self.session, **self.answer}
        text = given.pop("text")
        return {
            "task": self.task, "messages": self.call.messages, "answer": text, **self._asked, **self.facts,
            "metadata": self.metadata, "confidence": self.confidence,
            **{name: value for name, value in given.items() if value},
        }  # fmt: skip

    def event(self, own_id: str, app: str | None) -> PredictionSubmitted:
        """The event for Kafka."""
        answer = self.answer
        return PredictionSubmitted(
            task=self.task, task_revision="current", prediction_id=own_id, user=self.user, session=self.session,
            app=app, messages=event_messages(self.call.messages), answer=answer["text"], refusal=answer["refusal"],
            tool_calls=event_calls(answer["tool_calls"]), reasoning=answer["reasoning"],
            finish_reason=answer["finish_reason"], confidence=Confidence(score=self.confidence),
            metadata=self.metadata, **self._asked, **self.facts,
        )  # fmt: skip

    @property
    def _asked(self) -> dict[str, Any]:
        call = self.call
        fields = {"tools": call.tools, "tool_choice": call.tool_choice, "parameters": call.parameters}
        return {name: value for name, value in fields.items() if value}


class Requests:
    """Draws requests. Labels and most predictions made elsewhere are of the first task, conversations of the second."""

    def __init__(self, texts: Texts, rng: random.Random, system: System) -> None:
        self._texts = texts
        self._random = rng
        self._labels, self._talk = system.tasks
        self._conversations = Conversations(texts, rng)
        self._number = 0

    def label(self, user: str | None) -> Request:
        """A request for a label."""
        call = self._conversations.short()
        call.special = Special.LOW if self._random.random() < LOW_SHARE else Special.NOTHING
        return self._to_model_server(self._labels, call, user, labels=True)

    def conversation(self, user: str | None) -> Request:
        """A conversation of any kind."""
        return self._to_model_server(self._talk, self._conversations.next(), user)

    def prediction(self, user: str | None) -> Request:
        """A prediction that was made elsewhere. Most are a message and a label."""
        _, marker = self._next_marker("predictions")
        made = self._made_elsewhere(marker, user, "predictions", self._random.random() < LOW_SHARE)
        return Request(made.sent(with_system(made.call)), "/v1/predictions", made.body())

    def submission(self, user: str | None) -> tuple[Sent, PredictionSubmitted, Object | None]:
        """A prediction that an application sends to Kafka itself, under an id of its own.

        Of some, the third is the body by which it sends the same prediction by HTTP, too.
        """
        _, marker = self._next_marker("direct")
        made = self._made_elsewhere(marker, user, "direct", self._random.random() < LOW_SHARE)
        made.facts["occurred_at"] = utc_now().isoformat()
        both = self._random.random() < _BOTH_WAYS_SHARE
        if both and not made.call.has_system:  # By HTTP it would get the task's.
            made.call.messages.insert(0, {"role": "system", "content": "You help."})
        sent = made.sent(made.call.messages, app=None if both else "shop")
        event = made.event(marker, app=None if both else "shop")
        return sent, event, {**made.body(), "prediction_id": marker} if both else None

    def _to_model_server(self, task: str, call: Call, user: str | None, *, labels: bool = False) -> Request:
        number, marker = self._next_marker(call.api)
        seed, session = seed_of(number, call.special), self._session()
        metadata = self._metadata(marker)
        said = {**said_of(call, seed, labels=labels), "metadata": metadata, "session": session}
        sent = Sent(marker, call.api, task, user, call.special is Special.LOW, said)
        identity: Object = {"metadata": {**metadata, **({"session_id": session} if session else {})}}
        if user:
            self._name_user(identity, user)
        return Request(sent, PATHS[call.api], {**body_of(call, task, seed), **identity}, call.leaves)

    def _name_user(self, identity: Object, user: str) -> None:
        """Say who asks, in one of the fields that applications use for it."""
        draw = self._random.random()
        if draw < 0.2:
            identity["metadata"]["user_id"] = user
        else:
            identity["safety_identifier" if draw < 0.4 else "user"] = user

    def _made_elsewhere(self, marker: str, user: str | None, channel: str, low: bool) -> _MadeElsewhere:
        """A call that another model answered."""
        confidence = _CONFIDENCE[low]
        facts: Object = {"model": "another-model", "latency_ms": round(self._random.uniform(5, 500), 3)}
        metadata, session = self._metadata(marker), self._session()
        if self._random.random() >= _STRUCTURED_SHARE[channel]:
            call = self._conversations.short()
            call.api, call.parameters = "external", {}
            answer = answer_said(StandInAnswer("delivery")) | {"finish_reason": None}
            return _MadeElsewhere(marker, self._labels, user, session, call, answer, confidence, facts, metadata)
        call, answered = self._conversations.elsewhere()
        if low:  # A refusal is nothing that a person could be asked about.
            answered = StandInAnswer("as agreed")
        call.parameters["seed"] = self._number
        facts |= {"prompt_tokens": self._random.randrange(1, 99), "answer_tokens": self._random.randrange(1, 99)}
        answer = answer_said(answered)
        return _MadeElsewhere(marker, self._talk, user, session, call, answer, confidence, facts, metadata)

    def _metadata(self, marker: str) -> Object:
        ticket = {"ticket": self._texts.next("metadata")} if self._random.random() < _TICKET_SHARE else {}
        return {"marker": marker, **ticket}

    def _session(self) -> str | None:
        return f"session-{self._random.randrange(_SESSIONS)}" if self._random.random() < 0.5 else None

    def _next_marker(self, channel: str) -> tuple[int, str]:
        self._number += 1
        return self._number, f"{MARKER_PREFIX}{channel}-{self._number}"
