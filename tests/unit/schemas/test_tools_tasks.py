"""A tools task names its functions, or says what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.tasks import TaskSpec
from tests.unit.shared.grading.home import BOOK, LIGHT, STOP, home

DEEP = {"type": "object", "properties": {"a" * 100: {"type": "object", "properties": {"b" * 40: {"type": "string"}}}}}


def test_functions_and_their_arguments_are_what_is_judged() -> None:
    assert list(home().output_fields) == [
        "set_light", "set_light.room", "set_light.on", "set_light.brightness", "book_table", "book_table.name",
        "book_table.day", "book_table.price", "book_table.guests[]", "stop",
    ]  # fmt: skip


def test_what_changes_the_answers_makes_a_new_revision_and_comparators_do_not() -> None:
    revisions = {
        home(**changes).revision
        for changes in (
            {}, {"tool_choice": "auto"}, {"calls_per_answer": "in_order"}, {"tools": [BOOK, STOP]},
            {"tools": [LIGHT, {**BOOK, "description": "Tables."}, STOP]},
        )
    }  # fmt: skip
    assert len(revisions) == 5
    assert home(comparators={}).revision == home().revision


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tools": []}, "a tools task needs `tools`"),
        ({"tools": [STOP, STOP]}, "stop is there twice"),
        ({"labels": ["a", "b"]}, "`labels` is of classification and multi_label tasks, and this is a tools task"),
        ({"output_schema": LIGHT["parameters"]}, "`output_schema` is of extraction tasks"),
        ({"kind": "generation", "comparators": {}}, "`tools` is of tools tasks"),
        ({"comparators": {"set_light": {"compare": "exact"}}}, "'set_light' is no field of tools"),
        ({"comparators": {"set_light.on": {"compare": "number"}}}, "is compared as number"),
        ({"tools": [{"name": "two words"}]}, "String should match pattern"),
        ({"tools": [{"name": "f", "parameters": {"type": "string"}}]}, "must be of an object"),
        ({"tools": [{"name": "f", "parameters": {"type": "object", "properties": {"a": {"oneOf": []}}}}]}, "'oneOf'"),
        ({"tools": [{"name": "f" * 64, "parameters": DEEP}]}, "its path has 206 characters; at most 200"),
    ],
)
def test_what_cannot_be_served_or_judged_is_refused_with_the_way_out(fields: dict[str, Any], said: str) -> None:
    document = home().model_dump(mode="json") | ({"comparators": {}} if "tools" in fields else {}) | fields
    with pytest.raises(ValidationError, match=said.replace("(", r"\(")):
        TaskSpec.model_validate(document)
