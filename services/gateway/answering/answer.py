"""The gateway's main use case: answer. On the way there is no pydantic, no log line, no lock, and nothing is waited for
but the upstream and the log."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple, Protocol

import orjson

from schemas.base import Variant
from services.gateway.answering.stream import StreamAnswerer
from services.gateway.asgi.exchange import CLIENT_LEFT, Endpoint, Exchange, Headers, Reply, json_reply
from services.gateway.auth.grants import AccessControl
from services.gateway.domain import PredictionIds
from services.gateway.formats.api import ApiAnswer, ApiRequest, StreamRelay
from services.gateway.formats.validation import MAX_USER, checked_text, read_object, text_field
from services.gateway.observability.metrics import Metrics
from services.gateway.recording.events import TraceHeaders
from services.gateway.recording.recorder import InFlightRequest, Recorder, headers_of
from services.gateway.routing.arms import Arm, choose_arms, remaining_arms
from services.gateway.routing.flags import FlagReader
from services.gateway.tasks.served import ServedTasks
from services.gateway.upstreams.upstream import NotServed, Upstream, UpstreamFailed
from shared.http import HttpError
from shared.identity import keyed_hash

USER_HEADER = b"x-ratchet-user"
"""Instead of the field `user`: who it is that asks, so that a canary stays or not for the whole session."""


class Tracing(Protocol):
    def __call__(self, headers: Headers) -> TraceHeaders:
        """What the events carry on of the caller's trace."""


class ExternalFallback(NamedTuple):
    """Somebody else's API, for when no replica of ours answers, and the model that it is asked for."""

    api: Upstream
    model: str


class Answerer:
    def __init__(
        self,
        tasks: ServedTasks,
        flags: FlagReader,
        upstream: Upstream,
        keeping: Recorder,
        ids: PredictionIds,
        subjects_key: bytes,
        metrics: Metrics,
        *,
        access: AccessControl | None = None,
        tracing: Tracing | None = None,
        external: ExternalFallback | None = None,
    ) -> None:
        self._tasks = tasks
        self._flags = flags
        self._upstream = upstream
        self._keeping = keeping
        self._streaming = StreamAnswerer(keeping)
        self._ids = ids
        self._subjects_key = subjects_key
        self._metrics = metrics
        self._access = access
        self._tracing = tracing
        self._external = external

    def endpoint(self, dialect: type[ApiRequest]) -> Endpoint:
        """The route that answers requests of this API."""

        async def answer(call: Exchange) -> Reply | None:
            one, arms = self._understood(call, dialect)
            relay = one.asked.open_relay(one.ids)
            return await (self._whole(one, arms) if relay is None else self._stream(one, relay, arms))

        return answer

    def _understood(self, call: Exchange, dialect: type[ApiRequest]) -> tuple[InFlightRequest, tuple[Arm, ...]]:
        """The request, and who may answer it, in order. Raises HttpError for what is wrong with it."""
        data = read_object(call.body)
        name = text_field(data, "model", required=True) or ""
        if self._access is not None:
            self._access.check(call.headers, name, len(call.body))
        facts = self._tasks.of(name)
        user = text_field(data, "user", MAX_USER) or _user_in(call.headers)
        asked = dialect(data, facts)
        ids = [self._ids.new(name) for _ in range(asked.prediction_count or 1)]
        trace = self._tracing(call.headers) if self._tracing is not None else ()
        one = InFlightRequest(call, facts, asked, ids, keyed_hash(self._subjects_key, user) if user else None, trace)
        return one, choose_arms(self._flags.of(name, user), self._external.model if self._external else None)

    async def _whole(self, one: InFlightRequest, arms: tuple[Arm, ...]) -> Reply:
        """An answer in one piece. What is to be kept is in the log when this returns."""
        arm = arms[0]
        while True:
            try:
                body = one.asked.encode_for_upstream(arm.model_name(one.facts.spec.base_model))
                raw = await self._source(arm).post(one.asked.path, body)
                answer = orjson.loads(raw)
                outcome = one.asked.parse_answer(answer)
                break
            except UpstreamFailed as error:
                arms = await self._next(one, arms, error)
                arm = arms[0]
            except asyncio.CancelledError:
                await self._keeping.observed(one, arm, CLIENT_LEFT)
                raise
            except ValueError as error:  # No JSON is one too.
                await self._keeping.observed(one, arm, 502)
                raise HttpError(502, f"the model server's answer is {error}", "upstream_garbled") from error
        return await self._kept(one, arm, answer, outcome)

    async def _kept(self, one: InFlightRequest, arm: Arm, body: dict[str, Any], outcome: ApiAnswer) -> Reply:
        headers = headers_of(one, arm)
        if outcome.choices:
            measures = self._keeping.measured(one, arm, outcome)
            if not await self._keeping.answered(one, arm, outcome, measures):
                headers.append((b"x-ratchet-logged", b"false"))
            if (score := measures[0].score) is not None:
                headers.append((b"x-ratchet-confidence", b"%.6f" % score))
        else:
            await self._keeping.observed(one, arm, 200)
        return json_reply(one.asked.rewrite_for_client(body, one.ids), headers)

    async def _stream(self, one: InFlightRequest, relay: StreamRelay, arms: tuple[Arm, ...]) -> None:
        """An answer piece by piece. Raises as `_whole` does before the first one; then it is the stream that tells."""
        while True:
            arm = arms[0]
            body = one.asked.encode_for_upstream(arm.model_name(one.facts.spec.base_model))
            try:
                return await self._streaming.answer(one, arm, relay, self._source(arm).stream(one.asked.path, body))
            except UpstreamFailed as error:
                arms = await self._next(one, arms, error)
            except asyncio.CancelledError:
                if not one.call.begun:
                    await self._keeping.observed(one, arm, CLIENT_LEFT)
                raise

    def _source(self, arm: Arm) -> Upstream:
        if arm.variant is Variant.EXTERNAL and self._external is not None:
            return self._external.api
        return self._upstream

    async def _next(self, one: InFlightRequest, arms: tuple[Arm, ...], error: UpstreamFailed) -> tuple[Arm, ...]:
        """Observe that the first of `arms` failed; returns those that may answer now. Raises HttpError without any."""
        failed = arms[0]
        await self._keeping.observed(one, failed, error.status)
        lacking = isinstance(error, NotServed)
        left = remaining_arms(arms, failed, down=error.down) if lacking or error.down else ()
        if not left:
            raise _refusal(error, failed.model_name(one.facts.spec.base_model))
        if lacking:
            self._metrics.fallbacks.labels(one.facts.name, failed.variant).inc()
        one.instead_of = one.instead_of or failed
        return left


def _user_in(headers: Headers) -> str | None:
    for name, value in headers:
        if name == USER_HEADER:
            return checked_text(value.decode("utf-8", "replace"), USER_HEADER.decode(), MAX_USER)
    return None


def _refusal(error: UpstreamFailed, model: str) -> HttpError:
    """What the client is told: the upstream's own words where they have OpenAI's shape."""
    if isinstance(error, NotServed):
        return HttpError(502, f"no model server serves {model!r}, the task's base model", "upstream_not_served")
    headers = {"retry-after": f"{error.retry_after:.0f}"} if error.retry_after is not None else None
    refusal = HttpError(error.status, error.message, f"upstream_{error.reason}", headers=headers)
    if (told := _in_openais_shape(error.raw)) is not None:
        refusal.body = told
    return refusal


def _in_openais_shape(raw: bytes) -> dict[str, Any] | None:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    error = body.get("error") if isinstance(body, dict) else None
    return {"error": error} if isinstance(error, dict) and isinstance(error.get("message"), str) else None
