"""The trainer's recipe as a process of its own: `python -m tests.benchmarks.training.ours JOB.json`.

JOB.json: base, folder, spec (a task), rows (examples as JSON lines), and, of fusion, `fused` (folders of adapters).
Prints the outcome with seconds and CPU seconds of the steps as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from schemas.tasks import TaskSpec
from services.trainer.domain import TrainingRequest
from services.trainer.job import read_examples
from services.trainer.recipe import SftTrainer, train


def main(job: dict[str, Any]) -> None:
    spent: dict[str, float] = {}
    steps = SftTrainer.train

    def timed(trainer: SftTrainer, *args: Any, **options: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = steps(trainer, *args, **options)
        spent.update(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)
        return result

    SftTrainer.train = timed
    request = TrainingRequest(
        TaskSpec.model_validate(job["spec"]), job["base"], threads=1, fused=tuple(map(Path, job.get("fused", ())))
    )
    started = time.perf_counter(), time.process_time()
    outcome = train(request, read_examples(Path(job["rows"])), Path(job["folder"]), lambda *_, **__: None)
    whole = {"seconds": time.perf_counter() - started[0], "cpu_seconds": time.process_time() - started[1]}
    print(json.dumps(outcome.model_dump(mode="json") | (spent or whole)))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
