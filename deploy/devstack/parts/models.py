"""The server of whole models (`deploy.devstack.model_server`): each is a vLLM of its own, started when it is asked."""

from __future__ import annotations

import os
import sys

from deploy.devstack.config import CHECKOUT, StackConfig
from deploy.devstack.part import Launch, StackPart
from deploy.devstack.parts.vllm import probe_health
from shared.addresses import without_credentials

_PASSED = ("RATCHET_GATEWAY_PASS_URL", "RATCHET_GATEWAY_PASS_MODELS")
_PUBLISHED = "*-*"
"""All names of what is published: a task's, a dash and a hash."""


class ModelsPart(StackPart):
    """The server of whole models on `RATCHET_MODELS_PORT`. It runs the vLLM that the part of that name installs."""

    name = "models"
    ports = ("models",)
    start_timeout_seconds = 60.0

    def needs(self, config: StackConfig) -> tuple[str, ...]:
        return ("s3",) if config.storage == "s3" else ()

    def launch(self, config: StackConfig) -> Launch:
        return Launch(
            argv=(sys.executable, "-m", "deploy.devstack.model_server", str(config.ports["models"])),
            env={"RATCHET_HOME": str(config.home), "RATCHET_TOOLS": str(config.tools), "PYTHONUNBUFFERED": "1"},
            cwd=str(CHECKOUT),
            grace_seconds=30.0,
        )

    def probe(self, config: StackConfig) -> str | None:
        return probe_health(_url(config))

    def address(self, config: StackConfig) -> str:
        return without_credentials(_url(config))

    def environment(self, config: StackConfig) -> dict[str, str]:
        """Also have the gateway pass the names of what is published on, unless it passes models to another API."""
        if not is_wanted(config):
            return {}
        passed = dict(zip(_PASSED, (f"{_url(config)}/v1", _PUBLISHED), strict=True))
        return {"RATCHET_MODELS": _url(config)} | ({} if any(map(os.environ.get, _PASSED)) else passed)


def is_wanted(config: StackConfig) -> bool:
    """Return True unless vLLM is the user's own, which then is all that serves models."""
    return "vllm" not in config.externals or "models" in config.externals


def _url(config: StackConfig) -> str:
    return config.externals.get("models") or f"http://{config.address('models')}"
