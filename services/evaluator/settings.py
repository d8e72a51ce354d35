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
