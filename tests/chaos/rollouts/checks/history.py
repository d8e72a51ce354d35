"""What happened in a run, as plain records. Times are in seconds since 1970."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Move:
    """A row of a task's history. `evidence`: as the deployer gave it. `percent`: of users, in the canary."""

    rollout_id: str
    version: int
    at: float
    task: str
    candidate: str
    stage: str
    reason: str
    evidence: Mapping[str, Any]
    paused: str = ""
    percent: int = 0
    moved_by: str = "ratchet"


@dataclass(frozen=True)
class Change:
    """An event of `rollouts.changed`."""

    rollout_id: str
    at: float
    stage: str
    primary: str | None
    reason: str


@dataclass(frozen=True)
class Pair:
    """An event of `shadow.compared`, and its place in the topic. `candidate` None: the candidate failed.

    `fresh`: it was made after the promotion.
    """

    rollout_id: str
    pair_id: str
    prediction_id: str
    subject: str
    production: str
    candidate: str | None
    primary: str | None
    place: tuple[int, int]
    fresh: bool = False


@dataclass(frozen=True)
class Answer:
    """An event of `corrections.submitted` about a ticket, and its place. `label` None: the person could not tell."""

    ticket_id: str
    request_id: str
    reviewer: str
    label: str | None
    at: float
    place: tuple[int, int]


@dataclass(frozen=True)
class Entry:
    """A row of the deployer's ledger. `order`: of its ticket; None: it has none."""

    rollout_id: str
    pair_id: str
    subject: str
    agree: bool
    ticket_id: str | None
    order: int | None
    asked: bool
    outcome: float | None
    fresh: bool = False


@dataclass(frozen=True)
class Draw:
    """A rollout that entered shadow, and the level that it drew."""

    rollout_id: str
    task: str
    at: float
    drawn: float
    alpha: float


@dataclass(frozen=True)
class Request:
    """An event of `requests.observed`."""

    task: str
    adapter: str | None
    variant: str
    subject: str
    status: int
    latency_ms: float
    at: float


@dataclass(frozen=True)
class Flags:
    """A task's flags: who serves by primary and rollback, whom canary names while it is on, whether shadow is on.

    `control`: its share of users in percent while it is on.
    """

    primary: str | None
    canary: str | None
    shadow: bool
    control: int | None = None


@dataclass(frozen=True)
class EngineState:
    """Since when an engine runs, and how often it was asked to prove each adapter that it lists."""

    started: float
    probes: Mapping[str, int]


@dataclass(frozen=True)
class Sample:
    """One look at all flags and engines. An engine that did not answer, or restarted during it, is not there."""

    at: float
    flags: Mapping[str, Flags]
    engines: Mapping[str, EngineState]


@dataclass(frozen=True)
class Rules:
    """The settings of the tasks that the checks need.

    `late_seconds`: a flag that is behind the moves for longer is wrong: by then everything that was killed is back.
    `reloading_seconds`: for so long after its start an engine may not have all adapters, since the deployer may have
    been killed as well.
    """

    yearly: float
    cycles: int
    canary_wealth: float
    canary_steps: Sequence[int]
    min_canary_users: int
    max_labels: int
    min_tickets: int
    control_percent: int = 5
    control_seconds: float = 0.0
    late_seconds: float = 120.0
    reloading_seconds: float = 60.0


@dataclass
class History:
    """Everything that a run left. `expected`: the candidates that were published, with their tasks."""

    rules: Rules
    expected: Mapping[str, str] = field(default_factory=dict)
    moves: Sequence[Move] = ()
    changes: Sequence[Change] = ()
    pairs: Sequence[Pair] = ()
    answers: Sequence[Answer] = ()
    entries: Sequence[Entry] = ()
    draws: Sequence[Draw] = ()
    requests: Sequence[Request] = ()
    samples: Sequence[Sample] = ()
