"""Runs trainings as processes, alone on their memory, and reads what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def run(command: list[str], job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a Python command on a job's file in `folder`. Returns the last line that it prints, and its peak in MiB."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command, str(file)], stdout=subprocess.PIPE, stderr=log, env={**os.environ, **ENVIRONMENT}
        )
        assert process.stdout is not None
        printed = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{command} failed: {(folder / 'log.txt').read_text()[-3_000:]}")
    return json.loads(printed.strip().splitlines()[-1]) | {"peak_mib": usage.ru_maxrss / 1024}


def ours(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    return run(["-m", "tests.benchmarks.training.ours"], job | {"folder": str(folder)}, folder)


def bare_trl(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("bare_trl.py")
    return run([str(script)], job | {"output": str(folder / "adapter")}, folder)
