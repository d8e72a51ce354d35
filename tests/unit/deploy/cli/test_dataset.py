"""`ratchet dataset`: versions as the builder publishes them, listed, shown, compared, and loaded elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
from click.testing import Result
from typer.testing import CliRunner

from deploy.cli.app import app
from schemas.base import Gate
from schemas.conversation import Answer, Call, Message, Part, Role, ToolCall
from schemas.datasets import PREFERENCES, DatasetManifest, Example, PreferredAnswer
from schemas.failures import FailuresClustered
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.quality import QualityReport
from schemas.task_settings import DatasetSettings
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.inspection.changes import Parent, rows_of_dataset
from services.dataset_builder.inspection.report import Inspected
from services.dataset_builder.pipeline import Build, Dataset, Inputs, build_dataset
from services.dataset_builder.publishing.card import COLUMNS
from services.dataset_builder.publishing.publish import staged_build
from shared.conversation import chat_messages
from shared.storage.artifacts import ArtifactStore

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
SPEC = TaskSpec(name="desk", kind=TaskKind.GENERATION, system_prompt="Help.", dataset=DatasetSettings(eval_share=0.3))
FIND = {
    "type": "function",
    "function": {"name": "find", "parameters": {"type": "object", "properties": {"n": {"enum": [1, "two"]}}}},
}
SAY = {"type": "function", "function": {"name": "say", "parameters": {"properties": {"loud": {"default": True}}}}}
WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet", "kilo", "lima")


def correction(number: int, label: str, call: Call, answers: tuple[Answer, ...]) -> CorrectionSubmitted:
    return CorrectionSubmitted(
        occurred_at=NOON + timedelta(seconds=number), task="desk", task_revision=SPEC.revision,
        correction_id=f"c{number}", request_id=f"r{number}", prediction_id=f"p{number}", purpose=Purpose.LOW_CONFIDENCE,
        reviewer="ana", call=call, answers=answers, label=label, user_hash="u1", predicted_at=NOON,
    )  # fmt: skip


def plain_text(number: int) -> str:
    return f"{WORDS[number % 12]} {number * 7919} {WORDS[number * 5 % 12]} {WORDS[number * 7 % 12]}?"


def plain(number: int, label: str = "It comes on Monday morning.") -> CorrectionSubmitted:
    call = Call(messages=(Message(role=Role.USER, content=plain_text(number)),))
    return correction(number, label, call, (Answer(text="x"),))


def with_tools(number: int) -> CorrectionSubmitted:
    """A conversation of several turns, with parts, a tool's result and an answer that calls a tool.

    Its texts are its own: of rows that are like one another few are held out.
    """
    asked = f"{WORDS[number % 12]} {number * 6007} where is {WORDS[number * 5 % 12]}?"
    call = Call(
        messages=(
            Message(role=Role.USER, content=(Part(type="text", text=asked),)),
            Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="find", arguments='{"n": 1}', id="call-1"),)),
            Message(role=Role.TOOL, content="[]", tool_call_id="call-1"),
            Message(role=Role.USER, content=" ".join(plain_text(number * turn) for turn in (3, 5, 7, 11))),
        ),
        tools=(FIND, SAY),
    )
    answer = Answer(tool_calls=(ToolCall(name="find", arguments='{"n": "two"}', id="call-2"),))
    return correction(number, answer.plain, call, (answer,))


class Published(NamedTuple):
    dataset_id: str
    uri: str
    report: QualityReport


class Home:
    """A home with versions in its artifact store, and the command that runs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ArtifactStore(str(folder / "artifacts"), folder / "cache")
        self.cycles = 0

    def publish(
        self, corrections: Iterable[CorrectionSubmitted], parent: Parent | None = None, passed: bool = True
    ) -> tuple[Published, Build]:
        words = votes_of(corrections)
        build = build_dataset(Inputs(words, SPEC))
        gates = (Gate(name="min_examples", passed=passed, measured=len(words), required=">= 50 training examples"),)
        return self.publish_build(Inspected(build, words, SPEC, gates, {}, parent=parent)), build

    def publish_build(self, inspected: Inspected) -> Published:
        self.cycles += 1
        cycle = FailuresClustered(
            task="desk", task_revision=SPEC.revision, cycle_id=f"desk-cycle-{self.cycles}", suspects=0, noise=0,
            modes=(), data_cutoff=NOON, fence=(),
        )  # fmt: skip
        with staged_build(inspected, cycle, NOON + timedelta(days=self.cycles), self.folder) as staged:
            uri = self.store.publish(staged.folder, staged.kind, staged.name)
            return Published(staged.dataset_id, uri, staged.report)

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["dataset", *arguments], env={"COLUMNS": "300"})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))
    monkeypatch.delenv("RATCHET_ARTIFACTS", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    return Home(tmp_path)


def read(folder: Path | str, part: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (Path(folder) / f"{part}.jsonl").read_text().splitlines()]
    return [row | {"predicted_at": datetime.fromisoformat(row["predicted_at"])} for row in rows]


def test_a_version_has_what_people_preferred_and_its_id_follows_from_it(home: Home) -> None:
    build = build_dataset(Inputs(votes_of(plain(number) for number in range(8)), SPEC))
    gates = (Gate(name="min_examples", passed=True, measured=8, required=">= 1"),)
    pair = PreferredAnswer(
        prompt=(Message(role=Role.USER, content="Where?"),), answers=(Answer(text="Here."), Answer(text="There.")),
        preferred="b", prediction_ids=("p1",), correction_ids=("c1",),
    )  # fmt: skip
    without = home.publish_build(Inspected(build, [], SPEC, gates, {}))
    with_pairs = home.publish_build(Inspected(build, [], SPEC, gates, {}, preferences=[pair]))
    assert without.dataset_id != with_pairs.dataset_id
    folder = home.store.fetch(with_pairs.uri)
    assert PreferredAnswer.model_validate_json((folder / PREFERENCES).read_bytes()) == pair
    assert PREFERENCES in DatasetManifest.model_validate_json((folder / "manifest.json").read_bytes()).files
    assert not (home.store.fetch(without.uri) / PREFERENCES).exists()


def test_the_list_has_a_tasks_versions_and_the_builds_that_a_gate_stopped(home: Home) -> None:
    first, _ = home.publish(map(plain, range(20)))
    home.publish(map(plain, range(3)), passed=False)
    result = home.run("list", "desk")
    assert result.exit_code == 0, result.output
    assert first.dataset_id in result.stdout
    assert "stopped" in result.stdout and "desk-cycle-2" in result.stdout
    listed = json.loads(home.run("list", "desk", "--json").stdout)
    assert [(row["dataset_id"], row["passed"]) for row in listed] == [(first.dataset_id, True), (None, False)]


def test_a_version_is_shown_with_its_checks_and_its_page(home: Home) -> None:
    published, _ = home.publish(map(plain, range(20)))
    result = home.run("show", published.dataset_id)
    assert result.exit_code == 0, result.output
    assert "Enough training examples" in result.stdout and "passed" in result.stdout
    assert f"{published.uri}/quality.html" in result.stdout
    assert json.loads(home.run("show", published.dataset_id, "--json").stdout)["passed"] is True


def test_a_stopped_build_is_shown_by_its_cycle_with_the_way_out_and_exit_code_1(home: Home) -> None:
    home.publish(map(plain, range(3)), passed=False)
    result = home.run("show", "desk-cycle-1")
    assert result.exit_code == 1
    assert "stopped" in result.stdout and "lower dataset.min_examples" in result.stdout


@pytest.mark.parametrize("command", [("show", "desk-nope"), ("diff", "desk-nope", "desk-nope"), ("list", "dusk")])
def test_an_unknown_name_is_an_error_that_says_what_there_is(home: Home, command: tuple[str, ...]) -> None:
    published, _ = home.publish(map(plain, range(20)))
    result = home.run(*command)
    assert result.exit_code == 1
    assert "no version" in result.stderr
    assert (published.dataset_id if command[0] != "list" else "Tasks with versions: desk") in result.stderr


def test_a_version_whose_report_cannot_be_read_is_not_said_to_be_missing(home: Home) -> None:
    published, _ = home.publish(map(plain, range(20)))
    (Path(published.uri) / "quality.json").write_text('{"of": "another version"}')
    result = home.run("show", published.dataset_id)
    assert result.exit_code == 1
    assert f"the report of {published.uri} cannot be read" in " ".join(result.stderr.split())


def test_a_diff_says_which_rows_came_went_moved_weigh_otherwise_and_got_another_answer(home: Home) -> None:
    before, build = home.publish(map(plain, range(20)))
    train, held_out = list(build.dataset.train), list(build.dataset.eval)
    gone, moved, heavier, relabelled = train[:4]
    (new,) = (
        build_dataset(Inputs(votes_of([plain(99)]), SPEC)).dataset.train
        or build_dataset(Inputs(votes_of([plain(99)]), SPEC)).dataset.eval
    )
    changed = relabelled.messages[-1].model_copy(update={"content": "Never."})
    answered = relabelled.model_copy(update={"messages": (*relabelled.prompt, changed)})
    after = Dataset((heavier.model_copy(update={"weight": 2.5}), answered, new, *train[4:]), (moved, *held_out), ())
    parent = Parent(before.dataset_id, SPEC, rows_of_dataset(build.dataset))
    gates = (Gate(name="min_examples", passed=True, measured=20, required=">= 1"),)
    second = home.publish_build(Inspected(Build(after), [], SPEC, gates, {}, parent=parent))
    result = home.run("diff", before.dataset_id, second.dataset_id, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    kinds = {kind: [row["prediction"] for row in found[kind]["rows"]] for kind in ("added", "removed", "moved")}
    assert kinds == {"added": ["p99"], "removed": list(gone.prediction_ids), "moved": list(moved.prediction_ids)}
    (row,) = found["relabelled"]["rows"]
    assert (row["before"], row["after"]) == ("It comes on Monday morning. (train)", "Never. (train)")
    (row,) = found["reweighted"]["rows"]
    assert row["after"].endswith("(train, weight 2.5)")
    shown = home.run("diff", before.dataset_id, second.dataset_id).stdout
    assert "Never. (train)" in shown and "p99" in shown
    assert second.report.changes is not None
    assert set(second.report.changes.model_dump().values()) == {1}
    same = json.loads(home.run("diff", before.dataset_id, before.dataset_id, "--json").stdout)
    assert {same[kind]["count"] for kind in ("added", "removed", "relabelled", "moved", "reweighted")} == {0}


def mixed() -> list[CorrectionSubmitted]:
    """Rows with and without tools and a form of their own, of one and several turns, whose contents are texts and
    parts."""
    forms = [{"tool_choice": "required"}, {"response_format": {"type": "json_object"}}, {}]
    tools = [with_tools(n) for n in range(30, 42)]
    tools = [row.model_copy(update={"call": row.call.model_copy(update=forms[n % 3])}) for n, row in enumerate(tools)]
    return [*(plain(n) for n in range(20)), *tools]


def expected(published: Published, part: str) -> list[dict[str, Any]]:
    examples = [Example.model_validate(row) for row in read(published.uri, part)]
    return [
        {"messages": chat_messages(e.messages), "tools": list(e.tools), "prediction_ids": list(e.prediction_ids),
         "predicted_at": e.predicted_at, "tool_choice": e.tool_choice, "response_format": e.response_format}
        for e in examples
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["hf", "parquet", "jsonl"])
def test_an_export_loads_with_its_splits_and_every_shape_of_row(home: Home, form: str) -> None:
    published, _ = home.publish(mixed())
    target = home.folder / "copy"
    result = home.run("export", published.dataset_id, "--format", form, "--output", str(target))
    assert result.exit_code == 0, result.output
    if form == "hf":
        loaded = datasets.load_dataset(str(target))
    else:
        loader, extension = ("json", "jsonl") if form == "jsonl" else ("parquet", "parquet")
        files = {part: str(target / f"{part}.{extension}") for part in ("train", "eval")}
        loaded = datasets.load_dataset(loader, data_files=files)
    for part in ("train", "eval"):
        rows = [{name: row[name] for name in expected(published, part)[0]} for row in loaded[part]]
        if form != "jsonl":  # The JSON loader has a column for each field of any row's tools, empty in the others.
            assert rows == expected(published, part)
        assert [row["prediction_ids"] for row in rows] == [row["prediction_ids"] for row in expected(published, part)]
        assert any(row["tools"] for row in rows) and not all(row["tools"] for row in rows)


def test_the_folder_of_a_version_loads_as_it_is_published(home: Home) -> None:
    published, _ = home.publish(mixed())
    loaded = datasets.load_dataset(published.uri)
    by_file = datasets.load_dataset(
        "json", data_files={part: f"{published.uri}/{part}.jsonl" for part in ("train", "eval")}
    )
    absent = dict.fromkeys(("author_hashes", "tool_choice", "response_format"))
    for part in ("train", "eval"):
        assert list(loaded[part]) == [{**absent, **row} for row in read(published.uri, part)]
        assert by_file[part].num_rows == len(read(published.uri, part))


def test_a_split_whose_shapes_the_other_lacks_loads_too(home: Home) -> None:
    """Without the card's columns the loader takes those of the first split, and stops at the other."""
    build = build_dataset(Inputs(votes_of(mixed()), SPEC))
    rows = [*build.dataset.train, *build.dataset.eval]
    held_out = tuple(r.model_copy(update={"author_hashes": ("bob",)}) for r in rows if r.tools)
    split = Dataset(tuple(r for r in rows if not r.tools), held_out, ())
    gates = (Gate(name="min_examples", passed=True, measured=20, required=">= 1"),)
    published = home.publish_build(Inspected(Build(split), [], SPEC, gates, {}))
    loaded = datasets.load_dataset(published.uri)
    absent = dict.fromkeys(("tool_choice", "response_format"))
    assert list(loaded["eval"]) == [{**absent, **row} for row in read(published.uri, "eval")]
    assert {row["author_hashes"] for row in loaded["train"]} == {None}
    target = home.folder / "copy"
    assert home.run("export", published.dataset_id, "--format", "hf", "--output", str(target)).exit_code == 0
    copied = datasets.load_dataset(str(target))
    assert [row["messages"] for row in copied["eval"]] == [row["messages"] for row in expected(published, "eval")]
    assert [row["author_hashes"] for row in copied["eval"]] == [["bob"]] * len(held_out)


def test_the_card_has_a_column_for_each_field_of_an_example() -> None:
    assert set(COLUMNS) == set(Example.model_fields)


def test_an_export_overwrites_nothing_and_knows_its_forms(home: Home) -> None:
    published, _ = home.publish(map(plain, range(20)))
    (home.folder / "full").mkdir()
    (home.folder / "full" / "mine.txt").write_text("mine")
    result = home.run("export", published.dataset_id, "--output", str(home.folder / "full"))
    assert result.exit_code == 1
    assert "is not empty" in result.stderr
    result = home.run("export", published.dataset_id, "--format", "csv", "--output", str(home.folder / "new"))
    assert result.exit_code == 2
    assert "csv" in result.stderr and "jsonl" in result.stderr
    assert home.run("export", "desk-nope", "--output", str(home.folder / "new")).exit_code == 1
    assert not (home.folder / "new").exists()
