"""The ledger of each rollout in PostgreSQL: pairs, tickets, labels and canary observations.

The ledger is unique by rollout and pair, so a redelivered pair bets once; a person's newest answer to a ticket stands.
A user's first pair that differs may become a ticket; their first of all, if it agrees, counts for non-inferiority.
Tickets are drawn in the order of the pairs that differ, and only so many are open at once. Pairs that were made after a
promotion (`fresh`) are a ledger of their own, with first pairs and tickets of their own: what decided is not what tells
the gain.

When a person is forgotten, their text and their hash are deleted. What was already bet or counted remains, as numbers
that name nobody: removing it would change a statistic that was already looked at. Their tickets without a label become
void, as if never drawn, which cannot bias the test, since no outcome was known; that a first pair of theirs agreed is
no longer counted either. Their later pairs do not bet, because a first pair can no longer be told from a second one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.base import Frozen
from schemas.conversation import Answer, Call
from schemas.predictions import SubjectForgotten
from schemas.rollouts import ShadowCompared
from services.deployer.domain import Ledger, Ticket
from services.deployer.rollout import Rollout, max_tickets
from services.deployer.statistics.canary import CanaryCounts, Observation
from services.deployer.statistics.guards import Guard
from services.deployer.storage import canaries
from services.deployer.storage.task_locks import writing
from services.deployer.tables import FORGOTTEN, LABELS, LATENCIES, LEDGER, ROLLOUTS
from services.deployer.tickets import DrawnTicket, Label, Pair, ticket_id_of, ticket_outcome
from shared.privacy.erasure import erased_among, record_erasure
from shared.storage.database import transaction


class LedgerStore(Protocol):
    """The ledgers of all rollouts. Every method that adds something is idempotent."""

    async def load(self, rollout_id: str, *, fresh: bool = False) -> Ledger: ...
    async def canary(self, rollout_id: str) -> CanaryCounts: ...
    async def add_pairs(
        self, rollout: Rollout, pairs: Sequence[ShadowCompared], candidate_first: Sequence[bool]
    ) -> None: ...
    async def draw_tickets(self, rollout: Rollout, max_open: int) -> None: ...
    async def unpublished_tickets(self, rollout_id: str) -> list[DrawnTicket]: ...
    async def set_published(self, ticket_id: str) -> None: ...
    async def ticket(self, ticket_id: str) -> DrawnTicket | None: ...
    async def add_label(self, label: Label) -> None: ...
    async def add_observations(self, rollout: Rollout, observations: Sequence[Observation]) -> None: ...
    async def add_complaint(
        self, rollout: Rollout, guard: Guard, prediction_id: str, user_hash: str | None, at: datetime
    ) -> None: ...
    async def forget(self, event: SubjectForgotten) -> None: ...
    async def expire(self, task: str, before: datetime, counting: Sequence[Rollout]) -> None: ...


class PostgresLedger:
    """`incarnation`: of the broker, see `Settings.kafka_incarnation`; the offsets of another one are no measure."""

    def __init__(self, engine: AsyncEngine, incarnation: str = "") -> None:
        self._engine = engine
        self._incarnation = incarnation

    async def load(self, rollout_id: str, *, fresh: bool = False) -> Ledger:
        """Return what the decision about a rollout reads; `fresh`: about its promotion, while there is a control."""
        of_rollout = sa.and_(LEDGER.c.rollout_id == rollout_id, LEDGER.c.fresh.is_(fresh))
        async with transaction(self._engine) as connection:
            bets = (await connection.execute(_bets(of_rollout))).all()
            tickets = [Ticket(*bet[2:]) for bet in bets if bet.ticket_id is not None]
            agree = sa.select(sa.func.count(), sa.func.count().filter(LEDGER.c.opens))
            agreeing, subjects = (await connection.execute(agree.where(of_rollout, LEDGER.c.agree))).one()
            waiting = [bet for bet in bets if bet.ticket_id is None]
            subjects = min((bet.earlier for bet in waiting), default=subjects)
            counts = await canaries.canary_counts(connection, rollout_id)
            return Ledger(tickets, agreeing, counts, subjects, waiting=[bet.number for bet in waiting])

    async def canary(self, rollout_id: str) -> CanaryCounts:
        """Return what the guards of a rollout read."""
        async with transaction(self._engine) as connection:
            return await canaries.canary_counts(connection, rollout_id)

    async def add_pairs(
        self, rollout: Rollout, pairs: Sequence[ShadowCompared], candidate_first: Sequence[bool]
    ) -> None:
        """Add the pairs that are new, without those of erased people. `candidate_first`: one for each pair.

        A candidate that erred has lost: its ticket is drawn at once and nobody is asked. Pairs are of one kind, all
        fresh or none: those of the other kind came too early or too late, and are left out. A pair that was made twice,
        since a crash came between its publication and the note of it, is as it was made first, in one batch, too: the
        candidate may have answered otherwise the second time.
        """
        fresh = rollout.control
        async with writing(self._engine) as connection:
            erased = await erased_among(connection, FORGOTTEN, ((rollout.task, pair.user_hash) for pair in pairs))
            new: dict[str, dict[str, Any]] = {}
            for pair, first in zip(pairs, candidate_first, strict=True):
                if pair.after_promotion is fresh and not erased.covers(rollout.task, pair.user_hash, pair.logged_at):
                    new.setdefault(pair.pair_id, _pair_row(pair, first))
            if not (rows := list(new.values())):
                return
            of_rollout = sa.and_(LEDGER.c.rollout_id == rollout.rollout_id, LEDGER.c.fresh.is_(fresh))
            of_users = LEDGER.c.user_key.in_([row["user_key"] for row in rows])
            excluded = {row["user_key"] for row in rows if erased.includes(rollout.task, row["user_hash"])}
            users = sa.select(LEDGER.c.user_key).where(of_rollout, of_users)
            seen = excluded | set((await connection.execute(users.where(LEDGER.c.opens))).scalars())
            for row in rows:
                row["opens"] = row["user_key"] not in seen
                seen.add(row["user_key"])
            excluded |= set((await connection.execute(users.where(LEDGER.c.first))).scalars())
            statement = insert(LEDGER).on_conflict_do_nothing().returning(LEDGER.c.pair_id)
            inserted = set((await connection.execute(statement, rows)).scalars())
            firsts = []
            for row in rows:
                if row["pair_id"] in inserted and not row["agree"] and row["user_key"] not in excluded:
                    excluded.add(row["user_key"])
                    firsts.append(row)
            are_first = LEDGER.c.pair_id.in_([row["pair_id"] for row in firsts])
            await connection.execute(sa.update(LEDGER).where(of_rollout, are_first).values(first=True))
            for row in firsts:
                if row["candidate_answer"] is None:
                    await _draw(connection, rollout.rollout_id, row["pair_id"], asked=False, outcome=-1.0)

    async def draw_tickets(self, rollout: Rollout, max_open: int) -> None:
        """Draw tickets for the oldest waiting pairs, as long as fewer than `max_open` are open and labels remain."""
        of_rollout = sa.and_(LEDGER.c.rollout_id == rollout.rollout_id, LEDGER.c.fresh.is_(rollout.control))
        async with writing(self._engine) as connection:
            counts = sa.select(sa.func.count(), sa.func.count().filter(LEDGER.c.outcome.is_(None)))
            drawn, still_open = (await connection.execute(counts.where(of_rollout, LEDGER.c.asked))).one()
            room = max(0, min(max_open - still_open, max_tickets(rollout) - drawn))
            waiting = sa.select(LEDGER.c.pair_id).where(of_rollout, LEDGER.c.first, LEDGER.c.ticket_id.is_(None))
            pair_ids = await connection.execute(waiting.order_by(LEDGER.c.number).limit(room))
            for pair_id in pair_ids.scalars().all():
                await _draw(connection, rollout.rollout_id, pair_id, asked=True, outcome=None)

    async def unpublished_tickets(self, rollout_id: str) -> list[DrawnTicket]:
        """Return the open tickets whose question may not be published yet."""
        return await self._select_tickets(
            sa.and_(LEDGER.c.rollout_id == rollout_id, LEDGER.c.asked, ~LEDGER.c.published, LEDGER.c.outcome.is_(None))
        )

    async def set_published(self, ticket_id: str) -> None:
        async with writing(self._engine) as connection:
            await connection.execute(sa.update(LEDGER).where(LEDGER.c.ticket_id == ticket_id).values(published=True))

    async def ticket(self, ticket_id: str) -> DrawnTicket | None:
        """Return the ticket, or None where it is unknown or its person is forgotten: then no answer counts."""
        return next(iter(await self._select_tickets(LEDGER.c.ticket_id == ticket_id)), None)

    async def add_label(self, label: Label) -> None:
        """Add one person's answer, or put it in the place of theirs to the same question, and update the outcome.

        Idempotent. Without an outcome (the person could not tell) the ticket becomes unpublished, so that a second
        person is asked.
        """
        ticket_id = label.ticket_id
        given = insert(LABELS).values(dataclasses.asdict(label) | {"edits": 0})
        newer = given.on_conflict_do_update(
            index_elements=[LABELS.c.ticket_id, LABELS.c.request_id, LABELS.c.reviewer],
            set_={
                "correction_id": label.correction_id, "outcome": label.outcome, "given_at": label.given_at,
                "edits": LABELS.c.edits + 1,
            },
            where=LABELS.c.given_at < label.given_at,
        )  # fmt: skip
        async with writing(self._engine) as connection:
            if (await connection.execute(newer.returning(LABELS.c.ticket_id))).first() is None:
                return
            labels = await connection.execute(sa.select(LABELS.c.outcome).where(LABELS.c.ticket_id == ticket_id))
            combined = ticket_outcome(list(labels.scalars()))
            await connection.execute(
                sa.update(LEDGER)
                .where(LEDGER.c.ticket_id == ticket_id)
                .values(outcome=combined, published=combined is not None)
            )

    async def add_observations(self, rollout: Rollout, observations: Sequence[Observation]) -> None:
        """Count requests for the guards of a canary; before there is one, measure the primary."""
        async with writing(self._engine) as connection:
            erased = await erased_among(connection, FORGOTTEN, ((rollout.task, o.user_key) for o in observations))
            counted = [
                dataclasses.replace(o, source=f"{self._incarnation}:{o.source}")
                for o in observations if not erased.covers(rollout.task, o.user_key, o.occurred_at)
            ]  # fmt: skip
            add = canaries.add_requests if rollout.may_serve else canaries.add_primary
            await add(connection, rollout, counted)

    async def add_complaint(
        self, rollout: Rollout, guard: Guard, prediction_id: str, user_hash: str | None, at: datetime
    ) -> None:
        """Count an answer that a user, or a reviewer who was asked by chance, found wrong."""
        async with writing(self._engine) as connection:
            erased = await erased_among(connection, FORGOTTEN, [(rollout.task, user_hash)])
            if not erased.covers(rollout.task, user_hash, at):
                await canaries.add_complaint(connection, rollout, guard, prediction_id, user_hash)

    async def forget(self, event: SubjectForgotten) -> None:
        """Delete a person's text and hash, and void their open tickets; what was bet or counted remains. Idempotent.

        Call it with the task locked.
        """
        of_task = sa.select(ROLLOUTS.c.rollout_id).where(ROLLOUTS.c.task == event.task)
        of_person = sa.and_(
            LEDGER.c.rollout_id.in_(of_task),
            LEDGER.c.user_hash == event.subject_hash,
            sa.func.coalesce(LEDGER.c.logged_at, event.occurred_at) <= event.occurred_at,
        )
        async with writing(self._engine) as connection:
            if not await record_erasure(connection, FORGOTTEN, event):
                return  # What is counted of a person does not say when it happened.
            void = {
                "first": False, "opens": False, "asked": False, "published": False, "ticket_id": None,
                "ticket_order": None,
            }  # fmt: skip
            await connection.execute(sa.update(LEDGER).where(of_person, LEDGER.c.outcome.is_(None)).values(void))
            blank = {"call": None, "production_answer": None, "candidate_answer": None, "user_hash": None,
                     "session_hash": None}  # fmt: skip
            await connection.execute(sa.update(LEDGER).where(of_person).values(**blank, user_key=LEDGER.c.pair_id))
            await canaries.forget_subject(connection, of_task, event.subject_hash)

    async def expire(self, task: str, before: datetime, counting: Sequence[Rollout]) -> None:
        """Delete texts logged before a moment, except those that people may still be asked about.

        `counting`: the task's rollouts whose requests count, which keep what their guards read. Call it with the task
        locked.
        """
        asked_about = [
            sa.and_(LEDGER.c.rollout_id == rollout.rollout_id, LEDGER.c.fresh.is_(fresh))
            for rollout in counting for fresh in (False, True) if rollout.is_asked_about(fresh=fresh)
        ]  # fmt: skip
        of_task = sa.select(ROLLOUTS.c.rollout_id).where(ROLLOUTS.c.task == task)
        ended = of_task.where(ROLLOUTS.c.rollout_id.not_in([rollout.rollout_id for rollout in counting]))
        expired = sa.and_(
            LEDGER.c.rollout_id.in_(of_task), LEDGER.c.logged_at < before, sa.not_(sa.or_(sa.false(), *asked_about))
        )
        async with writing(self._engine) as connection:
            blank = {"call": None, "production_answer": None, "candidate_answer": None}
            await connection.execute(sa.update(LEDGER).where(expired).values(blank))
            older = sa.and_(LATENCIES.c.rollout_id.in_(ended), LATENCIES.c.day < before.date())
            await connection.execute(sa.delete(LATENCIES).where(older))

    async def _select_tickets(self, where: sa.ColumnElement[bool]) -> list[DrawnTicket]:
        labels = sa.select(sa.func.count()).where(LABELS.c.ticket_id == LEDGER.c.ticket_id).scalar_subquery()
        has_text = sa.and_(LEDGER.c.ticket_id.is_not(None), LEDGER.c.production_answer.is_not(None))
        statement = sa.select(LEDGER, labels.label("labels")).where(where, has_text)
        async with transaction(self._engine) as connection:
            rows = await connection.execute(statement.order_by(LEDGER.c.ticket_order))
            return [_ticket(row) for row in rows]


def _bets(of_rollout: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """The pairs that bet: those with a ticket in the order of these, then those that wait to become one.

    A row has the ticket's id and order, and what a `Ticket` holds; `earlier`: first pairs that agree and came before;
    `number`: the place among all pairs.
    """
    opening = sa.and_(LEDGER.c.agree, LEDGER.c.opens)
    earlier = sa.func.count().filter(opening).over(order_by=LEDGER.c.number).label("earlier")
    columns = [LEDGER.c[name] for name in ("ticket_id", "ticket_order", "outcome", "asked", "identified", "opens")]
    shown = (*columns, earlier, LEDGER.c.number)
    counted = sa.select(*shown, LEDGER.c.first).where(of_rollout, sa.or_(LEDGER.c.first, opening)).subquery()
    bets = [counted.c[column.name] for column in shown]
    return sa.select(*bets).where(counted.c.first).order_by(counted.c.ticket_order)


async def _draw(
    connection: AsyncConnection, rollout_id: str, pair_id: str, *, asked: bool, outcome: float | None
) -> None:
    last = sa.select(sa.func.coalesce(sa.func.max(LEDGER.c.ticket_order), 0)).where(LEDGER.c.rollout_id == rollout_id)
    await connection.execute(
        sa.update(LEDGER)
        .where(LEDGER.c.rollout_id == rollout_id, LEDGER.c.pair_id == pair_id, LEDGER.c.ticket_id.is_(None))
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
        session_hash=row.session_hash,
        call=None if row.call is None else Call.model_validate(row.call),
        pair=Pair(
            Answer.model_validate(row.production_answer),
            None if row.candidate_answer is None else Answer.model_validate(row.candidate_answer),
            row.candidate_first,
        ),
        labels=row.labels,
        logged_at=row.logged_at,
        fresh=row.fresh,
    )


def _pair_row(pair: ShadowCompared, candidate_first: bool) -> dict[str, Any]:
    """The row of a pair. Nobody is asked about a pair that agrees, so its texts are not stored."""
    return {
        "rollout_id": pair.rollout_id,
        "pair_id": pair.pair_id,
        "prediction_id": pair.prediction_id,
        "user_hash": pair.user_hash,
        "session_hash": pair.session_hash,
        "user_key": pair.subject,
        "identified": pair.identified,
        "agree": pair.agree,
        "fresh": pair.after_promotion,
        "call": None if pair.agree else _json(pair.call),
        "production_answer": None if pair.agree else _json(pair.production_answer),
        "candidate_answer": None if pair.agree or pair.candidate_answer is None else _json(pair.candidate_answer),
        "candidate_first": candidate_first,
        "logged_at": pair.logged_at,
    }


def _json(value: Frozen) -> dict[str, Any]:
    return value.model_dump(mode="json", exclude_defaults=True)
