"""`ratchet import`: files and their mistakes, ids of what rows say, and what is published of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from deploy.cli import output
from deploy.cli.app import app
from deploy.cli.golden import corrections as reading
from deploy.cli.imports import events as sending
from schemas.base import Event
from schemas.conversation import Message, Role
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import TaskChanged, TaskSpec
from shared.errors import DependencyUnavailable
from shared.kafka import clients

PROMPT = "Classify."
DESK: dict[str, Any] = {
    "name": "desk", "kind": "classification", "base_model": "the-base", "system_prompt": PROMPT,
    "labels": ["delivery", "refund"], "redaction": {"names": False},  # So that no language model is loaded.
}  # fmt: skip
TAGS = {**DESK, "name": "tags", "kind": "multi_label"}
REPLIES = {**DESK, "name": "replies", "kind": "generation", "labels": [], "dataset": {"min_answer_chars": 1}}
WEATHER = {
    **DESK, "name": "weather", "kind": "tools", "labels": [],
    "tools": [{"name": "forecast", "description": "The weather.", "parameters": {
        "type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"],
        "additionalProperties": False,
    }}],
}  # fmt: skip


class Broker:
    """The topics as the command reads and writes them. It breaks before `accepts` more batches than so many."""

    def __init__(self, *specs: dict[str, Any]) -> None:
        found = [TaskSpec.model_validate(spec) for spec in specs]
        self.tasks = [TaskChanged(task=spec.name, task_revision=spec.revision, spec=spec) for spec in found]
        self.published: list[CorrectionSubmitted] = []
        self.accepts = 1_000

    async def read_topic(self, settings: object, event: type[Event]) -> AsyncIterator[Event]:
        for found in self.tasks if event is TaskChanged else list(self.published):
            yield found

    async def send(self, producer: object, events: Iterable[CorrectionSubmitted]) -> None:
        if self.accepts == 0:
            raise DependencyUnavailable("Kafka did not accept all rows")
        self.accepts -= 1
        self.published += events


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker(DESK, TAGS, REPLIES, WEATHER)

    @asynccontextmanager
    async def open_producer(*_: object) -> AsyncIterator[None]:
        yield None

    monkeypatch.setenv("RATCHET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(reading, "read_topic", broker.read_topic)
    monkeypatch.setattr(sending, "send", broker.send)
    monkeypatch.setattr(clients, "open_producer", open_producer)
    return broker


def run(*arguments: object, ok: bool = True) -> tuple[dict[str, Any], str]:
    """Returns the report, and what was printed beside it."""
    output.stderr.width = output.console.width = 200
    result = CliRunner().invoke(app, ["import", *map(str, arguments), "--yes", "--json"])
    assert (result.exit_code == 0) is ok, result.output
    return json.loads(result.stdout) if result.stdout.startswith("{") else {}, result.stderr


def written(folder: Path, text: str, name: str = "tickets.csv") -> Path:
    (file := folder / name).write_text(text, encoding="utf-8")
    return file


def test_a_row_of_text_and_label_is_a_correction_of_a_reviewer_about_no_answer(broker: Broker, tmp_path: Path) -> None:
    file = written(tmp_path, 'text,label\nWhere is it?,delivery\n"Money,\nback",refund\n')
    report, _ = run("desk", file)
    assert (report["published"], report["labels"], report["errors"]) == (2, {"delivery": 1, "refund": 1}, [])
    first, second = broker.published
    written_at = datetime.fromtimestamp(file.stat().st_mtime, UTC)
    assert (first.purpose, first.answers, first.drawn_probability) == (Purpose.IMPORT, (), None)
    assert (first.label, first.reviewer, first.weight) == ("delivery", "import:tickets.csv", 1.0)
    assert first.occurred_at == first.predicted_at == written_at
    assert first.call.messages == (
        Message(role=Role.SYSTEM, content=PROMPT), Message(role=Role.USER, content="Where is it?"),
    )  # fmt: skip
    assert second.call.messages[-1].text == "Money,\nback"


def test_columns_are_mapped_and_people_are_named_by_hashes_alone(broker: Broker, tmp_path: Path) -> None:
    header = "body;queue;agent;asked;customer;thread;times"
    rows = "one;refund;Ana;2026-09-30T08:15:00+02:00;c-1;t-1;2.5\ntwo;delivery;;1759220100;c-1;t-2;\n"
    options = "--text body --label queue --author agent --time asked --user customer --session thread --weight times"
    run("desk", written(tmp_path, f"{header}\n{rows}"), *options.split())
    first, second = broker.published
    assert [(c.reviewer, c.weight) for c in broker.published] == [("Ana", 2.5), ("import:tickets.csv", 1.0)]
    assert first.happened_at == datetime(2026, 9, 30, 6, 15, tzinfo=UTC)
    assert second.happened_at == datetime.fromtimestamp(1_759_220_100, UTC)
    assert first.user_hash == second.user_hash and first.session_hash != second.session_hash
    assert "c-1" not in first.model_dump_json() and "t-1" not in first.model_dump_json()


def test_an_import_again_adds_what_is_new_alone(broker: Broker, tmp_path: Path) -> None:
    file = written(tmp_path, "text,label\none,refund\ntwo,delivery\none,refund\n")
    report, _ = run("desk", file)
    assert (report["new"], report["repeated"], report["published"]) == (2, 1, 2)
    ids = [correction.correction_id for correction in broker.published]
    later = written(tmp_path, "text,label\nthree,refund\ntwo,delivery\none,refund\n", "october.csv")
    report, _ = run("desk", later)
    assert (report["new"], report["imported_before"], report["published"]) == (1, 2, 1)
    assert len({*ids, broker.published[-1].correction_id}) == 3
    assert run("desk", later)[0]["published"] == 0


def test_the_id_of_a_row_follows_from_its_text_its_label_and_its_own_id(broker: Broker, tmp_path: Path) -> None:
    rows = ["one,refund,1", "one,refund,2", "one,delivery,1", "two,refund,1"]
    run("desk", written(tmp_path, "\n".join(["text,label,id", *rows])))
    run("tags", written(tmp_path, "\n".join(["text,label,id", *rows[:1]])))
    assert len({c.correction_id for c in broker.published}) == len({c.prediction_id for c in broker.published}) == 5


def test_an_import_that_was_interrupted_goes_on_where_it_was(broker: Broker, tmp_path: Path) -> None:
    file = written(tmp_path, "text,label\n" + "".join(f"question {n},refund\n" for n in range(450)))
    broker.accepts = 1
    _, stderr = run("desk", file, ok=False)
    assert "Kafka did not accept all rows" in stderr and len(broker.published) == 200
    broker.accepts = 10
    assert run("desk", file)[0]["published"] == 250
    assert len({c.correction_id for c in broker.published}) == 450


MISTAKES = """\
text,label,weight,time
fine,refund,,
no label,,,
,refund,,
unknown,refnd,,
heavy,refund,11,
later,refund,,2999-01-01
when,refund,,yesterday
few,refund
"""


def test_mistakes_are_named_by_line_and_nothing_is_published(broker: Broker, tmp_path: Path) -> None:
    file = written(tmp_path, MISTAKES)
    report, stderr = run("desk", file, ok=False)
    errors = {error["line"]: error["error"] for error in report["errors"]}
    assert list(errors) == [3, 4, 5, 6, 7, 8, 9]
    assert (errors[3], errors[4]) == ("no label", "no text")
    assert "did you mean 'refund'?" in errors[5]
    assert "no weight" in errors[6] and "in the future" in errors[7] and "no time" in errors[8]
    assert errors[9] == "2 cells, and the header has 4"
    assert "7 of 8 lines have an error, so nothing is imported" in stderr
    assert broker.published == []
    assert run("desk", file, "--skip-errors")[0]["published"] == 1


def test_a_dry_run_publishes_nothing_and_shows_what_would_be(broker: Broker, tmp_path: Path) -> None:
    report, _ = run("desk", written(tmp_path, "text,label\none,refund\n"), "--dry-run")
    assert (report["new"], report["published"], broker.published) == (1, 0, [])
    output.stderr.width = output.console.width = 200
    shown = CliRunner().invoke(app, ["import", "desk", str(written(tmp_path, MISTAKES)), "--dry-run"])
    assert shown.exit_code == 1
    assert "tickets.csv, line 3: no label" in shown.stderr
    assert "refund" in shown.stdout


def test_an_open_quotation_mark_and_a_wrong_encoding_are_said_as_such(broker: Broker, tmp_path: Path) -> None:
    report, _ = run("desk", written(tmp_path, 'text,label\none,refund\n"two,refund\nthree,refund\n'), ok=False)
    (error,) = report["errors"]
    assert error["line"] == 3 and "quotation mark" in error["error"]
    (file := tmp_path / "old.csv").write_bytes("text,label\nGröße,refund\n".encode("latin1"))
    assert "is not UTF-8" in run("desk", file, ok=False)[1]
    for name, reason in (("old.parquet", "cannot be read as Parquet"), ("old.xlsx", "Rename or convert it")):
        (tmp_path / name).write_bytes(b"no table")
        assert reason in run("desk", tmp_path / name, ok=False)[1]
    assert "No such file" in run("desk", tmp_path / "none.parquet", ok=False)[1]


def test_a_column_that_is_missing_is_named_with_those_that_are_there(broker: Broker, tmp_path: Path) -> None:
    file = written(tmp_path, "body,queue\none,refund\n")
    assert "no column 'text'; it has: body, queue" in run("desk", file, ok=False)[1]
    assert "no column 'who'" in run("desk", file, "--author", "who", ok=False)[1]
    assert "no task dsk is applied" in run("dsk", file, ok=False)[1]


def messages(*texts: str, **last: object) -> str:
    roles = ("user", "assistant")
    said: list[dict[str, Any]] = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return json.dumps({"messages": [*said, last] if last else said})


def test_the_last_message_of_the_assistant_is_the_label(broker: Broker, tmp_path: Path) -> None:
    own = json.dumps({"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}],
                      "label": "Hello!"})  # fmt: skip
    lines = [messages("Hi", "Hello.", "Where is it?", "In Lima."), own]
    run("replies", written(tmp_path, "\n".join(lines), "chats.jsonl"))
    first, second = broker.published
    assert [message.text for message in first.call.messages] == [PROMPT, "Hi", "Hello.", "Where is it?"]
    assert (first.label, second.label) == ("In Lima.", "Hello!")
    assert [message.text for message in second.call.messages] == ["Be short.", "Hi"], "the file's prompt stays"


def test_mistakes_in_json_lines_are_named_by_line(broker: Broker, tmp_path: Path) -> None:
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}]}
    lines = [
        "{", "[1]", messages("Hi"), json.dumps({"messages": "Hi"}), json.dumps({"messages": [{"content": "Hi"}]}),
        json.dumps({**json.loads(messages("Hi", "a")), "label": "b"}),
        json.dumps({"messages": [picture, {"role": "assistant", "content": "a cat"}]}),
        json.dumps({"text": "x" * 300_000, "label": "long"}), json.dumps({"text": "a\x00b", "label": "nul"}),
    ]  # fmt: skip
    report, _ = run("replies", written(tmp_path, "\n".join(lines), "chats.jsonl"), ok=False)
    errors = [error["error"] for error in report["errors"]]
    said = ["invalid JSON", "no JSON object", "no label", "no list of messages", "role", "two labels", "media",
            "text too long", "NUL"]  # fmt: skip
    assert [word for word, error in zip(said, errors, strict=True) if word not in error] == []


def test_lists_of_labels_and_tool_calls_are_answers_in_one_spelling(broker: Broker, tmp_path: Path) -> None:
    tags = [{"text": "one", "label": ["refund", "delivery"]}, {"text": "two", "label": "refund"}]
    run("tags", written(tmp_path, "\n".join(map(json.dumps, tags)), "tags.jsonl"))
    assert [c.label for c in broker.published] == ['["delivery", "refund"]', '["refund"]']
    call = {"id": "c1", "type": "function", "function": {"name": "forecast", "arguments": '{ "town": "Lima" }'}}
    line = messages("How is Lima?", role="assistant", content=None, tool_calls=[call])
    run("weather", written(tmp_path, line, "calls.jsonl"))
    said = broker.published[-1]
    assert json.loads(said.label or "") == [{"name": "forecast", "arguments": '{"town": "Lima"}'}]
    assert [tool["function"]["name"] for tool in said.call.tools] == ["forecast"]


def test_a_parquet_file_has_the_same_rows(broker: Broker, tmp_path: Path) -> None:
    pl.DataFrame(
        {"text": ["one", "two"], "label": ["refund", None], "time": [datetime(2026, 9, 30), None], "weight": [2, 1]}
    ).write_parquet(tmp_path / "tickets.parquet")
    report, _ = run("desk", tmp_path / "tickets.parquet", "--skip-errors")
    assert report["errors"] == [{"line": 2, "error": "no label"}]
    (row,) = broker.published
    assert (row.weight, row.happened_at) == (2.0, datetime(2026, 9, 30, tzinfo=UTC))
    run("desk", written(tmp_path, "text,label\none,refund\n"))
    assert len(broker.published) == 1, "the same row of another file"


def test_personal_data_is_replaced_in_texts_and_answers_and_the_event_says_so(broker: Broker, tmp_path: Path) -> None:
    line = json.dumps({"text": "I am at ana.ruiz@corp.example", "label": "We write to ana.ruiz@corp.example today."})
    report, _ = run("replies", written(tmp_path, line, "replies.jsonl"))
    (row,) = broker.published
    assert "ana.ruiz" not in row.model_dump_json()
    assert row.redactions == report["redactions"] == 2
    (surrogate,) = row.call.surrogates
    assert surrogate in row.call.messages[-1].text and surrogate in (row.label or "")
    assert row.surrogates == (surrogate,)
    assert run("replies", tmp_path / "replies.jsonl")[0]["published"] == 0, "its id is of what the file has"
