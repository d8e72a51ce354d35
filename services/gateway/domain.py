"""The gateway's rules: who answers, which prediction ids are ours. Pure."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from uuid import uuid4

from schemas.base import Variant
from shared.identity import keyed_hash

_MAC_HEX = 12


@dataclass(frozen=True)
class Primary:
    """The payload of `ratchet.<task>.primary`. None is the base model."""

    adapter: str | None
    previous: str | None


@dataclass(frozen=True)
class TaskFlags:
    """A task's flags as they are for one user. The defaults are those of a task without flags."""

    primary: Primary | None = None
    rollback: bool = False
    canary: str | None = None


@dataclass(frozen=True)
class Arm:
    """Who answers. `adapter` None: the base model, or with variant EXTERNAL `model` of somebody else's API."""

    variant: Variant
    adapter: str | None = None
    model: str | None = None

    def named(self, base_model: str) -> str:
        """The model's name as its server knows it."""
        return self.model or self.adapter or base_model


BASE = Arm(Variant.BASE)


def choose_arm(flags: TaskFlags) -> Arm:
    """The arm that the flags ask for: rollback, then canary, then primary, then the base model."""
    return arms_in_order(flags)[0]


def arms_in_order(flags: TaskFlags, external_model: str | None = None) -> tuple[Arm, ...]:
    """The chosen arm, then those that may stand in, one by one, where its adapter is not served.

    A stand-in answers under its own variant, so that its answers are never taken for the chosen arm's. Last comes
    the external API, where there is one: `external_model` is what it is asked for.
    """
    own = _own_arms(flags)
    return (*own, Arm(Variant.EXTERNAL, model=external_model)) if external_model else own


def arms_after(arms: tuple[Arm, ...], failed: Arm, *, down: bool) -> tuple[Arm, ...]:
    """The arms that may still answer after `failed`, one of `arms`, did not.

    `down`: no replica answers at all (`UpstreamFailed.down`). Then every arm of ours would fail alike: only the
    external API is left, if there is one.
    """
    left = arms[arms.index(failed) + 1 :]
    return tuple(arm for arm in left if arm.variant is Variant.EXTERNAL) if down else left


def _own_arms(flags: TaskFlags) -> tuple[Arm, ...]:
    previous = flags.primary.previous if flags.primary else None
    safe = (Arm(Variant.ROLLBACK, previous), BASE) if previous else (BASE,)
    if flags.rollback:
        return safe if previous else (Arm(Variant.ROLLBACK),)
    arms: tuple[Arm, ...] = safe if flags.primary and flags.primary.adapter else (BASE,)
    if flags.primary and flags.primary.adapter:
        arms = (Arm(Variant.PRIMARY, flags.primary.adapter), *arms)
    if flags.canary:
        arms = (Arm(Variant.CANARY, flags.canary), *arms)
    return arms


def parse_primary(payload: str) -> Primary:
    """Read the payload of the primary flag's variant. Raises ValueError if it is not what the deployer writes."""
    return Primary(_adapter(payload, "adapter"), _adapter(payload, "previous"))


def parse_canary(payload: str) -> str | None:
    """Read the payload of the canary flag's variant. Raises ValueError if it is not what the deployer writes."""
    return _adapter(payload, "adapter")


def _adapter(payload: str, field: str) -> str | None:
    value = json.loads(payload)
    if not isinstance(value, dict):
        raise ValueError(f"the payload must be an object, not {payload[:100]!r}")
    name = value.get(field)
    if name is not None and (not isinstance(name, str) or not name):
        raise ValueError(f"`{field}` must be an adapter's name or null, not {name!r}")
    return name


class PredictionIds:
    """Ids that say which task they belong to and that nobody else can make: `<task>.<uuid4 hex>.<12 hex HMAC>`.

    An invented or altered id is refused without a look-up in any store. An application that names its answers itself
    (a span, or what the `ratchet` package sends) says `<task>/<its own id>`; for those it is `<task>.x<hash>.<HMAC>`.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def new(self, task: str) -> str:
        return self._signed(f"{task}.{uuid4().hex}")

    def of(self, task: str, own_id: str) -> str:
        """The id of an answer that the application calls `own_id`: always the same."""
        return self._signed(f"{task}.x{keyed_hash(self._key, f'{task}/{own_id}', 32)}")

    def resolve(self, given: str) -> str | None:
        """The id that a client means by ours, or by `<task>/<own id>`; None for any other text."""
        task, named, own_id = given.partition("/")
        if named:
            return self.of(task, own_id) if task and own_id else None
        return given if self.task_of(given) is not None else None

    def _signed(self, name: str) -> str:
        return f"{name}.{keyed_hash(self._key, name, _MAC_HEX)}"

    def task_of(self, prediction_id: str) -> str | None:
        """The task of an id that we signed; None for any other text."""
        name, _, mac = prediction_id.rpartition(".")
        # As bytes: compare_digest refuses str that is not ASCII, and anything may be sent to us.
        genuine = hmac.compare_digest(mac.encode(), keyed_hash(self._key, name, _MAC_HEX).encode())
        return name.partition(".")[0] if genuine else None
