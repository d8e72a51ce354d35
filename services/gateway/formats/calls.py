"""The call of an event: what the model server is asked, without what does not change its answer. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.gateway.formats.conversation import EventConversation, Object
from services.gateway.formats.identity import CLIENT_METADATA, SESSION_FIELD, XARGS
from services.gateway.upstreams.external import CREDENTIALS
from shared.addresses import without_credentials
from shared.grading.json_values import is_deeper

_OWN_FIELDS = frozenset(
    {
        "messages", "input", "prompt", "prompt_embeds", "instructions", "tools", "tool_choice", "response_format",
        "stream",
    }
)  # fmt: skip
"""Fields that the call has under names of their own."""
_NOT_LOGGED = frozenset(
    {
        "model", "stream_options", "logprobs", "top_logprobs", "logprob_token_ids", "prompt_logprobs", "include",
        "return_token_ids", "return_tokens_as_token_ids", "request_id", "priority", "service_tier", "store", "metadata",
        "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "cache_salt", "prediction",
        SESSION_FIELD, CLIENT_METADATA, *CREDENTIALS,
    }
)  # fmt: skip
"""Fields that do not change the answer: what else to report, how to queue, what it may be like, and who asks."""
_MAX_DEPTH = 64
"""Of parameters and tools: readers of JSON refuse much deeper ones."""


def logged_call(
    api: str, conversation: EventConversation, data: Mapping[str, Any], *, constrained: bool, format_field: str
) -> Object:
    """The `Call` of a request whose body is `data`, as it goes to the model server.

    `format_field`: the API's name of the response format. A classification's constraint is not repeated in each event:
    `constrained` says that it was there, and the task's revision has the labels.
    """
    call: Object = {"api": api, "messages": conversation.messages}
    truncated = conversation.truncated
    for name, own in (("tools", "tools"), ("tool_choice", "tool_choice"), ("response_format", format_field)):
        if (value := data.get(own)) is not None:
            if is_deep(value) or (name == "tools" and not _are_objects(value)):
                truncated = True
            else:
                call[name] = value
    left_out = (format_field, "structured_outputs") if constrained else (format_field,)
    call["parameters"], cut = parameters_of(data, left_out)
    truncated = truncated or cut
    if data.get("stream"):
        call["stream"] = True
    if constrained:
        call["constrained"] = True
    if truncated:
        call["truncated"] = True
    return call


def parameters_of(data: Mapping[str, Any], left_out: Sequence[str] = ()) -> tuple[Object, bool]:
    """What a request says beside its own fields that changes the answer, and whether some of it is too deep to be said.

    Nothing in it names who asks, or signs in anywhere.
    """
    parameters = {}
    truncated = False
    for name, value in data.items():
        if value is None or name in _OWN_FIELDS or name in _NOT_LOGGED or name in left_out:
            continue
        if type(value) is not str and isinstance(value, dict | list) and is_deep(value):
            truncated = True
        else:
            parameters[name] = value
    if isinstance(xargs := parameters.get(XARGS), dict) and SESSION_FIELD in xargs:
        parameters[XARGS] = {name: value for name, value in xargs.items() if name != SESSION_FIELD}
    return parameters, truncated


def without_credentials_of(tools: Sequence[Object]) -> Sequence[Object]:
    """The tools without what signs in to their servers, such as an MCP server's; the same object if none has any."""
    shown = [_without_credentials(tool) for tool in tools]
    return tools if shown == list(tools) else shown


def _without_credentials(tool: Object) -> Object:
    shown = {name: value for name, value in tool.items() if name not in CREDENTIALS or not value}
    if isinstance(url := tool.get("server_url"), str):
        shown["server_url"] = without_credentials(url)
    if isinstance(tools := tool.get("tools"), list) and _are_objects(tools):  # A namespace's.
        shown["tools"] = [_without_credentials(inner) for inner in tools]
    return shown


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def is_deep(value: Any) -> bool:
    """Return True if lists and objects are nested deeper than readers of an event take."""
    return is_deeper(value, _MAX_DEPTH)
