"""The gateway's main use case: answer a request. On its path there is no pydantic, no log line and no lock, and nothing
is awaited but the upstream and the event log.

does      asks the arms that the flags choose, in order, and has the answer recorded before it leaves
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from schemas.base import Variant
from services.gateway.answering.failures import client_error, cut_of
from services.gateway.answering.pass_through import PassThrough
from services.gateway.answering.stream import StreamAnswerer
from services.gateway.answering.tokens import TokenCounter
from services.gateway.asgi.exchange import Endpoint, Exchange, Headers, Reply, json_reply
from services.gateway.asgi.large_work import LargeWork
from services.gateway.domain import Identifiers
from services.gateway.formats.api import ApiAnswer, ApiRequest, StreamRelay
from services.gateway.formats.identity import identity_of, remove_identity
from services.gateway.formats.observed import ObservedRequest
from services.gateway.formats.validation import read_object, text_field
from services.gateway.json_codec import decode_json, encode_json
from services.gateway.recording.recorder import Recorder
from services.gateway.recording.request import Caller, InFlightRequest
from services.gateway.routing.arms import Arm, choose_arms, remaining_arms
from services.gateway.routing.flags import UnleashFlagReader
from services.gateway.tasks.served import ServedTask, ServedTasks
from services.gateway.upstreams.upstream import ModelNotServed, Upstream, UpstreamFailed
from shared.http import HttpError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerSources:
    """Where answers come from: our replicas, and `external_model` of an external API while no replica answers.

    `forward_identity`: send them who asks, too.
    """

    replicas: Upstream
    external: Upstream | None = None
    external_model: str | None = None
    forward_identity: bool = False


class Answerer:
    def __init__(
        self,
        tasks: ServedTasks,
        flags: UnleashFlagReader,
        sources: AnswerSources,
        recorder: Recorder,
        identifiers: Identifiers,
        large_work: LargeWork,
        pass_through: PassThrough | None = None,
    ) -> None:
        self._tasks = tasks
        self._flags = flags
        self._replicas, self._external = sources.replicas, sources.external
        self._external_model = sources.external_model
        self._forward_identity = sources.forward_identity
        self._recorder = recorder
        self._streams = StreamAnswerer(recorder)
        self._new_id = identifiers.predictions.new
        self._identifiers = identifiers
        self._pass_through = pass_through
        self._large_work = large_work
        self._refused: dict[str, frozenset[str]] = {}
        """By base model: fields that the gateway adds to requests and its server refuses. Threads read them."""
        self._refused_by_external: frozenset[str] = frozenset()
        """Those that the external model's server refuses."""
        self.count_tokens = TokenCounter(tasks, sources.replicas, pass_through, large_work)

    def endpoint(self, api: type[ApiRequest]) -> Endpoint:
        """The route that answers the requests of this API."""

        async def answer(exchange: Exchange) -> Reply | None:
            data = read_object(exchange.body)
            name = text_field(data, "model", required=True) or ""
            if self._pass_through is not None and self._pass_through.takes(exchange.grant, name):
                return await self._pass_through.answer(exchange, api.path, data)
            exchange.grant.require(name)
            task, exchange.body = self._tasks.get(name), b""  # Its memory is free while the model server answers.
            request, user = await self._large_work.run(exchange.size, self._accept, exchange, api, data, task)
            # A vector or a score of another model means another thing: those wait until our own servers are back.
            external = None if issubclass(api, ObservedRequest) else self._external_model
            arms = choose_arms(self._flags.read(name, user, request.caller.subject), external)
            relay = request.parsed.open_relay(request.prediction_ids)
            return await (self._answer_whole(request, arms) if relay is None else self._stream(request, relay, arms))

        return answer

    def _accept(
        self, exchange: Exchange, api: type[ApiRequest], data: dict[str, Any], task: ServedTask
    ) -> tuple[InFlightRequest, str | None]:
        """The request and its user. May be called in a thread. Raises HttpError if the request is invalid."""
        identity = identity_of(data, exchange.headers)
        parsed = api(data, task)
        for field in self._refused.get(task.spec.base_model, ()):
            parsed.do_without(field)
        if not self._forward_identity:
            remove_identity(data)
        user_hash = self._identifiers.user_hash(identity.user)
        session_hash = self._identifiers.session_hash(identity.session)
        calls, media, opening, questions = self._recorder.encode_calls(parsed, user_hash)
        prediction_ids = [self._new_id(task.name, exchange.request_id)]
        prediction_ids += [self._new_id(task.name) for _ in range(parsed.prediction_count - 1)]
        caller = Caller(
            user_hash,
            session_hash,
            exchange.grant.app,
            identity.metadata,
            exchange.trace,
            self._identifiers.subject(user_hash, session_hash, exchange.grant.app, opening),
        )
        request = InFlightRequest(exchange, task, parsed, calls, prediction_ids, caller)
        request.media, request.questions = media, questions
        return request, identity.user

    async def _answer_whole(self, request: InFlightRequest, arms: tuple[Arm, ...]) -> Reply:
        """Answer in one piece. The answer's events are durable when this returns."""
        arm = arms[0]
        while True:
            try:
                asked, lines = await self._encoded(request, arm), request.exchange.upstream_headers
                model = arm.model_name(request.task.spec.base_model)
                raw = await self._source(arm).post(request.parsed.upstream_path, asked, lines, model)
                body, answer = await self._large_work.run(len(raw), _converted, request, raw)
                break
            except UpstreamFailed as error:
                if not await self._does_without(request, arm, error):
                    arms = await self._fall_back(request, arms, error)
                    arm = arms[0]
            except asyncio.CancelledError:
                await self._recorder.record_observation(request, arm, *cut_of(request.exchange))
                raise
            except ValueError as error:  # Includes malformed JSON.
                await self._recorder.record_observation(request, arm, 502)
                raise HttpError(502, f"the model server's answer is {error}", "upstream_garbled") from error
        return json_reply(body, await self._record(request, arm, answer))

    async def _record(self, request: InFlightRequest, arm: Arm, answer: ApiAnswer) -> Headers:
        """Record the answer. Returns the reply's headers."""
        headers = request.attribution_headers(arm)
        if answer.choices:
            confidences = self._recorder.measure_confidence(request, arm, answer)
            if not await self._recorder.record_answer(request, arm, answer, confidences):
                headers.append((b"x-ratchet-logged", b"false"))
            if (score := confidences[0].score) is not None:
                headers.append((b"x-ratchet-confidence", b"%.6f" % score))
        else:
            await self._recorder.record_observation(request, arm, 200)
        return headers

    async def _encoded(self, request: InFlightRequest, arm: Arm) -> bytes:
        """The request's body for the arm's server."""
        model = arm.model_name(request.task.spec.base_model)
        return await self._large_work.run(request.exchange.size, request.parsed.encode_for_upstream, model)

    async def _stream(self, request: InFlightRequest, relay: StreamRelay, arms: tuple[Arm, ...]) -> None:
        """Answer piece by piece. Raises as `_answer_whole` does until the stream has started; later errors are events
        of the stream."""
        while True:
            arm = arms[0]
            try:
                asked = await self._encoded(request, arm)
                lines, model = request.exchange.upstream_headers, arm.model_name(request.task.spec.base_model)
                stream = self._source(arm).stream(request.parsed.upstream_path, asked, lines, model)
                return await self._streams.answer(request, arm, relay, stream)
            except UpstreamFailed as error:
                if not await self._does_without(request, arm, error):
                    arms = await self._fall_back(request, arms, error)
            except asyncio.CancelledError:
                if not request.exchange.stream_started:
                    await self._recorder.record_observation(request, arm, *cut_of(request.exchange))
                raise

    def _source(self, arm: Arm) -> Upstream:
        if arm.variant is Variant.EXTERNAL and self._external is not None:
            return self._external
        return self._replicas

    async def _does_without(self, request: InFlightRequest, arm: Arm, error: UpstreamFailed) -> bool:
        """Take what the gateway added and the model server refuses out of a request; False if it refuses another thing.

        What the client asked for stays, and so does a refusal of that. Later requests do without from the start.
        """
        is_external, base = arm.variant is Variant.EXTERNAL, request.task.spec.base_model
        do_without = request.parsed.adapt_to_external if is_external else request.parsed.do_without
        if (field := error.refused_field) is None or not do_without(field):
            return False
        refused = self._refused_by_external if is_external else self._refused.get(base, frozenset())
        if field not in refused:
            if is_external:
                self._refused_by_external = refused | {field}
            else:
                self._refused[base] = refused | {field}
            model = arm.model_name(base) if is_external else base
            logger.info("%s is asked without what the gateway adds as %s: %s", model, field, error.message)
        await self._encode_calls_again(request, external=is_external)
        return True

    async def _encode_calls_again(self, request: InFlightRequest, *, external: bool) -> None:
        size, parsed, user_hash = request.exchange.size, request.parsed, request.caller.user_hash
        encoded = await self._large_work.run(size, self._recorder.encode_calls, parsed, user_hash, external=external)
        request.calls, request.media, _, request.questions = encoded

    async def _fall_back(
        self, request: InFlightRequest, arms: tuple[Arm, ...], error: UpstreamFailed
    ) -> tuple[Arm, ...]:
        """Record that the first of `arms` failed. Returns the arms that may still answer; without any, raises the
        HttpError for the client."""
        failed = arms[0]
        await self._recorder.record_observation(request, failed, error.status)
        not_served = isinstance(error, ModelNotServed)
        remaining = remaining_arms(arms, failed, down=error.down) if not_served or error.down else ()
        if not remaining:
            raise client_error(error, failed.model_name(request.task.spec.base_model))
        if not_served:
            self._recorder.count_fallback(request, failed)
        if remaining[0].variant is Variant.EXTERNAL:
            self._recorder.count_external(request, error)
            for field in self._refused_by_external:
                request.parsed.adapt_to_external(field)
            await self._encode_calls_again(request, external=True)
        request.instead_of = request.instead_of or failed
        return remaining


def _converted(request: InFlightRequest, raw: bytes) -> tuple[bytes, ApiAnswer]:
    """The upstream's answer, as the client gets it and as it is recorded. Raises ValueError."""
    body = decode_json(raw)
    try:
        answer = request.parsed.parse_answer(body)
        return encode_json(request.parsed.rewrite_for_client(body, request.prediction_ids)), answer
    except (KeyError, TypeError, AttributeError, HttpError) as error:
        raise ValueError(f"malformed: {error!r}") from error
