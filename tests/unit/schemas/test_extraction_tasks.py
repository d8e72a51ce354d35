from __future__ import annotations

from typing import Any

import jsonschema_rs
import pydantic
import pytest

from schemas.output_schema import fields_of
from schemas.tasks import TaskSpec
from tests.unit.shared.grading.orders import SCHEMA, orders


def test_the_fields_of_a_schema_are_named_by_their_paths_with_their_types() -> None:
    assert fields_of(SCHEMA) == {
        "customer.name": {"string"},
        "customer.vip": {"boolean", "null"},
        "ordered_on": {"string", "null"},
        "total": {"number", "null"},
        "status": {"string", "null"},
        "items[].sku": {"string"},
        "items[].count": {"integer"},
        "tags[]": {"string"},
    }


def test_a_schema_that_pydantic_writes_is_taken_as_it_is() -> None:
    class Item(pydantic.BaseModel):
        sku: str
        price: float | None = None

    class Order(pydantic.BaseModel):
        items: list[Item]
        first: Item | None = None

    assert list(fields_of(Order.model_json_schema())) == [
        "items[].sku", "items[].price", "first.sku", "first.price", "first",
    ]  # fmt: skip
    orders(output_schema=Order.model_json_schema(), comparators={"items[].price": {"compare": "number"}})


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "array"}, "must be of an object with fields"),
        ({"type": "object"}, "must be of an object with fields"),
        ({"type": "object", "properties": {"a": {"typ": "string"}}}, "a: 'typ' is none of the keywords"),
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "a: `type` must be one of array"),
        ({"type": "object", "properties": {"a": {"pattern": "("}}}, "a: `pattern` must be a regular expression"),
        ({"type": "object", "properties": {"a": {}}, "required": ["b"]}, r"`required` names \['b'\]"),
        ({"type": "object", "properties": {"a.b": {}}}, "has a dot"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}}, "refers to nothing"),
        (
            {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {
                "x": {"type": "object", "properties": {"again": {"$ref": "#/$defs/x"}}},
            }},
            "a.again: #/\\$defs/x contains itself",
        ),
        ({"type": "object", "properties": {f"f{n}": {} for n in range(201)}}, "201 fields; at most 200"),
        ({"type": "object", "properties": {"a": {"description": "x" * 50_000}}}, "longer than 50,000"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_served_or_judged_is_refused_with_its_place(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=said):
        orders(output_schema=schema)


@pytest.mark.parametrize(
    "value", [{"type": 5}, {"required": "x"}, {"minLength": -1}, {"enum": "x"}, {"properties": [1]}, {"anyOf": []}]
)
def test_no_schema_is_taken_that_a_validator_refuses(value: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": value}}
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validator_for(schema)
    with pytest.raises(ValueError, match="must be"):
        fields_of(schema)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"output_schema": None}, "needs `output_schema`"),
        ({"labels": ["a", "b"]}, "`labels` is of classification and multi_label tasks"),
        ({"comparators": {"totl": {"compare": "number"}}}, "'totl' is no field of output_schema; its fields: customer"),
        ({"comparators": {"total": {"compare": "date"}}}, "'total' is compared as date, which is for string"),
        ({"comparators": {"status": {"compare": "casefold", "tolerance": 1}}}, "`tolerance` is of numbers and dates"),
        ({"kind": "generation"}, "is of extraction tasks, and this is a generation task"),
    ],
)
def test_a_task_whose_parts_do_not_fit_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=said):
        orders(**fields)


def test_another_schema_is_another_revision_and_another_comparator_is_none() -> None:
    other = {**SCHEMA, "required": []}
    assert orders(output_schema=other).revision != orders().revision
    assert orders(comparators={"total": {"compare": "number"}}).revision == orders().revision


def test_the_revision_of_other_kinds_does_not_depend_on_what_only_extractions_have() -> None:
    spec = TaskSpec.model_validate({"name": "reply", "kind": "generation", "system_prompt": "Reply."})
    assert spec.revision == "d8325f7a357b"
