"""What an operator can set of the evaluator."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from shared.settings import Settings

KEY_VARIABLE = "RATCHET_VLLM_KEY"
"""Has the model servers' key in a job's process: it must not be in the job's file."""


class EvaluatorSettings(Settings):
    evaluator_vllm: str = Field(default="", description="vLLM pool of its own, comma-separated; empty: RATCHET_VLLM.")
    evaluator_concurrency: int = Field(default=8, ge=1, description="Maximum number of concurrent requests.")
    evaluator_timeout_seconds: float = Field(default=60.0, gt=0.0, description="A slower answer counts as failed.")
    evaluator_slots: int = Field(default=1, ge=1, description="Concurrent evaluations on this machine.")

    evaluator_embedder: str = Field(default="all-MiniLM-L6-v2", description="Folder below <home>/models.")
    evaluator_rival_rows: int = Field(
        default=40, ge=1, description="Held-out rows that prompts with examples are asked, to compare the adapter with."
    )

    @property
    def inference_urls(self) -> tuple[str, ...]:
        own = tuple(url.strip().rstrip("/") for url in self.evaluator_vllm.split(",") if url.strip())
        return own or self.vllm_urls

    @property
    def jobs_folder(self) -> Path:
        return self.home / "jobs" / "evaluator"

    @property
    def slots_folder(self) -> Path:
        return self.home / "slots" / "evaluator"
