"""A build's process: `python -m services.dataset_builder.job_process FOLDER` (shared.jobs)."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

from services.dataset_builder.job import BuildResult, build_on_postgres
from services.dataset_builder.job_input import BuildJob, embeddings_file
from services.dataset_builder.recipe import LabelScorer
from shared.jobs import Progress, lease, run_job
from shared.model.embedding import CachedEmbedder, SentenceEmbedder


def run_build(spec: bytes, folder: Path, progress: Progress) -> BuildResult:
    """Build a cycle's dataset in this process. A killed job starts over; one that has stored its outcome returns it."""
    # A large task's corrections are millions of objects and hardly a cycle: looking for cycles took a fifth of a build.
    # (`gc.disable` does not last: loading a model of spaCy enables it again.)
    gc.set_threshold(0)
    job = BuildJob.model_validate_json(spec)

    def report(done: int, total: int) -> None:
        progress(2 + done / total, 4, f"embedding: {done} of {total} texts")

    embedder = SentenceEmbedder(job.embedder, fast=True)
    score = LabelScorer(CachedEmbedder(embedder, embeddings_file(job.cache, job.spec.name), report))
    with lease(job.slots_folder, 1, progress):
        return asyncio.run(build_on_postgres(job, folder, progress, score))


if __name__ == "__main__":
    run_job(run_build)
