"""The input of the evaluation job's process."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from services.evaluator.domain import Candidate


class EvaluationJob(BaseModel):
    """`production`: the adapter that serves now; None: the base model. `models`: where whole models are served.

    `embedder`: the folder of the sentence encoder.
    """

    trained: Candidate
    production: str | None
    vllm: tuple[str, ...]
    models: tuple[str, ...] = ()
    artifacts: str
    cache: Path
    slots_folder: Path
    slots: int
    concurrency: int
    timeout_seconds: float
    max_rank: int
    embedder: Path
    lake: str
    prices_file: Path | None = None
