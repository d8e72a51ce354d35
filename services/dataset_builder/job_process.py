"""A build's process: `python -m services.dataset_builder.job_process FOLDER` (shared.jobs).

It starts the process with the models first, whose own imports take as long as those of the build. As every process that
is spawned, that one begins with its parent's main module, so what this one imports at once is little.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shared.jobs import Progress, lease, run_job

if TYPE_CHECKING:
    from services.dataset_builder.job import BuildResult

_SWITCH_SECONDS = 0.0005


def run_build(spec: bytes, folder: Path, progress: Progress) -> BuildResult:
    """Build a cycle's dataset in this process. A killed job starts over; one that has stored its outcome returns it."""
    from services.dataset_builder.job_input import BuildJob
    from services.dataset_builder.model_process import ModelProcess

    # A large task's corrections are millions of objects and hardly a cycle: looking for cycles took a fifth of a build.
    # (`gc.disable` does not last: loading a model of spaCy enables it again.)
    gc.set_threshold(0)
    # Threads send, receive and search while this one computes: they should not wait 5 ms for each of their steps.
    sys.setswitchinterval(_SWITCH_SECONDS)
    job = BuildJob.model_validate_json(spec)
    with lease(job.slots_folder, 1, progress), ModelProcess(job.models(folder)) as models:
        from services.dataset_builder.job import build_on_postgres

        return build_on_postgres(job, folder, progress, models)


if __name__ == "__main__":
    run_job(run_build)
    logging.shutdown()
    os._exit(0)  # All is stored, and freeing the objects of a large task one by one takes a while.
