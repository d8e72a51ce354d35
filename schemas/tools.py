"""The functions of a tools task: what the model may call, with which arguments, and how many calls an answer has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from schemas.base import ShortText
from schemas.conversation import JsonObject
from schemas.output_schema import MAX_FIELDS, MAX_SCHEMA_CHARS, check_path, fields_of

MAX_TOOLS = 64
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""OpenAI's rule."""
NO_CALL = "(no call)"
"""Stands for the function of an answer that calls none."""
_NO_PARAMETERS: JsonObject = {"type": "object", "properties": {}, "additionalProperties": False}


class ToolChoice(StrEnum):
    """`required`: every answer is a call. `auto`: a text may be the right answer, too."""

    REQUIRED = "required"
    AUTO = "auto"


class CallsPerAnswer(StrEnum):
    """How many calls an answer has: `one`, or several, to be made in the order of the right answer, or in any."""

    ONE = "one"
    ANY_ORDER = "any_order"
    IN_ORDER = "in_order"


class FunctionTool(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FunctionName
    description: ShortText = ""
    parameters: JsonObject = Field(
        default_factory=lambda: dict(_NO_PARAMETERS),
        description="JSON Schema of the arguments, an object; `schemas/output_schema.py` says what it may use.",
    )

    @field_validator("parameters")
    @classmethod
    def _schema_can_be_served(cls, parameters: JsonObject) -> JsonObject:
        if len(json.dumps(parameters)) > MAX_SCHEMA_CHARS:
            raise ValueError(f"longer than {MAX_SCHEMA_CHARS:,} characters; shorten its descriptions")
        if parameters.get("properties"):
            fields_of(parameters)
        elif parameters.get("type") != "object":
            raise ValueError('must be of an object: {"type": "object", "properties": {…}}')
        return parameters

    @property
    def argument_fields(self) -> dict[str, frozenset[str]]:
        """The arguments with the JSON types of their values, named as `fields_of` names fields."""
        return fields_of(self.parameters) if self.parameters.get("properties") else {}


def fields_of_tools(tools: Sequence[FunctionTool]) -> dict[str, frozenset[str]]:
    """Return what is judged of calls: each function by its name, and its arguments as `function.argument`.

    Raises ValueError for more than are judged, and for a path that is longer than events take.
    """
    found: dict[str, frozenset[str]] = {}
    for tool in tools:
        found[tool.name] = frozenset()
        found |= {f"{tool.name}.{path}": types for path, types in tool.argument_fields.items()}
    for path in found:
        check_path(path)
    if len(found) > MAX_FIELDS:
        raise ValueError(f"the functions have {len(found)} names and arguments; at most {MAX_FIELDS} are judged")
    return found
