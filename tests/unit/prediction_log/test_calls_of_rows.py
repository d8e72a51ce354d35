"""A call and its answers are made again from a row of the lake as they were logged, whatever they hold."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.conversation import Answer, Api, Call, FinishReason, Media, Message, Part, ToolCall
from schemas.lake import PREDICTIONS
from schemas.predictions import LoggedAnswer, PredictionLogged
from services.prediction_log.arrow_columns import to_arrow
from services.prediction_log.storage import DeltaLake
from shared.conversation import answer_of_row, call_of_row, replay_request
from tests.unit.prediction_log.deliveries import delivery, golden, plain, prediction, stored_rows

texts = st.text(st.characters(codec="utf-8"), max_size=20)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=10)
maybe_texts, maybe_names = st.none() | texts, st.none() | names
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(texts, json_values, max_size=3)
tool_calls = st.builds(
    ToolCall, name=names, arguments=texts, id=maybe_names, type=st.sampled_from(["function", "custom"])
)
some_tool_calls = st.lists(tool_calls, max_size=2).map(tuple)
media = st.builds(
    Media, kind=st.sampled_from(["image", "audio", "video", "document", "text"]), hash=names, media_type=maybe_names,
    size=st.none() | st.integers(0, 2**40), key=maybe_names,
)  # fmt: skip
parts = st.builds(Part, type=names, text=maybe_texts, media=st.none() | media)
contents = st.none() | texts | st.lists(parts, max_size=3).map(tuple)
messages = st.builds(
    Message, role=st.sampled_from(["system", "user", "assistant", "tool", "Critic_2"]), content=contents,
    name=maybe_names, tool_calls=some_tool_calls, tool_call_id=maybe_names, reasoning=maybe_texts, refusal=maybe_texts,
)  # fmt: skip
calls = st.builds(
    Call, api=st.sampled_from(Api), messages=st.lists(messages, min_size=1, max_size=3).map(tuple),
    tools=st.lists(json_objects, max_size=2).map(tuple), tool_choice=json_values, response_format=json_values,
    parameters=json_objects, stream=st.booleans(), constrained=st.booleans(), truncated=st.booleans(),
    surrogates=st.lists(st.text(min_size=1, max_size=20), max_size=3).map(tuple),
)  # fmt: skip
answers = st.builds(
    LoggedAnswer, text=texts, tool_calls=some_tool_calls, refusal=maybe_texts, reasoning=maybe_texts,
    truncated=st.booleans(), prediction_id=st.uuids().map(str), finish_reason=st.none() | st.sampled_from(FinishReason),
    tokens=st.integers(0, 99),
)  # fmt: skip
events = st.builds(
    lambda call, given: prediction("p").model_copy(update={"call": call, "answers": given}),
    calls, st.lists(answers, min_size=1, max_size=3).map(tuple),
)  # fmt: skip


def expect_the_same(rows: dict[str, dict[str, Any]], logged: list[PredictionLogged]) -> None:
    for event in logged:
        for answer in event.answers:
            row = rows[answer.prediction_id]
            assert call_of_row(row) == event.call
            found, given_answer = answer_of_row(row), Answer.model_validate(answer.model_dump())
            assert (found, row["answer"]) == (given_answer, answer.plain)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(st.lists(events, min_size=1, max_size=4))
def test_call_and_answers_of_a_row_equal_those_of_its_event(logged: list[PredictionLogged]) -> None:
    table = to_arrow(PREDICTIONS, [plain(event) for event in logged])
    expect_the_same({row["prediction_id"]: row for row in table.to_pylist()}, logged)


@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(st.lists(events, min_size=1, max_size=4))
def test_they_are_equal_after_the_lake_has_stored_them(logged: list[PredictionLogged]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lake = DeltaLake(folder)
        lake.append(PREDICTIONS, [delivery(event, offset) for offset, event in enumerate(logged)])
        expect_the_same(stored_rows(Path(folder)), logged)


def test_a_row_replays_the_request_that_was_sent(tmp_path: Path) -> None:
    event = golden("tools")
    call = event.call.model_copy(update={"messages": event.call.messages[:-1]})  # Without its picture.
    DeltaLake(str(tmp_path)).append(PREDICTIONS, [delivery(event.model_copy(update={"call": call}), 0)])
    for row in pl.scan_delta(str(tmp_path / PREDICTIONS)).collect().iter_rows(named=True):
        assert replay_request(call_of_row(row)) == replay_request(call)
        path, body = replay_request(call_of_row(row))
        assert (path, body["seed"], body["tools"]) == ("/v1/chat/completions", 7, list(call.tools))


def test_columns_of_json_are_compact_and_null_where_there_is_nothing(tmp_path: Path) -> None:
    spaced = json.dumps(prediction("p").model_dump(mode="json"), indent=2)
    (row,) = to_arrow(PREDICTIONS, [plain(PredictionLogged.model_validate_json(spaced))]).to_pylist()
    assert row["messages"] == '[{"role":"user","content":"where is my parcel?"}]'
    nothing = [row[name] for name in ("tools", "tool_choice", "response_format", "tool_calls", "text")]
    assert nothing == [None] * 5
    bare = prediction("p").model_copy(update={"call": Call(messages=(Message(role="user"),)), "metadata": {}})
    (row,) = to_arrow(PREDICTIONS, [plain(bare)]).to_pylist()
    assert (row["messages"], row["parameters"], row["metadata"]) == ('[{"role":"user"}]', "{}", "{}")
