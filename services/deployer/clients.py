"""Clients of the deployer: Unleash's admin API, which holds the flags, and vLLM, which serves the adapters.

What to know of Unleash, each observed on a live server: a flag switched on without a strategy gets one of 100 %; PUT
of a flag resets what it omits; rollout values are not validated; a duplicate is a 409; an archived flag keeps its name.
By the code of 8.2.0: an archived flag is no feature (404), while its environment answers as it was; it cannot be turned
on or off (400). While its database does not answer, Unleash says of any flag that there is none (404), and its list of
flags fails (500). A feature has its environments with their strategies, segments included, which an environment asked
for by itself leaves out, and the flags that it depends on (`dependencies`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import httpx

from schemas.tasks import TaskSpec
from shared.addresses import without_credentials
from shared.errors import DependencyUnavailable
from shared.model.adapter_files import check_adapter
from shared.storage import artifacts

logger = logging.getLogger(__name__)
_LOGGED_EVENTS = 100
"""How many entries of Unleash's log about a task's flags are read: one change of a rollout makes about ten."""
_OF_A_HAND = ("feature-dependency-added", "feature-archived", "feature-deleted", "feature-revived")
"""Changes of a flag that only people make, by the types of Unleash's log."""
_FOR_EVERYONE = ("default", "flexibleRollout")
"""Types of strategies that may serve everyone: those of other types choose users."""
_ADDED = {"constraints": "a constraint", "segments": "a segment", "disabled": "a strategy that is off"}
"""What a person may add to a strategy that leaves users out, by the name of the field, in words. We write none."""


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
            "disabled": False,
            "parameters": parameters,
            "variants": variants,
        }


@dataclass(frozen=True)
class FlagState:
    """A flag as it is in Unleash. `archived`: no client sees it, so it is not `enabled`, and nobody can write it.

    `parents`: flags that it depends on, without which it is off for a user whatever its own strategy says.
    """

    enabled: bool
    strategies: tuple[dict[str, Any], ...]
    archived: bool = False
    parents: tuple[str, ...] = ()

    @property
    def payload(self) -> dict[str, Any] | None:
        """The payload of the first variant, parsed. None without one, and for one that a person broke."""
        return next(iter(self.payloads), None)

    @property
    def payloads(self) -> list[dict[str, Any] | None]:
        """The payloads of all variants of all strategies, parsed; None for one that a person broke."""
        variants = [variant for strategy in self.strategies for variant in strategy.get("variants") or ()]
        values = [(variant.get("payload") or {}).get("value") for variant in variants]
        return [_parsed(value) for value in values if value]

    @property
    def percent(self) -> int | None:
        """The share of its only strategy; None where that is not to be told."""
        parameters = self.strategies[0].get("parameters") or {} if len(self.strategies) == 1 else {}
        share = str(parameters.get("rollout", ""))
        return int(share) if share.isdecimal() and int(share) <= 100 else None

    @property
    def added(self) -> str:
        """What a hand has added to a strategy, or to the flag, in words; "" for nothing."""
        added = [words for name, words in _ADDED.items() if any(s.get(name) for s in self.strategies)]
        if self.parents:
            added.append(f"a parent flag ({', '.join(self.parents)})")
        return " and ".join(added)

    @property
    def several(self) -> str:
        """That it has another number of strategies than one, in words; "" for one. Whoever meets any of them has it."""
        count = len(self.strategies)
        return "" if count == 1 else f"{count} strategies" if count else "no strategy"

    @property
    def left_out(self) -> str:
        """Why not everyone may get the payload, in words; "" where everyone does."""
        if found := " and ".join(filter(None, (self.several, self.added))):
            return found
        kind = self.strategies[0].get("name") or _FOR_EVERYONE[0]
        if kind not in _FOR_EVERYONE:
            return f"a strategy of type {kind}"
        return "" if self.percent in (None, 100) else f"{self.percent} % of users"

    def matches(self, wanted: dict[str, Any]) -> bool:
        """Return True if the flag has this strategy and no other; fields that Unleash adds are not compared."""
        if len(self.strategies) != 1 or self.added:
            return False
        found = self.strategies[0]
        if found.get("name") != wanted["name"] or found.get("parameters") != wanted["parameters"]:
            return False
        return list(map(_variant_key, found.get("variants") or ())) == list(map(_variant_key, wanted["variants"]))


@dataclass(frozen=True)
class FlagEvent:
    """An entry of Unleash's log about a flag. `kind`: its type there; `strategy`: what the flag was given, if any."""

    entry: int
    flag: str
    kind: str
    strategy: Mapping[str, Any] | None = None

    def leads_to(self, strategy: Strategy | None, on: bool | None) -> bool:
        """Return True if it brings the flag to this strategy and state, or changes neither. None: any change is not."""
        if self.kind in ("feature-environment-enabled", "feature-environment-disabled"):
            return on is (self.kind == "feature-environment-enabled")
        if self.kind in ("feature-strategy-add", "feature-strategy-update"):
            given = FlagState(True, (dict(self.strategy or {}),))
            return strategy is not None and given.matches(strategy.body(self.flag))
        if self.kind in ("feature-strategy-remove", "feature-dependency-removed", "feature-dependencies-removed"):
            return strategy is not None
        return self.kind not in _OF_A_HAND


class FlagAdmin(Protocol):
    """Reads and writes flags. Every call is idempotent and writes only what differs."""

    async def read(self, flag: str) -> FlagState | None: ...
    async def ensure(self, flag: str, description: str, strategy: Strategy, on: bool = False) -> None: ...
    async def set_strategy(self, flag: str, strategy: Strategy) -> None: ...
    async def switch(self, flag: str, on: bool) -> None: ...
    async def changed_by(self, flag: str) -> str: ...
    async def newest_changes(self, limit: int) -> list[tuple[int, str]]: ...
    async def events_since(self, flags: Sequence[str], entry: int) -> list[FlagEvent]: ...


class AdapterServer(Protocol):
    """Makes every vLLM replica in service serve an adapter of a task, proved.

    Raises InvalidMessage if it must not be served, or if none of them does.
    """

    async def serve(self, adapter: str, uri: str, spec: TaskSpec) -> None: ...


class Replicas(Protocol):
    """The replicas that an adapter in a folder is to be served by: see `replicas.AdapterReplicas`."""

    async def serve_adapter(self, name: str, folder: str) -> None: ...


class UnleashAdmin:
    """Flags of one project and environment, over Unleash's admin API. Raises DependencyUnavailable.

    `confirm` is called before each write, and raises where it must not be made: by whoever has lost the task's lock. A
    write may hang for as long as PostgreSQL, which has both, is away, and another process decides meanwhile.
    """

    def __init__(
        self,
        url: str,
        token: str,
        project: str = "default",
        environment: str = "development",
        confirm: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._features = f"{url.rstrip('/')}/api/admin/projects/{project}/features"
        self._events = f"{url.rstrip('/')}/api/admin/search/events"
        self._project, self._environment = project, environment
        self._confirm = confirm
        self._client = httpx.AsyncClient(timeout=10.0, headers={"Authorization": token})

    async def close(self) -> None:
        await self._client.aclose()

    async def read(self, flag: str) -> FlagState | None:
        """Return the flag, or None if it does not exist."""
        feature = await self._request("GET", f"{self._features}/{flag}", missing_ok=True)
        if feature is None:
            return await self._read_missing(flag)
        environments = {found.get("name"): found for found in feature.get("environments") or ()}
        if (own := environments.get(self._environment)) is None:
            return None
        parents = tuple(str(parent["feature"]) for parent in feature.get("dependencies") or ())
        return FlagState(bool(own.get("enabled")), tuple(own.get("strategies") or ()), parents=parents)

    async def _read_missing(self, flag: str) -> FlagState | None:
        """Return a flag that is no feature as an archived one; None: it does not exist.

        It is believed only where the list of flags, which fails with Unleash's database, lacks it: else a flag to which
        nobody did anything would be gone by a hand, and its candidate would wait until somebody comes.
        """
        listed = await self._request("GET", self._features, params={"namePrefix": flag})
        if any(found.get("name") == flag for found in listed["features"]):
            raise DependencyUnavailable(
                f"Unleash says that there is no flag {flag}, and lists it", "Is its database up?"
            )
        was = await self._request("GET", self._environment_url(flag), missing_ok=True)
        return None if was is None else FlagState(False, tuple(was.get("strategies") or ()), archived=True)

    async def ensure(self, flag: str, description: str, strategy: Strategy, on: bool = False) -> None:
        """Create the flag with its strategy if it does not exist. An existing flag belongs to the operator and stays.

        A flag is switched on before it gets its strategy: so one that a crash left incomplete differs from one that
        an operator turned off, and a flag without a payload serves nobody anything.
        """
        state = await self.read(flag)
        if state is None:
            body = {"name": flag, "type": "release", "description": description, "impressionData": False}
            await self._request("POST", self._features, json=body, conflict_ok=True)
        elif state.archived or (state.strategies and (strategy.variant is None or state.payload is not None)):
            return
        if on and (state is None or not state.strategies):
            await self._request("POST", f"{self._environment_url(flag)}/on")
        await self.set_strategy(flag, strategy)

    async def set_strategy(self, flag: str, strategy: Strategy) -> None:
        """Give the flag this strategy and no other, and no parent."""
        state = await self.read(flag)
        if state is None or state.archived:
            raise _gone(flag, state)
        wanted = strategy.body(flag)
        if not replace(state, parents=()).matches(wanted):
            await self._write_strategy(flag, state, wanted)
        if state.parents:  # After the strategy, which is what it serves from then on.
            await self._request("DELETE", f"{self._features}/{flag}/dependencies", missing_ok=True)

    async def _write_strategy(self, flag: str, state: FlagState, wanted: dict[str, Any]) -> None:
        strategies = f"{self._environment_url(flag)}/strategies"
        ids = [found["id"] for found in state.strategies]
        if ids:  # The first is changed in place, so that the flag is never without a strategy.
            await self._request("PUT", f"{strategies}/{ids[0]}", json=wanted)
        else:
            await self._request("POST", strategies, json=wanted)
        for other in ids[1:]:
            await self._request("DELETE", f"{strategies}/{other}")

    async def switch(self, flag: str, on: bool) -> None:
        """Turn the flag on or off. One that is archived or does not exist is off, and cannot be turned on."""
        state = await self.read(flag)
        if on and (state is None or state.archived):
            raise _gone(flag, state)
        if state is not None and state.enabled != on:
            await self._request("POST", f"{self._environment_url(flag)}/{'on' if on else 'off'}")

    async def changed_by(self, flag: str) -> str:
        """Return who changed the flag last, by Unleash's own log; "" where that does not say."""
        query = {"feature": f"IS:{flag}", "limit": "1"}
        try:
            answer = await self._request("GET", self._events, params=query, missing_ok=True)
        except DependencyUnavailable as error:
            logger.warning("who changed %s is unknown: %s", flag, error)
            return ""
        events = (answer or {}).get("events") or [{}]
        return str(events[0].get("createdBy") or "")

    async def newest_changes(self, limit: int) -> list[tuple[int, str]]:
        """Return the newest entries of Unleash's log, each an id and the flag that it is about, if any."""
        query = {"project": f"IS:{self._project}", "limit": str(limit)}
        answer = await self._request("GET", self._events, params=query)
        return [(int(event["id"]), str(event.get("featureName") or "")) for event in (answer or {}).get("events") or ()]

    async def events_since(self, flags: Sequence[str], entry: int) -> list[FlagEvent]:
        """Return what Unleash's log says of these flags in its newest entries, as far as they came after this one."""
        query = {"feature": f"IS_ANY_OF:{','.join(flags)}", "limit": str(_LOGGED_EVENTS)}
        answer = await self._request("GET", self._events, params=query)
        return [
            FlagEvent(int(event["id"]), str(event.get("featureName")), str(event.get("type")), event.get("data"))
            for event in (answer or {}).get("events") or ()
            if int(event["id"]) > entry and event.get("environment") in (None, "", self._environment)
        ]

    def _environment_url(self, flag: str) -> str:
        return f"{self._features}/{flag}/environments/{self._environment}"

    async def _request(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        params: Mapping[str, str] | None = None,
        missing_ok: bool = False,
        conflict_ok: bool = False,
    ) -> Any:
        if method != "GET" and self._confirm is not None:
            await self._confirm()
        try:
            response = await self._client.request(method, url, json=json, params=params)
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
        try:
            if response.is_redirect:
                raise ValueError("a redirection")
            return response.json() if response.content else None
        except ValueError as error:  # It comes from a proxy: its login, or its page of a maintenance.
            shown = f"{method} {without_credentials(url)}: {response.status_code}, {error}"
            way_out = "Is RATCHET_UNLEASH the address of Unleash itself?"
            raise DependencyUnavailable(f"what answered is not Unleash: {shown}", way_out) from error


class ArtifactMissing(DependencyUnavailable):
    """An adapter's folder is not in the artifact store: not yet, or not any more."""


class VllmAdapterServer:
    """Serves adapters from the artifact store on all vLLM replicas. Raises ArtifactMissing.

    No replica is asked for an adapter whose files are not what the task's trainer makes.
    """

    def __init__(self, replicas: Replicas, store: artifacts.ArtifactStore, max_rank: int) -> None:
        self._replicas = replicas
        self._store = store
        self._max_rank = max_rank

    async def serve(self, adapter: str, uri: str, spec: TaskSpec) -> None:
        try:
            folder = await asyncio.to_thread(self._store.fetch, uri)
        except artifacts.ArtifactNotFound as error:
            raise ArtifactMissing(error.reason, error.way_out) from error
        modules = spec.training.target_modules
        await asyncio.to_thread(check_adapter, folder, spec.base_model, self._max_rank, modules)
        await self._replicas.serve_adapter(adapter, str(folder))


def _parsed(payload: Any) -> dict[str, Any] | None:
    try:
        parsed = json.loads(payload)
    except (TypeError, ValueError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _gone(flag: str, state: FlagState | None) -> DependencyUnavailable:
    what, way_out = ("does not exist", "Was it deleted?") if state is None else ("is archived", "Revive it in Unleash.")
    return DependencyUnavailable(f"the flag {flag} {what}", way_out)


def _variant_key(variant: dict[str, Any]) -> tuple[Any, ...]:
    return variant.get("name"), variant.get("weight"), variant.get("payload")
