"""`ratchet train`: what it trains on, how it goes on, and what it refuses. The recipe writes given weights."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from deploy.cli.app import app
from deploy.cli.training import by_hand, estimate
from deploy.cli.training.by_hand import changed_settings
from schemas.datasets import DatasetManifest, Example
from schemas.quality import QualityReport
from schemas.task_settings import Method, TrainingSettings
from schemas.tasks import TaskKind, TaskSpec
from services.trainer.domain import SkippedRows, TrainingOutcome, TrainingRequest
from services.trainer.settings import TrainerSettings
from shared.errors import ConfigurationError
from shared.storage.artifacts import ArtifactStore

LABELS = ("refund", "login")
SPEC = TaskSpec(name="desk", kind=TaskKind.CLASSIFICATION, base_model="tiny", system_prompt="Label it.", labels=LABELS)
YAML = "name: desk\nkind: classification\nbase_model: tiny\nsystem_prompt: Label it.\nlabels: [refund, login]\n"
NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
OUTCOME = TrainingOutcome(
    steps=60, losses=(2.0, 0.1), skipped=SkippedRows(), train_loss=0.1, seconds=9.0, dtype="bfloat16", versions={},
    validation_losses=((60, 0.2),),
)  # fmt: skip


class Home:
    """A home with a task and versions of its data set, and the command that runs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ArtifactStore(str(folder / "artifacts"), folder / "cache")
        self.requests: list[TrainingRequest] = []
        self.killed = False
        self.task()

    def task(self, more: str = "") -> None:
        (self.folder / "tasks").mkdir(exist_ok=True)
        (self.folder / "tasks" / "desk.yaml").write_text(YAML + more)

    def version(self, name: str, day: int = 1, revision: str = SPEC.revision, passed: bool = True) -> None:
        folder = self.folder / name
        folder.mkdir()
        rows = [
            {"example_id": f"e{n}", "group": f"g{n}", "prediction_ids": [], "correction_ids": [],
             "messages": [{"role": "user", "content": f"hi {n}"}, {"role": "assistant", "content": LABELS[n % 2]}]}
            for n in range(4)
        ]  # fmt: skip
        lines = [Example.model_validate(row).model_dump_json() for row in rows]
        (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
        at = NOON.replace(day=day)
        manifest = DatasetManifest(
            dataset_id=name, task="desk", task_revision=revision, cycle_id="c", created_at=at, data_cutoff=NOON, seed=1,
            files={}, train_examples=4, eval_examples=2, labels={},
        )  # fmt: skip
        (folder / "manifest.json").write_text(manifest.model_dump_json())
        (folder / "quality.json").write_text(report(name, at, passed).model_dump_json())
        self.store.publish(folder, "datasets" if passed else "inspections", name)

    def train(self, request: TrainingRequest, rows: Any, folder: Path, report: Any, *_: Any) -> TrainingOutcome:
        self.requests.append(request)
        report(30, 60, "step 30 of 60", loss=0.5)
        if self.killed:
            raise KeyboardInterrupt
        (folder / "adapter").mkdir(exist_ok=True)
        (folder / "adapter" / "adapter_model.safetensors").write_text(request.settings.model_dump_json())
        return OUTCOME

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["train", *arguments], env={"COLUMNS": "300"})


def report(name: str, at: datetime, passed: bool) -> QualityReport:
    return QualityReport(
        task="desk", task_revision=SPEC.revision, cycle_id="c", dataset_id=name if passed else None, parent=None,
        created_at=at, passed=passed, train_examples=4, eval_examples=2, checks=(),
    )  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))
    monkeypatch.delenv("RATCHET_ARTIFACTS", raising=False)
    monkeypatch.setenv("RATCHET_TRAINER_SLOTS", "9")  # A process holds its slot until it ends, and this one goes on.
    made = Home(tmp_path)
    module = SimpleNamespace(train=made.train)
    monkeypatch.setitem(sys.modules, "services.trainer.recipe", module)
    monkeypatch.setattr("services.trainer.recipe", module, raising=False)
    return made


def test_the_newest_version_that_passed_is_trained_on_and_the_result_is_in_the_store(home: Home) -> None:
    home.version("desk-b", day=3)
    home.version("desk-a", day=2)
    home.version("desk-c", day=4, passed=False)
    result = home.run("desk")
    assert result.exit_code == 0, result.output
    (adapter,) = home.store.names("adapters")
    assert "on desk-b" in result.stdout
    assert f"adapter {adapter}: 60 steps, loss 0.100, validation loss 0.200" in result.stdout
    assert home.store.address("adapters", adapter) in result.stdout
    assert f'"model": "{adapter}"' in result.stdout
    assert "on desk-a" in home.run("desk", "--dataset", "desk-a").stdout


def test_settings_are_those_of_the_task_with_what_is_set_instead(home: Home) -> None:
    home.version("desk-a")
    home.task("training: {r: 8, epochs: 2}\n")
    changes = ("r=4", "learning_rate=5e-4", "method=qlora", "target_modules=[q_proj, v_proj]", "preferences.beta=0.2")
    result = home.run("desk", *(word for change in changes for word in ("--set", change)))
    assert result.exit_code == 0, result.output
    expected = TrainingSettings(r=8, epochs=2).model_copy(
        update={
            "r": 4, "learning_rate": 5e-4, "method": Method.QLORA, "target_modules": ("q_proj", "v_proj"),
            "preferences": TrainingSettings().preferences.model_copy(update={"beta": 0.2}),
        }
    )  # fmt: skip
    assert home.requests[0].settings == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("rank=8", "rank=8: expected KEY=VALUE with a key of `training`"),
        ("preferences.gamma=1", "expected KEY=VALUE with a key of `training`"),
        ("r.x=1", "expected KEY=VALUE with a key of `training`"),
        ("r", "expected KEY=VALUE"),
        ("r=0", "r: Input should be greater than or equal to 1"),
        ("method=lore", "method: Input should be 'lora', 'qlora', 'full' or 'fusion'"),
        ("r=[", "not a value of YAML"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_words(change: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        changed_settings(TrainingSettings(), [change])
    assert reason in refused.value.reason


def test_a_stopped_training_goes_on_in_its_folder_and_one_that_ended_is_not_run_again(home: Home) -> None:
    home.version("desk-a")
    home.killed = True
    stopped = home.run("desk")
    assert stopped.exit_code == 130 and "the same command goes on" in stopped.stderr
    (folder,) = (home.folder / "jobs" / "trainer-by-hand").iterdir()
    (folder / "checkpoints").mkdir()
    home.killed = False
    first = home.run("desk")
    assert (first.exit_code, len(home.requests)) == (0, 2)
    assert {path.name for path in folder.iterdir()} >= {"result.json"} and not (folder / "checkpoints").exists()
    again = home.run("desk")
    assert again.stdout == first.stdout and len(home.requests) == 2
    assert [path.name for path in (home.folder / "jobs" / "trainer-by-hand").iterdir()] == [folder.name]
    assert not (home.folder / "jobs" / "trainer").exists(), "the service would announce it"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("which task?", "ratchet tasks list")),
        (("shop",), ("no task shop", "ratchet tasks apply")),
        (("desk", "--dataset", "desk-x"), ("no version 'desk-x'", "desk-a")),
        (("desk", "--dataset", "desk-old"), ("desk-old is of revision 0", "labels", "ratchet cycle desk")),
        (("desk", "--dataset", "desk-a", "--set", "r=64"), ("rank 64", "RATCHET_VLLM_MAX_LORA_RANK")),
        (("desk", "--dataset", "desk-a", "--set", "start_from=last"), ("--from", "ratchet rollout status desk")),
        (
            ("desk", "--dataset", "desk-a", "--sweep", "--set", "method=full"),
            ("sweep_hours searches settings of LoRA",),
        ),
    ],
)
def test_what_it_cannot_train_is_refused_in_words(
    home: Home, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    home.version("desk-a")
    home.version("desk-old", day=9, revision="0")
    result = home.run(*arguments)
    assert result.exit_code == 1 and not home.requests
    assert all(word in result.stderr for word in words), result.stderr


def test_the_newest_version_is_refused_where_the_labels_changed_since(home: Home) -> None:
    home.version("desk-a")
    (home.folder / "tasks" / "desk.yaml").write_text(YAML.replace("[refund, login]", "[refund, login, card]"))
    result = home.run("desk")
    assert result.exit_code == 1 and "its labels, prompt, base model or form of answers changed" in result.stderr


def test_a_task_without_a_version_is_told_how_to_get_one(home: Home) -> None:
    assert "ratchet cycle" in home.run("desk").stderr
    home.version("desk-c", passed=False)
    assert "no version of desk passed its gates" in home.run("desk").stderr


def test_a_sweep_by_hand_is_a_job_with_its_hours_and_its_trials(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.version("desk-a")
    jobs = []

    def stop(job: Any, folder: Path) -> None:
        jobs.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(by_hand, "run_here", stop)
    home.run("desk", "--sweep", "--hours", "2", "--trials", "9")
    home.run("desk", "--sweep")
    home.task("training: {sweep_hours: 4}\n")
    home.run("desk", "--sweep")
    hours = [job.dataset.spec.training.sweep_hours for job in jobs]
    assert (hours, [job.max_trials for job in jobs]) == ([2.0, 0.5, 4.0], [9, 16, 16])


def test_the_estimate_is_of_the_tasks_settings_and_rows_and_trains_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(estimate, "show_estimate", lambda *words: asked.append(words))
    home.run("--estimate")
    home.run("desk", "--estimate")
    home.version("desk-a")
    home.run("desk", "--estimate", "--set", "r=8")
    models, limit = home.folder / "models", TrainerSettings().vllm_max_lora_rank
    assert asked[0] == (None, 0, models, limit)
    assert [words[1:] for words in asked[1:]] == [(50, models, limit), (4, models, limit)]
    assert asked[2][0].training.r == 8 and not home.requests
