"""A deployer with its stores, Unleash and vLLM in memory, and builders for the events that it reads."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from statistics import fmean, pvariance
from types import MappingProxyType
from typing import Any

from schemas.adapters import AdapterEvaluated, ArmScore
from schemas.base import Event, Gate, Interval, Variant, utc_now
from schemas.conversation import Answer, Call, Message, Role
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.predictions import PredictionLogged, RequestObserved
from schemas.rollouts import RolloutChanged, ShadowCompared, Stage
from schemas.task_settings import RolloutSettings
from schemas.tasks import TaskKind, TaskSpec
from services.deployer.admission import Admission
from services.deployer.clients import ArtifactMissing, FlagAdmin, FlagEvent, FlagState, Strategy
from services.deployer.domain import Ledger, Ticket
from services.deployer.handlers import Handlers
from services.deployer.operators.commands import OperatorCommands
from services.deployer.rollout import Move, Rollout, has_proven, max_tickets, rollout_id
from services.deployer.settings import DeployerSettings
from services.deployer.statistics.canary import Arms, CanaryCounts, Confidences, Latencies, Observation
from services.deployer.statistics.guards import SLOW, Guard, percentile_rank
from services.deployer.statistics.levels import Draw
from services.deployer.statistics.non_inferiority import Promotion
from services.deployer.storage.ledger import LedgerStore
from services.deployer.storage.rollouts import RolloutStore, TaskAdapters
from services.deployer.tickets import DrawnTicket, Label, Pair, ticket_id_of, ticket_outcome
from services.deployer.transitions import RolloutTransitions
from shared.conversation import bounded_answer
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.kafka.delivery import Delivery

TOOLS = Path(__file__).parents[3] / "schemas" / "examples" / "predictions.logged.v1" / "tools.json"
CUTOFF = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
LABELS = ("delivery", "refund", "login")
_OFFSETS = itertools.count()


def spec(task: str = "support-desk", **rollout: Any) -> TaskSpec:
    return TaskSpec(
        name=task, kind=TaskKind.CLASSIFICATION, base_model="base", system_prompt="Classify.", labels=LABELS,
        rollout=RolloutSettings(**{"min_canary_users": 5, "canary_steps": (5,), "control_days": 0, **rollout}),
    )  # fmt: skip


def evaluated(
    adapter: str = "a1",
    task: str = "support-desk",
    *,
    passed: bool = True,
    against: str | None = None,
    **rollout: Any,
) -> AdapterEvaluated:
    """A verdict; `against`: the adapter that served meanwhile, None: the base model."""
    task_spec = spec(task, **rollout)
    value = 0.9 if passed else 0.2
    return AdapterEvaluated(
        occurred_at=CUTOFF,
        task=task,
        task_revision=task_spec.revision,
        cycle_id="cycle-1",
        adapter=adapter,
        adapter_uri=f"/artifacts/adapters/{adapter}",
        base_model="base",
        dataset_id="d1",
        dataset_uri="/artifacts/datasets/d1",
        data_cutoff=CUTOFF,
        verdict="passed" if passed else "failed",
        gates=(Gate(name="min_gain", passed=passed, measured=value - 0.3, required=">= 0"),),
        candidate=score(value),
        production=score(0.3).model_copy(update={"adapter": against}),
        spec=task_spec,
    )


def score(value: float) -> ArmScore:
    accuracy = Interval(value=value, low=value - 0.1, high=value + 0.1, n=100)
    return ArmScore(adapter=None, accuracy=accuracy, macro_f1=value, latency_ms_p50=1.0)


def pair(
    rollout: RolloutChanged, number: int, answers: tuple[str, str | None], user: str | None = ""
) -> ShadowCompared:
    """Pair `number`; answers: production's, then the candidate's. A user of its own unless one is given."""
    production, candidate = (None if text is None else Answer(text=text) for text in answers)
    assert production is not None
    return ShadowCompared(
        task=rollout.task,
        task_revision=rollout.task_revision,
        cycle_id=rollout.cycle_id,
        pair_id=f"pair-{number}",
        rollout_id=rollout.rollout_id,
        prediction_id=f"{rollout.task}.{number}",
        call=Call(messages=(Message(role=Role.USER, content=f"question {number}"),)),
        production_adapter=rollout.primary_adapter,
        candidate_adapter=rollout.candidate_adapter,
        production_answer=production,
        candidate_answer=candidate,
        agree=production == candidate,
        user_hash=f"user-{number}" if user == "" else user,
        subject=f"user-{number}" if user == "" else user or f"conversation-{number}",
        identified=user is not None,
        logged_at=CUTOFF + timedelta(hours=1),
        candidate_latency_ms=1.0,
    )


def pair_with_tools(rollout: RolloutChanged) -> ShadowCompared:
    """A conversation of several turns with tools, which production answered with a tool call."""
    logged = PredictionLogged.model_validate_json(TOOLS.read_text())
    production = bounded_answer(logged.answers[0])
    found = production.tool_calls[0].model_copy(update={"arguments": '{"number": "4711", "also": ["a", "b\\u0000"]}'})
    return pair(rollout, 1, ("", None)).model_copy(
        update={
            "call": logged.call,
            "production_answer": production,
            "candidate_answer": Answer(text="Let me look.", tool_calls=(found,), reasoning="4711 it is."),
            "agree": False,
        }
    )


def answer(asked: LabelRequested, **given: Any) -> CorrectionSubmitted:
    """A person's answer: `label=` or `preference=`."""
    reviewer = given.pop("reviewer", "ann")
    return CorrectionSubmitted(
        task=asked.task,
        task_revision=asked.task_revision,
        cycle_id=asked.cycle_id,
        correction_id=f"correction-{asked.request_id}-{reviewer}",
        request_id=asked.request_id,
        prediction_id=asked.prediction_id,
        purpose=asked.purpose,
        reviewer=reviewer,
        call=asked.call,
        answers=asked.answers,
        ticket_id=asked.ticket_id,
        user_hash=asked.user_hash,
        predicted_at=asked.predicted_at,
        **given,
    )


def observed(rollout: RolloutChanged, number: int, variant: Variant, status: int = 200) -> RequestObserved:
    return RequestObserved(
        task=rollout.task,
        task_revision=rollout.task_revision,
        prediction_id=f"{rollout.task}.seen-{number}",
        variant=variant,
        adapter=rollout.candidate_adapter if variant is Variant.CANARY else rollout.primary_adapter,
        user_hash=f"user-{number}",
        subject=f"user-{number}",
        status=status,
        latency_ms=1.0,
    )


def deliveries(events: Iterable[Any]) -> list[Delivery[Any]]:
    """New records, each at an offset of its own. A redelivery is the same list once more."""
    return [Delivery(event, "topic", 0, next(_OFFSETS), MappingProxyType({})) for event in events]


class MemoryPublisher:
    """Records each event once by its id, as consumers do; `sent` counts every publication."""

    def __init__(self) -> None:
        self.events: dict[Any, Event] = {}
        self.sent = 0
        self.is_away = False

    async def publish(self, event: Event) -> None:
        if self.is_away:
            raise DependencyUnavailable("Kafka is away")
        self.sent += 1
        self.events[event.event_id] = event

    @property
    def changes(self) -> list[RolloutChanged]:
        return [event for event in self.events.values() if isinstance(event, RolloutChanged)]

    @property
    def questions(self) -> list[LabelRequested]:
        return [event for event in self.events.values() if isinstance(event, LabelRequested)]


def _logged(flag: str, changes: dict[str, Any], is_new: bool) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """The entries that Unleash's log gets for a change of a flag: each its type, and the strategy that was given."""
    if changes.get("archived"):
        yield "feature-archived", None
        return
    if is_new:
        yield "feature-created", None
        if changes["enabled"]:  # It is turned on first, and gets Unleash's default strategy.
            yield "feature-strategy-add", Strategy().body(flag)
            yield "feature-environment-enabled", None
            yield "feature-strategy-update", *changes["strategies"]
        else:
            yield "feature-strategy-add", *changes["strategies"]
        return
    for strategy in changes.get("strategies", ()):
        yield "feature-strategy-update", {"id": "1", "sortOrder": 0, "title": None, **strategy}
    if "enabled" in changes:
        yield f"feature-environment-{'enabled' if changes['enabled'] else 'disabled'}", None


class MemoryAdmin:
    """Flags in memory. `crash_at`: the write, counted from now, that fails."""

    def __init__(self) -> None:
        self.flags: dict[str, FlagState] = {}
        self.writes = 0
        self.crash_at: int | None = None
        self.log: list[tuple[int, str]] = [(0, "")]  # A server's is never empty.
        self.events: list[FlagEvent] = []
        self.reads = 0

    def _write(self, flag: str, **changes: Any) -> None:
        if self.crash_at is not None:
            self.crash_at -= 1
            if self.crash_at < 0:
                raise DependencyUnavailable("Unleash is away")
        self.writes += 1
        self.log.insert(0, (self.writes, flag))
        for kind, strategy in _logged(flag, changes, flag not in self.flags and "strategies" in changes):
            self.events.insert(0, FlagEvent(self.writes, flag, kind, strategy))
        self.flags[flag] = dataclasses.replace(self.flags.get(flag, FlagState(False, ())), **changes)

    async def read(self, flag: str) -> FlagState | None:
        self.reads += 1
        return self.flags.get(flag)

    async def ensure(self, flag: str, description: str, strategy: Strategy, on: bool = False) -> None:
        state = self.flags.get(flag)
        if state is None:
            self._write(flag, enabled=on, strategies=(strategy.body(flag),))
        elif not (state.archived or (state.strategies and (strategy.variant is None or state.payload is not None))):
            await self.set_strategy(flag, strategy)  # A crash left it incomplete, or a hand has made it so.

    def archive(self, flag: str, *, is_deleted: bool = False) -> None:
        """What a person does to a flag in Unleash."""
        self._write(flag, enabled=False, archived=True)
        if is_deleted:
            del self.flags[flag]

    def _writable(self, flag: str) -> None:
        if flag not in self.flags or self.flags[flag].archived:
            raise DependencyUnavailable(f"the flag {flag} is archived, or was deleted", "Revive it in Unleash.")

    async def set_strategy(self, flag: str, strategy: Strategy) -> None:
        self._writable(flag)
        if not self.flags[flag].matches(strategy.body(flag)):
            self._write(flag, strategies=(strategy.body(flag),), parents=())

    async def changed_by(self, flag: str) -> str:
        return "ann"

    async def newest_changes(self, limit: int) -> list[tuple[int, str]]:
        return self.log[:limit]

    async def events_since(self, flags: Sequence[str], entry: int) -> list[FlagEvent]:
        return [event for event in self.events if event.flag in flags and event.entry > entry]

    async def switch(self, flag: str, on: bool) -> None:
        if on:
            self._writable(flag)
        if flag in self.flags and self.flags[flag].enabled != on:
            self._write(flag, enabled=on)

    def serves(self, task: str, *, in_canary: bool = False) -> str | None:
        """Return the adapter that answers, by the gateway's order of flags."""
        primary = self.flags.get(f"ratchet.{task}.primary")
        payload = (primary.payload or {}) if primary else {}
        if self._on(task, "rollback"):
            return payload.get("previous")
        if in_canary and self._on(task, "canary"):
            return (self.flags[f"ratchet.{task}.canary"].payload or {}).get("adapter")
        return payload.get("adapter") if primary and primary.enabled else None

    def _on(self, task: str, flag: str) -> bool:
        return f"ratchet.{task}.{flag}" in self.flags and self.flags[f"ratchet.{task}.{flag}"].enabled


class MemoryAdapters:
    """A vLLM that serves every adapter except those in `refused`."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.deleted: set[str] = set()
        self.is_away = False

    async def serve(self, adapter: str, uri: str, spec: TaskSpec) -> None:
        if adapter in self.deleted:
            raise ArtifactMissing(f"no artifact at {uri}")
        if self.is_away:
            raise DependencyUnavailable("vLLM is away")
        if adapter in self.refused:
            raise InvalidMessage(f"rank of {adapter} is too high")


class MemoryRollouts:
    """The rules of the rollout store without a database."""

    def __init__(self) -> None:
        self.rollouts: dict[str, Rollout] = {}
        self._changes: list[str] = []
        self.moves: list[Move] = []
        self.posted: list[Move] = []

    @asynccontextmanager
    async def locked(self, task: str) -> AsyncIterator[None]:
        yield

    async def get(self, rollout_id: str) -> Rollout | None:
        return self.rollouts.get(rollout_id)

    async def waiting(self, task: str) -> Rollout | None:
        return next((r for r in self.rollouts.values() if r.task == task and r.waits), None)

    async def with_verdict(self, event: AdapterEvaluated) -> Rollout | None:
        verdict, began_with = str(event.event_id), rollout_id(event)
        found = (
            r for r in reversed(self.rollouts.values())
            if r.rollout_id == began_with or verdict in (r.verdict_id, *r.former_verdicts)
        )  # fmt: skip
        return next(found, None)

    async def draws(self, task: str) -> list[Draw]:
        return [
            Draw(r.entered_at, r.alpha_drawn, 0.0 if has_proven(r.stage, r.evidence) else r.alpha)
            for r in self.rollouts.values() if r.task == task and r.entered_at
        ]  # fmt: skip

    async def promotions(self, task: str) -> list[Promotion]:
        found = {}
        made = {r.rollout_id: r for r in self.rollouts.values() if r.settled and r.task == task}
        canaries = {m.rollout_id: m.version for m in reversed(self.moves) if m.stage is Stage.CANARY}
        for move in self.moves:  # Newest first: the first promotion of each rollout after its last canary stays.
            stage = made[move.rollout_id].stage if move.rollout_id in made else None
            is_in_effect = move.stage is Stage.PROMOTED and stage in (Stage.PROMOTED, Stage.ROLLED_BACK)
            if is_in_effect and move.version > canaries[move.rollout_id]:
                found[move.rollout_id] = Promotion(move.at, move.evidence.margin_debited, stage is Stage.PROMOTED)
        return list(found.values())

    async def last_entered(self, task: str) -> Rollout | None:
        return next((r for r in reversed(self.rollouts.values()) if r.task == task and r.entered), None)

    async def last_changed(self, task: str) -> Rollout | None:
        found = [self.rollouts[rollout_id] for rollout_id in self._changes]
        return next((r for r in reversed(found) if r.task == task and r.entered), None)

    async def last_promoted(self, task: str) -> Rollout | None:
        found = (r for r in reversed(self.rollouts.values()) if r.task == task and r.stage is Stage.PROMOTED)
        return next(found, None)

    async def newest(self, task: str) -> Rollout | None:
        found = [self.rollouts[rollout_id] for rollout_id in self._changes]
        return next((r for r in reversed(found) if r.task == task), None)

    async def counting(self, tasks: Collection[str]) -> list[Rollout]:
        return [
            r for r in self.rollouts.values()
            if r.task in tasks and r.entered
            and (r.active or (r.stage is Stage.PROMOTED and (r.control or not r.settled)))
        ]  # fmt: skip

    async def unsettled(self, task: str) -> list[Rollout]:
        found = [self.rollouts[rollout_id] for rollout_id in dict.fromkeys(self._changes)]
        return [r for r in found if r.task == task and not r.settled]

    async def tasks(self) -> list[str]:
        return sorted({r.task for r in self.rollouts.values()})

    async def adapters(self) -> list[TaskAdapters]:
        last = [await self.last_entered(task) for task in await self.tasks()]
        return [
            TaskAdapters(
                r.primary, r.candidate if r.active or not r.settled else None, r.previous,
                r.before.previous if r.before is not None and not r.settled else None,
            )
            for r in last if r is not None
        ]  # fmt: skip

    async def candidates(self) -> list[str]:
        return sorted({r.candidate for r in self.rollouts.values() if r.entered})

    async def save(self, *rollouts: Rollout) -> None:
        for rollout in rollouts:
            stored = self.rollouts.get(rollout.rollout_id)
            if stored is None or stored.version < rollout.version:
                self.rollouts[rollout.rollout_id] = rollout
                self.moves.insert(0, rollout.move)
                self._changes = [name for name in self._changes if name != rollout.rollout_id] + [rollout.rollout_id]

    async def history(self, task: str, limit: int) -> list[Move]:
        return [move for move in self.moves if move.task == task][:limit]

    async def unposted(self, since: datetime, limit: int) -> list[Move]:
        new = [move for move in reversed(self.moves) if move not in self.posted and move.at > since]
        return new[:limit]

    async def set_posted(self, move: Move) -> None:
        self.posted.append(move)

    async def set_begun(self, rollout: Rollout) -> None:
        if self.rollouts[rollout.rollout_id].version == rollout.version:
            self.rollouts[rollout.rollout_id] = rollout

    async def set_written(self, rollout: Rollout) -> None:
        if self.rollouts[rollout.rollout_id].version == rollout.version:
            self.rollouts[rollout.rollout_id] = rollout.with_flags_set(utc_now())

    async def settle(self, rollout: Rollout) -> None:
        stored = self.rollouts[rollout.rollout_id]
        if stored.version == rollout.version:
            self.rollouts[rollout.rollout_id] = dataclasses.replace(stored, settled=True)

    async def set_counted(self, rollout: Rollout) -> None:
        stored = self.rollouts[rollout.rollout_id]
        if stored.version == rollout.version:
            counted = {"counted_percent": rollout.counted_percent, "counted_since": rollout.counted_since}
            self.rollouts[rollout.rollout_id] = dataclasses.replace(stored, **counted)

    async def end_replays(self, rollout: Rollout) -> None:
        stored = self.rollouts[rollout.rollout_id]
        self.rollouts[rollout.rollout_id] = dataclasses.replace(stored, replays_ended=True)


class MemoryLedger:
    """The rules of the ledger store without a database."""

    def __init__(self, rollouts: RolloutStore) -> None:
        self._rollouts = rollouts
        self.pairs: dict[tuple[str, str], dict[str, Any]] = {}
        self.labels: dict[tuple[str, str], Label] = {}
        self.requests: dict[str, dict[tuple[str, int], bool]] = {}
        self.answers: dict[tuple[str, str], tuple[str | None, int | None, bool]] = {}
        self.served: dict[tuple[str, int], set[str]] = {}
        self.bad_users: dict[tuple[str, Guard], dict[str, tuple[int, bool]]] = {}
        self.latencies: dict[tuple[str, bool], dict[tuple[str, date], tuple[float, float | None]]] = {}
        self.day_subjects: set[tuple[str, str, date]] = set()

    async def add_pairs(
        self, rollout: Rollout, pairs: Sequence[ShadowCompared], candidate_first: Sequence[bool]
    ) -> None:
        rows = self._rows(rollout.rollout_id, rollout.control)
        seen, with_first = {row["user"] for row in rows}, {row["user"] for row in rows if row["first"]}
        for event, first in zip(pairs, candidate_first, strict=True):
            if (rollout.rollout_id, event.pair_id) in self.pairs or event.after_promotion is not rollout.control:
                continue
            user = event.subject
            row = {
                "event": event, "pair": Pair(event.production_answer, event.candidate_answer, first), "user": user,
                "first": not event.agree and user not in with_first, "published": False, "outcome": None,
                "opens": user not in seen,
            }  # fmt: skip
            seen.add(user)
            with_first |= {user} if row["first"] else set()
            self.pairs[rollout.rollout_id, event.pair_id] = row
            if row["first"] and event.candidate_answer is None:
                self._draw(row, asked=False, outcome=-1.0)

    async def draw_tickets(self, rollout: Rollout, max_open: int) -> None:
        for row in self._rows(rollout.rollout_id, rollout.control):
            asked = [r for r in self._drawn(rollout.rollout_id, rollout.control) if r["asked"]]
            still_open = sum(r["outcome"] is None for r in asked)
            room = still_open < max_open and len(asked) < max_tickets(rollout)
            if room and row["first"] and "ticket" not in row:
                self._draw(row, asked=True, outcome=None)

    def _draw(self, row: dict[str, Any], *, asked: bool, outcome: float | None) -> None:
        event = row["event"]
        row |= {"ticket": ticket_id_of(event.rollout_id, event.pair_id), "asked": asked, "outcome": outcome}
        row["order"] = len(self._drawn(event.rollout_id, event.after_promotion))

    def _rows(self, rollout_id: str, fresh: bool) -> list[dict[str, Any]]:
        of_rollout = [row for (owner, _), row in self.pairs.items() if owner == rollout_id]
        return [row for row in of_rollout if row["event"].after_promotion is fresh]

    def _drawn(self, rollout_id: str, fresh: bool) -> list[dict[str, Any]]:
        drawn = (row for row in self._rows(rollout_id, fresh) if "ticket" in row)
        return sorted(drawn, key=lambda row: row.get("order", 0))

    async def unpublished_tickets(self, rollout_id: str) -> list[DrawnTicket]:
        return [
            self._ticket(row) for row in (*self._drawn(rollout_id, False), *self._drawn(rollout_id, True))
            if row["asked"] and not row["published"] and row["outcome"] is None and "expired" not in row
        ]  # fmt: skip

    async def expire(self, task: str, before: datetime, counting: Sequence[Rollout]) -> None:
        asked_about = {
            (r.rollout_id, fresh) for r in counting for fresh in (False, True) if r.is_asked_about(fresh=fresh)
        }
        for (owner, _), row in self.pairs.items():
            event = row["event"]
            if event.task == task and event.logged_at < before and (owner, event.after_promotion) not in asked_about:
                row["expired"] = True

    async def set_published(self, ticket_id: str) -> None:
        self._row(ticket_id)["published"] = True

    async def ticket(self, ticket_id: str) -> DrawnTicket | None:
        found = (row for row in self.pairs.values() if row.get("ticket") == ticket_id and "expired" not in row)
        return next((self._ticket(row) for row in found), None)

    def _row(self, ticket_id: str) -> dict[str, Any]:
        return next(row for row in self.pairs.values() if row.get("ticket") == ticket_id)

    def _ticket(self, row: dict[str, Any]) -> DrawnTicket:
        labels = sum(label.ticket_id == row["ticket"] for label in self.labels.values())
        event = row["event"]
        return DrawnTicket(
            row["ticket"], event.rollout_id, event.prediction_id, event.user_hash, event.session_hash, event.call,
            row["pair"], labels, event.logged_at, event.after_promotion,
        )  # fmt: skip

    async def add_label(self, label: Label) -> None:
        key = label.request_id, label.reviewer
        older = self.labels.get(key)
        if older is None or older.given_at < label.given_at:
            self.labels[key] = label
            of_ticket = [given.outcome for given in self.labels.values() if given.ticket_id == label.ticket_id]
            combined = ticket_outcome(of_ticket)
            self._row(label.ticket_id).update(outcome=combined, published=combined is not None)

    async def add_observations(self, rollout: Rollout, observations: Sequence[Observation]) -> None:
        for observation in observations:
            in_canary = rollout.may_serve
            share = rollout.share_of(observation.occurred_at, as_primary=observation.as_primary)
            if observation.canary and observation.counted and in_canary:
                requests = self.requests.setdefault(rollout.rollout_id, {})
                requests[observation.source, observation.offset] = observation.failed
            if observation.answered and in_canary and (observation.canary or rollout.control):
                answer = observation.user_key, share, observation.canary
                self.answers.setdefault((rollout.rollout_id, observation.prediction_id), answer)
            step = rollout.standing
            if in_canary and observation.served and observation.occurred_at >= (step.step_since or CUTOFF):
                users = self.served.setdefault((rollout.rollout_id, step.canary_percent), set())
                if len(users) < rollout.spec.rollout.min_canary_users:
                    users.add(observation.served)
            limit = self._limit(rollout.rollout_id)
            first = rollout.rollout_id, observation.user_key or "", observation.occurred_at.date()
            waited = observation.waited_ms(limit)
            is_first = in_canary and waited is not None and limit is not None and first not in self.day_subjects
            if is_first:
                self.day_subjects.add(first)
            is_slow = is_first and waited is not None and limit is not None and waited > limit
            guard = Guard.ERRORS if observation.failed else Guard.LATENCY if is_slow else None
            if guard is not None and observation.user_key and in_canary and share is not None:
                bad = self.bad_users.setdefault((rollout.rollout_id, guard), {})
                bad.setdefault(observation.user_key, (share, observation.canary))
            is_measured = observation.canary if in_canary else observation.primary and observation.answered
            if is_measured and waited is not None and observation.user_key:
                latencies = self.latencies.setdefault((rollout.rollout_id, in_canary), {})
                latencies.setdefault(
                    (observation.user_key, observation.occurred_at.date()),
                    (waited, observation.confidence),
                )

    async def add_complaint(
        self, rollout: Rollout, guard: Guard, prediction_id: str, user_hash: str | None, at: datetime
    ) -> None:
        answered = self.answers.get((rollout.rollout_id, prediction_id))
        subject = (answered[0] if answered else user_hash) or prediction_id
        share = rollout.share_of_complaint(answered[1]) if answered else rollout.share_of_other_complaint
        if share is not None:
            bad = self.bad_users.setdefault((rollout.rollout_id, guard), {})
            bad.setdefault(subject, (share, answered is not None and answered[2]))

    async def load(self, rollout_id: str, *, fresh: bool = False) -> Ledger:
        drawn = self._drawn(rollout_id, fresh)
        rows, earlier, waiting = self._rows(rollout_id, fresh), 0, []
        for number, row in enumerate(rows):
            row["earlier"], row["number"] = earlier, number
            earlier += row["event"].agree and row["opens"]
            waiting += [row] * (row["first"] and "ticket" not in row)
        tickets = [
            Ticket(
                row["outcome"], row["asked"], row["event"].identified, row["opens"], row["earlier"], row["number"]
            ) for row in drawn
        ]  # fmt: skip
        agreeing = sum(row["event"].agree for row in rows)
        subjects = min((row["earlier"] for row in waiting), default=earlier)
        counts = await self.canary(rollout_id)
        return Ledger(tickets, agreeing, counts, subjects, waiting=[row["number"] for row in waiting])

    async def canary(self, rollout_id: str) -> CanaryCounts:
        failed = self.requests.get(rollout_id, {}).values()
        rollout = await self._rollouts.get(rollout_id)
        percent = rollout.canary_percent if rollout else 0
        users = len(self.served.get((rollout_id, percent), ()))
        arms = {
            guard: _arms(list(bad.values())) for (owner, guard), bad in self.bad_users.items() if owner == rollout_id
        }
        primary, canary = ([*self.latencies.get((rollout_id, arm), {}).values()] for arm in (False, True))
        limit, canary_ms, slow_users = self._limit(rollout_id), list[float](), set[str]()
        for (user, _), (latency, _) in sorted(self.latencies.get((rollout_id, True), {}).items(), key=_by_day):
            if user not in slow_users:
                canary_ms.append(latency)
                slow_users |= {user} if limit is not None and latency > limit else set()
        slow = sum(latency > limit for latency in canary_ms) if limit is not None else 0
        measured = Latencies(len(canary_ms), slow, limit)
        sure = [_confidences(confidence for _, confidence in arm) for arm in (canary, primary)]
        return CanaryCounts(len(failed), sum(failed), percent, users, arms, measured, *sure)

    def _limit(self, rollout_id: str) -> float | None:
        before = sorted(latency for latency, _ in self.latencies.get((rollout_id, False), {}).values())
        rank = percentile_rank(len(before))
        return None if rank is None else SLOW * before[rank - 1]


def _by_day(item: tuple[tuple[str, date], object]) -> date:
    return item[0][1]


def _confidences(values: Iterable[float | None]) -> Confidences:
    known = [value for value in values if value is not None]
    if not known:
        return Confidences()
    return Confidences(len(known), round(fmean(known), 9), round(pvariance(known), 9))


def _arms(bad: list[tuple[int, bool]]) -> list[Arms]:
    shares = sorted({share for share, _ in bad})
    return [Arms(share, bad.count((share, True)), sum(s == share for s, _ in bad)) for share in shares]


class Deployer:
    """The deployer's handlers on the given stores and flags, in memory by default."""

    def __init__(
        self,
        rollouts: RolloutStore | None = None,
        ledger: LedgerStore | None = None,
        admin: FlagAdmin | None = None,
        max_open: int = 50,
    ) -> None:
        self.rollouts: Any = rollouts or MemoryRollouts()
        self.ledger: Any = ledger or MemoryLedger(self.rollouts)
        self.admin: Any = admin or MemoryAdmin()
        self.adapters = MemoryAdapters()
        self.publisher = MemoryPublisher()
        self.transitions = RolloutTransitions(
            self.rollouts, self.ledger, self.admin, self.adapters, self.publisher, max_open
        )
        admission = Admission(self.rollouts, self.transitions, self.publisher)
        self.handlers = Handlers(DeployerSettings(), self.rollouts, self.ledger, self.transitions, admission)
        self.handlers.tasks._read.set()  # There is none yet.
        self.commands = OperatorCommands(
            self.rollouts, self.admin, self.transitions, self.handlers.wakes, self.handlers.end_outdated,
            self.handlers.wait_for_tasks,
        )  # fmt: skip

    @property
    def last(self) -> RolloutChanged:
        return self.publisher.changes[-1]

    async def compare(self, *pairs: ShadowCompared) -> None:
        await self.handlers.on_compared(deliveries(pairs))

    async def compare_and_label(self, numbers: Iterable[int], truth: str) -> None:
        """Pairs where production says refund and the candidate delivery, each labelled with the truth."""
        await self.compare_and_label_in(self.last, numbers, truth)

    async def compare_and_label_in(self, rollout: RolloutChanged, numbers: Iterable[int], truth: str) -> None:
        """The same for a rollout whose changes another process has published."""
        for number in numbers:
            earlier = {asked.request_id for asked in self.publisher.questions}
            await self.compare(pair(rollout, number, ("refund", "delivery")))
            for asked in [a for a in self.publisher.questions if a.request_id not in earlier]:
                assert asked.purpose is Purpose.DISCORDANT_PAIR
                await self.handlers.on_corrections(deliveries([answer(asked, label=truth)]))

    async def see_canary(self, count: int, status: int = 200) -> None:
        await self.see_canary_of(self.last, count, status)

    async def see_canary_of(self, rollout: RolloutChanged, count: int, status: int = 200) -> None:
        events = [observed(rollout, number, Variant.CANARY, status) for number in range(count)]
        await self.handlers.on_observed(deliveries(events))


async def in_shadow(**rollout: object) -> Deployer:
    """Return a deployer with a candidate that has just entered shadow."""
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated(**rollout))
    return deployer


async def in_canary(wins: int = 12, **rollout: object) -> Deployer:
    """A candidate in the canary; with 25 wins it has also earned the promotion but for the canary's answers."""
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated(**rollout))
    await deployer.compare_and_label(range(wins), "delivery")
    assert deployer.last.stage is Stage.CANARY
    return deployer
