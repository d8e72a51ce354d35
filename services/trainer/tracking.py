"""Trackers of a training: TensorBoard files in its folder, MLflow by its REST API, Weights & Biases.

Each gets what transformers logs, under the names that transformers gives it. A training that resumes goes on with its
run. A tracker that is away stops no training: it is left alone after its first error.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import httpx
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback, rewrite_logs

_TIMEOUT_SECONDS = 10.0
"""How long a tracker's server may take: meanwhile the training waits."""
Params = dict[str, Any]
"""What a tracker shows of a training's settings."""
logger = logging.getLogger(__name__)


def callbacks_of(trackers: tuple[str, ...], folder: Path, run_name: str, params: Params) -> list[TrainerCallback]:
    """Return a callback for each of these trackers. `folder`: the job's, where TensorBoard's files are put, too."""
    return [_Guarded(name, partial(_TRACKERS[name], folder, run_name, params)) for name in trackers]


class _Guarded(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Passes a training's events to a tracker, made by `start(step)`, until it fails."""

    def __init__(self, name: str, start: Callable[[int], TrainerCallback]) -> None:
        self._name, self._start = name, start
        self._tracker: TrainerCallback | None = None

    def _pass(self, event: str, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        try:
            if event == "on_train_begin":
                self._tracker = self._start(state.global_step)
            if self._tracker is not None:
                getattr(self._tracker, event)(args, state, control, **kwargs)
        except Exception as error:  # noqa: BLE001 - no error of a tracker may stop a training
            logger.warning("%s gets nothing of this training any more: %r", self._name, error)
            self._tracker = None

    on_train_begin = partialmethod(_pass, "on_train_begin")
    on_log = partialmethod(_pass, "on_log")
    on_train_end = partialmethod(_pass, "on_train_end")


def _tensorboard(folder: Path, run_name: str, params: Params, step: int) -> TrainerCallback:
    from torch.utils.tensorboard import SummaryWriter

    # What a killed process wrote after its last checkpoint is written again.
    return TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1))


def _wandb(folder: Path, run_name: str, params: Params, step: int) -> TrainerCallback:
    import wandb

    wandb.init(
        project=os.environ.get("WANDB_PROJECT", "ratchet"),
        id=run_name,
        resume="allow",
        config=params,
        dir=str(folder),
        # At the end of the process it would wait for its server for ever.
        settings=wandb.Settings(init_timeout=3 * _TIMEOUT_SECONDS, finish_timeout=3 * _TIMEOUT_SECONDS),
    )
    return WandbCallback()


class _MLflow(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Sends to the server at `MLFLOW_TRACKING_URI`, into the experiment `MLFLOW_EXPERIMENT_ID`.

    By its REST API: MLflow's own client does not resolve beside the services' dependencies.
    """

    def __init__(self, folder: Path, run_name: str, params: Params, step: int) -> None:
        user, token = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_TOKEN")
        self._client = httpx.Client(
            base_url=f"{os.environ['MLFLOW_TRACKING_URI'].rstrip('/')}/api/2.0/mlflow/runs/",
            auth=(user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None,
            headers={"authorization": f"Bearer {token}"} if token else None,
            timeout=_TIMEOUT_SECONDS,
        )
        if (known := folder / "mlflow_run").exists():
            self._run_id = known.read_text()
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID", "0")
        created = self._post("create", experiment_id=experiment, run_name=run_name, start_time=_now())
        self._run_id = created["run"]["info"]["run_id"]
        known.write_text(self._run_id)
        self._send("log-batch", params=[{"key": key, "value": str(value)} for key, value in params.items()])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        at = {"timestamp": _now(), "step": state.global_step}
        numbers = {key: value for key, value in rewrite_logs(logs).items() if isinstance(value, int | float)}
        self._send("log-batch", metrics=[{"key": key, "value": value, **at} for key, value in numbers.items()])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._send("update", status="FINISHED", end_time=_now())

    def _send(self, path: str, **body: Any) -> None:
        self._post(path, run_id=self._run_id, **body)

    def _post(self, path: str, **body: Any) -> Any:
        return self._client.post(path, json=body).raise_for_status().json()


def _now() -> int:
    return int(time.time() * 1_000)


_TRACKERS: dict[str, Callable[[Path, str, Params, int], TrainerCallback]] = {
    "tensorboard": _tensorboard,
    "mlflow": _MLflow,
    "wandb": _wandb,
}
