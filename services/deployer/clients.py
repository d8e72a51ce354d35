"""Clients of the deployer: Unleash's admin API, which holds the flags, and vLLM, which serves the adapters.

What to know of Unleash, each observed on a live server: a flag switched on without a strategy gets one of 100 %; PUT
of a flag resets what it omits; rollout values are not validated; a duplicate is a 409; an archived flag keeps its name.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from shared.addresses import without_credentials
from shared.errors import DependencyUnavailable
from shared.model.inference import InferenceClient
from shared.storage.artifacts import ArtifactStore


@dataclass(frozen=True)
class Strategy:
    """The rollout of a flag: to whom, and with which payload. `variant` None: the flag has no payload."""

    percent: int = 100
    stickiness: str = "default"
    group: str = ""
    variant: str | None = None
    payload: Mapping[str, Any] | None = None

    def body(self, flag: str) -> dict[str, Any]:
        """Return it as Unleash's admin API takes it: parameters are strings, a variant needs a variable weight."""
        parameters = {
            "rollout": str(min(max(self.percent, 0), 100)),
            "stickiness": self.stickiness,
            "groupId": self.group or flag,
        }
        variant = {
            "name": self.variant,
            "weight": 1000,
            "weightType": "variable",
            "stickiness": self.stickiness,
            "payload": {"type": "json", "value": json.dumps(dict(self.payload or {}), sort_keys=True)},
        }
        variants = [] if self.variant is None else [variant]
        return {
            "name": "flexibleRollout",
            "constraints": [],
            "segments": [],
            "parameters": parameters,
            "variants": variants,
        }


@dataclass(frozen=True)
class FlagState:
    """A flag as it is in Unleash."""

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

    def matches(self, wanted: dict[str, Any]) -> bool:
        """Return True if the flag has this strategy and no other; fields that Unleash adds are not compared."""
        if len(self.strategies) != 1:
            return False
        found = self.strategies[0]
        if found.get("name") != wanted["name"] or found.get("parameters") != wanted["parameters"]:
            return False
        return list(map(_variant_key, found.get("variants") or ())) == list(map(_variant_key, wanted["variants"]))


class FlagAdmin(Protocol):
    """Reads and writes flags. Every call is idempotent and writes only what differs."""

    async def read(self, flag: str) -> FlagState | None: ...
    async def ensure(self, flag: str, description: str, strategy: Strategy, on: bool = False) -> None: ...
    async def set_strategy(self, flag: str, strategy: Strategy) -> None: ...
    async def switch(self, flag: str, on: bool) -> None: ...


class AdapterServer(Protocol):
    """Makes every vLLM replica serve an adapter. Raises InvalidMessage if vLLM refuses it."""

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
        """Return the flag, or None if it does not exist."""
        answer = await self._request("GET", self._environment_url(flag), missing_ok=True)
        if answer is None:
            return None
        return FlagState(bool(answer.get("enabled")), tuple(answer.get("strategies") or ()))

    async def ensure(self, flag: str, description: str, strategy: Strategy, on: bool = False) -> None:
        """Create the flag with its strategy if it does not exist. An existing flag belongs to the operator and stays.

        A flag is switched on before it gets its strategy: so one that a crash left incomplete differs from one that
        an operator turned off, and a flag without a payload serves nobody anything.
        """
        state = await self.read(flag)
        if state is None:
            body = {"name": flag, "type": "release", "description": description, "impressionData": False}
            await self._request("POST", self._features, json=body, conflict_ok=True)
        elif state.strategies and (strategy.variant is None or state.payload is not None):
            return
        if on and (state is None or not state.strategies):
            await self._request("POST", f"{self._environment_url(flag)}/on")
        await self.set_strategy(flag, strategy)

    async def set_strategy(self, flag: str, strategy: Strategy) -> None:
        """Give the flag this strategy and no other."""
        state = await self.read(flag)
        if state is None:
            raise DependencyUnavailable(f"the flag {flag} does not exist", "Was it archived? Revive it in Unleash.")
        wanted = strategy.body(flag)
        if state.matches(wanted):
            return
        strategies = f"{self._environment_url(flag)}/strategies"
        ids = [found["id"] for found in state.strategies]
        if ids:  # The first is changed in place, so that the flag is never without a strategy.
            await self._request("PUT", f"{strategies}/{ids[0]}", json=wanted)
        else:
            await self._request("POST", strategies, json=wanted)
        for other in ids[1:]:
            await self._request("DELETE", f"{strategies}/{other}")

    async def switch(self, flag: str, on: bool) -> None:
        """Turn the flag on or off."""
        state = await self.read(flag)
        if state is not None and state.enabled != on:
            await self._request("POST", f"{self._environment_url(flag)}/{'on' if on else 'off'}")

    def _environment_url(self, flag: str) -> str:
        return f"{self._features}/{flag}/environments/{self._environment}"

    async def _request(
        self, method: str, url: str, *, json: Any = None, missing_ok: bool = False, conflict_ok: bool = False
    ) -> Any:
        try:
            response = await self._client.request(method, url, json=json)
        except httpx.HTTPError as error:
            raise DependencyUnavailable(f"Unleash unavailable: {error!r}", "Check it: ratchet status") from error
        if (response.status_code == 404 and missing_ok) or (response.status_code == 409 and conflict_ok):
            return None
        if response.status_code >= 400:
            hint = "Is RATCHET_UNLEASH_ADMIN_TOKEN an admin token?" if response.status_code in (401, 403) else ""
            raise DependencyUnavailable(
                f"Unleash refused {method} {without_credentials(url)}: {response.status_code} {response.text[:300]}",
                hint,
            )
        return response.json() if response.content else None


class ArtifactMissing(DependencyUnavailable):
    """An adapter's folder is not in the artifact store: not yet, or not any more."""


class VllmAdapterServer:
    """Serves adapters from the artifact store on all vLLM replicas. Raises ArtifactMissing."""

    def __init__(self, inference: InferenceClient, artifacts: ArtifactStore) -> None:
        self._inference = inference
        self._artifacts = artifacts

    async def serve(self, adapter: str, uri: str) -> None:
        try:
            folder = await asyncio.to_thread(self._artifacts.fetch, uri)
        except DependencyUnavailable as error:
            raise ArtifactMissing(error.reason, error.way_out) from error
        await self._inference.serve_adapter(adapter, str(folder))


def _variant_key(variant: dict[str, Any]) -> tuple[Any, ...]:
    return variant.get("name"), variant.get("weight"), variant.get("payload")
