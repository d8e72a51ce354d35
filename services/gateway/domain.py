"""The gateway's rules: who answers, how sure the answer is, which prediction ids are ours. Pure."""

from __future__ import annotations

import hmac
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from schemas.base import Variant
from schemas.predictions import Confidence
from schemas.tasks import TaskKind
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
    """Who answers. `adapter` None: the base model."""

    variant: Variant
    adapter: str | None = None


BASE = Arm(Variant.BASE)


def choose_arm(flags: TaskFlags) -> Arm:
    """The arm that the flags ask for: rollback, then canary, then primary, then the base model."""
    return arms_in_order(flags)[0]


def arms_in_order(flags: TaskFlags) -> tuple[Arm, ...]:
    """The chosen arm, then those that may stand in, one by one, where its adapter is not served.

    A stand-in answers under its own variant, so that its answers are never taken for the chosen arm's.
    """
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


def confidence(kind: TaskKind, logprobs: Sequence[float]) -> Confidence:
    """How sure the model was, from its tokens' log-probabilities (nats).

    The probability of the whole answer for a classification; the geometric mean per token for a generation, which
    does not fall just because an answer is long.
    """
    if not logprobs:
        return Confidence()
    total = min(sum(logprobs), 0.0)  # Rounding upstream can put a certain token a hair above zero.
    mean = total if kind is TaskKind.CLASSIFICATION else total / len(logprobs)
    return Confidence(score=math.exp(mean), logprob=total, tokens=len(logprobs))


class PredictionIds:
    """Ids that say which task they belong to and that nobody else can make: `<task>.<uuid4 hex>.<12 hex HMAC>`.

    An invented or altered id is refused without a look-up in any store.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def new(self, task: str) -> str:
        name = f"{task}.{uuid4().hex}"
        return f"{name}.{keyed_hash(self._key, name, _MAC_HEX)}"

    def task_of(self, prediction_id: str) -> str | None:
        """The task of an id that we signed; None for any other text."""
        name, _, mac = prediction_id.rpartition(".")
        # As bytes: compare_digest refuses str that is not ASCII, and anything may be sent to us.
        genuine = hmac.compare_digest(mac.encode(), keyed_hash(self._key, name, _MAC_HEX).encode())
        return name.partition(".")[0] if genuine else None
