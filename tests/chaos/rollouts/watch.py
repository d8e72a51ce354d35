"""Looks twice a second at every task's flags, as Unleash has them, and at what each engine serves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import httpx

from tests.chaos.rollouts.checks.history import EngineState, Flags, Sample
from tests.chaos.rollouts.system import RolloutSystem

_SECONDS = 0.5


class Watch:
    """`samples`: what was seen. A look at which Unleash did not answer is no sample."""

    def __init__(self, system: RolloutSystem) -> None:
        settings = system.settings
        self._system = system
        self._flags = f"{settings.unleash}/api/client/features"
        self._headers = {"Authorization": settings.unleash_client_token}
        self.samples: list[Sample] = []

    async def run(self) -> None:
        async with httpx.AsyncClient(timeout=2.0) as http:
            while True:
                with contextlib.suppress(httpx.HTTPError, ValueError):
                    self.samples.append(await self._look(http))
                await asyncio.sleep(_SECONDS)

    async def _look(self, http: httpx.AsyncClient) -> Sample:
        """Look at the engines before and after the flags: what one of the two looks has counts as served."""
        before = await self._engines(http)
        answer = await http.get(self._flags, headers=self._headers)
        answer.raise_for_status()
        at = time.time()
        after = await self._engines(http)
        engines = {
            url: EngineState(state.started, {**state.probes, **after[url].probes})
            for url, state in before.items()
            if url in after and after[url].started == state.started
        }
        features = {feature["name"]: feature for feature in answer.json()["features"]}
        return Sample(at, {task: _flags(features, task) for task in self._system.tasks}, engines)

    async def _engines(self, http: httpx.AsyncClient) -> dict[str, EngineState]:
        found = {}
        for url in self._system.engine_urls:
            with contextlib.suppress(httpx.HTTPError, ValueError):
                state = (await http.get(f"{url}/state")).json()
                found[url] = EngineState(state["started"], state["adapters"])
        return found


def _flags(features: dict[str, Any], task: str) -> Flags:
    primary = _payload(features.get(f"ratchet.{task}.primary"))
    canary = _payload(features.get(f"ratchet.{task}.canary"))
    shadow = features.get(f"ratchet.{task}.shadow") or {}
    rolled_back = (features.get(f"ratchet.{task}.rollback") or {}).get("enabled")
    return Flags(
        primary.get("previous" if rolled_back else "adapter"),
        canary.get("adapter"),
        bool(shadow.get("enabled")),
        _percent(features.get(f"ratchet.{task}.control")),
    )


def _percent(feature: dict[str, Any] | None) -> int | None:
    """Return the share of users of a flag that is on; 0: it has no strategy."""
    if not feature or not feature.get("enabled"):
        return None
    return next((int(found["parameters"]["rollout"]) for found in feature.get("strategies") or ()), 0)


def _payload(feature: dict[str, Any] | None) -> dict[str, Any]:
    """Return the payload of a flag that is on; nothing of one that is off, or has none."""
    if not feature or not feature.get("enabled"):
        return {}
    for strategy in feature.get("strategies") or ():
        for variant in strategy.get("variants") or ():
            return dict(json.loads(variant["payload"]["value"]))
    return {}
