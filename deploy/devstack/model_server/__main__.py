"""`python -m deploy.devstack.model_server PORT`: whole models by name, until SIGTERM."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from deploy.devstack.config import HOST, StackConfig
from deploy.devstack.install.packages import is_installed
from deploy.devstack.model_server.front import Front, build_app
from deploy.devstack.model_server.pool import ModelPool
from deploy.devstack.part import Launch
from deploy.devstack.parts.vllm import requirement, vllm_argv, vllm_environment
from shared.errors import DependencyUnavailable
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore

_ONE_CORE = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
"""Not bound to a core: two that are awake, and the stack's own vLLM, would be bound to the same one."""
_GPU_SHARE = 0.2
_DRAIN_SECONDS = 2


def launch(config: StackConfig, name: str, folder: Path, port: int) -> Launch:
    """Return how vLLM serves one whole model. Raises DependencyUnavailable where it is not installed."""
    if not is_installed(config.tools / "vllm", requirement()):
        raise DependencyUnavailable("vLLM is not installed", "ratchet install vllm")
    config.adapters.mkdir(parents=True, exist_ok=True)  # vLLM's finder of adapters wants it, used or not.
    return Launch(
        argv=vllm_argv(config, str(folder), name, port, _GPU_SHARE),
        env=vllm_environment(config.adapters) | _ONE_CORE,
        cwd=str(config.home),
        grace_seconds=15.0,
    )


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    config, settings = StackConfig.load(), Settings.load()
    store = ArtifactStore(settings.artifacts_uri, settings.home / "cache")
    pool = ModelPool(partial(launch, config), config.logs / "models")
    serve(Front(store, pool, settings.vllm_urls[0]), int(sys.argv[1]))


def serve(front: Front, port: int) -> None:
    """Run until SIGTERM, which ends all models."""

    @asynccontextmanager
    async def closing(app: FastAPI) -> AsyncIterator[None]:
        yield
        await front.close()

    app = build_app(front)
    app.router.lifespan_context = closing
    uvicorn.run(app, host=HOST, port=port, log_level="warning", timeout_graceful_shutdown=_DRAIN_SECONDS)


if __name__ == "__main__":
    main()
