"""Decides which adapter answers a request: turns a task's flags into an ordered list of arms. Pure.

The first arm is the chosen one: rollback, then control, then canary, then primary, then the base model. The flags are
read in `flags.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from schemas.base import Variant


@dataclass(frozen=True)
class Primary:
    """The payload of the flag `ratchet.<task>.primary`. None stands for the base model."""

    adapter: str | None
    previous: str | None


@dataclass(frozen=True)
class ServingFlags:
    """A task's flags as they apply to one user. The defaults are those of a task without flags."""

    primary: Primary | None = None
    rollback: bool = False
    canary: str | None = None
    control: bool = False


@dataclass(frozen=True)
class Arm:
    """One way to answer: a variant with its adapter. `adapter` is None for the base model, and for variant EXTERNAL,
    which asks an external API for `model`."""

    variant: Variant
    adapter: str | None = None
    model: str | None = None

    def model_name(self, base_model: str) -> str:
        """The name by which the arm's server knows the model."""
        return self.model or self.adapter or base_model


BASE = Arm(Variant.BASE)


def choose_arms(flags: ServingFlags, external_model: str | None = None) -> tuple[Arm, ...]:
    """The chosen arm, followed by its fallbacks in the order in which they are tried.

    A fallback answers under its own variant, so its answers are never attributed to the chosen arm. The external API,
    if there is one, comes last; `external_model` is the model that it is asked for.
    """
    own = _own_arms(flags)
    return (*own, Arm(Variant.EXTERNAL, model=external_model)) if external_model else own


def remaining_arms(arms: tuple[Arm, ...], failed: Arm, *, down: bool) -> tuple[Arm, ...]:
    """The arms that may still answer after `failed`, one of `arms`, did not.

    `down`: no replica answers at all (`UpstreamFailed.down`), so every arm of our own would fail too and only the
    external API remains, if there is one. It is none for want of a model that no replica serves: replicas are there,
    and a wrong name in a task would send every prompt out.
    """
    remaining = arms[arms.index(failed) + 1 :]
    if down:
        return tuple(arm for arm in remaining if arm.variant is Variant.EXTERNAL)
    return remaining if any(arm.variant is not Variant.EXTERNAL for arm in remaining) else ()


def _own_arms(flags: ServingFlags) -> tuple[Arm, ...]:
    previous = flags.primary.previous if flags.primary else None
    safe = (Arm(Variant.ROLLBACK, previous), BASE) if previous else (BASE,)
    if flags.rollback:
        return safe if previous else (Arm(Variant.ROLLBACK),)
    arms: tuple[Arm, ...] = safe if flags.primary and flags.primary.adapter else (BASE,)
    if flags.primary and flags.primary.adapter:
        arms = (Arm(Variant.PRIMARY, flags.primary.adapter), *arms)
    if flags.canary:
        arms = (Arm(Variant.CANARY, flags.canary), *arms)
    if flags.control and flags.primary and flags.primary.adapter:
        return (Arm(Variant.ROLLBACK, previous), *(arm for arm in arms if arm.variant is not Variant.ROLLBACK))
    return arms


def parse_primary(payload: str) -> Primary:
    """Parse the payload of the primary flag's variant. Raises ValueError unless it is as the deployer writes it."""
    return Primary(_adapter(payload, "adapter"), _adapter(payload, "previous"))


def parse_canary(payload: str) -> str | None:
    """Parse the payload of the canary flag's variant. Raises ValueError unless it is as the deployer writes it."""
    return _adapter(payload, "adapter")


def _adapter(payload: str, field: str) -> str | None:
    value = json.loads(payload)
    if not isinstance(value, dict):
        raise ValueError(f"the payload must be an object, not {payload[:100]!r}")
    name = value.get(field)
    if name is not None and (not isinstance(name, str) or not name):
        raise ValueError(f"`{field}` must be an adapter's name or null, not {name!r}")
    return name
