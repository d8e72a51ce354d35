"""Flags in memory, read as the gateway and shadow read them; users are hashed as Unleash's SDK hashes them."""

from __future__ import annotations

from UnleashClient.utils import normalized_hash

from services.deployer.clients import FlagState
from services.deployer.flags import flag_name
from services.gateway.routing.arms import Arm, Primary, ServingFlags, choose_arms
from tests.unit.deployer.fakes import MemoryAdmin


class Flags:
    """What a user is served, and whether shadow is on."""

    def __init__(self, admin: MemoryAdmin, task: str) -> None:
        self._admin, self._task = admin, task

    def arm(self, user: str) -> Arm:
        """Return the arm that answers this user, by the gateway's own rule."""
        primary = self._state("primary")
        payload = primary.payload or {} if primary is not None else {}
        canary = self._state("canary", user)
        flags = ServingFlags(
            primary=None if primary is None else Primary(payload.get("adapter"), payload.get("previous")),
            rollback=self._state("rollback") is not None,
            canary=None if canary is None else (canary.payload or {}).get("adapter"),
            control=self._state("control", user) is not None,
        )
        return choose_arms(flags)[0]

    def sampled(self, task: str, prediction_id: str) -> bool:
        """See `services.shadow.clients.ShadowSampling`."""
        return self._state("shadow", prediction_id) is not None

    def is_off(self, task: str) -> bool:
        return self._state("shadow") is None

    def _state(self, name: str, identity: str | None = None) -> FlagState | None:
        """Return a flag that is on, for this identity if one is given."""
        state = self._admin.flags.get(flag_name(self._task, name))
        if state is None or not state.enabled:
            return None
        if identity is not None:
            parameters = state.strategies[0]["parameters"]
            if normalized_hash(identity, parameters["groupId"], 100) > int(parameters["rollout"]):
                return None
        return state
