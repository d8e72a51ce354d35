"""A training in two processes, on the CPU with gloo: FSDP itself runs on GPUs alone, so gradients are averaged here."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from services.trainer.distributed import train_distributed
from services.trainer.domain import TrainingRequest
from shared.model.adapter_files import check_adapter
from tests.integration.test_trainer import BASE, example, make_tiny_model
from tests.integration.test_training_recipe import run, spec_of
from tests.waiting import until

ROWS = [example(number) for number in range(98)]
SPEC = spec_of(batch_size=4, accumulation=2, epochs=2, dropout=0.0, validation_share=0.15, max_length=96)
"""Copies with an injection are longer: rows of one length make the same steps in one process and in two."""
STARTED = """
import pickle, sys
from services.trainer.distributed import train_distributed
train_distributed(*pickle.load(sys.stdin.buffer))
"""


def request_of(home: Path) -> TrainingRequest:
    return TrainingRequest(SPEC, str(home / BASE), threads=1, trackers=("tensorboard",), gpus=2)


async def test_two_processes_that_were_killed_go_on_and_end_with_the_losses_of_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_tiny_model(tmp_path / BASE, hidden=64)
    one, folder = run(ROWS, SPEC, tmp_path, tmp_path / "one"), tmp_path / "two"
    folder.mkdir()
    job = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STARTED, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    assert job.stdin is not None
    job.stdin.write(pickle.dumps((request_of(tmp_path), ROWS, folder)))
    job.stdin.write_eof()
    await until(lambda: [*folder.glob("checkpoints/*/trainer_state.json")] or job.returncode is not None)
    processes = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGKILL)
    await job.wait()
    await until(lambda: not any(process.is_running() for process in processes))
    assert not (folder / "outcome.json").exists()

    two = train_distributed(request_of(tmp_path), ROWS, folder)

    assert "resuming from" in capfd.readouterr().err
    assert two.losses == pytest.approx(one.losses, rel=0.02, abs=0.02)
    assert two.losses[-1] < two.losses[0] - 1
    assert (two.steps, two.best_step) == (one.steps, one.best_step)
    assert len([*folder.glob("tensorboard/*")]) == 2, "one file of each attempt: one process tells the trackers"
    check_adapter(folder / "adapter", BASE, 8)
    assert {path.name for path in (folder / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
