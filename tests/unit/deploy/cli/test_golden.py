"""`ratchet golden`: what a person may add, what it says about training data, and what it suggests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli import output
from deploy.cli.app import app
from deploy.cli.golden import corrections as reading
from deploy.cli.golden.corrections import agreed_labels, without_erased
from deploy.cli.golden.suggestions import drawn, new_rows, sample_candidates
from schemas.conversation import Answer, Call, Message, Role
from schemas.datasets import DatasetManifest, Example
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.lake import PREDICTIONS
from schemas.predictions import SubjectForgotten
from schemas.tasks import TaskKind, TaskSpec
from services.scheduler.golden.changes import find_task
from services.scheduler.golden.file import GoldenLine
from services.scheduler.task_files import read_task
from shared.settings import Settings
from tests.unit.prediction_log.lake_rows import prediction, write

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
TASK = """\
name: desk
kind: classification
base_model: the-base
system_prompt: Classify.
labels: [delivery, refund]
redaction: {names: false}  # So that no language model is loaded.
"""
SPEC = TaskSpec.model_validate(
    {"name": "desk", "kind": "classification", "system_prompt": "Classify.", "labels": ["delivery", "refund"]}
)


def correction(
    name: str, label: str | None, reviewer: str = "ana", purpose: Purpose = Purpose.AUDIT, **fields: Any
) -> CorrectionSubmitted:
    text = f"{name} {'abcdefghij'[len(name) % 10] * 30} a question of its own {name[::-1]}"
    turns = (Message(role=Role.SYSTEM, content="Classify."), Message(role=Role.USER, content=text))
    values: dict[str, Any] = {
        "occurred_at": NOON, "task": "desk", "task_revision": "r", "correction_id": f"c-{name}-{reviewer}",
        "request_id": f"r-{name}", "prediction_id": name, "purpose": purpose, "reviewer": reviewer,
        "call": Call(messages=turns), "answers": (Answer(text="delivery"),), "label": label, "user_hash": f"u-{name}",
        "predicted_at": NOON,
    }  # fmt: skip
    return CorrectionSubmitted.model_validate(values | fields)


def text_of(event: CorrectionSubmitted) -> str:
    return event.call.messages[-1].text


class Desk:
    """A home with one task, and the corrections that are on the topic."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.folder = home / "tasks"
        self.folder.mkdir()
        (self.folder / "desk.yaml").write_text(TASK)
        self.corrections: list[CorrectionSubmitted] = []
        monkeypatch.setenv("RATCHET_HOME", str(home))
        for name in ("RATCHET_ARTIFACTS", "RATCHET_LAKE"):
            monkeypatch.delenv(name, raising=False)

        async def read(settings: Settings, task: str) -> list[CorrectionSubmitted]:
            return [event for event in self.corrections if event.task == task]

        monkeypatch.setattr(reading, "read_corrections", read)

    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["golden", *arguments])

    def added(self, *arguments: str) -> Any:
        result = self.run("add", "desk", *arguments, "--reason", "asked daily", "--by", "ana")
        assert result.exit_code == 0, result.output
        return result

    @property
    def rows(self) -> list[Any]:
        return list(find_task(self.folder, "desk").golden)

    def dataset(self, name: str, train: Sequence[str], held_out: Sequence[str] = ()) -> None:
        folder = self.home / "artifacts" / "datasets" / name
        folder.mkdir(parents=True)
        manifest = DatasetManifest(
            dataset_id=name, task="desk", task_revision="r", cycle_id="c", created_at=NOON, data_cutoff=NOON, seed=1,
            files={}, train_examples=1, eval_examples=1, labels={},
        )  # fmt: skip
        (folder / "manifest.json").write_text(manifest.model_dump_json())
        for part, texts in (("train", train), ("eval", held_out)):
            (folder / f"{part}.jsonl").write_text("".join(example(text).model_dump_json() + "\n" for text in texts))


def example(text: str) -> Example:
    turns = (
        Message(role=Role.SYSTEM, content="Classify."),
        Message(role=Role.USER, content=text),
        Message(role=Role.ASSISTANT, content="refund"),
    )
    return Example(example_id=f"e-{text[:20]}", messages=turns, group="g", prediction_ids=("p",), correction_ids=("c",))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, monkeypatch)


def test_a_question_is_added_with_its_reason_and_listed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.added("--text", "I want my money back", "--label", "refund", "--must-pass")
    listed = json.loads(desk.run("list", "desk", "--json").stdout)
    (row,) = listed["rows"]
    assert (row["must_pass"], row["messages"][1]["content"]) == (True, "refund")
    (change,) = listed["history"]
    assert (change["by"], change["reason"], change["row_id"]) == ("ana", "asked daily", row["row_id"])
    monkeypatch.setattr(output.console, "width", 80)  # As Rich takes a pipe for.
    shown = desk.run("list", "desk").output
    assert row["row_id"] in shown, "whole, for `remove` and `mark`"
    assert "money back" in shown and "1 row, 1 of them must-pass" in shown
    assert "0 rows" in desk.run("list", "desk", "--part", "kept").output
    golden_set = read_task(desk.folder / "desk.yaml").golden_set
    assert golden_set is not None and golden_set.must_pass == 1


def test_rows_are_marked_and_removed_with_a_reason(desk: Desk) -> None:
    desk.added("--text", "one", "--label", "refund")
    (row,) = desk.rows
    assert desk.run("mark", "desk", row.row_id, "--reason", "a customer was lost").exit_code == 0
    assert desk.rows[0].must_pass
    assert desk.run("remove", "desk", row.row_id, "--reason", "unclear").exit_code == 0
    assert desk.rows == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--text", "a", "--label", "refnd"), "did you mean 'refund'?"),
        (("--text", "  ", "--label", "refund"), "nothing is asked"),
        (("--text", "a"), "need --label"),
        (("--file", "x", "--label", "refund"), "only they have one"),
        (("--text", "a", "--label", "refund", "--prediction", "p"), "one of --text"),
        ((), "one of --text"),
        (("--correction", "c-nothing"), "there is no correction c-nothing of desk"),
        (("--prediction", "p-nothing", "--label", "refund"), "has no predictions yet prediction_log writes them"),
        (("--file", "/nothing/here"), "cannot be read"),
    ],
)
def test_what_cannot_be_a_row_is_refused_and_changes_nothing(
    desk: Desk, arguments: tuple[str, ...], expected: str
) -> None:
    result = desk.run("add", "desk", *arguments, "--reason", "r")
    assert result.exit_code != 0
    said = " ".join(result.output.replace("│", " ").split())
    assert expected in said
    assert "validation error" not in said
    assert [path.name for path in desk.folder.iterdir()] == ["desk.yaml"]


def test_a_change_without_a_reason_is_refused(desk: Desk) -> None:
    assert desk.run("add", "desk", "--text", "a", "--label", "refund").exit_code == 2
    assert desk.run("add", "desk", "--text", "a", "--label", "refund", "--reason", " ").exit_code == 2
    assert desk.rows == []


def test_a_row_made_of_a_prediction_names_it_and_its_user(desk: Desk) -> None:
    recent = datetime.now(UTC) - timedelta(days=1)
    turns = json.dumps([{"role": "system", "content": "Classify."}, {"role": "user", "content": "money back"}])
    write(desk.home / "lake", PREDICTIONS, [prediction("p1", recent, task="desk", user_hash="u1", messages=turns)])
    misspelt = desk.run("add", "desk", "--prediction", "p-nothing", "--label", "refund", "--reason", "r")
    assert "no prediction p-nothing of desk" in misspelt.stderr and "may be misspelt" in misspelt.stderr
    desk.added("--prediction", "p1", "--label", "refund")
    (row,) = desk.rows
    assert (row.prediction_id, row.user_hash, row.answer, row.predicted_at) == ("p1", "u1", "refund", recent)
    assert [message.text for message in row.messages] == ["money back", "refund"]


def test_a_row_made_of_a_correction_has_the_reviewers_label(desk: Desk) -> None:
    desk.corrections = [correction("p1", "refund"), correction("p2", "delivery")]
    desk.added("--correction", "c-p1-ana", "--part", "kept")
    (row,) = desk.rows
    assert (row.prediction_id, row.user_hash, row.answer, row.part) == ("p1", "u-p1", "refund", "kept")
    assert [message.role for message in row.messages] == ["user", "assistant"]


def test_a_picture_and_a_preference_are_no_rows(desk: Desk) -> None:
    picture = Message(role=Role.USER, content=[{"type": "image_url", "media": {"kind": "image", "hash": "h"}}])
    desk.corrections = [
        correction("p1", "refund", call=Call(messages=(picture,))),
        correction("p2", None, preference="a"),
    ]
    for name, expected in (("c-p1-ana", "cannot be asked again"), ("c-p2-ana", "is a preference")):
        result = desk.run("add", "desk", "--correction", name, "--reason", "r")
        assert (result.exit_code, expected in result.output) == (1, True)


def test_what_looks_like_personal_data_is_added_only_if_a_person_says_so(desk: Desk) -> None:
    asked = ("--text", "Refund it to jo.doe@example.org please", "--label", "refund")
    refused = desk.run("add", "desk", *asked, "--reason", "r")
    assert (refused.exit_code, desk.rows) == (1, [])
    assert "personal data (email)" in refused.stderr
    desk.added(*asked, "--yes")
    assert "personal data" not in desk.added("--text", "Refund it please", "--label", "refund").stderr


def test_surrogates_in_what_was_logged_are_not_taken_for_personal_data(desk: Desk) -> None:
    logged = Call(messages=(Message(role=Role.USER, content="to a@example.org"),))
    desk.corrections = [correction("p1", "refund", call=logged)]
    assert "personal data" not in desk.added("--correction", "c-p1-ana").stderr


def test_adding_says_how_many_training_rows_the_next_build_leaves_out(desk: Desk) -> None:
    asked = "I sent the parcel back two weeks ago and still wait for my money, when will it come?"
    nearly = asked.replace("two weeks", "two weekz")
    desk.dataset(
        "desk-1", [asked, nearly, "Where is my parcel? The tracking has not changed for days."], [asked.upper()]
    )
    result = desk.added("--text", asked, "--label", "refund")
    assert "desk-1 has 2 training rows and 1 evaluation rows" in result.stderr
    assert "No row of the task's newest dataset" in desk.added("--text", "Who are you?", "--label", "refund").stdout


def test_the_sample_has_only_audited_questions_on_whose_label_two_reviewers_agree() -> None:
    corrections = [
        *(correction("agreed", "refund", who) for who in ("ana", "ben")),
        *(correction("alone", "refund", who) for who in ("ana",)),
        *(correction("twice-alone", "refund", "ana", correction_id=f"c{n}") for n in range(2)),
        *(correction("disputed", label, who) for who, label in (("ana", "refund"), ("ben", "delivery"))),
        *(
            correction("settled", label, who)
            for who, label in zip("abc", ("refund", "delivery", "refund"), strict=True)
        ),
        *(correction("suspect", "refund", who, Purpose.LOW_CONFIDENCE) for who in ("ana", "ben")),
        *(correction("renamed", "gone", who) for who in ("ana", "ben")),
    ]
    assert [row.prediction_id for row in sample_candidates(corrections, SPEC)] == ["agreed", "settled"]


def test_what_a_model_answered_does_not_change_the_sample(desk: Desk) -> None:
    def suggested(answer: str) -> str:
        desk.corrections = [
            correction(f"q{n}", ("refund", "delivery")[n % 2], who, answers=(Answer(text=answer),))
            for n in range(12) for who in ("ana", "ben")
        ]  # fmt: skip
        result = desk.run("suggest", "desk", "--part", "sample", "4")
        assert result.exit_code == 0, result.output
        return str(result.stdout)

    right, wrong = suggested("refund"), suggested("nonsense")
    assert right == wrong
    rows = [json.loads(line) for line in right.splitlines()]
    assert sorted(row["label"] for row in rows) == ["delivery", "delivery", "refund", "refund"]
    assert desk.run("suggest", "desk", "--part", "sample", "4", "--seed", "7").stdout != right


def test_suggested_rows_are_added_from_their_file_and_not_suggested_again(desk: Desk, tmp_path: Path) -> None:
    desk.corrections = [correction(f"q{n}", "refund", who) for n in range(6) for who in ("ana", "ben")]
    (tmp_path / "rows.jsonl").write_text(desk.run("suggest", "desk", "--part", "sample", "4").stdout)
    desk.added("--file", str(tmp_path / "rows.jsonl"))
    assert len(desk.rows) == 4
    again = desk.run("suggest", "desk", "--part", "sample", "4")
    assert len(again.stdout.splitlines()) == 2
    assert "2 rows instead of 4" in again.stderr


def test_what_was_ever_trained_on_is_not_suggested(desk: Desk) -> None:
    desk.corrections = [correction(f"q{n}", "refund", who) for n in range(4) for who in ("ana", "ben")]
    desk.dataset("desk-1", [text_of(desk.corrections[0])])
    desk.dataset("desk-2", [text_of(desk.corrections[2]).upper()])
    found = desk.run("suggest", "desk", "--part", "sample").stdout.splitlines()
    assert sorted(json.loads(line)["prediction_id"] for line in found) == ["q2", "q3"]


def test_near_copies_are_suggested_once() -> None:
    texts = ("Where is the parcel that I ordered in May?", "where is the parcel, that I ordered in May", "Hello")
    rows = [GoldenLine(text=text, label="delivery").row(SPEC) for text in texts]
    assert new_rows(rows, [], SPEC) == [rows[0], rows[2]]
    assert new_rows(rows, [rows[1]], SPEC) == [rows[2]]


def test_the_order_of_free_answers_is_the_seeds_too() -> None:
    rows = [
        GoldenLine(text=f"q{n}", label=f"answer {n:02}").row(
            SPEC.model_copy(update={"kind": TaskKind.GENERATION, "labels": ()})
        )
        for n in range(30)
    ]
    order = [row.answer for row in drawn(rows, 1)]
    assert order != sorted(order)
    assert order == [row.answer for row in drawn(rows[::-1], 1)]


def test_a_forgotten_persons_corrections_are_left_out_though_the_topic_has_them() -> None:
    forgotten = SubjectForgotten(task="desk", task_revision="r", subject_hash="u-p1", occurred_at=NOON)
    later = correction("p1", "refund", predicted_at=NOON + timedelta(days=1))
    left = without_erased([correction("p1", "refund"), correction("p2", "refund"), later], [forgotten])
    assert [(c.prediction_id, c.predicted_at) for c in left] == [("p2", NOON), ("p1", later.predicted_at)]


def test_a_reviewers_last_label_counts() -> None:
    votes = [correction("p", "refund"), correction("p", "delivery", "ben"), correction("p", "delivery", "ana")]
    assert [vote.reviewer for vote in agreed_labels(votes, 2)["p"]] == ["ana", "ben"]


def test_a_label_that_a_reviewer_took_back_counts_for_nothing() -> None:
    unsure = correction("p", None, preference="cannot_tell")
    elsewhere = correction("p", None, preference="cannot_tell", request_id="r-other")
    label = correction("p", "refund")
    assert agreed_labels([label, unsure], 1) == {}
    assert set(agreed_labels([label, elsewhere], 1)) == {"p"}, "another question's"
    assert set(agreed_labels([label, unsure, label], 1)) == {"p"}


class Base:
    """An OpenAI-compatible server that gives a question's answers in turn, the last one again and again."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.answers = answers
        self.bodies: list[dict[str, Any]] = []
        base = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                base.bodies.append(body)
                given = base.answers[body["messages"][-1]["content"]]
                message = {"role": "assistant", "content": given.pop(0) if len(given) > 1 else given[0]}
                data = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def base() -> Iterator[Base]:
    made = Base({})
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_kept_rows_are_those_that_the_base_gets_right_twice(
    desk: Desk, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATCHET_VLLM", base.url)
    desk.corrections = [
        correction(name, "refund", purpose=Purpose.LOW_CONFIDENCE) for name in ("right", "once", "wrong")
    ]
    right, once, wrong = map(text_of, desk.corrections)
    base.answers = {right: ["refund"], once: ["refund", "delivery"], wrong: ["delivery", "refund"]}
    result = desk.run("suggest", "desk", "--part", "kept", "5")
    assert result.exit_code == 0, result.output
    (row,) = map(json.loads, result.stdout.splitlines())
    assert (row["prediction_id"], row["part"]) == ("right", "kept")
    asked = [body["messages"][-1]["content"] for body in base.bodies]
    assert sorted(map(asked.count, (right, once, wrong))) == [1, 2, 2]
    assert {body["model"] for body in base.bodies} == {"the-base"}
    assert base.bodies[0]["messages"][0] == {"role": "system", "content": "Classify."}
    assert base.bodies[0]["structured_outputs"] == {"choice": ["delivery", "refund"]}


def test_a_base_that_does_not_answer_is_an_error_and_not_an_empty_suggestion(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATCHET_VLLM", "http://127.0.0.1:9")
    desk.corrections = [correction("q", "refund")]
    result = desk.run("suggest", "desk", "--part", "kept")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "requests to the-base failed" in result.stderr


def test_the_words_of_somebody_who_was_forgotten_are_suggested_to_no_golden_set() -> None:
    """The topic still has what a reviewer took of them, on another person's answer."""
    taken, own = correction("taken", "Their words.", suggested_by="wrote"), correction("own", "refund")
    gone = SubjectForgotten(task="desk", task_revision="r", subject_hash="wrote", occurred_at=NOON)
    assert without_erased([taken, own], [gone]) == [own]
