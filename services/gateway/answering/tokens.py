"""Counts the tokens of a prompt: no answer, so nothing is logged, and no arm is chosen, so nothing is observed."""

from __future__ import annotations

import orjson

from services.gateway.answering.failures import client_error
from services.gateway.answering.pass_through import PassThrough
from services.gateway.asgi.exchange import Exchange, Reply, json_reply
from services.gateway.asgi.large_work import LargeWork
from services.gateway.formats.anthropic.messages import MessagesRequest
from services.gateway.formats.validation import read_object, text_field
from services.gateway.tasks.served import ServedTasks
from services.gateway.upstreams.upstream import ModelNotServed, Upstream, UpstreamFailed
from shared.http import HttpError


class TokenCounter:
    """The endpoint of Anthropic's `/v1/messages/count_tokens`. The fallback is not asked: only vLLM counts."""

    path = "/v1/messages/count_tokens"

    def __init__(
        self, tasks: ServedTasks, replicas: Upstream, pass_through: PassThrough | None, large_work: LargeWork
    ) -> None:
        self._tasks = tasks
        self._replicas = replicas
        self._pass_through = pass_through
        self._large_work = large_work

    async def __call__(self, exchange: Exchange) -> Reply | None:
        data = read_object(exchange.body)
        name = text_field(data, "model", required=True) or ""
        if self._pass_through is not None and self._pass_through.takes(exchange.grant, name):
            return await self._pass_through.answer(exchange, self.path, data)
        exchange.grant.require(name)
        request = await self._large_work.run(exchange.size, MessagesRequest, data, self._tasks.get(name))
        model = request.task.spec.base_model
        try:
            asked, lines = request.encode_for_tokenizer(model), exchange.upstream_headers
            counted = orjson.loads(await self._replicas.post("/tokenize", asked, lines))
            return json_reply({"input_tokens": int(counted["count"])})
        except UpstreamFailed as error:
            if error.status == 404 and not isinstance(error, ModelNotServed):
                raise HttpError(502, "the model server has no /tokenize, as vLLM has", "upstream_not_vllm") from error
            raise client_error(error, model) from error
        except (ValueError, TypeError, KeyError) as error:
            message = f"the model server's answer has no count of tokens: {error!r}"
            raise HttpError(502, message, "upstream_garbled") from error
