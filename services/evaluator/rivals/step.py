"""The part of the evaluation job that compares the adapter with its rivals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from schemas.approaches import ApproachTable
from schemas.datasets import Example
from services.evaluator.job_input import EvaluationJob
from services.evaluator.rivals.prompts import in_stable_order
from services.evaluator.rivals.run import Contest, approach_table
from services.evaluator.settings import KEY_VARIABLE
from services.evaluator.verdict import Asked
from shared.files import write_atomically
from shared.jobs import Progress
from shared.model.embedding import SentenceEmbedder
from shared.model.inference import InferenceClient


async def compare_rivals(
    job: EvaluationJob, train: Sequence[Example], asked: Asked, folder: Path, progress: Progress
) -> ApproachTable:
    """Return the table of approaches. A killed job does not measure again what it has written to its folder."""
    path = folder / "approaches.json"
    if path.exists():
        return ApproachTable.model_validate_json(path.read_bytes())
    client = InferenceClient(job.vllm, job.timeout_seconds, os.environ.get(KEY_VARIABLE, ""))
    embedder = SentenceEmbedder(job.embedder, fast=True)
    arms = (asked.evaluation, asked.candidate, asked.production)
    contest = Contest(job.trained, job.production, *arms, in_stable_order(train), job.concurrency, len(job.vllm))
    try:
        table = await approach_table(client, embedder, contest, job, lambda said: progress(1, 1, said))
    finally:
        await client.close()
    write_atomically(path, table.model_dump_json().encode())
    return table
