"""Trackers get the numbers of a real training of transformers, and none of them can stop it."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from services.trainer.tracking import callbacks_of

STEPS = 4


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.layer(x) - labels) ** 2).mean()}


class Killed(TrainerCallback):
    """Ends the process, so to say, after a step that is past the last checkpoint."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def train(folder: Path, trackers: tuple[str, ...], killed_at: int | None = None, resume: bool = False) -> int:
    """Train for four steps, with a checkpoint and a validation at every second one; returns the steps done."""
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"), max_steps=STEPS, logging_steps=1, save_steps=2, eval_strategy="steps",
        eval_steps=2, report_to="none", use_cpu=True, disable_tqdm=True, per_device_train_batch_size=2,
    )  # fmt: skip
    rows = [{"x": torch.tensor([float(n)]), "labels": torch.tensor([2.0 * n])} for n in range(8)]
    callbacks = [*callbacks_of(trackers, folder, "job-1", {"r": 16, "method": "lora"}), Killed(killed_at)]
    trainer = Trainer(Line(), arguments, train_dataset=rows, eval_dataset=rows[:2], callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume or None)
    return int(trainer.state.global_step)


class Server:
    """An HTTP server that answers as MLflow's does, and with errors after so many calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.authorization: set[str | None] = set()
        self.answers = 1_000
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.calls.append((self.path, body))
                server.authorization.add(self.headers["authorization"])
                created = {"run": {"info": {"run_id": f"run-{len(server.of('create'))}"}}}
                answer = json.dumps(created if self.path.endswith("create") else {}).encode()
                self.send_response(200 if len(server.calls) <= server.answers else 500)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"

    def of(self, path: str) -> list[dict[str, Any]]:
        return [body for called, body in self.calls if called == f"/api/2.0/mlflow/runs/{path}"]

    def metrics(self, key: str) -> list[int]:
        """The steps at which a number was sent."""
        sent = [metric for body in self.of("log-batch") for metric in body.get("metrics", ())]
        return [metric["step"] for metric in sent if metric["key"] == key]


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever)
    thread.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server.address}/")
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def scalars(folder: Path, name: str) -> list[int]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars(name)]


def test_tensorboard_shows_both_losses_over_the_steps(tmp_path: Path) -> None:
    train(tmp_path, ("tensorboard",))
    assert scalars(tmp_path, "train/loss") == [1, 2, 3, 4]
    assert scalars(tmp_path, "eval/loss") == [2, 4]


def test_tensorboard_shows_each_step_of_a_killed_training_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, ("tensorboard",), killed_at=3)
    assert scalars(tmp_path, "train/loss") == [1, 2, 3]
    train(tmp_path, ("tensorboard",), resume=True)
    assert scalars(tmp_path, "train/loss") == [1, 2, 3, 4]


def test_mlflow_gets_settings_numbers_and_the_end_of_a_run(mlflow: Server, tmp_path: Path) -> None:
    train(tmp_path, ("mlflow",))
    (created,) = mlflow.of("create")
    assert (created["run_name"], created["experiment_id"]) == ("job-1", "0")
    assert mlflow.of("log-batch")[0]["params"] == [{"key": "r", "value": "16"}, {"key": "method", "value": "lora"}]
    assert mlflow.metrics("train/loss") == [1, 2, 3, 4] and mlflow.metrics("eval/loss") == [2, 4]
    (ended,) = mlflow.of("update")
    assert ended["status"] == "FINISHED"
    assert {body["run_id"] for body in mlflow.of("log-batch")} == {"run-1"} == {ended["run_id"]}


def test_a_resumed_training_goes_on_with_its_run_in_mlflow(
    mlflow: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, ("mlflow",), killed_at=3)
    train(tmp_path, ("mlflow",), resume=True)
    assert len(mlflow.of("create")) == 1
    assert {body["run_id"] for body in mlflow.of("log-batch")} == {"run-1"}
    assert mlflow.authorization == {"Bearer secret"}


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_a_tracker_that_cannot_be_reached_warns_once_and_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tracker: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "wandb", None)  # As if it was not installed.
    with caplog.at_level(logging.WARNING, logger="services.trainer.tracking"):
        assert train(tmp_path, (tracker, "tensorboard")) == STEPS
    assert len([record for record in caplog.records if tracker in record.getMessage()]) == 1
    assert scalars(tmp_path, "train/loss") == [1, 2, 3, 4], "the other one goes on"


def test_a_tracker_that_fails_midway_is_left_alone(
    mlflow: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow.answers = 3  # The run, its settings, and its first step.
    with caplog.at_level(logging.WARNING, logger="services.trainer.tracking"):
        assert train(tmp_path, ("mlflow",)) == STEPS
    assert len(mlflow.calls) == 4 and len(caplog.records) == 1


def test_weights_and_biases_goes_on_with_a_run_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb, an extra, is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path, ("wandb",))
    wandb.finish()  # As at the end of the process.
    (run,) = (tmp_path / "wandb").glob("offline-run-*/run-job-1.wandb")
    written = run.read_bytes()
    assert b"train/loss" in written and b"eval/loss" in written
