"""The functions of a tools task, as the chat and responses APIs take them. Pure.

`strict` makes vLLM constrain the arguments to their schema, and `required` or `auto` whether there is a call at all: it
does so in the form in which the model writes calls, so that what was trained is what is allowed.
"""

from __future__ import annotations

from typing import Any

from schemas.tasks import TaskSpec
from schemas.tools import CallsPerAnswer, FunctionTool


def chat_fields(spec: TaskSpec) -> dict[str, Any]:
    """Return the fields of a chat request by which an answer calls the task's functions; none for other kinds."""
    tools = [{"type": "function", "function": _function(tool)} for tool in spec.tools]
    return {"tools": tools, **_choice(spec)} if tools else {}


def responses_fields(spec: TaskSpec) -> dict[str, Any]:
    """Return the same of the responses API, which has a function's fields at the top."""
    tools = [{"type": "function", **_function(tool)} for tool in spec.tools]
    return {"tools": tools, **_choice(spec)} if tools else {}


def _function(tool: FunctionTool) -> dict[str, Any]:
    return {
        "name": tool.name, "description": tool.description, "parameters": tool.parameters, "strict": True
    }  # fmt: skip


def _choice(spec: TaskSpec) -> dict[str, Any]:
    parallel = spec.calls_per_answer is not CallsPerAnswer.ONE
    return {"tool_choice": spec.tool_choice.value, "parallel_tool_calls": parallel}
