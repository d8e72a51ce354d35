"""Adapters as desired state: what each vLLM replica serves, against what the rollouts of all tasks need.

    needed, not listed by the replica   loaded, then proved   needed: primary, previous, candidate in shadow or canary
    needed, proof missing or old        proved                listed: GET /v1/models
    of an ended rollout, long unneeded  unloaded, unless a flag still names it

A proof is by inference: the replica answers the probes of the adapter's evaluation as the adapter and its base did then
(`shared/model/probes.py`). Each replica has a loop of its own. One that does not answer loses its proofs, since it may
come back with nothing loaded, or with another engine; it gets its adapters again at the first look that finds it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from schemas.adapters import PROBES, PROBES_FILE, Probes
from services.deployer.clients import ArtifactMissing, FlagAdmin
from services.deployer.flags import read_flags
from services.deployer.settings import DeployerSettings
from services.deployer.storage.rollouts import RolloutStore
from shared.addresses import without_credentials
from shared.errors import DependencyUnavailable, InvalidMessage, RatchetError
from shared.model.adapter_files import check_adapter
from shared.model.inference import InferenceClient, NotServed
from shared.model.probes import disproof, first_tokens
from shared.storage import artifacts

PROVE_SECONDS = 600.0
"""After so long a replica proves again that it serves an adapter."""
_UNLOAD_SECONDS = 86_400.0
"""So long a replica keeps an adapter of an ended rollout that nobody needs."""
OUT_OF_SERVICE_SECONDS = 60.0
"""A replica that has not answered for so long is waited for no longer: the gateways stopped asking it before."""
_MAX_PAUSE_SECONDS = 60.0

logger = logging.getLogger(__name__)


@dataclass
class Replica:
    """What is known of one replica. Times are in seconds of the clock.

    `proved`: its adapters, and when each is proved again. `retries`: those that failed, when each is tried again and
    after which pause. `unneeded`: since when nobody needs an adapter that it lists. `troubles`: as last logged.
    """

    url: str
    proved: dict[str, float] = field(default_factory=dict)
    retries: dict[str, tuple[float, float]] = field(default_factory=dict)
    unneeded: dict[str, float] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)
    away_since: float | None = None

    @property
    def shown(self) -> str:
        return without_credentials(self.url)

    def set_away(self, now: float) -> None:
        """Record that it does not answer: nothing is known of it any more."""
        self.away_since = now if self.away_since is None else self.away_since
        self.proved.clear()
        self.retries.clear()

    def set_listed(self, listed: set[str]) -> None:
        """Record which models it lists. An adapter that is gone was lost by a restart, so every proof is void."""
        self.away_since = None
        if not listed.issuperset(self.proved):
            self.proved.clear()

    def is_due(self, adapter: str, now: float) -> bool:
        """Return True if the adapter is to be proved now."""
        at, _ = self.retries.get(adapter, (0.0, 0.0))
        return now >= max(at, self.proved.get(adapter, 0.0))

    def set_failed(self, adapter: str, now: float, first_pause: float) -> None:
        _, pause = self.retries.get(adapter, (0.0, first_pause / 2))
        pause = min(2 * pause, _MAX_PAUSE_SECONDS)
        self.proved.pop(adapter, None)
        self.retries[adapter] = now + pause, pause

    def set_proved(self, adapter: str, until: float) -> None:
        self.proved[adapter] = until
        self.retries.pop(adapter, None)

    def report(self, subject: str, trouble: str) -> None:
        """Log a trouble, or its end, once."""
        if trouble == self.troubles.get(subject, ""):
            return
        self.troubles[subject] = trouble
        if trouble:
            logger.warning("replica %s: %s: %s", self.shown, subject, trouble)
        else:
            logger.info("replica %s: %s: well again", self.shown, subject)


class AdapterReplicas:
    """All replicas of the fleet. `serve_adapter` is for a rollout's move, `reconcile_forever` for what stays."""

    def __init__(
        self,
        inference: InferenceClient,
        store: artifacts.ArtifactStore,
        rollouts: RolloutStore,
        admin: FlagAdmin,
        settings: DeployerSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inference = inference
        self._store = store
        self._rollouts = rollouts
        self._admin = admin
        self._settings = settings
        self._clock = clock
        self.replicas = tuple(Replica(url) for url in settings.vllm_urls)
        self._needed: tuple[str, ...] = ()
        self._ended: frozenset[str] = frozenset()

    async def serve_adapter(self, name: str, folder: str) -> None:
        """Make every replica in service serve the adapter, and prove it.

        Raises InvalidMessage if it is proved on none, DependencyUnavailable if on some only: then those are at fault.
        """
        probes = await asyncio.to_thread(self._read_probes, name)
        in_service = [replica for replica in self.replicas if self._is_in_service(replica)]
        if not in_service:
            raise DependencyUnavailable("no vLLM replica answers", "Check them: ratchet status")
        errors = []
        for outcome in await asyncio.gather(
            *(self._prove(replica, name, folder, probes) for replica in in_service), return_exceptions=True
        ):
            if isinstance(outcome, RatchetError):
                errors.append(outcome)
            elif outcome is not None:
                raise outcome
        if not errors:
            return
        if len(errors) == len(in_service) and all(isinstance(error, InvalidMessage) for error in errors):
            raise errors[0]
        raise DependencyUnavailable(f"{name} is not proved on every replica yet: {errors[0].reason}", errors[0].way_out)

    def trouble_of(self, adapter: str) -> str:
        """Return on which replicas an adapter that is needed is not proved, and why, as seen last; "" if on none."""
        found = ((replica.shown, replica.troubles.get(adapter)) for replica in self.replicas)
        return "; ".join(f"{shown}: {trouble}" for shown, trouble in found if trouble)

    async def reconcile_forever(self) -> None:
        """Background: keep every replica as the rollouts need it. The trouble of one stops no other."""
        loops = (self._forever(self._reconciler(replica)) for replica in self.replicas)
        await asyncio.gather(self._forever(self.read_rollouts), *loops)

    async def read_rollouts(self) -> None:
        """Read which adapters are needed, those that serve users first."""
        found = await self._rollouts.adapters()
        names = [task.primary for task in found] + [task.candidate for task in found]
        names += [name for task in found for name in (task.previous, task.replaced)]
        self._needed = tuple(dict.fromkeys(name for name in names if name))
        self._ended = frozenset(await self._rollouts.candidates()).difference(self._needed)

    async def reconcile(self, replica: Replica) -> None:
        """Compare one replica with what is needed, once: load, prove, unload."""
        try:
            listed = await self._inference.models(replica.url)
        except RatchetError as error:
            replica.set_away(self._clock())
            replica.report("the server", error.reason)
            return
        replica.report("the server", "")
        replica.set_listed(listed)
        for name in self._needed:
            if replica.is_due(name, self._clock()):
                await self._prove_needed(replica, name)
        await self._unload_unneeded(replica, listed)

    async def _prove_needed(self, replica: Replica, name: str) -> None:
        """Load and prove an adapter; its trouble is logged, and stops no other adapter's proof."""
        try:
            folder = await asyncio.to_thread(self._store.fetch, self._store.address("adapters", name))
            probes = await asyncio.to_thread(self._read_probes, name)
            max_rank = self._settings.vllm_max_lora_rank
            await asyncio.to_thread(check_adapter, folder, probes.base_model, max_rank)
            await self._prove(replica, name, str(folder), probes)
        except RatchetError as error:
            replica.report(name, error.reason)
        else:
            replica.report(name, "")

    async def _prove(self, replica: Replica, name: str, folder: str, probes: Probes) -> None:
        """Raises InvalidMessage if the replica refuses the adapter or serves another model, or as `complete` does."""
        client, url = self._inference, replica.url
        prompts = [probe.messages for probe in probes.probes]
        try:
            if name not in await self._listed(url):
                await client.load_adapter(url, name, folder)
            # Both models at once: an engine that confuses them does so within a batch.
            adapter, base = await asyncio.gather(
                first_tokens(client, url, name, prompts), first_tokens(client, url, probes.base_model, prompts)
            )
            if wrong := disproof(probes, adapter, base):
                raise InvalidMessage(f"{replica.shown} is not proved to serve {name}: {wrong}")
        except RatchetError:
            replica.set_failed(name, self._clock(), self._settings.deployer_tick_seconds)
            raise
        replica.set_proved(name, self._clock() + PROVE_SECONDS)

    async def _listed(self, url: str) -> set[str]:
        """Return the models that a replica lists. That it refuses to list any says nothing about an adapter."""
        try:
            return await self._inference.models(url)
        except NotServed as error:
            way_out = "Is RATCHET_VLLM_KEY the server's key, and RATCHET_VLLM its address?"
            raise DependencyUnavailable(error.reason, way_out) from error

    async def _unload_unneeded(self, replica: Replica, listed: set[str]) -> None:
        """Unload adapters of ended rollouts that nobody needs any more, late: a gateway may have older flags.

        Others are left alone: the evaluator's, and those that people load.
        """
        now = self._clock()
        replica.unneeded = {name: replica.unneeded.get(name, now) for name in listed & self._ended}
        overdue = {name for name, since in replica.unneeded.items() if now - since >= _UNLOAD_SECONDS}
        if not overdue:
            return
        try:
            for name in sorted(overdue - await self._flagged()):
                await self._inference.unload_adapter(replica.url, name)
                logger.info("replica %s: unloaded %s, which no rollout needs", replica.shown, name)
        except RatchetError as error:
            replica.unneeded.clear()  # Tried again after another pause.
            logger.warning("replica %s: nothing unloaded: %s", replica.shown, error)

    async def _flagged(self) -> set[str]:
        """Return the adapters that any flag names: a person may have put one there that no rollout needs."""
        names: set[str] = set()
        for task in await self._rollouts.tasks():
            flags = await read_flags(self._admin, task)
            payloads = [state.payload or {} for state in (flags.primary, flags.canary) if state is not None]
            names.update(str(value) for payload in payloads for value in payload.values())
        return names

    def _is_in_service(self, replica: Replica) -> bool:
        return replica.away_since is None or self._clock() - replica.away_since < OUT_OF_SERVICE_SECONDS

    def _read_probes(self, name: str) -> Probes:
        """Raises ArtifactMissing if the adapter was never evaluated, InvalidMessage for a damaged file."""
        try:
            folder = self._store.fetch(self._store.address(PROBES, name))
            return Probes.model_validate_json((folder / PROBES_FILE).read_bytes())
        except artifacts.ArtifactNotFound as error:
            raise ArtifactMissing(f"no probes of {name}: {error.reason}", error.way_out) from error
        except (OSError, ValueError) as error:
            raise InvalidMessage(f"the probes of {name} cannot be read: {error}") from error

    def _reconciler(self, replica: Replica) -> Callable[[], Awaitable[None]]:
        return lambda: self.reconcile(replica)

    async def _forever(self, step: Callable[[], Awaitable[None]]) -> None:
        logged = ""
        while True:
            try:
                await step()
                logged = ""
            except DependencyUnavailable as error:
                if str(error) != logged:
                    logged = str(error)
                    logger.warning("adapters on replicas: retrying: %s", error)
            except Exception:  # One that ended here would leave its replica unproved, and every move waiting, for good.
                logger.exception("adapters on replicas: internal error")
            await asyncio.sleep(self._settings.deployer_tick_seconds)
