"""What the deployer asks of others: Unleash's admin API (the flags) and vLLM (does it serve the adapter?).

Unleash's traps, each met live: a flag switched on without a strategy gets one of 100 %; PUT of a flag resets what it
omits; rollout values are not validated; a duplicate is a 409; an archived flag keeps its name.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from shared.errors import DependencyUnavailable
from shared.model.inference import InferenceClient
from shared.storage.artifacts import ArtifactStore

_STRATEGY = "flexibleRollout"


@dataclass(frozen=True)
class Strategy:
    """How a flag is rolled out: to whom, and with which payload. `variant` None: the flag has no payload."""

    percent: int = 100
    stickiness: str = "default"
    group: str = ""
    variant: str | None = None
    payload: Mapping[str, Any] | None = None

    def body(self, flag: str) -> dict[str, Any]:
        """As Unleash's admin API takes it: parameters are strings, a variant needs a variable weight."""
        parameters = {
            "rollout": str(min(max(self.percent, 0), 100)),
            "stickiness": self.stickiness,
            "groupId": self.group or flag,
        }
        variants = []
        if self.variant is not None:
            payload = {"type": "json", "value": json.dumps(dict(self.payload or {}), sort_keys=True)}
            variants = [
                {
                    "name": self.variant, "weight": 1000, "weightType": "variable",
                    "stickiness": self.stickiness, "payload": payload,
                }
            ]  # fmt: skip
        return {"name": _STRATEGY, "constraints": [], "segments": [], "parameters": parameters, "variants": variants}


@dataclass(frozen=True)
class FlagState:
    """A flag as it is now."""

    enabled: bool
    strategies: tuple[dict[str, Any], ...]

    @property
    def payload(self) -> dict[str, Any] | None:
        """The payload of the first variant, parsed."""
        for strategy in self.strategies:
            for variant in strategy.get("variants") or ():
                if value := (variant.get("payload") or {}).get("value"):
                    parsed = json.loads(value)
                    return parsed if isinstance(parsed, dict) else None
        return None

    def follows(self, wanted: dict[str, Any]) -> bool:
        """Whether the one strategy is as wanted; what Unleash adds to it is not compared."""
        if len(self.strategies) != 1:
            return False
        found = self.strategies[0]
        same = found.get("name") == wanted["name"] and found.get("parameters") == wanted["parameters"]
        return same and [_essence(v) for v in found.get("variants") or ()] == [_essence(v) for v in wanted["variants"]]


class FlagAdmin(Protocol):
    """What moves flags. Every call is idempotent, and writes nothing where nothing differs."""

    async def read(self, flag: str) -> FlagState | None: ...
    async def ensure(self, flag: str, description: str, strategy: Strategy, on: bool = False) -> None: ...
    async def set_strategy(self, flag: str, strategy: Strategy) -> None: ...
    async def switch(self, flag: str, on: bool) -> None: ...


class Adapters(Protocol):
    """What makes sure that an adapter answers on every replica. Raises InvalidMessage if vLLM refuses it."""

    async def serve(self, adapter: str, uri: str) -> None: ...


class UnleashAdmin:
    """Flags of one project and environment, over Unleash's admin API. Raises DependencyUnavailable."""

    def __init__(self, url: str, token: str, project: str = "default", environment: str = "development") -> None:
        self._features = f"{url.rstrip('/')}/api/admin/projects/{project}/features"
        self._environment = environment
        self._client = httpx.AsyncClient(timeout=10.0, headers={"Authorization": token})

    async def close(self) -> None:
        await self._client.aclose()

    async def read(self, flag: str) -> FlagState | None:
        """The flag as it is, or None where there is none."""
        answer = await self._ask("GET", self._place(flag), missing_ok=True)
        if answer is None:
            return None
        return FlagState(bool(answer.get("enabled")), tuple(answer.get("strategies") or ()))

    async def ensure(self, flag: str, description: str, strategy: Strategy, on: bool = False) -> None:
        """Create the flag with its strategy, if there is none. One that exists is the operator's: it stays.

        `on` comes before the strategy here: a flag that a crash left half made is then told from one that an
        operator turned off, and a flag without payload serves nobody anything.
        """
        state = await self.read(flag)
        if state is None:
            body = {"name": flag, "type": "release", "description": description, "impressionData": False}
            await self._ask("POST", self._features, json=body, conflict_ok=True)
        elif state.strategies and (strategy.variant is None or state.payload is not None):
            return
        if on and (state is None or not state.strategies):
            await self._ask("POST", f"{self._place(flag)}/on")
        await self.set_strategy(flag, strategy)

    async def set_strategy(self, flag: str, strategy: Strategy) -> None:
        """Make the flag's strategy this one and no other."""
        state = await self.read(flag)
        if state is None:
            raise DependencyUnavailable(f"flag {flag} is gone", "Was it archived? Revive it in Unleash.")
        wanted = strategy.body(flag)
        if state.follows(wanted):
            return
        strategies = f"{self._place(flag)}/strategies"
        ids = [found["id"] for found in state.strategies]
        if ids:  # The first is changed in place, so that at no moment the flag is without a strategy.
            await self._ask("PUT", f"{strategies}/{ids[0]}", json=wanted)
        else:
            await self._ask("POST", strategies, json=wanted)
        for other in ids[1:]:
            await self._ask("DELETE", f"{strategies}/{other}")

    async def switch(self, flag: str, on: bool) -> None:
        """Turn the flag on or off."""
        state = await self.read(flag)
        if state is not None and state.enabled != on:
            await self._ask("POST", f"{self._place(flag)}/{'on' if on else 'off'}")

    def _place(self, flag: str) -> str:
        return f"{self._features}/{flag}/environments/{self._environment}"

    async def _ask(
        self, method: str, url: str, *, json: Any = None, missing_ok: bool = False, conflict_ok: bool = False
    ) -> Any:
        try:
            response = await self._client.request(method, url, json=json)
        except httpx.HTTPError as error:
            raise DependencyUnavailable(f"Unleash does not answer: {error!r}", "Check it: ratchet status") from error
        if (response.status_code == 404 and missing_ok) or (response.status_code == 409 and conflict_ok):
            return None
        if response.status_code >= 400:
            hint = "Is RATCHET_UNLEASH_ADMIN_TOKEN an admin token?" if response.status_code in (401, 403) else ""
            raise DependencyUnavailable(
                f"Unleash refused {method} {url}: {response.status_code} {response.text[:300]}", hint
            )
        return response.json() if response.content else None


class ArtifactMissing(DependencyUnavailable):
    """An adapter's folder is not in the artifact store: not yet, or not any more."""


class ServedAdapters:
    """Adapters on vLLM's replicas, from the artifact store. Raises ArtifactMissing."""

    def __init__(self, inference: InferenceClient, artifacts: ArtifactStore) -> None:
        self._inference = inference
        self._artifacts = artifacts

    async def serve(self, adapter: str, uri: str) -> None:
        try:
            folder = await asyncio.to_thread(self._artifacts.fetch, uri)
        except DependencyUnavailable as error:
            raise ArtifactMissing(error.reason, error.way_out) from error
        await self._inference.serve_adapter(adapter, str(folder))


def _essence(variant: dict[str, Any]) -> tuple[Any, ...]:
    return variant.get("name"), variant.get("weight"), variant.get("payload")
