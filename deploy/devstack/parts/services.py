"""Ratchet's own services: all in one process by default, one process each with `--split`."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx

from deploy.devstack.config import StackConfig
from deploy.devstack.install.models import ensure_base_model, ensure_embedding_model
from deploy.devstack.part import Launch, Say

SERVICES = (
    "gateway",
    "prediction_log",
    "failure_miner",
    "console",
    "dataset_builder",
    "trainer",
    "evaluator",
    "shadow",
    "deployer",
    "scheduler",
)
ALL = "services"
WITH_HTTP = ("gateway", "console", "scheduler")
"""These tell at `/readyz` what they still miss; the others are alive as long as their process is."""
CODE = Path(__file__).parents[3]
NO_TASK = "no task is known"
"""What a gateway lacks on a new machine: not ready for traffic, but `up` has done its part."""
OPEN_PATHS = {"gateway": "/v1", "console": "/", "scheduler": "/"}


class ServicesPart:
    """All services in one process, or the one that `name` names."""

    start_seconds = 180.0
    needs: tuple[str, ...] = ("kafka", "postgres", "unleash", "vllm")

    def __init__(self, name: str = ALL) -> None:
        self.name = name
        self.ports = WITH_HTTP if name == ALL else tuple(one for one in WITH_HTTP if one == name)

    def installed(self, config: StackConfig) -> bool:
        return (config.models / config.base_model_name).exists()

    def install(self, config: StackConfig, say: Say) -> None:
        if self.name in (ALL, "trainer"):
            ensure_base_model(config, say)
        if self.name in (ALL, "failure_miner"):
            ensure_embedding_model(config, say)

    def launch(self, config: StackConfig) -> Launch:
        names = () if self.name == ALL else (self.name,)
        return Launch(
            argv=(sys.executable, "-m", "deploy.runner", *names),
            env={"RATCHET_HOME": str(config.home), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"},
            cwd=str(CODE),
            grace_seconds=30.0,
        )

    def probe(self, config: StackConfig) -> str | None:
        return next((trouble for one in self.ports if (trouble := probe_ready(f"http://{config.address(one)}"))), None)

    def finish(self, config: StackConfig, say: Say) -> None:
        """Nothing more: ready means ready."""

    def address(self, config: StackConfig) -> str:
        return "\n".join(f"http://{config.address(one)}{OPEN_PATHS[one]}" for one in self.ports)

    def environment(self, config: StackConfig) -> dict[str, str]:
        return {f"RATCHET_{one.upper()}_PORT": str(config.ports[one]) for one in self.ports}

    def note(self, config: StackConfig) -> str:
        return ""


def probe_ready(url: str) -> str | None:
    """What the service says it still misses; None when nothing, or only a task: applying one comes after `up`."""
    try:
        answer = httpx.get(f"{url}/readyz", timeout=4.0)
        if answer.status_code == 200:
            return None
        missing = [str(one) for one in answer.json()["missing"]]
        if missing and all(one.startswith(NO_TASK) for one in missing):
            return None
        return f"{url}/readyz says {answer.status_code}, missing: {', '.join(missing)}"
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        return f"{url}/readyz: {type(error).__name__}: {error}"
