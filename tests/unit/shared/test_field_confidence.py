from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.predictions import Confidence
from shared.model.confidence import measure
from shared.model.field_confidence import field_probabilities
from tests.unit.shared.grading.home import home
from tests.unit.shared.grading.orders import orders


def tokens(*pieces: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"token": text, "logprob": math.log(p)} for text, p in pieces]


ANSWER = tokens(
    ('{"', 1.0), ("customer", 1.0), ('": {"name": ', 1.0), ('"', 0.9), ("Ann", 0.5), (" Lee", 0.8), ('"', 1.0),
    ("}, ", 1.0), ('"total": ', 1.0), ("2", 0.7), ("0", 0.9), (", ", 0.5), ('"items": [', 1.0),
    ('{"sku": "', 1.0), ("A1", 0.6), ('", "count": ', 1.0), ("2", 0.9), ("}", 1.0),
    (', {"sku": ', 1.0), ('"B7"', 0.3), (', "count": ', 1.0), ("1", 1.0), ("}]}", 1.0),
)  # fmt: skip


def test_a_field_is_as_probable_as_the_tokens_of_its_value_and_as_the_end_of_a_number() -> None:
    found = field_probabilities(ANSWER, orders().output_fields)
    assert found == {
        "customer.name": pytest.approx(0.9 * 0.5 * 0.8),
        "total": pytest.approx(0.7 * 0.9 * 0.5),
        "items[].sku": pytest.approx(0.3),
        "items[].count": pytest.approx(0.9),
    }


def test_an_answer_is_as_sure_as_its_least_sure_field() -> None:
    measured = measure(orders(), ANSWER)
    assert measured.score == pytest.approx(0.3)
    assert measured.fields is not None
    assert Confidence.model_validate(measured.as_dict()).fields == measured.fields
    assert measured.logprob == pytest.approx(sum(token["logprob"] for token in ANSWER))


def test_an_answer_that_was_cut_off_is_as_sure_as_all_its_tokens_together() -> None:
    measured = measure(orders(), ANSWER[:6])
    assert measured.score == pytest.approx(0.9 * 0.5 * 0.8)
    assert measured.fields is None


@pytest.mark.parametrize("broken", [[{"token": "{}"}], [{"token": 1, "logprob": -1.0}], [{"logprob": -0.1}]])
def test_tokens_that_are_none_are_no_measure(broken: list[dict[str, Any]]) -> None:
    assert measure(orders(), broken).score is None


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"\\,:{}[]', min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


def leaves(value: Any, path: str) -> set[str]:
    if isinstance(value, dict):
        inner = [leaves(each, f"{path}.{name}" if path else name) for name, each in value.items()]
        return set().union(*inner)
    if isinstance(value, list):
        return set().union(*(leaves(each, f"{path}[]") for each in value))
    return {path}


class Everything:
    """Every field, whatever it is called."""

    def __contains__(self, path: object) -> bool:
        return True


@given(st.dictionaries(st.text(min_size=1, max_size=3), VALUE, max_size=4), st.sampled_from([None, 2]))
def test_every_value_of_any_json_is_found_under_its_path(value: dict[str, Any], indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    pieces = [(piece, 0.5) for piece in re.findall(r"..?", text, re.DOTALL)]
    found = field_probabilities(tokens(*pieces), Everything())  # type: ignore[arg-type]
    assert found is not None
    assert found.keys() == leaves(value, "")
    assert all(0.0 < p < 0.5 + 1e-9 for p in found.values())


CALL = tokens(
    ("<tool_call>\n", 0.9), ('{"name": "', 1.0), ("set", 0.8), ("_light", 0.5), ('", "arguments": ', 1.0),
    ('{"room": ', 1.0), ('"kit', 0.6), ('chen"', 1.0), (', "on": ', 1.0), ("true", 0.7), ("}", 0.9),
    ("}\n</tool_call>", 1.0),
)  # fmt: skip


def test_a_call_is_as_sure_as_its_least_sure_function_or_argument() -> None:
    measured = measure(home(), CALL)
    assert measured.fields == {
        "set_light": pytest.approx(0.9 * 0.8 * 0.5), "set_light.room": pytest.approx(0.6),
        "set_light.on": pytest.approx(0.7 * 0.9),
    }  # fmt: skip
    assert measured.score == pytest.approx(0.36)


def test_of_several_calls_of_a_function_the_least_sure_counts_and_lists_are_read_as_well() -> None:
    listed = tokens(
        ('[{"name": "stop", "parameters": {}}, ', 1.0), ('{"name": "', 1.0), ("set_light", 0.9),
        ('", "parameters": ', 1.0), ('{"room": "hall", "on": true}}, ', 1.0),
        ('{"name": "', 1.0), ("set_light", 0.4), ('", "parameters": {', 1.0),
        ('"room": "hall", "on": true}}]', 1.0),
    )  # fmt: skip
    fields = measure(home(), listed).fields or {}
    assert fields["set_light"] == pytest.approx(0.4)
    assert fields["stop"] == pytest.approx(1.0)


def test_a_text_in_the_place_of_a_call_is_as_sure_as_any_text() -> None:
    text = tokens(("Hello", 0.5), (" there", 0.5))
    measured = measure(home(tool_choice="auto"), text)
    assert (measured.score, measured.fields) == (pytest.approx(0.5), None)
