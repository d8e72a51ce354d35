"""Rollouts and their ledgers in PostgreSQL (schema `deployer`).

The ledger is unique by rollout and pair, so that a redelivered pair bets once. A user's first pair that differs may
become a ticket; tickets are drawn in the order of those pairs, and only so many are open at once.
A change of a rollout is stored unsettled, its flags and its event follow, then it is marked settled: whoever finds
an unsettled change finishes it.

Of a forgotten person no text and no hash stays. What was bet stays, as numbers that are nobody's: taking it back
would change what the test has seen. A ticket without a label is void, as if it had never been drawn, which nobody
could choose by its outcome. A forgotten person's later pairs bet no more: their first could not be told from a second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.base import Message, Messages
from schemas.predictions import SubjectForgotten
from schemas.rollouts import Evidence, ShadowCompared, Stage
from schemas.tasks import TaskSpec
from services.deployer.domain import CanaryCounts, Ledger, Pair, Ticket, ticket_outcome
from services.deployer.rollout import ACTIVE, Rollout
from services.deployer.tables import BAD_USERS, FORGOTTEN, LABELS, LEDGER, REQUESTS, ROLLOUTS
from shared.identity import content_hash
from shared.privacy.erasure import erased_among, record_erasure
from shared.storage.database import transaction

_FIELDS = [field.name for field in dataclasses.fields(Rollout)]
_ACTIVE = sa.and_(ROLLOUTS.c.entered, ROLLOUTS.c.stage.in_(ACTIVE))


@dataclass(frozen=True)
class DrawnTicket:
    """A ticket of the ledger with what a person is shown. `labels`: answers that it has already."""

    ticket_id: str
    rollout_id: str
    prediction_id: str
    user_hash: str | None
    messages: Messages | None
    pair: Pair
    labels: int
    logged_at: datetime | None = None


@dataclass(frozen=True)
class Observation:
    """One request while a canary runs. Its user is counted once, by the arm of the first failure."""

    prediction_id: str
    user_key: str | None
    canary: bool
    failed: bool
    occurred_at: datetime


class Storage(Protocol):
    """What the handlers need kept."""

    def locked(self, task: str) -> AbstractAsyncContextManager[None]: ...
    async def rollout(self, rollout_id: str) -> Rollout | None: ...
    async def last_entered(self, task: str) -> Rollout | None: ...
    async def active(self) -> list[Rollout]: ...
    async def unsettled(self, task: str) -> list[Rollout]: ...
    async def tasks(self) -> list[str]: ...
    async def store(self, *rollouts: Rollout) -> None: ...
    async def settle(self, rollout: Rollout) -> None: ...
    async def add_pairs(self, rollout: Rollout, pairs: Sequence[ShadowCompared], sides: Sequence[bool]) -> None: ...
    async def draw(self, rollout: Rollout, most_open: int) -> None: ...
    async def unpublished(self, rollout_id: str) -> list[DrawnTicket]: ...
    async def published(self, ticket_id: str) -> None: ...
    async def ticket(self, ticket_id: str) -> DrawnTicket | None: ...
    async def add_label(self, correction_id: str, ticket_id: str, reviewer: str, outcome: float | None) -> None: ...
    async def observe(self, rollout: Rollout, observations: Sequence[Observation]) -> None: ...
    async def ledger(self, rollout_id: str) -> Ledger: ...
    async def forget(self, event: SubjectForgotten) -> None: ...
    async def expire(self, task: str, before: datetime) -> None: ...


def ticket_id_of(rollout_id: str, pair_id: str) -> str:
    """The same pair always has the same ticket."""
    return f"ticket-{content_hash(rollout_id, pair_id, length=16)}"


class PostgresStorage:
    """The one real storage."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def locked(self, task: str) -> AsyncIterator[None]:
        """One decision about a task at a time, over all processes: flags are written in the order of decisions."""
        async with transaction(self._engine) as connection:
            key = sa.func.hashtext(f"deployer {task}")
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
            yield

    async def rollout(self, rollout_id: str) -> Rollout | None:
        return await self._one(ROLLOUTS.c.rollout_id == rollout_id)

    async def last_entered(self, task: str) -> Rollout | None:
        return await self._one(sa.and_(ROLLOUTS.c.task == task, ROLLOUTS.c.entered))

    async def active(self) -> list[Rollout]:
        return await self._rollouts(_ACTIVE)

    async def unsettled(self, task: str) -> list[Rollout]:
        """Changes whose flags or event may not be out, oldest first."""
        return await self._rollouts(sa.and_(ROLLOUTS.c.task == task, ~ROLLOUTS.c.settled))

    async def tasks(self) -> list[str]:
        async with transaction(self._engine) as connection:
            rows = await connection.execute(sa.select(ROLLOUTS.c.task).distinct().order_by(ROLLOUTS.c.task))
            return list(rows.scalars())

    async def store(self, *rollouts: Rollout) -> None:
        """Write changes, in one transaction; a version that is there already stays as it is."""
        async with transaction(self._engine) as connection:
            for rollout in rollouts:
                values = _row(rollout)
                values["change"] = values["entry"] = sa.func.nextval("changes")
                statement = insert(ROLLOUTS).values({ROLLOUTS.c[name]: value for name, value in values.items()})
                update = {ROLLOUTS.c[n]: statement.excluded[n] for n in (*_FIELDS, "change") if n != "rollout_id"}
                await connection.execute(
                    statement.on_conflict_do_update(
                        index_elements=[ROLLOUTS.c.rollout_id],
                        set_=update,
                        where=ROLLOUTS.c.version < statement.excluded.version,
                    )
                )

    async def settle(self, rollout: Rollout) -> None:
        """Note that a change is out. A rollout that has ended asks nothing more: its conversations are dropped."""
        same = sa.and_(ROLLOUTS.c.rollout_id == rollout.rollout_id, ROLLOUTS.c.version == rollout.version)
        async with transaction(self._engine) as connection:
            await connection.execute(sa.update(ROLLOUTS).where(same).values(settled=True))
            if not rollout.active:
                ended = LEDGER.c.rollout_id == rollout.rollout_id
                await connection.execute(sa.update(LEDGER).where(ended).values(messages=None))

    async def add_pairs(self, rollout: Rollout, pairs: Sequence[ShadowCompared], sides: Sequence[bool]) -> None:
        """Add pairs that are new and of nobody forgotten; `sides`: whether the candidate's answer is shown first.

        A candidate that erred has lost: its ticket is drawn at once and nobody is asked.
        """
        async with transaction(self._engine) as connection:
            gone = await erased_among(connection, FORGOTTEN, ((rollout.task, pair.user_hash) for pair in pairs))
            rows = [
                _pair_row(pair, first) for pair, first in zip(pairs, sides, strict=True)
                if not gone.covers(rollout.task, pair.user_hash, pair.logged_at)
            ]  # fmt: skip
            if not rows:
                return
            statement = insert(LEDGER).on_conflict_do_nothing().returning(LEDGER.c.pair_id)
            new = set((await connection.execute(statement, rows)).scalars())
            mine = LEDGER.c.rollout_id == rollout.rollout_id
            here = LEDGER.c.user_key.in_([row["user_key"] for row in rows])
            known = await connection.execute(sa.select(LEDGER.c.user_key).where(mine, here, LEDGER.c.first))
            users = set(known.scalars()) | {r["user_key"] for r in rows if gone.includes(rollout.task, r["user_hash"])}
            for row in rows:
                if row["pair_id"] in new and not row["agree"] and row["user_key"] not in users:
                    users.add(row["user_key"])
                    this = LEDGER.c.pair_id == row["pair_id"]
                    await connection.execute(sa.update(LEDGER).where(mine, this).values(first=True))
                    if row["candidate_answer"] is None:
                        await _draw(connection, rollout.rollout_id, row["pair_id"], asked=False, outcome=-1.0)

    async def draw(self, rollout: Rollout, most_open: int) -> None:
        """Draw tickets for the oldest waiting pairs, while fewer than `most_open` are open and labels are left."""
        mine = LEDGER.c.rollout_id == rollout.rollout_id
        async with transaction(self._engine) as connection:
            asked = sa.select(sa.func.count(), sa.func.count().filter(LEDGER.c.outcome.is_(None)))
            spent, still_open = (await connection.execute(asked.where(mine, LEDGER.c.asked))).one()
            room = max(0, min(most_open - still_open, rollout.spec.rollout.max_labels - spent))
            waiting = sa.select(LEDGER.c.pair_id).where(mine, LEDGER.c.first, LEDGER.c.ticket_id.is_(None))
            found = await connection.execute(waiting.order_by(LEDGER.c.number).limit(room))
            for pair_id in found.scalars().all():
                await _draw(connection, rollout.rollout_id, pair_id, asked=True, outcome=None)

    async def unpublished(self, rollout_id: str) -> list[DrawnTicket]:
        """Tickets whose question may not be out."""
        return await self._tickets(
            sa.and_(LEDGER.c.rollout_id == rollout_id, LEDGER.c.asked, ~LEDGER.c.published, LEDGER.c.outcome.is_(None))
        )

    async def published(self, ticket_id: str) -> None:
        async with transaction(self._engine) as connection:
            await connection.execute(sa.update(LEDGER).where(LEDGER.c.ticket_id == ticket_id).values(published=True))

    async def ticket(self, ticket_id: str) -> DrawnTicket | None:
        """The ticket; None: there is none of this name, or its person is forgotten, and no answer counts any more."""
        return next(iter(await self._tickets(LEDGER.c.ticket_id == ticket_id)), None)

    async def add_label(self, correction_id: str, ticket_id: str, reviewer: str, outcome: float | None) -> None:
        """Add one person's answer, once, and bring the ticket's outcome up to date.

        Where that person could not tell, the ticket is to be asked again.
        """
        values = {"correction_id": correction_id, "ticket_id": ticket_id, "reviewer": reviewer, "outcome": outcome}
        async with transaction(self._engine) as connection:
            added = insert(LABELS).values(values).on_conflict_do_nothing().returning(LABELS.c.correction_id)
            if (await connection.execute(added)).first() is None:
                return
            labels = await connection.execute(sa.select(LABELS.c.outcome).where(LABELS.c.ticket_id == ticket_id))
            whole = ticket_outcome(list(labels.scalars()))
            await connection.execute(
                sa.update(LEDGER)
                .where(LEDGER.c.ticket_id == ticket_id)
                .values(outcome=whole, published=whole is not None)
            )

    async def observe(self, rollout: Rollout, observations: Sequence[Observation]) -> None:
        """Count requests of the canary and users with a failed request, each once."""
        async with transaction(self._engine) as connection:
            people = await erased_among(connection, FORGOTTEN, ((rollout.task, o.user_key) for o in observations))
            seen = [o for o in observations if not people.covers(rollout.task, o.user_key, o.occurred_at)]
            requests = [
                {"rollout_id": rollout.rollout_id, "prediction_id": o.prediction_id, "failed": o.failed}
                for o in seen if o.canary
            ]  # fmt: skip
            users = [
                {"rollout_id": rollout.rollout_id, "user_key": o.user_key, "canary": o.canary}
                for o in seen if o.failed and o.user_key
            ]  # fmt: skip
            if requests:
                await connection.execute(insert(REQUESTS).on_conflict_do_nothing(), requests)
            if users:
                await connection.execute(insert(BAD_USERS).on_conflict_do_nothing(), users)

    async def ledger(self, rollout_id: str) -> Ledger:
        async with transaction(self._engine) as connection:
            tickets = await connection.execute(
                sa.select(LEDGER.c.outcome, LEDGER.c.asked)
                .where(LEDGER.c.rollout_id == rollout_id, LEDGER.c.ticket_id.is_not(None))
                .order_by(LEDGER.c.ticket_order)
            )
            counts = sa.select(
                _count(LEDGER, rollout_id, LEDGER.c.agree),
                _count(REQUESTS, rollout_id, sa.true()),
                _count(REQUESTS, rollout_id, REQUESTS.c.failed),
                _count(BAD_USERS, rollout_id, sa.true()),
                _count(BAD_USERS, rollout_id, BAD_USERS.c.canary),
            )
            agreeing, *canary = (await connection.execute(counts)).one()
            return Ledger([Ticket(row.outcome, row.asked) for row in tickets], agreeing, CanaryCounts(*canary))

    async def forget(self, event: SubjectForgotten) -> None:
        """Blank what is a person's; keep what was bet and counted. Call it with the task locked."""
        mine = sa.select(ROLLOUTS.c.rollout_id).where(ROLLOUTS.c.task == event.task)
        theirs = sa.and_(
            LEDGER.c.rollout_id.in_(mine),
            LEDGER.c.user_hash == event.subject_hash,
            sa.func.coalesce(LEDGER.c.logged_at, event.occurred_at) <= event.occurred_at,
        )
        async with transaction(self._engine) as connection:
            await record_erasure(connection, FORGOTTEN, event)
            void = {"first": False, "asked": False, "published": False, "ticket_id": None, "ticket_order": None}
            await connection.execute(sa.update(LEDGER).where(theirs, LEDGER.c.outcome.is_(None)).values(void))
            blank = {"messages": None, "production_answer": None, "candidate_answer": None, "user_hash": None}
            await connection.execute(sa.update(LEDGER).where(theirs).values(**blank, user_key=LEDGER.c.pair_id))
            nobody = sa.cast(sa.func.gen_random_uuid(), sa.Text)
            failed = sa.and_(BAD_USERS.c.rollout_id.in_(mine), BAD_USERS.c.user_key == event.subject_hash)
            await connection.execute(sa.update(BAD_USERS).where(failed).values(user_key=nobody))

    async def expire(self, task: str, before: datetime) -> None:
        """Blank the texts from before a moment, but for those of a rollout that may still ask about them."""
        over = sa.not_(sa.and_(ROLLOUTS.c.entered, ROLLOUTS.c.stage.in_([stage.value for stage in ACTIVE])))
        ended = sa.select(ROLLOUTS.c.rollout_id).where(ROLLOUTS.c.task == task, over)
        old = sa.and_(LEDGER.c.rollout_id.in_(ended), LEDGER.c.logged_at < before)
        async with transaction(self._engine) as connection:
            blank = {"messages": None, "production_answer": None, "candidate_answer": None}
            await connection.execute(sa.update(LEDGER).where(old).values(blank))

    async def _one(self, where: sa.ColumnElement[bool]) -> Rollout | None:
        statement = sa.select(ROLLOUTS).where(where).order_by(ROLLOUTS.c.entry.desc()).limit(1)
        async with transaction(self._engine) as connection:
            row = (await connection.execute(statement)).mappings().first()
        return None if row is None else _rollout(row)

    async def _rollouts(self, where: sa.ColumnElement[bool]) -> list[Rollout]:
        async with transaction(self._engine) as connection:
            rows = await connection.execute(sa.select(ROLLOUTS).where(where).order_by(ROLLOUTS.c.change))
            return [_rollout(row) for row in rows.mappings()]

    async def _tickets(self, where: sa.ColumnElement[bool]) -> list[DrawnTicket]:
        labels = sa.select(sa.func.count()).where(LABELS.c.ticket_id == LEDGER.c.ticket_id).scalar_subquery()
        legible = sa.and_(LEDGER.c.ticket_id.is_not(None), LEDGER.c.production_answer.is_not(None))
        statement = sa.select(LEDGER, labels.label("labels")).where(where, legible)
        async with transaction(self._engine) as connection:
            rows = await connection.execute(statement.order_by(LEDGER.c.ticket_order))
            return [_ticket(row) for row in rows]


async def _draw(
    connection: AsyncConnection, rollout_id: str, pair_id: str, *, asked: bool, outcome: float | None
) -> None:
    last = sa.select(sa.func.coalesce(sa.func.max(LEDGER.c.ticket_order), 0)).where(LEDGER.c.rollout_id == rollout_id)
    await connection.execute(
        sa.update(LEDGER)
        .where(LEDGER.c.rollout_id == rollout_id, LEDGER.c.pair_id == pair_id)
        .values(
            ticket_id=ticket_id_of(rollout_id, pair_id),
            ticket_order=last.scalar_subquery() + 1,
            asked=asked,
            outcome=outcome,
        )
    )


def _ticket(row: Any) -> DrawnTicket:
    return DrawnTicket(
        ticket_id=row.ticket_id,
        rollout_id=row.rollout_id,
        prediction_id=row.prediction_id,
        user_hash=row.user_hash,
        messages=None if row.messages is None else tuple(Message.model_validate(m) for m in row.messages),
        pair=Pair(row.production_answer, row.candidate_answer, row.candidate_first),
        labels=row.labels,
        logged_at=row.logged_at,
    )


def _pair_row(pair: ShadowCompared, candidate_first: bool) -> dict[str, Any]:
    return {
        "rollout_id": pair.rollout_id,
        "pair_id": pair.pair_id,
        "prediction_id": pair.prediction_id,
        "user_hash": pair.user_hash,
        "user_key": pair.user_hash or pair.prediction_id,
        "agree": pair.agree,
        "messages": None if pair.agree else [message.model_dump(mode="json") for message in pair.messages],
        "production_answer": None if pair.agree else pair.production_answer,
        "candidate_answer": None if pair.agree else pair.candidate_answer,
        "candidate_first": candidate_first,
        "logged_at": pair.logged_at,
    }


def _count(table: sa.Table, rollout_id: str, where: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    return (
        sa.select(sa.func.count()).select_from(table).where(table.c.rollout_id == rollout_id, where).scalar_subquery()
    )


def _row(rollout: Rollout) -> dict[str, Any]:
    return {
        **{name: getattr(rollout, name) for name in _FIELDS},
        "stage": rollout.stage.value,
        "spec": rollout.spec.model_dump(mode="json"),
        "evidence": rollout.evidence.model_dump(mode="json"),
    }


def _rollout(row: Any) -> Rollout:
    values = {name: row[ROLLOUTS.c[name]] for name in _FIELDS}
    values["stage"] = Stage(values["stage"])
    values["spec"] = TaskSpec.model_validate(values["spec"])
    values["evidence"] = Evidence.model_validate(values["evidence"])
    return Rollout(**values)
