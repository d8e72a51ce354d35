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
_POLL_SECONDS = 0.1


class ModelPool:
    """Wakes models. `wait_seconds`: how long a request waits for others' to end. `logs`: a folder for their logs."""

    def __init__(
        self, launcher: Launcher, logs: Path, *, wait_seconds: float = 60.0, start_seconds: float = 300.0
    ) -> None:
        self._launcher, self._logs = launcher, logs
        self._wait_seconds, self._start_seconds = wait_seconds, start_seconds
        self._models: dict[str, ServedModel] = {}

    @asynccontextmanager
    async def awake(self, name: str, folder: Path) -> AsyncIterator[ServedModel]:
        """Keep a model awake for the length of a `with`. Raises DependencyUnavailable if none may fall asleep for it,
        or if it does not start."""
        model = await self._place_of(name, folder)
        model.requests += 1
        try:
            await asyncio.shield(model.starting)  # Others wait for it, too.
            yield model
        finally:
            model.requests -= 1
            model.used = time.monotonic()

    async def close(self) -> None:
        """Stop all models."""
        starts = [model.starting for model in self._models.values()]
        for start in starts:
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)
        await asyncio.gather(*(model.stop() for model in self._models.values()))

    async def _place_of(self, name: str, folder: Path) -> ServedModel:
        """Return the model, which is awake or begins to wake."""
        deadline = time.monotonic() + self._wait_seconds
        while True:
            for ended in [model for model in self._models.values() if model.ended]:
                await self._models.pop(ended.name).stop()
            if name in self._models:
                return self._models[name]
            idle = min((m for m in self._models.values() if not m.requests), key=lambda m: m.used, default=None)
            if len(self._models) < MOST_AWAKE:
                return self._wake(name, folder, None)
            if idle is not None:
                return self._wake(name, folder, self._models.pop(idle.name))
            if time.monotonic() > deadline:
                raise DependencyUnavailable(
                    f"{' and '.join(self._models)} are awake and busy, so {name} cannot be woken", "Ask again later."
                )
            await asyncio.sleep(_POLL_SECONDS)

    def _wake(self, name: str, folder: Path, asleep: ServedModel | None) -> ServedModel:
        """Begin to start a model in the place of another."""
        model = self._models[name] = ServedModel(name, self._logs / f"{name}.log")
        model.starting = asyncio.create_task(self._start(model, folder, asleep))
        return model

    async def _start(self, model: ServedModel, folder: Path, asleep: ServedModel | None) -> None:
        """Start a model, once the one whose place it takes has ended: memory is for two."""
        if asleep is not None:
            await asleep.stop()
        try:
            await model.start(self._launcher, folder, self._start_seconds)
        except DependencyUnavailable:
            await model.stop()
            raise
