"""A build's process: `python -m services.dataset_builder.job_process FOLDER` (shared.jobs).

The process with the models, as every process that is spawned, begins with its parent's main module. So this one imports
the build, a second of work, only where it runs it.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from shared.jobs import Progress, run_job

if TYPE_CHECKING:
    from services.dataset_builder.job import BuildResult


def run_build(spec: bytes, folder: Path, progress: Progress) -> BuildResult:
    """See `job.run_build`."""
    from services.dataset_builder import job

    return job.run_build(spec, folder, progress)


if __name__ == "__main__":
    run_job(run_build)
    logging.shutdown()
    os._exit(0)  # All is stored, and freeing the objects of a large task one by one takes a while.
