"""The deployer on a real PostgreSQL and a real Unleash."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text

from schemas.base import Variant, utc_now
from schemas.predictions import SubjectForgotten
from schemas.rollouts import Stage
from services.deployer.clients import Strategy, UnleashAdmin
from services.deployer.main import MIGRATIONS
from services.deployer.rollout import Rollout
from services.deployer.statistics.canary import Arms, rank_of
from services.deployer.statistics.guards import Guard
from services.deployer.storage import canaries
from services.deployer.storage.ledger import PostgresLedger
from services.deployer.storage.rollouts import PostgresRollouts
from shared.errors import DependencyUnavailable
from shared.settings import Settings
from shared.storage.database import build_engine
from shared.storage.migration import migrate
from tests.unit.deployer.canaries import NOON, audited, feedback, in_canary, leave, see
from tests.unit.deployer.fakes import CUTOFF, Deployer, answer, deliveries, evaluated, observed, pair, pair_with_tools
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.stack


@dataclass(frozen=True)
class Real:
    """A deployer on the stack, with a schema and a task of its own."""

    deployer: Deployer
    admin: UnleashAdmin
    settings: Settings
    task: str

    def flag(self, name: str) -> str:
        return f"ratchet.{self.task}.{name}"

    async def dump(self, table: str) -> str:
        """All rows of a table, as text."""
        async with self.deployer.rollouts._engine.begin() as connection:
            rows = await connection.execute(text(f"SELECT {table}::text FROM {table}"))
            return "\n".join(rows.scalars())

    async def seen_by_clients(self) -> dict[str, dict[str, object]]:
        """The flags as SDKs poll them."""
        headers = {"Authorization": self.settings.unleash_client_token}
        async with httpx.AsyncClient(headers=headers, timeout=PATIENCE_SECONDS) as client:
            answer = await client.get(f"{self.settings.unleash}/api/client/features")
        return {feature["name"]: feature for feature in answer.json()["features"]}


@pytest.fixture
async def real(stack_settings: Settings) -> AsyncIterator[Real]:
    schema = f"deployer_{uuid4().hex[:8]}"
    await migrate(stack_settings, schema, MIGRATIONS)
    engine = build_engine(stack_settings, schema)
    rollouts = PostgresRollouts(engine)
    token = stack_settings.unleash_admin_token
    admin = UnleashAdmin(stack_settings.unleash, token, confirm=rollouts.confirm_lock)
    deployer = Deployer(rollouts, PostgresLedger(engine), admin)
    yield Real(deployer, admin, stack_settings, f"task-{uuid4().hex[:8]}")
    async with engine.begin() as connection:
        await connection.execute(text(f'DROP SCHEMA "{schema}" CASCADE'))
    await engine.dispose()
    await admin.close()


async def test_a_candidate_is_promoted_by_real_flags(real: Real) -> None:
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    primary = await real.admin.read(real.flag("primary"))
    assert primary is not None and primary.enabled and primary.payload == {"adapter": None, "previous": None}
    shadow = await real.admin.read(real.flag("shadow"))
    assert shadow is not None and shadow.enabled
    canary = await real.admin.read(real.flag("canary"))
    assert canary is not None and not canary.enabled

    await deployer.compare_and_label(range(10), "delivery")
    canary = await real.admin.read(real.flag("canary"))
    assert canary is not None and canary.enabled and canary.payload == {"adapter": "a1"}
    (strategy,) = canary.strategies
    assert strategy["parameters"] == {
        "rollout": "5", "stickiness": "userId", "groupId": deployer.last.rollout_id,
    }  # fmt: skip

    await deployer.compare_and_label(range(10, 19), "delivery")
    records = deliveries([observed(deployer.last, number, Variant.CANARY) for number in range(5)])
    for _ in range(2):
        await deployer.handlers.on_observed(records)
    await deployer.handlers.tick(real.task)
    assert (deployer.last.stage, deployer.last.evidence.canary_requests) == (Stage.PROMOTED, 5)
    primary = await real.admin.read(real.flag("primary"))
    assert primary is not None and primary.payload == {"adapter": "a1", "previous": None}
    flags = await real.seen_by_clients()
    enabled = {name: flags[real.flag(name)]["enabled"] for name in ("primary", "rollback", "canary", "shadow")}
    assert enabled == {"primary": True, "rollback": False, "canary": False, "shadow": False}


async def test_a_hand_in_unleash_pauses_and_the_history_names_it(real: Real) -> None:
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    await deployer.compare_and_label(range(10), "delivery")
    assert deployer.last.stage is Stage.CANARY
    other = await real.admin.changed_by(real.flag("canary"))
    await real.admin.switch(real.flag("canary"), False)
    await deployer.handlers.tick(real.task)
    assert other
    assert (deployer.last.paused, deployer.last.moved_by) == ("canary is off, by hand", f"{other} in Unleash")
    await deployer.compare_and_label(range(10, 25), "delivery")
    await deployer.see_canary(5)
    await deployer.handlers.tick(real.task)
    assert deployer.last.stage is Stage.CANARY
    await deployer.commands.resume(real.task, "ben", "the outage is over")
    assert deployer.last.stage is Stage.PROMOTED
    moves = [(m.stage.value, m.paused, m.moved_by) for m in await deployer.rollouts.history(real.task, 10)]
    assert moves == [
        ("promoted", "", "ratchet"),
        ("canary", "", "ben"),
        ("canary", "canary is off, by hand", f"{other} in Unleash"),
        ("canary", "", "ratchet"),
        ("shadow", "", "ratchet"),
        ("queued", "", "ratchet"),
    ]
    new = [m for m in await deployer.rollouts.unposted(CUTOFF, 1_000) if m.task == real.task]
    assert [(m.stage.value, m.moved_by) for m in new] == [(stage, by) for stage, _, by in reversed(moves)]
    await deployer.rollouts.set_posted(new[0])
    assert [m for m in await deployer.rollouts.unposted(CUTOFF, 1_000) if m.task == real.task] == new[1:]
    await deployer.commands.rollback(real.task, "ben", "bad tone")
    rollback = await real.admin.read(real.flag("rollback"))
    assert rollback is not None and rollback.enabled


async def test_the_control_of_a_promotion_is_a_real_flag_and_its_guards_roll_back(real: Real) -> None:
    deployer = real.deployer
    settings = {"canary_wealth": 2, "min_canary_users": 0, "control_days": 7}
    await deployer.handlers.on_evaluated(evaluated("a1", real.task, **settings))
    await deployer.compare_and_label(range(20), "delivery")
    await deployer.handlers.tick(real.task)
    assert deployer.last.stage is Stage.PROMOTED, deployer.last.reason
    control = await real.admin.read(real.flag("control"))
    assert control is not None and control.enabled
    assert control.strategies[0]["parameters"] == {
        "rollout": "5", "stickiness": "userId", "groupId": f"{deployer.last.rollout_id}.control",
    }  # fmt: skip
    moves = len(await deployer.rollouts.history(real.task, 50))
    await deployer.handlers.tick(real.task)
    assert len(await deployer.rollouts.history(real.task, 50)) == moves, "Unleash has it as it was written"
    await _ask_about_fresh_pairs(deployer, real.task)
    failed = [
        observed(deployer.last, number, Variant.PRIMARY, 502).model_copy(update={"adapter": "a1"})
        for number in range(200)
    ]
    await deployer.handlers.on_observed(deliveries(failed))
    await deployer.handlers.tick(real.task)
    (back,) = (change for change in deployer.publisher.changes if change.stage is Stage.ROLLED_BACK)
    assert (back.candidate_adapter, back.primary_adapter) == ("a1", None)
    states = [await real.admin.read(real.flag(name)) for name in ("primary", "rollback", "control")]
    assert [state is not None and state.enabled for state in states] == [True, True, False]


async def _ask_about_fresh_pairs(deployer: Deployer, task: str) -> None:
    """Have people asked about a user who bet before the promotion; a newer candidate comes meanwhile, and waits."""
    rollout, fresh = deployer.last.rollout_id, {"after_promotion": True}
    decided = (await deployer.ledger.load(rollout)).outcomes
    pairs = [pair(deployer.last, number, ("refund", "delivery"), user="user-1") for number in (50, 51)]
    await deployer.compare(*[found.model_copy(update=fresh) for found in pairs])
    asked = deployer.publisher.questions[-1]
    await deployer.handlers.on_evaluated(evaluated("a2", task, against="a1"))
    assert (deployer.last.candidate_adapter, deployer.last.control) == ("a1", True)
    await deployer.handlers.on_corrections(deliveries([answer(asked, preference="cannot_tell")]))
    again = deployer.publisher.questions[-1]
    assert again.request_id != asked.request_id and again.call == asked.call, "texts stay until the control ends"
    await deployer.handlers.on_corrections(deliveries([answer(again, label="refund", reviewer="ben")]))
    assert (await deployer.ledger.load(rollout, fresh=True)).outcomes == [-1.0]
    assert (await deployer.ledger.load(rollout)).outcomes == decided


async def test_unleashs_log_names_each_flag_that_was_changed_with_an_entry_of_its_own(real: Real) -> None:
    await real.deployer.handlers.on_evaluated(evaluated("a1", real.task))
    before = await real.admin.newest_changes(100)
    assert {real.flag(name) for name in ("primary", "rollback", "canary", "shadow")} <= {flag for _, flag in before}
    await real.admin.switch(real.flag("shadow"), False)
    await real.admin.set_strategy(real.flag("canary"), Strategy(percent=7))
    known = {entry for entry, _ in before}
    new = {flag for entry, flag in await real.admin.newest_changes(20) if entry not in known}
    assert {real.flag("shadow"), real.flag("canary")} <= new
    assert len(await real.admin.newest_changes(2)) == 2


async def test_unleashs_log_tells_a_hand_from_what_a_change_of_a_rollout_sets(real: Real) -> None:
    await real.deployer.handlers.on_evaluated(evaluated("a1", real.task))
    canary, shadow = real.flag("canary"), real.flag("shadow")
    wanted = Strategy(25, "userId", "r1", "canary", {"adapter": "a1"})
    ((entry, _),) = await real.admin.newest_changes(1)
    await real.admin.set_strategy(canary, wanted)
    await real.admin.switch(canary, True)
    ours = await real.admin.events_since([canary, shadow], entry)
    assert [event.kind for event in ours] == ["feature-environment-enabled", "feature-strategy-update"]
    assert all(event.flag == canary and event.leads_to(wanted, True) for event in ours)
    assert not any(event.leads_to(None, None) for event in ours)
    await real.admin.set_strategy(canary, Strategy(3, "userId", "r1", "canary", {"adapter": "a1"}))
    await real.admin.switch(canary, False)
    by_hand = await real.admin.events_since([canary, shadow], ours[0].entry)
    assert [event.leads_to(wanted, True) for event in by_hand] == [False, False]


async def test_after_a_crash_that_followed_an_entry_a_hand_on_shadow_stays_and_without_one_nothing_is_paused(
    real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(rollout: Rollout) -> None:
        raise DependencyUnavailable("it died")

    first = real.deployer
    with monkeypatch.context() as patched:
        patched.setattr(first.rollouts, "set_written", die)
        await first.handlers.on_evaluated(evaluated("a1", real.task))
        await first.handlers.on_evaluated(evaluated("b1", f"{real.task}-2"))
    await real.admin.switch(real.flag("shadow"), False)
    again = Deployer(first.rollouts, first.ledger, real.admin)
    await again.handlers.tick(real.task)
    await again.handlers.tick(f"{real.task}-2")
    paused = {change.candidate_adapter: change.paused for change in again.publisher.changes}
    assert paused == {"a1": "shadow is off, by hand", "b1": ""}
    shadow = await real.admin.read(real.flag("shadow"))
    assert shadow is not None and not shadow.enabled


async def test_a_redelivered_pair_and_label_are_in_the_ledger_once(real: Real) -> None:
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    events = [pair(deployer.last, number, ("refund", "delivery")) for number in range(3)]
    events += [pair(deployer.last, 3, ("refund", None)), pair(deployer.last, 4, ("refund", "refund"))]
    events += [pair(deployer.last, 5, ("refund", "delivery"), user="user-0")]
    for _ in range(2):
        await deployer.compare(*events)
    assert len(deployer.publisher.questions) == 3
    for _ in range(2):
        await deployer.handlers.on_corrections(deliveries([answer(deployer.publisher.questions[1], label="delivery")]))
        await deployer.handlers.on_corrections(deliveries([answer(deployer.publisher.questions[0], label="refund")]))
    ledger = await deployer.ledger.load(deployer.last.rollout_id)
    assert (ledger.outcomes, ledger.agreeing, ledger.asked) == ([-1.0, -1.0, 1.0, None], 1, 3)
    assert all(ticket.opens for ticket in ledger.tickets) and ledger.bets.agreeing == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("second", ["delivery", None])
async def test_a_pair_that_was_made_twice_is_in_the_ledger_as_it_was_made_first(real: Real, second: str | None) -> None:
    """Shadow was killed between the publication of a pair and the note of it; both are read at once."""
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    last = deployer.last
    made = [pair(last, 1, ("refund", "refund")), pair(last, 1, ("refund", second))]
    await deployer.compare(*made, pair(last, 2, ("refund", "delivery")))
    ledger = await deployer.ledger.load(last.rollout_id)
    assert (ledger.agreeing, ledger.outcomes, ledger.waiting) == (1, [None], [])
    assert [asked.prediction_id[-1] for asked in deployer.publisher.questions] == ["2"]


async def test_first_pairs_that_agree_count_once_a_subject_up_to_the_oldest_pair_that_waits(real: Real) -> None:
    deployer = Deployer(real.deployer.rollouts, real.deployer.ledger, real.admin, max_open=1)
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    await deployer.compare(*[pair(deployer.last, number, ("refund", "refund"), user="heavy") for number in range(3)])
    await deployer.compare(pair(deployer.last, 3, ("refund", "delivery"), user="heavy"))
    await deployer.compare(pair(deployer.last, 4, ("refund", "refund")))
    await deployer.compare(pair(deployer.last, 5, ("refund", "delivery")), pair(deployer.last, 6, ("refund", "refund")))
    waits = await deployer.ledger.load(deployer.last.rollout_id)
    assert ([ticket.opens for ticket in waits.tickets], waits.bets.agreeing) == ([False], [1, 2])
    await deployer.handlers.on_corrections(deliveries([answer(deployer.publisher.questions[0], label="refund")]))
    drawn = await deployer.ledger.load(deployer.last.rollout_id)
    assert ([ticket.opens for ticket in drawn.tickets], drawn.bets.agreeing) == ([False, True], [1, 2, 3])


async def test_the_margin_of_a_promotion_is_in_the_history_and_stays_debited_after_a_rollback(real: Real) -> None:
    deployer = real.deployer
    wanted: dict[str, Any] = {"non_inferiority": True, "annotator_error": 0.0, "cycles_per_year": 1, "max_labels": 2}
    await deployer.handlers.on_evaluated(evaluated("a1", real.task, canary_wealth=5, min_canary_users=0, **wanted))
    await deployer.compare(*[pair(deployer.last, number, ("refund", "refund")) for number in range(400)])
    for number, truth in ((400, "refund"), (401, "delivery")):
        await deployer.compare_and_label([number], truth)
    assert deployer.last.stage is Stage.PROMOTED
    debited = deployer.last.evidence.margin_debited
    (promotion,) = await deployer.rollouts.promotions(real.task)
    assert 0 < debited < 0.02 and (promotion.margin, promotion.stands) == (debited, True)
    await deployer.commands.rollback(real.task, "ann", "no")
    (promotion,) = await deployer.rollouts.promotions(real.task)
    assert (promotion.margin, promotion.stands) == (debited, False)


async def test_tickets_are_drawn_in_order_and_a_second_person_is_asked_after_cannot_tell(real: Real) -> None:
    deployer = Deployer(real.deployer.rollouts, real.deployer.ledger, real.admin, max_open=2)
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    await deployer.compare(pair(deployer.last, 0, ("refund", "delivery"), user="heavy"))
    await deployer.compare(pair(deployer.last, 1, ("refund", None), user="heavy"))
    await deployer.compare(*[pair(deployer.last, number, ("refund", "delivery")) for number in range(2, 6)])
    questions = deployer.publisher.questions
    assert [asked.prediction_id for asked in questions] == [f"{real.task}.0", f"{real.task}.2"]
    await deployer.handlers.on_corrections(deliveries([answer(questions[0], preference="cannot_tell")]))
    second = deployer.publisher.questions[-1]
    assert (second.ticket_id, second.request_id) == (questions[0].ticket_id, f"{questions[0].ticket_id}.2")
    await deployer.handlers.on_corrections(deliveries([answer(second, label="delivery", reviewer="bob")]))
    assert [asked.prediction_id for asked in deployer.publisher.questions][-1] == f"{real.task}.3"
    ledger = await deployer.ledger.load(deployer.last.rollout_id)
    assert ledger.outcomes == [1.0, None, None]
    for _ in range(2):  # Nobody else is there, so that the console asks the same person again.
        await deployer.handlers.on_corrections(deliveries([answer(questions[1], preference="cannot_tell")]))
    await deployer.handlers.on_corrections(
        deliveries([answer(deployer.publisher.questions[-1], preference="cannot_tell")])
    )
    ledger = await deployer.ledger.load(deployer.last.rollout_id)
    assert ledger.outcomes == [1.0, 0.0, None, None]


async def test_the_conversations_of_an_ended_rollout_are_deleted(real: Real) -> None:
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    await deployer.compare(pair(deployer.last, 99, ("refund", "delivery")))
    waiting = deployer.publisher.questions[0].ticket_id
    ticket = await deployer.ledger.ticket(waiting)
    assert ticket is not None and ticket.call is not None
    await deployer.compare_and_label(range(7), "refund")
    assert deployer.last.stage is Stage.SHADOW, "the open ticket may still be a win"
    await deployer.compare_and_label(range(7, 10), "refund")
    assert deployer.last.stage is Stage.REJECTED
    ticket = await deployer.ledger.ticket(waiting)
    assert ticket is not None and ticket.call is None


async def test_a_conversation_with_tools_is_in_the_ledger_as_it_was_compared(real: Real) -> None:
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    compared = pair_with_tools(deployer.last)
    cut = pair(deployer.last, 2, ("refund", "delivery"))
    cut = cut.model_copy(update={"call": cut.call.model_copy(update={"truncated": True})})
    await deployer.compare(compared, cut)
    asked, asked_cut = deployer.publisher.questions
    assert asked.call.model_dump_json() == compared.call.model_dump_json(), "the order of keys is kept, too"
    assert sorted(asked.answers, key=str) == sorted((compared.production_answer, compared.candidate_answer), key=str)
    assert asked_cut.call.truncated


def forget(task: str, subject_hash: str, at: datetime | None = None) -> SubjectForgotten:
    return SubjectForgotten(task=task, task_revision="r", subject_hash=subject_hash, occurred_at=at or utc_now())


async def test_forgetting_changes_no_number_and_leaves_no_text_of_the_person(real: Real) -> None:
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    name = deployer.last.rollout_id
    await deployer.compare_and_label(range(3), "delivery")
    await deployer.compare(
        pair(deployer.last, 5, ("refund", "refund"), user="user-1"),
        pair(deployer.last, 6, ("refund", None), user="user-6"),
        pair(deployer.last, 7, ("refund", "delivery"), user="user-7"),
        pair(deployer.last, 8, ("refund", "refund"), user="user-8"),
    )
    before = await deployer.ledger.load(name)
    for user in ("user-1", "user-6", "user-8"):
        await deployer.handlers.on_forgotten(forget(real.task, user))
    after = await deployer.ledger.load(name)
    assert (after.outcomes, after.agreeing) == (before.outcomes, before.agreeing) == ([1.0, 1.0, 1.0, -1.0, None], 2)
    assert (before.agreeing_subjects, after.agreeing_subjects) == (1, 0), "as their open tickets are void"
    rows = await real.dump("ledger")
    assert "question 2" in rows and "user-2" in rows
    assert not [word for word in ("user-1", "user-6", "question 1", "question 6") if word in rows]


async def test_an_open_ticket_of_a_forgotten_person_becomes_void(real: Real) -> None:
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    name = deployer.last.rollout_id
    await deployer.compare(*[pair(deployer.last, number, ("refund", "delivery")) for number in range(3)])
    asked = deployer.publisher.questions[1]
    assert (asked.user_hash, asked.predicted_at) == ("user-1", CUTOFF + timedelta(hours=1))
    await deployer.handlers.on_forgotten(forget(real.task, "user-1"))
    assert len((await deployer.ledger.load(name)).tickets) == 2
    await deployer.handlers.on_corrections(deliveries([answer(asked, label="delivery")]))
    await deployer.handlers.on_corrections(deliveries([answer(deployer.publisher.questions[2], label="delivery")]))
    await deployer.handlers.tick(real.task)
    assert (await deployer.ledger.load(name)).outcomes == [None, 1.0]
    assert len(deployer.publisher.questions) == 3


async def test_late_pairs_of_a_forgotten_person_are_dropped_and_newer_ones_do_not_bet(real: Real) -> None:
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    early = pair(deployer.last, 0, ("refund", "delivery"), user="u")
    await deployer.handlers.on_forgotten(forget(real.task, "u", early.logged_at))
    await deployer.compare(early)
    late = pair(deployer.last, 1, ("refund", "delivery"), user="u")
    await deployer.compare(late.model_copy(update={"logged_at": early.logged_at + timedelta(seconds=1)}))
    await deployer.compare(pair(deployer.last, 2, ("refund", "delivery")))
    assert [asked.prediction_id for asked in deployer.publisher.questions] == [f"{real.task}.2"]
    assert "question 0" not in await real.dump("ledger")


async def test_retention_deletes_texts_of_ended_rollouts_only(real: Real) -> None:
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    name = deployer.last.rollout_id
    early, late = (pair(deployer.last, number, ("refund", f"answer {number}")) for number in (0, 5))
    moment = early.logged_at + timedelta(days=1)
    await deployer.compare(early, late.model_copy(update={"logged_at": moment}))
    await deployer.handlers.expire(real.task, moment)
    assert "answer 0" in await real.dump("ledger")
    await deployer.transitions.end(real.task, Stage.REJECTED, "no reason")
    await deployer.handlers.expire("another-task", moment)
    assert "answer 0" in await real.dump("ledger")
    before = await deployer.ledger.load(name)
    await deployer.handlers.expire(real.task, moment)
    rows = await real.dump("ledger")
    assert ("answer 0" in rows, "answer 5" in rows) == (False, True)
    assert await deployer.ledger.load(name) == before


async def test_a_forgotten_user_with_failed_requests_is_still_counted_anonymously(real: Real) -> None:
    deployer = Deployer(real.deployer.rollouts, real.deployer.ledger, real.admin)
    await deployer.handlers.on_evaluated(evaluated("a1", real.task, canary_wealth=2))
    await deployer.compare_and_label(range(5), "delivery")
    assert deployer.last.stage is Stage.CANARY
    await deployer.see_canary(2, status=500)
    counted = (await deployer.ledger.load(deployer.last.rollout_id)).canary
    await deployer.handlers.on_forgotten(forget(real.task, "user-1"))
    assert "user-1" not in await real.dump("bad_users")
    early = observed(deployer.last, 1, Variant.CANARY, 500)
    await deployer.handlers.on_observed(
        deliveries([early.model_copy(update={"occurred_at": deployer.last.occurred_at})])
    )
    assert (await deployer.ledger.load(deployer.last.rollout_id)).canary == counted


async def test_a_forgotten_user_who_came_back_counts_once_though_the_erasure_is_read_again(real: Real) -> None:
    """As it is at the first start with offsets of the erasures, which are none yet."""
    deployer = Deployer(real.deployer.rollouts, real.deployer.ledger)
    await deployer.handlers.on_evaluated(evaluated("a1", real.task, canary_wealth=2))
    await deployer.compare_and_label(range(5), "delivery")
    erasure = forget(real.task, "user-1", deployer.last.occurred_at - timedelta(days=30))
    await deployer.handlers.on_forgotten(erasure)
    await deployer.see_canary(2, status=500)
    counted = (await deployer.ledger.load(deployer.last.rollout_id)).canary
    await deployer.handlers.on_forgotten(erasure)
    await deployer.see_canary(2, status=500)
    again = (await deployer.ledger.load(deployer.last.rollout_id)).canary
    assert again.bad(Guard.ERRORS) == counted.bad(Guard.ERRORS)
    assert "user-1," in await real.dump("bad_users")


async def test_what_guards_count_is_the_same_in_postgresql_and_in_the_rules(real: Real) -> None:
    rules = Deployer()
    for deployer in (real.deployer, rules):
        await deployer.handlers.on_evaluated(evaluated("a1", real.task, canary_steps=(5, 25)))
        await in_canary(deployer)
        assert deployer.last.stage is Stage.CANARY
        await deployer.handlers.on_feedback(feedback(deployer.last, 3_000))
        await see(deployer, range(5), Variant.CANARY, latency_ms=1.0)
        await deployer.compare_and_label(range(10, 25), "delivery")
        assert (deployer.last.stage, deployer.last.canary_percent) == (Stage.CANARY, 25)
        for _ in range(2):
            await see(deployer, range(30), Variant.CANARY, latency_ms=500.0, confidence=0.4)
            await see(deployer, range(30, 33), Variant.CANARY, latency_ms=5.0, confidence=0.9)
            await see(deployer, range(5), Variant.CANARY, latency_ms=1.0, day=1)
            await see(deployer, range(28, 31), Variant.CANARY, latency_ms=400.0, day=1)
            await leave(deployer, range(31, 34), Variant.CANARY, day=1)
            await leave(deployer, range(40, 45), Variant.CANARY, after_ms=20.0)
            await see(deployer, range(5, 9), Variant.CANARY, latency_ms=1.0)
            await see(deployer, range(2_000, 2_100), Variant.BASE, latency_ms=9_000.0)
        for number in (1, 1, 2, 77):
            await deployer.handlers.on_feedback(feedback(deployer.last, number))
            await deployer.handlers.on_corrections(deliveries([audited(deployer.last, number)]))
    counted, expected = [
        (await deployer.ledger.load(deployer.last.rollout_id)).canary for deployer in (real.deployer, rules)
    ]
    assert counted == expected
    assert counted.latencies.limit_ms == 1.2 * 197
    assert counted.arms[Guard.LATENCY] == [Arms(25, 29, 129)], "five had their first answer earlier that day"
    assert counted.confidences.count > 20
    assert 0.4 < counted.confidences.mean < 0.6
    assert [(arms.percent, arms.canary, arms.bad) for arms in counted.arms[Guard.FEEDBACK]] == [(5, 0, 1), (25, 2, 3)]
    assert (counted.bad(Guard.FEEDBACK), counted.bad(Guard.CORRECTIONS)) == ((2, 4), (2, 3))
    await real.deployer.handlers.on_forgotten(forget(real.task, "user-1"))
    await real.deployer.handlers.on_forgotten(forget(real.task, "user-28"))  # Slow on two days.
    assert "user-1)" not in await real.dump("canary_users")
    for table in ("bad_users", "canary_answers", "latencies"):
        rows = await real.dump(table)
        assert ("user-1," in rows, "user-2," in rows) == (False, True)
    assert (await real.deployer.ledger.load(real.deployer.last.rollout_id)).canary == counted


async def test_complaints_after_a_promotion_count_in_the_arm_that_answered_since(real: Real) -> None:
    rules = Deployer()
    settings = {"canary_wealth": 2, "min_canary_users": 0, "control_days": 7}
    for deployer in (real.deployer, rules):
        await deployer.handlers.on_evaluated(evaluated("a1", real.task, **settings))
        await deployer.compare_and_label(range(20), "delivery")
        assert deployer.last.stage is Stage.PROMOTED
        later = {"adapter": "a1", "occurred_at": deployer.last.occurred_at + timedelta(minutes=1)}
        answers = [(n, Variant.PRIMARY if n < 6 else Variant.ROLLBACK, 404 if n == 5 else 200) for n in range(9)]
        events = [observed(deployer.last, *request).model_copy(update=later) for request in answers]
        await deployer.handlers.on_observed(deliveries(events))
        for number in (*range(5), 6, 7, 8, 900):
            await deployer.handlers.on_feedback(feedback(deployer.last, number))
        counted = (await deployer.ledger.load(deployer.last.rollout_id)).canary
        assert [(arms.percent, arms.canary, arms.bad) for arms in counted.arms[Guard.FEEDBACK]] == [(95, 5, 8)]


async def test_a_canary_leaves_numbers_a_sample_of_its_answers_and_as_many_users_as_it_needs(
    real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row for each request would be gigabytes for a busy task. Both arms are sampled alike, by one rank."""
    monkeypatch.setattr(canaries, "SAMPLED_ANSWERS", 40)
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    await in_canary(deployer)
    for batch in range(4):
        numbers = range(25 * batch, 25 * batch + 25)
        records = deliveries([observed(deployer.last, n, Variant.CANARY, 502 if n == 7 else 200) for n in numbers])
        for _ in range(2):
            await deployer.handlers.on_observed(records)
    counted = (await deployer.ledger.load(deployer.last.rollout_id)).canary
    assert (counted.requests, counted.errors, counted.percent, counted.users) == (100, 1, 5, 5)
    rows = {table: len((await real.dump(table)).splitlines()) for table in ("canary_requests", "canary_answers")}
    assert rows == {"canary_requests": 1, "canary_answers": 40}

    for number in range(120):  # 100 of the canary, 20 of others.
        await deployer.handlers.on_feedback(feedback(deployer.last, number))
    ranks = [rank_of(deployer.last.rollout_id, f"{real.task}.seen-{number}") for number in range(120)]
    answered, others = [*ranks[:7], *ranks[8:100]], [ranks[7], *ranks[100:]]
    last = sorted(answered)[39]
    canary, bad = (await deployer.ledger.load(deployer.last.rollout_id)).canary.bad(Guard.FEEDBACK)
    assert (canary, bad - canary) == (40, sum(rank <= last for rank in others))

    await see(deployer, [7_777], Variant.BASE, latency_ms=9_000.0)
    assert "LATENCY" in await real.dump("bad_users")
    await deployer.transitions.end(real.task, Stage.REJECTED, "no reason")
    assert {await real.dump(table) for table in ("canary_users", "canary_answers", "latencies")} == {""}
    assert "LATENCY" not in await real.dump("bad_users")


async def test_the_primary_is_measured_by_a_random_sample_of_subjects_and_days(
    real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones alone would be one hour of one day: after a quiet one every canary is slow."""
    monkeypatch.setattr(canaries, "MEASURED_REQUESTS", 100)
    await real.deployer.handlers.on_evaluated(evaluated("a1", real.task))
    for batch in range(10):
        await see(real.deployer, range(100 * batch, 100 * batch + 100), Variant.BASE, latency_ms=float(batch))
    rows = (await real.dump("latencies")).splitlines()
    rollout, day = real.deployer.last.rollout_id, NOON.date().isoformat()
    chosen = sorted(range(1_000), key=lambda number: rank_of(rollout, f"user-{number}", day))[:100]
    assert {row.split(",")[1] for row in rows} == {f"user-{number}" for number in chosen}
    assert len(rows) == 100


async def test_requests_are_counted_until_a_promotion_is_settled(real: Real) -> None:
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task, canary_wealth=2))
    await deployer.compare_and_label(range(25), "delivery")
    await deployer.see_canary(5)
    deployer.adapters.is_away = True
    with pytest.raises(DependencyUnavailable):
        await deployer.handlers.tick(real.task)
    for guarded in (True, False):
        assert [r.stage for r in await deployer.rollouts.counting([real.task])] == [Stage.PROMOTED] * guarded
        deployer.adapters.is_away = False
        await deployer.handlers.tick(real.task)
    assert deployer.last.stage is Stage.PROMOTED


async def test_an_edited_answer_takes_the_place_of_an_older_one_which_redelivered_changes_nothing(
    real: Real,
) -> None:
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    await deployer.compare(pair(deployer.last, 0, ("refund", "delivery")))
    (asked,) = deployer.publisher.questions
    first = answer(asked, label="delivery")
    edited = first.model_copy(update={"label": "refund", "occurred_at": first.occurred_at + timedelta(minutes=5)})
    by_another = answer(asked, label="delivery", reviewer="bob")
    for given in (first, edited, first, edited):
        await deployer.handlers.on_corrections(deliveries([given]))
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == [-1.0]
    await deployer.handlers.on_corrections(deliveries([by_another]))
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == [0.0]
    (row,) = [
        row for row in (await real.dump("labels")).splitlines() if f"({asked.ticket_id},{asked.request_id},ann," in row
    ]
    assert row.endswith(",1)"), "the ledger says that an answer was edited once"


async def test_a_conversation_without_a_user_is_one_subject_of_whom_the_ledger_says_that_nobody_knows_them(
    real: Real,
) -> None:
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    nobody = {"subject": "conversation-1", "user_hash": None, "identified": False}
    pairs = [pair(deployer.last, number, ("refund", "delivery")).model_copy(update=nobody) for number in range(5)]
    await deployer.compare(*pairs, pair(deployer.last, 9, ("refund", "delivery")))
    ledger = await deployer.ledger.load(deployer.last.rollout_id)
    assert [ticket.identified for ticket in ledger.tickets] == [False, True]


async def test_two_processes_that_get_the_same_pairs_at_once_draw_the_same_tickets(real: Real) -> None:
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    events = [pair(deployer.last, number, ("refund", "delivery")) for number in range(5)]
    await asyncio.gather(*[deployer.compare(*events) for _ in range(4)])
    assert len(deployer.publisher.questions) == 5
    assert len((await deployer.ledger.load(deployer.last.rollout_id)).tickets) == 5


async def test_whoever_lost_the_tasks_lock_writes_nothing_more(real: Real) -> None:
    """As after a kill of PostgreSQL: the next holder draws tickets, too, and a pair must keep its place among them."""
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    rollouts, ledger = deployer.rollouts, deployer.ledger
    new = [pair(deployer.last, number, ("refund", "delivery")) for number in range(3)]
    rollout = await rollouts.get(deployer.last.rollout_id)
    ended = rollout.with_stage(Stage.REJECTED, "by nobody", rollout.evidence, utc_now())
    breaks = text(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory'"
        " AND objid::bigint = hashtext(:key)::bigint & 4294967295"
    )
    with pytest.raises(DependencyUnavailable):
        async with rollouts.locked(real.task):
            await ledger.add_pairs(rollout, new[:1], [True])
            async with rollouts._engine.begin() as connection:
                await connection.execute(breaks, {"key": f"deployer {real.task}"})
            for write in (
                ledger.add_pairs(rollout, new[1:], [True, True]),
                ledger.draw_tickets(rollout, 9),
                rollouts.save(ended),
                real.admin.switch(real.flag("canary"), True),
                real.admin.set_strategy(real.flag("canary"), Strategy(percent=50)),
            ):
                with pytest.raises(DependencyUnavailable, match="the connection that held the task's lock broke"):
                    await write
    assert len((await ledger.load(rollout.rollout_id)).in_turn) == 1
    canary = await real.admin.read(real.flag("canary"))
    assert canary is not None and (canary.enabled, canary.percent) == (False, 5)
    assert deployer.last.stage is Stage.SHADOW
    async with rollouts.locked(real.task):
        await ledger.add_pairs(rollout, new, [True] * 3)
        await ledger.draw_tickets(rollout, 9)
    assert len(await ledger.unpublished_tickets(rollout.rollout_id)) == 3


async def test_the_lock_of_a_process_whose_machine_vanished_is_free_within_a_minute(real: Real) -> None:
    """PostgreSQL asked a silent client after two hours: so long no guard could end the canary of that task."""
    names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")
    columns = ", ".join(f"current_setting('{name}')" for name in names)
    async with real.deployer.rollouts._engine.begin() as connection:
        idle, interval, count, unanswered = (await connection.execute(text(f"SELECT {columns}"))).one()
    assert int(idle) + int(interval) * int(count) <= 60
    assert 0 < int(unanswered) <= 60_000, "milliseconds"


async def test_a_change_that_a_crash_left_unsettled_is_finished_by_another_process(real: Real) -> None:
    first = real.deployer
    first.publisher.is_away = True
    await first.handlers.on_evaluated(evaluated("a1", real.task))
    second = Deployer(first.rollouts, first.ledger, real.admin)
    await second.handlers.tick(real.task)
    await second.handlers.tick(real.task)
    assert (second.last.stage, second.publisher.sent) == (Stage.SHADOW, 2)


async def test_a_flag_that_an_operator_turned_off_stays_off(real: Real) -> None:
    deployer = real.deployer
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    await real.admin.switch(real.flag("primary"), False)
    await deployer.compare_and_label(range(12), "delivery")
    await deployer.handlers.tick(real.task)
    primary = await real.admin.read(real.flag("primary"))
    assert primary is not None and not primary.enabled
    assert deployer.last.stage is Stage.SHADOW


async def test_an_archived_flag_pauses_as_a_hand_and_is_no_obstacle_to_the_end_of_its_candidate(real: Real) -> None:
    deployer, flag = real.deployer, real.flag("canary")
    await deployer.handlers.on_evaluated(evaluated("a1", real.task))
    await deployer.compare_and_label(range(10), "delivery")
    assert deployer.last.stage is Stage.CANARY
    await real.admin._request("DELETE", f"{real.admin._features}/{flag}")  # Which archives it.
    state = await real.admin.read(flag)
    assert state is not None and (state.archived, state.enabled) == (True, False)
    await deployer.handlers.tick(real.task)
    assert (deployer.last.stage, deployer.last.paused) == (Stage.CANARY, "canary is archived, by hand")
    await deployer.commands.rollback(real.task, "ben", "no more")
    assert (deployer.last.stage, await deployer.rollouts.unsettled(real.task)) == (Stage.REJECTED, [])
    with pytest.raises(DependencyUnavailable, match="is archived"):
        await real.admin.switch(flag, True)


async def test_one_candidate_is_compared_and_the_newest_waits_for_its_turn(real: Real) -> None:
    deployer = real.deployer
    for adapter in ("a1", "a2", "a3"):
        await deployer.handlers.on_evaluated(evaluated(adapter, real.task))
    assert [r.candidate for r in await deployer.rollouts.counting([real.task])] == ["a1"]
    waiting = await deployer.rollouts.waiting(real.task)
    assert waiting is not None and waiting.candidate == "a3"
    assert await deployer.rollouts.unsettled(real.task) == []
    assert deployer.last.candidate_adapter == "a1"
    await deployer.transitions.end(real.task, Stage.REJECTED, "no reason")
    again = Deployer(deployer.rollouts, deployer.ledger, real.admin)  # It is in the database, not in a process.
    await again.handlers.tick(real.task)
    entered = await again.rollouts.last_entered(real.task)
    assert entered is not None and (entered.candidate, entered.stage) == ("a3", Stage.SHADOW)
    first, second = await again.rollouts.draws(real.task)
    assert (first.amount, second.amount < first.amount / 1_000) == (pytest.approx(0.05 / 52), True)


async def test_every_candidate_that_entered_shadow_is_listed_ended_or_not(real: Real) -> None:
    deployer = real.deployer
    for adapter, passed in (("a1", True), ("a2", False), ("a3", True)):
        await deployer.handlers.on_evaluated(evaluated(adapter, real.task, passed=passed))
        await deployer.transitions.end(real.task, Stage.REJECTED, "no reason")
    assert {"a1", "a3"} <= set(await deployer.rollouts.candidates())
    assert "a2" not in await deployer.rollouts.candidates()


async def test_a_flag_is_created_once_with_its_percentage_clamped(real: Real) -> None:
    flag = real.flag("canary")
    over = Strategy(percent=150, stickiness="userId", variant="canary", payload={"adapter": "a1"})
    await real.admin.ensure(flag, "a test", over)
    await real.admin.ensure(flag, "a test", Strategy(percent=1))
    state = await real.admin.read(flag)
    assert state is not None and not state.enabled
    assert [s["parameters"]["rollout"] for s in state.strategies] == ["100"]
    assert state.matches(over.body(flag))
    await real.admin.set_strategy(flag, Strategy(percent=7, stickiness="userId"))
    state = await real.admin.read(flag)
    assert state is not None and [s["parameters"]["rollout"] for s in state.strategies] == ["7"]
    assert state.payload is None


async def test_a_wrong_token_is_reported(stack_settings: Settings) -> None:
    admin = UnleashAdmin(stack_settings.unleash, "*:*.wrong")
    with pytest.raises(DependencyUnavailable, match="401"):
        await admin.ensure(f"ratchet.{uuid4().hex}.primary", "a test", Strategy())
    await admin.close()


def test_each_migration_is_named_after_the_service() -> None:
    for path in Path(MIGRATIONS).glob("0*.py"):
        assert f'revision = "deployer_{path.name[:4]}_' in path.read_text()
