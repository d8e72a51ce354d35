"""Reads a JSON lines file of texts with the calls that answer them, and says what is wrong with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from deploy.demo.data.csv_file import CsvData, DataError
from deploy.demo.data.jsonl_file import read_lines
from schemas.tools import MAX_TOOLS, FunctionTool
from shared.grading.tool_calls import ReadCall, calls_text, read_call

_FORM = (
    'Each line is {"text": "…", "calls": [{"name": "function", "arguments": {…}}]}; where no call is right, '
    '{"text": …, "answer": "a text"}.'
)


def read_call_rows(path: Path, tools: Sequence[FunctionTool]) -> CsvData:
    """Read the rows; a row's label is its calls in the spelling that is trained on, or the text that answers it.

    Drops and counts rows as `read_objects` does. Raises DataError with the line and what to change.
    """
    functions = {tool.name: tool for tool in tools}
    dropped: Counter[str] = Counter()
    rows = read_lines(path, lambda row: _calls(row, functions), _FORM, dropped)
    return CsvData(tuple(rows), (), dict(dropped))


def read_tools(path: Path) -> tuple[FunctionTool, ...]:
    """Read the functions, a JSON list. Raises DataError for a file that has none that a task may have."""
    try:
        tools = TypeAdapter(tuple[FunctionTool, ...]).validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"no functions: {path} cannot be read ({error.strerror})",
            "Write a JSON list of functions (name, description, parameters) there, or name its file with --schema.",
        ) from error
    except ValidationError as error:
        raise DataError(f"{path}: {error.errors()[0]['msg']}", "deploy/tasks/home.yaml has an example.") from error
    if not 0 < len(tools) <= MAX_TOOLS:
        raise DataError(f"{path} has {len(tools)} functions", f"Give 1 to {MAX_TOOLS}.")
    return tools


def _calls(row: Mapping[str, Any], functions: Mapping[str, FunctionTool]) -> str:
    calls, answer = row.get("calls") or [], row.get("answer")
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError("`calls` must be a list of objects")
    if bool(calls) == isinstance(answer, str):
        raise ValueError("expected either `calls` or `answer`")
    read = [_call(call.get("name"), call.get("arguments", {}), functions) for call in calls]
    return calls_text(read, functions) if read else str(answer).strip()


def _call(name: object, arguments: object, functions: Mapping[str, FunctionTool]) -> ReadCall:
    return read_call(str(name), json.dumps(arguments), functions)
