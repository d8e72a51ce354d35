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
_SESSIONS = 500


@dataclass(frozen=True)
class Request:
    """A request to a gateway. `leaves`: the client disconnects in the middle of the stream."""

    sent: Sent
    path: str
    body: Object
    leaves: bool = False


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
        low = self._random.random() < LOW_SHARE
        call, answer, facts = self._elsewhere("predictions", low=low)
        metadata = self._metadata(marker)
        said = self._said_elsewhere(call, with_system(call), answer, facts, metadata)
        task = self._talk if call.tools else self._labels
        calls = {"tool_calls": answer["tool_calls"]} if answer["tool_calls"] else {}
        body: Object = {
            "task": task, "messages": call.messages, "answer": answer["text"], **calls, **_asked(call), **facts,
            "confidence": _CONFIDENCE[low], "metadata": metadata, **({"user": user} if user else {}),
            **{name: answer[name] for name in ("refusal", "reasoning", "finish_reason") if answer[name]},
        }  # fmt: skip
        return Request(Sent(marker, "predictions", task, user, low, said), "/v1/predictions", body)

    def submission(self, user: str | None) -> tuple[Sent, PredictionSubmitted]:
        """A prediction that an application sends to Kafka itself, under an id of its own."""
        _, marker = self._next_marker("direct")
        low = self._random.random() < LOW_SHARE
        call, answer, facts = self._elsewhere("direct", low=low)
        metadata, session, now = self._metadata(marker), self._session(), utc_now()
        task = self._talk if call.tools else self._labels
        said = self._said_elsewhere(call, call.messages, answer, facts, metadata)
        said |= {"app": "shop", "session": session, "occurred_at": now.isoformat()}
        event = PredictionSubmitted(
            task=task, task_revision="current", prediction_id=marker, user=user, app="shop", session=session,
            messages=event_messages(call.messages), answer=answer["text"], refusal=answer["refusal"],
            tool_calls=event_calls(answer["tool_calls"]), reasoning=answer["reasoning"], **_asked(call), **facts,
            finish_reason=answer["finish_reason"], confidence=Confidence(score=_CONFIDENCE[low]), metadata=metadata,
            occurred_at=now,
        )  # fmt: skip
        return Sent(marker, "direct", task, user, low, said), event

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

    def _elsewhere(self, channel: str, *, low: bool) -> tuple[Call, Object, Object]:
        """A call that another model answered: what it said, and the facts beside."""
        facts: Object = {"model": "another-model", "latency_ms": round(self._random.uniform(5, 500), 3)}
        confidence = {"confidence": _CONFIDENCE[low]}
        if self._random.random() >= _STRUCTURED_SHARE[channel]:
            call = self._conversations.short()
            call.api, call.parameters = "external", {}
            return call, answer_said(StandInAnswer("delivery"), **confidence) | {"finish_reason": None}, facts
        call, answered = self._conversations.elsewhere()
        if low:  # A refusal is nothing that a person could be asked about.
            answered = StandInAnswer("as agreed")
        call.parameters["seed"] = self._number
        tokens = {"prompt_tokens": self._random.randrange(1, 99), "answer_tokens": self._random.randrange(1, 99)}
        return call, answer_said(answered, **confidence), facts | tokens

    @staticmethod
    def _said_elsewhere(call: Call, messages: list[Object], answer: Object, facts: Object, metadata: Object) -> Object:
        facts = dict(facts)
        usage = (facts.pop("prompt_tokens", 0), facts.pop("answer_tokens", 0), 0, 0)
        return {
            "api": "external", "messages": messages, **_asked(call), **facts, "variant": "external",
            "metadata": metadata, "usage": usage, "answers": [answer],
        }  # fmt: skip

    def _metadata(self, marker: str) -> Object:
        ticket = {"ticket": self._texts.next("metadata")} if self._random.random() < _TICKET_SHARE else {}
        return {"marker": marker, **ticket}

    def _session(self) -> str | None:
        return f"session-{self._random.randrange(_SESSIONS)}" if self._random.random() < 0.5 else None

    def _next_marker(self, channel: str) -> tuple[int, str]:
        self._number += 1
        return self._number, f"{MARKER_PREFIX}{channel}-{self._number}"


def _asked(call: Call) -> dict[str, Any]:
    fields = {"tools": call.tools, "tool_choice": call.tool_choice, "parameters": call.parameters}
    return {name: value for name, value in fields.items() if value}
