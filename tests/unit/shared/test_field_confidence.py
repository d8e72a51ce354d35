from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.adapters import Calibration, LowConfidence
from schemas.predictions import Confidence
from schemas.tasks import TaskSpec
from shared.answers.field_confidence import field_probabilities
from shared.model.confidence import calibrated, measure
from tests.unit.shared.grading.home import home
from tests.unit.shared.grading.orders import orders
from tests.unit.shared.grading.tickets import tickets


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


END = tokens(("<|im_end|>", 0.9))


@pytest.mark.parametrize("kind", ["JSON", "labels"])
def test_the_token_that_ends_an_answer_is_no_part_of_its_json(kind: str) -> None:
    """vLLM lists it as the last one."""
    spec, answer = (orders(), ANSWER) if kind == "JSON" else (tickets(), LISTED)
    assert measure(spec, [*answer, *END]).fields == measure(spec, answer).fields != {}
    assert measure(spec, [*answer, *END, *END]).fields is None


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


LISTED = tokens(('["', 0.9), ("delivery", 0.8), ('", "', 0.7), ("ref", 0.5), ("und", 1.0), ('"]', 0.6))


def test_several_labels_are_as_sure_as_all_tokens_and_each_label_as_its_own() -> None:
    measured = measure(tickets(), LISTED)
    assert measured.score == pytest.approx(0.9 * 0.8 * 0.7 * 0.5 * 0.6)
    assert measured.fields == {
        "delivery": pytest.approx(0.9 * 0.8 * 0.7), "refund": pytest.approx(0.7 * 0.5 * 0.6),
    }  # fmt: skip
    assert Confidence.model_validate(measured.as_dict()).fields == measured.fields


def test_of_a_label_that_comes_twice_the_less_sure_place_counts() -> None:
    twice = tokens(("[", 1.0), ('"damage"', 0.9), (", ", 1.0), ('"damage"', 0.4), ("]", 1.0))
    assert measure(tickets(), twice).fields == {"damage": pytest.approx(0.4)}


@pytest.mark.parametrize(("pieces", "fields"), [((("[", 0.5), ("]", 0.5)), {}), ((('["deli', 0.5), ("v", 0.5)), None)])
def test_a_list_of_nothing_and_one_that_was_cut_are_as_sure_as_their_tokens(
    pieces: tuple[tuple[str, float], ...], fields: dict[str, float] | None
) -> None:
    measured = measure(tickets(), tokens(*pieces))
    assert (measured.score, measured.fields) == (pytest.approx(0.25), fields)


@pytest.mark.parametrize(
    ("spec", "answer"), [(tickets(), LISTED), (orders(), ANSWER), (home(), CALL)], ids=["labels", "JSON", "calls"]
)
def test_a_calibration_maps_the_confidence_of_the_whole_answer_and_the_raw_one_and_its_parts_stay(
    spec: TaskSpec, answer: list[dict[str, Any]]
) -> None:
    low = LowConfidence(threshold=0.3, calibrated=0.4, recall=0.8, flagged=0.2, errors=20)
    halved = Calibration(
        name="c", kind="temperature", temperature=2.0, answers=80, ece_before=0.2, ece_after=0.1, low_confidence=low
    )
    raw, mapped = measure(spec, answer), measure(spec, answer, halved)
    assert raw.score is not None and (raw.calibration, raw.threshold, mapped.threshold) == (None, None, 0.4)
    assert (mapped.raw, mapped.score, mapped.calibration) == (raw.score, calibrated(halved, raw.score), "c")
    assert mapped.fields == raw.fields


def test_what_is_no_label_of_the_task_has_no_probability() -> None:
    other = tokens(("[", 1.0), ('"parcel"', 0.9), (", ", 1.0), ('"damage"', 0.4), ("]", 1.0))
    assert measure(tickets(), other).fields == {"damage": pytest.approx(0.4)}
    names = [f"label {n}" for n in range(300)]
    listed = tokens(("[", 1.0), *((f'{"," * (n > 0)}"{name}"', 0.9) for n, name in enumerate(names)), ("]", 1.0))
    found = measure(tickets(labels=names), listed).fields
    assert found is not None and len(found) == 200  # An event has no more.


def test_a_call_that_never_ends_is_as_sure_as_any_text_however_deep_it_is() -> None:
    endless = [(piece, 0.5) for _ in range(3_000) for piece in ('{"a', '":')]
    assert measure(home(), tokens(*endless)).score == pytest.approx(0.5)
    named = measure(home(), [*CALL, *tokens(*endless)])
    assert named.fields == measure(home(), CALL).fields
