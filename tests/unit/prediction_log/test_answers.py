"""A request's event becomes a row for each of its answers, and every row has the whole call."""

from __future__ import annotations

import json
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pydantic import ValidationError

from schemas.conversation import Answer, Call, FinishReason, Message, ToolCall
from schemas.lake import PREDICTIONS, REQUESTS, PredictionRow
from schemas.predictions import LoggedAnswer, PredictionLogged, PredictionSubmitted
from services.prediction_log import parquet_files
from services.prediction_log.arrow_columns import to_arrow
from services.prediction_log.erasure.erase import ErasureSweep, SubjectErasure, erase_subjects
from services.prediction_log.storage import DeltaLake
from shared.conversation import answer_of_row, call_of_row
from shared.errors import InvalidMessage
from shared.kafka.decoding import Decoder
from shared.kafka.delivery import Delivery
from tests.unit.prediction_log.deliveries import (
    NOON,
    TASK,
    delivery,
    golden,
    plain,
    prediction,
    request,
    stored_ids,
    stored_rows,
)


def expect_whole(rows: dict[str, dict[str, Any]], event: PredictionLogged) -> None:
    """Every answer of the event has a row, with the whole call and the whole answer."""
    for number, answer in enumerate(event.answers):
        row = rows[answer.prediction_id]
        PredictionRow.model_validate(row)
        assert (row["request_id"], row["answer_number"]) == (event.request_id, number)
        assert call_of_row(row) == event.call
        assert answer_of_row(row) == Answer.model_validate(answer.model_dump())
        assert (row["answer"], row["answer_tokens"]) == (answer.plain, answer.tokens)
        assert (row["confidence"], row["logprob"]) == (answer.confidence.score, answer.confidence.logprob)
        assert json.loads(row["metadata"]) == event.metadata


def test_a_conversation_of_several_turns_with_tools_is_whole_in_the_rows_of_both_answers(tmp_path: Path) -> None:
    event = golden("tools")
    assert DeltaLake(str(tmp_path)).append(PREDICTIONS, [delivery(event, 0)]) == 2
    rows = stored_rows(tmp_path)
    expect_whole(rows, event)
    first, second = (rows[answer.prediction_id] for answer in event.answers)
    assert json.loads(first["messages"])[2]["tool_calls"][1]["arguments"] == '{"number": "4712"}'
    assert (first["finish_reason"], second["finish_reason"]) == ("tool_calls", "client_left")
    assert first["answer"] == '[{"name":"find_order","arguments":"{\\"number\\": \\"4713\\"}"}]'
    assert (first["text"], second["text"], second["tool_calls"]) == ("", None, None)
    assert (first["cached_tokens"], first["reasoning_tokens"], first["session_hash"]) == (384, 6, event.session_hash)


def test_a_truncated_conversation_says_so_in_its_row(tmp_path: Path) -> None:
    event = golden("truncated")
    DeltaLake(str(tmp_path)).append(PREDICTIONS, [delivery(event, 0)])
    expect_whole(stored_rows(tmp_path), event)
    ((row),) = stored_rows(tmp_path).values()
    assert row["truncated"] and "characters left out" in row["messages"]
    assert not call_of_row(row).is_whole


def test_requests_with_one_answer_and_with_several_share_a_batch(tmp_path: Path) -> None:
    events = [prediction("a"), prediction("b", answers=3), golden("tools"), golden("truncated"), prediction("c")]
    lake = DeltaLake(str(tmp_path))
    assert lake.append(PREDICTIONS, [delivery(event, offset) for offset, event in enumerate(events)]) == 8
    for event in events:
        expect_whole(stored_rows(tmp_path), event)
    DeltaTable(tmp_path / PREDICTIONS).optimize.compact()
    for event in events:
        expect_whole(stored_rows(tmp_path), event)


def test_a_request_that_was_sent_twice_has_each_answer_once(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    once = prediction("p", answers=3)
    assert lake.append(PREDICTIONS, [delivery(once, 0), delivery(once, 1)]) == 3
    assert lake.append(PREDICTIONS, [delivery(once, 2), delivery(prediction("q", answers=2), 3)]) == 2
    assert stored_ids(tmp_path) == ["p", "p+1", "p+2", "q", "q+1"]


def test_all_answers_to_an_erased_person_are_deleted_and_skipped(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    hers, later = prediction("hers", user="ann", answers=2), prediction("late", user="ann", answers=2)
    lake.append(PREDICTIONS, [delivery(hers, 0), delivery(prediction("bobs", user="bob", answers=2), 1)])
    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    assert lake.append(PREDICTIONS, [delivery(later, 2), delivery(hers, 3)]) == 0
    assert lake.append(REQUESTS, [delivery(request("late+1", user=None), 0)]) == 0, "each answer has a tombstone"
    assert not ErasureSweep(str(tmp_path)).run()
    assert stored_ids(tmp_path) == ["bobs", "bobs+1"]


def test_a_file_has_no_text_of_another_task_nor_of_a_skipped_row(tmp_path: Path) -> None:
    """Rows of a batch share dictionaries, and a Parquet file would have all their texts, used or not."""

    def said(name: str, text: str, **values: Any) -> PredictionLogged:
        call = Call(messages=(Message(role="user", content=text),))
        return prediction(name, answers=2, **values).model_copy(update={"call": call})

    erase_subjects(str(tmp_path), [SubjectErasure(TASK, "ann", NOON)])
    events = [said("a", "zebra", user="ann"), said("b", "lion", user="bob"), said("c", "tiger", task="other")]
    DeltaLake(str(tmp_path)).append(PREDICTIONS, [delivery(event, n) for n, event in enumerate(events)])
    texts = {}
    for path in (tmp_path / PREDICTIONS).rglob("task=*/**/*.parquet"):
        column = pq.ParquetFile(path, read_dictionary=["messages"]).read(columns=["messages"])["messages"]
        texts[path.parts[-3]] = [chunk.dictionary.to_pylist() for chunk in column.chunks]
    assert {task: str(found) for task, found in texts.items() if "zebra" in str(found)} == {}
    assert "tiger" not in str(texts[f"task={TASK}"]) and "lion" not in str(texts["task=other"])


def test_a_long_conversation_is_not_in_memory_and_in_the_file_for_each_answer(tmp_path: Path) -> None:
    call = Call(messages=(Message(role="user", content="".join(f"{n:x} " for n in range(200_000))),))
    event = prediction("p", answers=100).model_copy(update={"call": call})
    assert to_arrow(PREDICTIONS, [plain(event)]).nbytes < 2_000_000
    DeltaLake(str(tmp_path)).append(PREDICTIONS, [delivery(event, 0)])
    (file,) = (tmp_path / PREDICTIONS).rglob("task=*/**/*.parquet")
    assert file.stat().st_size < 4_000_000, "once in each row group"
    expect_whole(stored_rows(tmp_path), event)


@pytest.mark.parametrize("answers", [1, 3])
def test_a_row_group_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: int) -> None:
    monkeypatch.setattr(parquet_files, "ROW_GROUP_BYTES", 10_000)
    sizes = [100, 6_000, 6_000, 30_000, *[900] * 20]
    events = [prediction(f"p{n}", text="x" * size, answers=answers) for n, size in enumerate(sizes)]
    DeltaLake(str(tmp_path)).append(PREDICTIONS, [delivery(event, n) for n, event in enumerate(events)])
    (file,) = (tmp_path / PREDICTIONS).rglob("task=*/**/*.parquet")
    opened = pq.ParquetFile(file)
    groups = [opened.read_row_group(n, columns=["answer"])["answer"].to_pylist() for n in range(opened.num_row_groups)]
    assert len(groups) > 4 and all(len(group) == 1 or sum(map(len, group)) <= 10_000 for group in groups)
    assert [len(text) for group in groups for text in group] == [size for size in sizes for _ in range(answers)]
    assert len(stored_ids(tmp_path)) == len(sizes) * answers


def test_a_refusal_is_in_the_answer_and_beside_its_text() -> None:
    answer = LoggedAnswer(
        prediction_id="p", text="I am sorry.", refusal="No.", finish_reason=FinishReason.CONTENT_FILTER
    )
    called = LoggedAnswer(prediction_id="q", text="", tool_calls=(ToolCall(name="f", id="call_1"),), refusal="")
    event = prediction("p").model_copy(update={"answers": (answer, called)})
    first, second = to_arrow(PREDICTIONS, [plain(event)]).to_pylist()
    assert (first["answer"], first["text"], first["refusal"]) == ("I am sorry.\nNo.", "I am sorry.", "No.")
    assert (second["answer"], second["text"], second["refusal"]) == ('[{"name":"f","arguments":""}]', "", "")
    assert [answer_of_row(row).plain for row in (first, second)] == [answer.plain, called.plain]


def test_rows_are_in_the_order_of_events_and_answers() -> None:
    events: list[Delivery[Any]] = [delivery(prediction(f"p{n}", answers=1 + n % 3), n) for n in range(1_100)]
    ids = to_arrow(PREDICTIONS, [found.event for found in events])["prediction_id"].to_pylist()
    assert ids == [answer.prediction_id for found in events for answer in found.event.answers]


@pytest.mark.parametrize("path", [("usage", "prompt_tokens"), ("redactions",), ("answers", 0, "tokens")])
def test_a_count_that_no_column_holds_is_refused_by_itself(path: tuple[str | int, ...]) -> None:
    """In the table's columns it failed for its whole batch, whose records then became a commit each."""
    event = prediction("p").model_dump(mode="json")
    *parents, last = path
    reduce(getitem, parents, event)[last] = 2**70
    with pytest.raises(InvalidMessage, match="less than or equal"):
        Decoder(PredictionLogged)(json.dumps(event).encode())


@pytest.mark.parametrize(("name", "value"), [("prompt_tokens", 2**70), ("answer_tokens", 2**31), ("latency_ms", 1e300)])
def test_a_submitted_number_that_is_none_of_a_request_is_refused(name: str, value: float) -> None:
    submitted = {
        "task": TASK, "task_revision": "r1", "prediction_id": "p", "answer": "delivery",
        "messages": [{"role": "user", "content": "where is it?"}], name: value,
    }  # fmt: skip
    with pytest.raises(ValidationError, match="less than or equal"):
        PredictionSubmitted.model_validate(submitted)
