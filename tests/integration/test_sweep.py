"""A sweep: on a tiny random model for real, and on trainings whose losses are given."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.datasets import DatasetBuilt, Example
from schemas.task_settings import TrainingSettings
from schemas.tasks import TaskKind, TaskSpec
from services.trainer import recipe, sweep
from services.trainer.domain import SkippedRows, TrainingOutcome, TrainingRequest
from services.trainer.job import Slot, TrainingJob, train_candidate
from services.trainer.rows import tokenize_rows
from services.trainer.sweep import Findings, sweep_settings
from shared.errors import StepImpossible
from shared.jobs import Progress
from shared.storage.artifacts import ArtifactStore
from tests.integration.test_trainer import BASE, LABELS, dataset_built, example, make_tiny_model

ROWS = [example(number) for number in range(120)]
STEPS = 5
OUTCOME = TrainingOutcome(
    steps=STEPS, losses=(1.0,), skipped=SkippedRows(), train_loss=1.0, seconds=1.0, dtype="bfloat16", versions={}
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """A sweep collects garbage before each training, which takes half a second of what torch has loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TrainingRequest:
    base = tmp_path_factory.mktemp("models") / BASE
    make_tiny_model(base)
    training = TrainingSettings(
        r=4, alpha=8, learning_rate=0.001, epochs=2, batch_size=4, max_length=128, sweep_hours=1
    )  # fmt: skip
    spec = TaskSpec(
        name="swept", kind=TaskKind.CLASSIFICATION, base_model=BASE, system_prompt="Label it.", labels=LABELS,
        training=training,
    )  # fmt: skip
    return TrainingRequest(spec, str(base), threads=1)


def unheard(*_: Any, **__: Any) -> None:
    pass


def run(request: TrainingRequest, folder: Path, trials: int = 3, report: Callable[..., None] = unheard) -> Findings:
    return sweep_settings(request, ROWS, folder, report, max_rank=16, max_trials=trials)


class Trainings:
    """Stands for the recipe: a training's losses are those that `loss` gives, on rows that a trial saw or did not."""

    def __init__(self, loss: Callable[[TrainingSettings, bool], float]) -> None:
        self.loss = loss
        self.requests: list[TrainingRequest] = []
        self.trained_on: list[set[str]] = []
        self.scored_on: list[set[str]] = []
        self.kill_at: int | None = None
        self.diverge_at: int | None = None
        self.is_right = True  # The answers of all but the default.

    def train(self, request: TrainingRequest, rows: Sequence[Example], folder: Path, report: Any) -> TrainingOutcome:
        self.requests.append(request)
        self.trained_on.append({row.example_id for row in rows})
        (folder / "adapter").mkdir(parents=True, exist_ok=True)
        (folder / "adapter" / "adapter_config.json").write_text(request.settings.model_dump_json())
        for step in range(1, STEPS + 1):
            report(step, STEPS, f"step {step}", loss=1.0)
            report(step, STEPS, "validation", validation_loss=self.loss(request.settings, True))
            if self.kill_at == len(self.requests):
                os._exit(137)
            if self.diverge_at == len(self.requests):
                raise StepImpossible("it diverged")
        return OUTCOME

    def score(self, request: TrainingRequest, adapter: Path, rows: Sequence[Example]) -> sweep.Scores:
        self.scored_on.append({row.example_id for row in rows})
        settings = TrainingSettings.model_validate_json((adapter / "adapter_config.json").read_bytes())
        loss = self.loss(settings, adapter.parent.name.startswith("trial"))
        noise = np.linspace(-0.01, 0.01, len(rows))
        right = float(settings.learning_rate == 0.001 or self.is_right)
        return loss + noise, np.full(len(rows), right), [row.group for row in rows]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[TrainingSettings, bool], float]], Trainings]:
    def use(loss: Callable[[TrainingSettings, bool], float]) -> Trainings:
        trainings = Trainings(loss)
        monkeypatch.setattr(recipe, "train", trainings.train)
        monkeypatch.setattr(sweep, "score", trainings.score)
        return trainings

    return use


def by_rate(settings: TrainingSettings, is_trial: bool = True) -> float:
    """The higher the learning rate, the lower the loss."""
    return 2.0 - 100 * (settings.learning_rate or 0.0)


def drawn(findings: Findings) -> list[dict[str, Any]]:
    return [trial["settings"] for trial in findings.trials]


def test_a_sweep_of_a_real_model_takes_the_settings_of_the_lower_loss_and_says_by_how_much(
    tiny: TrainingRequest, tmp_path: Path
) -> None:
    reports: list[tuple[float, float, str]] = []
    found = run(tiny, tmp_path / "job", 2, lambda *report: reports.append(report))
    losses = [trial["loss"][0] for trial in found.trials]
    assert all(low <= mean <= high for mean, low, high in (trial["loss"] for trial in found.trials))
    assert losses[1] < losses[0], "the seed has a trial that is better than the default"
    assert found.comparison is not None
    assert found.comparison["loss"]["difference"][2] < 0
    assert found.settings.learning_rate == found.trials[1]["settings"]["learning_rate"]
    assert found.settings == tiny.settings.model_copy(
        update={name: value for name, value in found.trials[1]["settings"].items() if name != "method"}
    )
    assert "at least as good as the default" in found.reason
    shares = [done / total for done, total, _ in reports]
    assert shares == sorted(shares) and shares[-1] <= 1.0
    assert {path.name for path in (tmp_path / "job" / "sweep" / "weights").iterdir()} == {"default", "best"}


def test_the_default_is_the_first_trial_and_no_trial_sees_a_row_that_the_best_and_it_are_compared_on(
    tiny: TrainingRequest, tmp_path: Path, given: Any
) -> None:
    trainings = given(by_rate)
    found = sweep_settings(tiny, ROWS, tmp_path, unheard, max_rank=8, max_trials=12)
    first, *others = found.trials
    assert first["settings"] == {"method": "lora", "r": 4, "alpha": 8, "learning_rate": 0.001, "epochs": 2.0}
    assert {trial["settings"]["r"] for trial in found.trials} == {4, 8}, "8 is the fleet's limit"
    assert all(trial["settings"]["alpha"] == 2 * trial["settings"]["r"] for trial in others)
    assert len({trial["settings"]["learning_rate"] for trial in found.trials}) > 3
    *trials, default, best = trainings.trained_on
    assert len(trials) == 12 and len(set(map(frozenset, trials))) == 1
    *judged, of_default, compared = trainings.scored_on
    assert len(judged) >= 3 and len(set(map(frozenset, judged))) == 1
    assert compared == of_default and len(compared) > 20
    assert default == best == {row.example_id for row in ROWS} - compared
    assert not compared & (trials[0] | judged[0])
    assert trainings.requests[-2].settings.learning_rate == tiny.settings.learning_rate
    request = trainings.requests[0]
    trained = [row for row in ROWS if row.example_id in trials[0]]
    rows, _ = tokenize_rows(trained, recipe.methods.load_tokenizer(tiny.base), tiny.spec)
    _, set_aside = recipe.set_aside(rows, request.settings.validation_share, request.settings.seed)
    assert {row.group for row in set_aside} == judged[0]


def test_of_a_large_model_trials_are_also_qlora_and_an_adapter_that_is_trained_on_keeps_its_rank(
    tiny: TrainingRequest, tmp_path: Path, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(by_rate)
    monkeypatch.setattr(sweep, "SMALL_MODEL", 1)
    found = run(replace(tiny, start=tmp_path), tmp_path, trials=6)
    assert {trial["settings"]["method"] for trial in found.trials} == {"lora", "qlora"}
    assert {trial["settings"]["r"] for trial in found.trials} == {4}
    assert found.settings != tiny.settings and found.settings.method == "lora"


def test_near_copies_are_not_divided(tiny: TrainingRequest, tmp_path: Path, given: Any) -> None:
    rows = [row.model_copy(update={"group": f"g{number // 3}"}) for number, row in enumerate(ROWS * 2)]
    rows = [row.model_copy(update={"example_id": f"e{number}"}) for number, row in enumerate(rows)]
    trainings = given(by_rate)
    assert sweep_settings(tiny, rows, tmp_path, unheard, 16, 4).comparison is not None
    judged, compared = trainings.scored_on[0], trainings.scored_on[-1]
    parts = (trainings.trained_on[0] - judged, judged, compared)
    groups = [{row.group for row in rows if row.example_id in part} for part in parts]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_a_killed_sweep_goes_on_with_the_trials_it_has_and_draws_what_it_would_have_drawn(
    tiny: TrainingRequest, tmp_path: Path, given: Any
) -> None:
    whole = run(tiny, tmp_path / "whole", trials=7) if given(by_rate) else None
    trainings = given(by_rate)
    trainings.kill_at = 4
    if (child := os.fork()) == 0:
        run(tiny, tmp_path / "killed", trials=7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 137
    trainings.kill_at = None
    found = run(tiny, tmp_path / "killed", trials=7)
    assert whole is not None and drawn(found) == drawn(whole)
    assert found.settings == whole.settings
    assert len(trainings.requests) == 4 + 2, "three trials were told before, the fourth is repeated"
    assert (tmp_path / "killed" / "sweep" / "findings.json").exists()
    run(tiny, tmp_path / "killed", trials=7)
    assert len(trainings.requests) == 4 + 2, "what was found stays"


def test_pruned_and_diverged_trials_are_lines_of_the_table_and_the_others_go_on(
    tiny: TrainingRequest, tmp_path: Path, given: Any
) -> None:
    trainings = given(lambda settings, _: 1.5 if len(trainings.requests) <= 4 else 3.0)
    trainings.diverge_at = 2
    found = run(tiny, tmp_path, trials=6)
    assert [trial["state"] for trial in found.trials] == ["complete", "it diverged", *["complete"] * 2, *["pruned"] * 2]
    assert [trial["steps"] for trial in found.trials] == [STEPS, 1, STEPS, STEPS, 2, 2]
    assert ["loss" in trial for trial in found.trials] == [True, False, True, True, False, False]
    assert found.settings == tiny.settings


def test_the_default_stays_where_the_best_trial_is_worse_on_rows_that_no_trial_saw(
    tiny: TrainingRequest, tmp_path: Path, given: Any
) -> None:
    given(lambda settings, is_trial: by_rate(settings) if is_trial else 100 * (settings.learning_rate or 0.0))
    found = run(tiny, tmp_path, trials=4)
    assert found.comparison is not None and found.comparison["loss"]["difference"][0] > 0
    assert found.settings == tiny.settings
    assert found.reason.startswith("best of 4 trials: r ") and "; the default stays; difference" in found.reason


def test_a_lower_loss_with_a_lower_share_right_is_not_as_good(
    tiny: TrainingRequest, tmp_path: Path, given: Any
) -> None:
    given(by_rate).is_right = False
    found = run(tiny, tmp_path, trials=4)
    assert found.comparison is not None and found.comparison["loss"]["difference"][2] < 0
    assert found.settings == tiny.settings


def test_an_interval_is_wider_where_rows_are_copies_of_one_another() -> None:
    values = np.random.default_rng(1).normal(size=40)
    alone = sweep.estimate(np.repeat(values, 5), [f"r{n}" for n in range(200)])
    together = sweep.estimate(np.repeat(values, 5), [f"g{n // 5}" for n in range(200)])
    assert together[2] - together[1] > 1.8 * (alone[2] - alone[1])


def test_a_default_that_cannot_be_trained_ends_the_sweep(tiny: TrainingRequest, tmp_path: Path, given: Any) -> None:
    given(by_rate).diverge_at = 1
    with pytest.raises(StepImpossible, match="diverged"):
        run(tiny, tmp_path)
    assert not (tmp_path / "sweep" / "findings.json").exists()


def test_rows_that_the_training_would_refuse_end_the_sweep_before_its_first_trial(
    tiny: TrainingRequest, tmp_path: Path, given: Any
) -> None:
    trainings = given(by_rate)
    training = tiny.settings.model_copy(update={"max_length": 32})
    request = TrainingRequest(tiny.spec.model_copy(update={"training": training}), tiny.base)
    with pytest.raises(StepImpossible, match="longer than 32 tokens"):
        run(request, tmp_path)
    assert not trainings.requests


def with_hours(request: TrainingRequest, hours: float) -> TrainingRequest:
    training = request.settings.model_copy(update={"sweep_hours": hours})
    return replace(request, spec=request.spec.model_copy(update={"training": training}))


@pytest.mark.parametrize(
    ("seconds", "states", "reason"),
    [(36, ["its time was over"], "it is the default"), (200, ["complete"] * 3, "its time was over")],
)
def test_a_sweep_ends_with_the_default_when_its_time_is_over(
    tiny: TrainingRequest, tmp_path: Path, given: Any, monkeypatch: pytest.MonkeyPatch,
    seconds: int, states: list[str], reason: str,
) -> None:  # fmt: skip
    """At 4 s a report the first trial takes more than 36 s, and the comparison more than trials leave of 200 s."""
    given(by_rate)
    clock = iter(range(0, 100_000, 4))
    monkeypatch.setattr(sweep.time, "monotonic", lambda: float(next(clock)))
    request = with_hours(tiny, seconds / 3_600)
    found = run(request, tmp_path, trials=9)
    assert found.settings == request.settings
    assert [trial["state"] for trial in found.trials] == states
    assert found.reason.endswith(reason)


def test_too_few_rows_leave_the_default(tiny: TrainingRequest, tmp_path: Path, given: Any) -> None:
    trainings = given(by_rate)
    found = sweep_settings(tiny, ROWS[:20], tmp_path, unheard, 16, 3)
    assert found.settings == tiny.settings and not trainings.requests
    assert "rows are too few" in found.reason


def test_settings_are_not_searched_where_no_adapter_is_trained() -> None:
    for other in ({"method": "full"}, {"dora": True}, {"method": "fusion", "fusion": {"adapters": ["a-1", "b-1"]}}):
        with pytest.raises(ValueError, match="sweep_hours searches settings of LoRA"):
            TrainingSettings.model_validate({"sweep_hours": 1, **other})


def swept_job(tmp_path: Path, models_folder: Path, store: ArtifactStore) -> TrainingJob:
    """A job with a sweep whose evaluation set is poisoned: it is no JSON, and its text is known."""
    event = dataset_built(store, tmp_path / "data", "swept", epochs=2)
    data = tmp_path / "more"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in ROWS))
    (data / "eval.jsonl").write_text("{poison")
    (data / "manifest.json").write_text(json.dumps({}))
    uri = store.publish(data, "datasets", "swept-more")
    training = event.spec.training.model_copy(update={"sweep_hours": 1.0})
    spec = event.spec.model_copy(update={"training": training})
    dataset = DatasetBuilt.model_validate(event.model_dump() | {"uri": uri, "spec": spec.model_dump()})
    return TrainingJob(
        dataset=dataset, models_folder=models_folder, artifacts=str(tmp_path / "store"), cache=tmp_path / "cache",
        slots_folder=tmp_path / "slots", slots=1, max_rank=16, max_trials=4,
    )  # fmt: skip


def test_a_job_with_a_sweep_trains_with_what_it_found_and_reads_no_row_of_the_gates(
    tiny: TrainingRequest, tmp_path: Path, given: Any
) -> None:
    trainings = given(by_rate)
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    job, folder = swept_job(tmp_path, Path(tiny.base).parent, store), tmp_path / "job"
    folder.mkdir()
    (folder / "furthest").write_text("1.0")
    event = train_candidate(job.model_dump_json().encode(), folder, Progress(folder), Slot())
    manifest = json.loads((Path(event.uri) / "manifest.json").read_bytes())
    findings = Findings.model_validate_json((folder / "sweep" / "findings.json").read_bytes())
    assert findings.settings.learning_rate != job.dataset.spec.training.learning_rate
    assert trainings.requests[-1].settings == findings.settings
    assert manifest["training"] == findings.settings.model_dump(mode="json")
    assert event.rank == findings.settings.r
    assert findings.reason in manifest["notes"]
    assert trainings.trained_on[-1] == {row.example_id for row in ROWS}
    assert not (folder / "furthest").exists(), "a training that is killed may not count as one that comes no further"
