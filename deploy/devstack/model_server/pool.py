"""Which models are awake: those that are asked, two at most; the least recently used one falls asleep for the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from deploy.devstack.model_server.process import Launcher, ServedModel
from shared.errors import DependencyUnavailable

MOST_AWAKE = 2
"""A small model takes 3.7 GiB and a core while it is awake."""


class ModelPool:
    """Wakes models, one after the other. `logs`: a folder for their logs."""

    def __init__(self, launcher: Launcher, logs: Path, *, start_seconds: float = 300.0) -> None:
        self._launcher, self._logs, self._start_seconds = launcher, logs, start_seconds
        self._models: dict[str, ServedModel] = {}
        self._starting: list[ServedModel] = []
        self._waking = asyncio.Lock()

    @asynccontextmanager
    async def awake(self, name: str, folder: Path) -> AsyncIterator[ServedModel]:
        """Keep a model awake for the length of a `with`. Raises DependencyUnavailable if none may fall asleep for it,
        or if it does not start."""
        if (model := self._alive(name)) is None:
            async with self._waking:
                model = self._alive(name) or await self._woken(name, folder)
        model.requests += 1
        try:
            yield model
        finally:
            model.requests -= 1
            model.used = time.monotonic()

    async def close(self) -> None:
        """Stop all models, and one that starts."""
        await asyncio.gather(*(model.stop() for model in (*self._models.values(), *self._starting)))

    def _alive(self, name: str) -> ServedModel | None:
        model = self._models.get(name)
        return None if model is None or model.ended else model

    async def _woken(self, name: str, folder: Path) -> ServedModel:
        """Start a model, once the one whose place it takes has ended: memory is for two."""
        for ended in [model for model in self._models.values() if model.ended]:
            await self._models.pop(ended.name).stop()
        if len(self._models) >= MOST_AWAKE:
            idle = min((m for m in self._models.values() if not m.requests), key=lambda m: m.used, default=None)
            if idle is None:
                raise DependencyUnavailable(
                    f"{' and '.join(self._models)} are awake and busy, so {name} cannot be woken", "Ask again later."
                )
            await self._models.pop(idle.name).stop()
        model = ServedModel(name, self._logs / f"{name}.log")
        self._starting = [model]
        try:
            await model.start(self._launcher, folder, self._start_seconds)
        except BaseException:
            await model.stop()
            raise
        finally:
            self._starting = []
        self._models[name] = model
        return model
