from __future__ import annotations

import json
from typing import Any

import pytest

from shared.grading.json_schema import canonical, read_answer, schema_errors
from tests.unit.shared.grading.orders import SCHEMA

VALID: dict[str, Any] = {"customer": {"name": "Ann"}, "items": [{"sku": "A1", "count": 2}]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"customer": ', r"no JSON: .* \(line 1, column 14\)"),
        ('{"a": 1, "a": 2}', r"no JSON: the key 'a' appears twice"),
        (json.dumps({**VALID, "total": "much"}), r'^total: "much" is not of types? '),
        (json.dumps({"customer": {}, "items": []}), r'^customer: "name" is a required property$'),
        (json.dumps({**VALID, "items": [*VALID["items"], {"sku": "B", "count": 0}]}), r"^items\[1\]\.count: 0 is less"),
        ("[]", r"^the answer: \[\] is not of type"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_answer(text, SCHEMA)


def test_several_faults_are_said_together() -> None:
    assert len(schema_errors({"customer": {}, "items": 1, "total": "x"}, SCHEMA)) == 3


def test_equal_answers_have_one_spelling_with_keys_as_guided_decoding_writes_them() -> None:
    written = '{"items": [{"count": 2, "sku": "Ä1"}],\n "customer": {"name": "Ann"}}'
    assert canonical(read_answer(written, SCHEMA), SCHEMA) == (
        '{"customer": {"name": "Ann"}, "items": [{"sku": "Ä1", "count": 2}]}'
    )


def test_an_object_that_may_be_missing_is_spelled_in_the_order_of_its_schema() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "string"}}}
    schema = {"type": "object", "properties": {"x": {"anyOf": [inner, {"type": "null"}]}}}
    assert canonical({"x": {"a": "1", "b": "2"}}, schema) == '{"x": {"b": "2", "a": "1"}}'
    assert canonical({"x": None}, schema) == '{"x": null}'
