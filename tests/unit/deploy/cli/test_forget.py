"""`ratchet forget`: whom it sends to the scheduler, and what it finds in the artifact store."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli import forget as command
from deploy.cli.app import app
from deploy.lineage import HELD_OUT, LEFT_OUT, TRAINED, lineage_of
from schemas.conversation import Answer, Message, Role
from schemas.datasets import PREFERENCES, DatasetManifest, Example, Fate, LeftOutExample, PreferredAnswer
from schemas.golden import GOLDEN_ROWS, GoldenRow
from schemas.lake import PREDICTIONS
from schemas.quality import InspectionManifest
from shared.storage.artifacts import ArtifactStore
from shared.storage.golden_sets import publish_golden_set
from tests.unit.prediction_log.lake_rows import prediction, write

U1 = "5f0c" * 6
NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)


class Artifacts:
    """Datasets and adapters as the builder and the trainer write them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ArtifactStore(str(folder), folder / "cache")

    def write(self, path: str, content: str) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)

    def dataset(
        self, name: str, train: dict[str, datetime], held_out: dict[str, datetime], rejected: str = "",
        files: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        manifest = DatasetManifest(
            dataset_id=name, task="desk", task_revision="r", cycle_id="c", created_at=NOON, data_cutoff=NOON, seed=1,
            files=files or {}, train_examples=1, eval_examples=1, rejected={}, labels={},
        )  # fmt: skip
        self.write(f"datasets/{name}/manifest.json", manifest.model_dump_json())
        for file, people in (("train", train), ("eval", held_out)):
            rows = [example(who, at).model_dump_json() for who, at in people.items()]
            self.write(f"datasets/{name}/{file}.jsonl", "\n".join(rows))
        row = LeftOutExample(
            fate=Fate.REJECTED,
            reason="duplicate",
            prediction_ids=("p",),
            correction_ids=("c",),
            user_hash=rejected or None,
            predicted_at=NOON,
        )
        self.write(f"datasets/{name}/rejected.jsonl", f"{row.model_dump_json()}\n" if rejected else "")

    def inspection(self, cycle: str, rejected: dict[str, datetime]) -> None:
        manifest = InspectionManifest(task="desk", cycle_id=cycle, created_at=NOON, files={})
        self.write(f"inspections/{cycle}/manifest.json", manifest.model_dump_json())
        rows = [
            LeftOutExample(
                fate=Fate.REJECTED, reason="unknown_label", prediction_ids=("p",), correction_ids=("c",), user_hash=who,
                predicted_at=at,
            ).model_dump_json()
            for who, at in rejected.items()
        ]  # fmt: skip
        self.write(f"inspections/{cycle}/rejected.jsonl", "\n".join(rows))

    def adapter(self, name: str, dataset: str, folder: str = "adapters") -> None:
        manifest = {"adapter": name, "task": "desk", "dataset_id": dataset, "losses": [1.0]}
        self.write(f"{folder}/{name}/manifest.json", json.dumps(manifest))


def example(who: str, at: datetime) -> Example:
    messages = (Message(role=Role.USER, content=f'"user_hash":"{who}x"'), Message(role=Role.ASSISTANT, content="a"))
    return Example(
        example_id="e", messages=messages, group="g", prediction_ids=("p",), correction_ids=("c",), user_hash=who,
        predicted_at=at,
    )  # fmt: skip


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    made = Artifacts(tmp_path)
    made.dataset("desk-1", {"u1": NOON, "u2": NOON}, {"u3": NOON}, rejected="u4")
    made.dataset("desk-2", {"u2": NOON, "u1": NOON + timedelta(days=1)}, {"u1": NOON})
    for number in (1, 2):
        made.adapter(f"lora-{number}", f"desk-{number}")
    return made


def test_adapters_are_found_by_the_people_they_were_trained_on(artifacts: Artifacts) -> None:
    found = lineage_of(artifacts.store, ["u1"], ["desk"], NOON)
    counts = [(use.name, use.rows[TRAINED], use.rows[HELD_OUT], len(use.people)) for use in found.datasets]
    assert counts == [("desk-1", 1, 0, 1), ("desk-2", 0, 1, 1)]
    assert [(use.adapter, use.dataset_id, use.examples) for use in found.adapters] == [("lora-1", "desk-1", 1)]
    assert found.adapters[0].uri == f"{artifacts.folder}/adapters/lora-1"
    assert found.unknown == {}


def test_models_of_their_own_are_found_as_adapters_are(artifacts: Artifacts) -> None:
    artifacts.adapter("whole-1", "desk-1", "models")
    found = lineage_of(artifacts.store, ["u1"], ["desk"], NOON)
    assert [use.uri for use in found.adapters] == [
        f"{artifacts.folder}/adapters/lora-1",
        f"{artifacts.folder}/models/whole-1",
    ]


def test_requests_after_the_erasure_do_not_count(artifacts: Artifacts) -> None:
    later = lineage_of(artifacts.store, ["u1"], ["desk"], NOON + timedelta(days=2))
    assert [use.adapter for use in later.adapters] == ["lora-1", "lora-2"]
    assert lineage_of(artifacts.store, ["u1"], ["desk"], NOON - timedelta(days=2)).datasets == []


def test_held_out_and_rejected_rows_are_listed_but_train_no_adapter(artifacts: Artifacts) -> None:
    found = lineage_of(artifacts.store, ["u3", "u4", "u1x"], ["desk"], NOON)
    (use,) = found.datasets
    assert (use.rows, len(use.people)) == ({HELD_OUT: 1, LEFT_OUT: 1}, 2)
    assert found.adapters == []


def test_who_wrote_about_the_answer_of_another_is_found_as_well(artifacts: Artifacts) -> None:
    written = example("alice", NOON).model_copy(update={"author_hashes": ("bob", "cy")})
    refused = LeftOutExample(
        fate=Fate.REJECTED, reason="unknown_label", prediction_ids=("p",), correction_ids=("c",), user_hash="alice",
        author_hashes=("bob",), predicted_at=NOON,
    )  # fmt: skip
    artifacts.dataset("desk-3", {}, {})
    artifacts.write("datasets/desk-3/train.jsonl", written.model_dump_json() + "\n")
    artifacts.adapter("lora-3", "desk-3")
    artifacts.inspection("cycle-9", {})
    artifacts.write("inspections/cycle-9/rejected.jsonl", refused.model_dump_json() + "\n")
    found = lineage_of(artifacts.store, ["bob"], ["desk"], NOON)
    assert [(use.name, use.rows[TRAINED], len(use.people)) for use in found.datasets] == [("desk-3", 1, 1)]
    assert [(use.adapter, use.examples) for use in found.adapters] == [("lora-3", 1)]
    assert [(use.name, use.rows[LEFT_OUT], len(use.people)) for use in found.inspections] == [("cycle-9", 1, 1)]
    (both,) = lineage_of(artifacts.store, ["bob", "alice"], ["desk"], NOON).datasets
    assert (both.rows[TRAINED], len(both.people)) == (1, 2)
    assert lineage_of(artifacts.store, ["bob"], ["desk"], NOON - timedelta(days=1)).datasets == []


def test_pairs_that_people_compared_are_found_by_who_was_answered(artifacts: Artifacts) -> None:
    artifacts.dataset("compared", {}, {}, files={PREFERENCES: "hash"})
    pair = PreferredAnswer(
        prompt=(Message(role=Role.USER, content="mine"),), answers=(Answer(text="x"), Answer(text="y")), preferred="a",
        prediction_ids=("p",), correction_ids=("c",), user_hash="ann", predicted_at=NOON,
    )  # fmt: skip
    artifacts.write(f"datasets/compared/{PREFERENCES}", pair.model_dump_json() + "\n")
    (use,) = lineage_of(artifacts.store, ["ann"], ["desk"], NOON).datasets
    assert (use.name, use.rows, use.people) == ("compared", {PREFERENCES: 1}, {"ann"})


@pytest.mark.parametrize(("method", "adapters"), [("dpo", ["aligned"]), ("none", [])])
def test_an_adapter_is_trained_on_the_people_of_compared_pairs_where_its_task_trained_on_those(
    artifacts: Artifacts, method: str, adapters: list[str]
) -> None:
    artifacts.dataset("compared", {}, {}, files={PREFERENCES: "hash"})
    pair = PreferredAnswer(
        prompt=(Message(role=Role.USER, content="mine"),), answers=(Answer(text="x"), Answer(text="y")), preferred="a",
        prediction_ids=("p",), correction_ids=("c",), user_hash="ann", author_hashes=("bo",), predicted_at=NOON,
    )  # fmt: skip
    artifacts.write(f"datasets/compared/{PREFERENCES}", pair.model_dump_json() + "\n")
    manifest = {"adapter": "aligned", "task": "desk", "dataset_id": "compared"}
    manifest |= {"training": {"preferences": {"method": method}}}
    artifacts.write("adapters/aligned/manifest.json", json.dumps(manifest))
    for who in ("ann", "bo"):
        found = lineage_of(artifacts.store, [who], ["desk"], NOON)
        assert [use.adapter for use in found.adapters] == adapters


def test_the_inspections_of_stopped_builds_that_quote_a_person_are_listed(artifacts: Artifacts) -> None:
    artifacts.inspection("cycle-7", {"u1": NOON, "u2": NOON})
    artifacts.inspection("cycle-8", {"u1": NOON + timedelta(days=1)})
    found = lineage_of(artifacts.store, ["u1"], ["desk"], NOON)
    assert [(use.name, use.rows[LEFT_OUT], len(use.people)) for use in found.inspections] == [("cycle-7", 1, 1)]
    assert found.inspections[0].uri == f"{artifacts.folder}/inspections/cycle-7"
    assert lineage_of(artifacts.store, ["u1"], ["other"], NOON).inspections == []
    artifacts.write("inspections/cycle-9/manifest.json", "{")
    broken = lineage_of(artifacts.store, ["u1"], ["desk"], NOON)
    assert broken.unknown == {"inspections/cycle-9": "its manifest cannot be read"}


def test_other_tasks_are_not_searched(artifacts: Artifacts) -> None:
    found = lineage_of(artifacts.store, ["u1"], ["other"], NOON)
    assert (found.datasets, found.adapters, found.unknown) == ([], [], {})


def test_what_cannot_be_searched_is_reported(artifacts: Artifacts) -> None:
    artifacts.adapter("lora-9", "deleted")
    artifacts.write("adapters/broken/manifest.json", "{")
    artifacts.write("adapters/unfinished/adapter.safetensors", "")
    found = lineage_of(artifacts.store, ["u1"], ["desk"], NOON)
    assert found.unknown == {
        "adapters/lora-9": "its dataset deleted is not in the store",
        "adapters/broken": "its manifest cannot be read",
    }


def test_a_damaged_version_is_reported_and_the_others_are_still_found(artifacts: Artifacts) -> None:
    artifacts.write("datasets/desk-2/train.jsonl", '{"user_hash": "u1"')
    found = lineage_of(artifacts.store, ["u1"], ["desk"], NOON)
    assert [use.adapter for use in found.adapters] == ["lora-1"]
    assert "cannot be read" in found.unknown["datasets/desk-2"]


@pytest.mark.parametrize("whose", ["user_hash", "author_hash"])
def test_golden_sets_with_rows_of_the_people_are_found(artifacts: Artifacts, whose: str) -> None:
    turns = (Message(role=Role.USER, content="q"), Message(role=Role.ASSISTANT, content="a"))
    rows = [
        GoldenRow.model_validate({
            "row_id": f"g-{who}-{day}", "messages": turns, whose: who, "predicted_at": NOON + timedelta(days=day),
        })
        for who in ("u1", "u2") for day in (0, 1)
    ]  # fmt: skip
    uri = publish_golden_set(artifacts.store, "desk", rows)
    publish_golden_set(artifacts.store, "desk", rows[2:])
    publish_golden_set(artifacts.store, "other", rows)
    found = lineage_of(artifacts.store, ["u1"], ["desk"], NOON)
    assert [(use.uri, use.task, use.rows) for use in found.golden] == [(uri, "desk", {GOLDEN_ROWS: 1})]
    (artifacts.folder / "golden" / found.golden[0].name / "golden.jsonl").write_text("{oops")
    assert (
        "cannot be read"
        in lineage_of(artifacts.store, ["u1"], ["desk"], NOON).unknown[f"golden/{found.golden[0].name}"]
    )


def test_an_empty_store_has_no_lineage(tmp_path: Path) -> None:
    assert lineage_of(Artifacts(tmp_path / "nothing").store, ["u1"], ["desk"], NOON).datasets == []


class Scheduler:
    """Answers as the scheduler does, with a hash that is the name in upper case."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.golden: list[dict[str, Any]] = []
        self.step = "dataset"
        monkeypatch.setenv("RATCHET_HOME", str(home))
        monkeypatch.delenv("RATCHET_ARTIFACTS", raising=False)
        monkeypatch.setattr(command, "ask_scheduler", self.answer)

    def answer(self, method: str, path: str, json: dict[str, Any] | None = None) -> dict[str, Any]:
        if json is None:
            assert (method, path) == ("GET", "/api/tasks")
            running = {"desk": self.step, "other": "training"}
            return {"tasks": [{"name": name, "step": step, "cycle_id": f"{name}-9"} for name, step in running.items()]}
        assert (method, path) == ("POST", "/api/subjects/forget")
        self.bodies.append(json)
        subjects = [*(f"hash-of-{len(user)}" for user in json.get("users", ())), *json.get("hashes", ())]
        serving = {"task": "desk", "primary": "lora-1", "previous": "lora-0", "candidate": None}
        return {
            "subjects": subjects, "at": NOON.isoformat(), "announced": json["announce"], "tasks": [serving],
            "golden": self.golden if U1 in subjects else [],
        }  # fmt: skip

    @property
    def announced(self) -> list[dict[str, Any]]:
        return [body for body in self.bodies if body["announce"]]

    def run(self, *arguments: str, given: str | None = None) -> Any:
        return CliRunner().invoke(app, ["forget", *arguments], input=given)


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    of = [("desk", U1), ("desk", U1), ("desk", None), ("other", U1)]
    rows = [prediction(f"p{n}", task=task, user_hash=user) for n, (task, user) in enumerate(of)]
    write(tmp_path / "lake", PREDICTIONS, rows)
    made = Artifacts(tmp_path / "artifacts")
    made.dataset("desk-1", {U1: NOON}, {})
    made.adapter("lora-1", "desk-1")
    made.adapter("lora-2", "desk-1")
    return Scheduler(tmp_path, monkeypatch)


def test_json_has_the_forgotten_people_and_the_adapters_trained_on_them(scheduler: Scheduler) -> None:
    result = scheduler.run("--hash", U1, "--task", "desk", "--yes", "--json")
    assert result.exit_code == 0, result.output
    sent = {"hashes": [U1], "task": "desk"}
    assert scheduler.bodies == [{**sent, "announce": False}, {**sent, "announce": True}]
    report = json.loads(result.stdout)
    assert report["predictions"] == {U1: 2}
    assert (report["subjects"], report["forgotten_until"]) == ([U1], NOON.isoformat())
    assert [(use["adapter"], use["in_use_as"]) for use in report["adapters"]] == [
        ("lora-1", "primary"),
        ("lora-2", None),
    ]
    assert "ratchet cycle desk" in report["next"][0]


def test_rows_of_golden_sets_are_counted_and_it_is_said_where_they_could_not_be_searched(scheduler: Scheduler) -> None:
    desk, other = {"task": "desk", "rows": 2, "problem": None}, {"task": "other", "rows": 0, "problem": "no YAML"}
    scheduler.golden = [desk, other]
    result = scheduler.run("--hash", U1, "--yes", "--json")
    assert json.loads(result.stdout)["golden_rows"] == {"desk": 2}
    assert "the golden set of other was not searched: no YAML" in result.stderr
    assert "desk's golden set had 2 rows of theirs" in scheduler.run("--hash", U1, "--yes").stdout
    assert "desk's golden set has 2 rows of theirs" in scheduler.run("--hash", U1, "--dry-run").stdout


def test_the_inspections_to_delete_are_named(scheduler: Scheduler, tmp_path: Path) -> None:
    Artifacts(tmp_path / "artifacts").inspection("cycle-7", {U1: NOON})
    report = json.loads(scheduler.run("--hash", U1, "--yes", "--json").stdout)
    assert [use["name"] for use in report["inspections"]] == ["cycle-7"]
    assert report["next"][-1].endswith(f"delete {tmp_path}/artifacts/inspections/cycle-7")
    assert "cycle-7" in scheduler.run("--hash", U1, "--yes").stdout


def test_it_is_said_that_an_adapter_is_being_trained_perhaps_on_them(scheduler: Scheduler) -> None:
    before = json.loads(scheduler.run("--hash", U1, "--yes", "--json").stdout)["next"]
    assert not any("desk-9" in step or "other-9" in step for step in before)
    scheduler.step = "training"
    *steps, last = json.loads(scheduler.run("--hash", U1, "--yes", "--json").stdout)["next"]
    assert steps == before
    assert "desk trains an adapter, in desk-9" in last
    assert "--dry-run" in last


def test_nobody_is_forgotten_without_confirmation(scheduler: Scheduler) -> None:
    refused = scheduler.run("--hash", U1, given="n\n")
    assert (refused.exit_code, scheduler.announced) == (1, [])
    assert "(2 predictions in the lake)" in refused.output
    assert scheduler.run("--hash", U1, given="y\n").exit_code == 0
    assert scheduler.announced == [{"hashes": [U1], "task": None, "announce": True}]


def test_people_without_predictions_are_warned_of_since_the_name_may_be_misspelt(scheduler: Scheduler) -> None:
    result = scheduler.run("customer-4711", "--hash", U1, "--yes")
    assert result.exit_code == 0
    assert "no prediction of 1 of 2 (hash-of-13)" in result.stderr
    assert scheduler.run("--hash", U1, "--yes").stderr == ""


def test_people_are_forgotten_even_if_the_lake_cannot_be_read(scheduler: Scheduler, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "lake")
    result = scheduler.run("--hash", U1, "--yes", "--json")
    assert (result.exit_code, len(scheduler.announced)) == (0, 1)
    assert json.loads(result.stdout)["predictions"] is None
    assert "there is no lake" in result.stderr


def test_a_dry_run_asks_nothing_and_announces_nothing(scheduler: Scheduler) -> None:
    result = scheduler.run("--hash", U1, "--dry-run", "--json")
    assert (result.exit_code, len(scheduler.bodies), scheduler.announced) == (0, 1, [])
    assert json.loads(result.stdout)["forgotten_until"] is None


def test_people_are_read_from_a_file_or_the_input_unchanged_and_sent_in_batches(
    scheduler: Scheduler, tmp_path: Path
) -> None:
    people = [f"person {n} " for n in range(60)]
    (tmp_path / "people.txt").write_bytes("\r\n".join(["", *people, ""]).encode())
    assert scheduler.run("--file", str(tmp_path / "people.txt"), "--yes").exit_code == 0
    assert [user for body in scheduler.announced for user in body["users"]] == people
    assert max(len(body["users"]) for body in scheduler.bodies) <= 25
    assert scheduler.run("--file", "-", "--yes", given="\ufeffjo\n").exit_code == 0  # As Windows begins a file.
    assert scheduler.bodies[-1]["users"] == ["jo"]


def test_nothing_is_said_of_versions_that_could_not_be_searched(scheduler: Scheduler, tmp_path: Path) -> None:
    said = "No dataset version has an example of theirs"
    assert said in scheduler.run("--hash", "0" * 24, "--yes").stdout
    (tmp_path / "artifacts" / "datasets" / "desk-1" / "train.jsonl").unlink()
    result = scheduler.run("--hash", "0" * 24, "--yes").stdout
    assert said not in result
    assert "unknown for datasets/desk-1" in result


def test_the_person_is_not_printed(scheduler: Scheduler) -> None:
    result = scheduler.run("customer-4711", "--yes")
    assert result.exit_code == 0
    assert "4711" not in result.output
    assert "hash-of-13" in result.output


def test_no_person_a_missing_file_and_too_many_are_refused(
    scheduler: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "MAX_PEOPLE", 2)
    (tmp_path / "many.txt").write_text("a\nb\nc\n")
    for arguments in ((), ("--file", str(tmp_path / "none.txt")), ("--file", str(tmp_path / "many.txt"), "--yes")):
        assert scheduler.run(*arguments).exit_code == 2
    for bad in (("",), ("x" * 501,), ("--hash", "jo@example.org"), ("--hash", U1.upper())):
        result = scheduler.run(*bad, "--yes")
        assert result.exit_code == 2
        assert "characters" in result.output and "example.org" not in result.output
    assert scheduler.bodies == []
