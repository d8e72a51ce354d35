"""Anthropic's request as one of the chat API.

Fields without a meaning to the model server are left out, as vLLM leaves them out: `metadata`, `service_tier`,
`cache_control`, and every unknown one. What would change the answer and cannot be done is refused.
"""

from __future__ import annotations

from typing import Any

from services.gateway.formats.anthropic.content import Object, chat_messages
from services.gateway.formats.validation import bad_request, bool_field, quoted

_SAME = (
    "temperature", "top_p", "top_k", "chat_template_kwargs", "vllm_xargs", "cache_salt", "watermarking",
    "kv_transfer_params", "ec_transfer_params",
)  # fmt: skip
"""Fields that both APIs have, the later ones being vLLM's own."""
_UNSUPPORTED = {
    "mcp_servers": "connect to them yourself, and send their tools in `tools`",
    "container": "there is none here: run code yourself, by a tool in `tools`",
    "thread": "conversations are not stored here: send all of it as `messages`",
    "compaction": "ask for a summary as for any answer, and send it in `messages`",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_COUNTED = ("messages", "tools", "add_generation_prompt", "continue_final_message")


def chat_body(data: dict[str, Any]) -> Object:
    """Return the request to the chat API, without its model. Raises HttpError 400 that names Anthropic's field.

    `settle_tool_choice` follows, once the task's own tools are in it, too.
    """
    for name, reason in _UNSUPPORTED.items():
        if data.get(name):
            raise bad_request(f"`{name}` is not supported: {reason}", name)
    body: Object = {"messages": chat_messages(data)}
    body |= {name: value for name in _SAME if (value := data.get(name)) is not None}
    if data.get("max_tokens") is not None:
        body["max_tokens"] = data["max_tokens"]
    if data.get("stop_sequences"):
        body["stop"] = data["stop_sequences"]
    if bool_field(data, "stream"):
        # The first event of Anthropic's streams has the prompt's tokens already.
        body |= {"stream": True, "stream_options": {"continuous_usage_stats": True}}
    if data["messages"][-1]["role"] == "assistant" and _is_text(body["messages"][-1]):
        # The answer goes on from this text, says Anthropic's API. vLLM would begin another message after it.
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    _add_output_config(body, _object_field(data, "output_config"))
    _add_format(body, _object_field(data, "output_format"), "output_format")  # Its name in earlier versions.
    _add_thinking(body, _object_field(data, "thinking"))
    _add_tools(body, data.get("tools"), _object_field(data, "tool_choice"))
    return body


def settle_tool_choice(chat: Object) -> None:
    """Drop the choice of a chat request that offers no tools. Raises HttpError 400 if it asks for one."""
    if chat.get("tools"):
        return
    if chat.pop("tool_choice", None) not in (None, "auto", "none"):
        raise bad_request("`tool_choice` asks for a tool, and there are no `tools`", "tool_choice")
    chat.pop("parallel_tool_calls", None)


def tokenize_body(chat: Object) -> Object:
    """Return the request to vLLM's `/tokenize` for the prompt of a chat request, without its model.

    vLLM's `/v1/messages/count_tokens` would count Anthropic's request, which is not what the model gets here: a task
    may add its system prompt.
    """
    body = {name: chat[name] for name in _COUNTED if name in chat}
    template = chat.get("chat_template_kwargs")
    template = dict(template) if isinstance(template, dict) else {}
    if (effort := chat.get("reasoning_effort")) is not None:  # As the chat API passes it to the template.
        template = {"reasoning_effort": effort, "enable_thinking": effort != "none"} | template
    if template:
        body["chat_template_kwargs"] = template
    return body


def _add_output_config(body: Object, config: Object) -> None:
    if config.get("effort") is not None:
        body["reasoning_effort"] = config["effort"]
    _add_format(body, _object_field(config, "format", "output_config.format"), "output_config.format")


def _add_format(body: Object, form: Object, field: str) -> None:
    if not form:
        return
    if form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise bad_request(f"`{field}` must be of type json_schema and have a `schema`", field)
    body["response_format"] = {
        "type": "json_schema",
        "json_schema": {"name": "json_schema", "schema": form["schema"]},
    }


def _add_thinking(body: Object, thinking: Object) -> None:
    """`adaptive` and the like leave it to the model."""
    if thinking.get("type") == "disabled":
        body["reasoning_effort"] = "none"
    elif thinking.get("type") == "enabled" and thinking.get("budget_tokens") is not None:
        body["thinking_token_budget"] = thinking["budget_tokens"]


def _add_tools(body: Object, tools: Any, choice: Object) -> None:
    if tools is not None and not isinstance(tools, list):
        raise bad_request("`tools` must be a list", "tools")
    if tools:
        body["tools"] = [_tool(tool, f"tools.{number}") for number, tool in enumerate(tools)]
    if not choice:
        return
    kind = choice.get("type")
    if kind == "tool" and isinstance(choice.get("name"), str):
        body["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    elif isinstance(kind, str) and kind in _CHOICES:
        body["tool_choice"] = _CHOICES[kind]
    else:
        message = "`tool_choice.type` must be auto, any, none, or tool with a `name`"
        raise bad_request(message, "tool_choice")
    if choice.get("disable_parallel_tool_use") is True:
        body["parallel_tool_calls"] = False


def _tool(tool: Any, field: str) -> Object:
    if not isinstance(tool, dict):
        raise bad_request(f"`{field}` must be an object", field)
    kind = tool.get("type")
    if kind not in (None, "custom"):
        message = (
            f"`{field}` is Anthropic's own tool {quoted(kind)}, which this model does not know: "
            "define a tool with a `name` and an `input_schema`, and run it yourself"
        )
        raise bad_request(message, field)
    schema = tool.get("input_schema")
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        raise bad_request(f"`{field}.name` is missing", f"{field}.name")
    if not isinstance(schema, dict):
        raise bad_request(f"`{field}.input_schema` must be a JSON schema", f"{field}.input_schema")
    function: Object = {"name": tool["name"]}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    function["parameters"] = schema if "type" in schema else {**schema, "type": "object"}
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}


def _is_text(message: Object) -> bool:
    content = message["content"]
    parts = content if isinstance(content, list) else ()
    return bool(content) and "tool_calls" not in message and all(part["type"] == "text" for part in parts)


def _object_field(data: Object, name: str, field: str | None = None) -> Object:
    value = data.get(name)
    if value is not None and not isinstance(value, dict):
        raise bad_request(f"`{field or name}` must be an object", field or name)
    return value or {}
