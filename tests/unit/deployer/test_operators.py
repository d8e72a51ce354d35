"""What people do to a rollout: flags turned by hand, and the commands of `ratchet rollout`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from schemas.base import utc_now
from schemas.rollouts import Stage
from schemas.tasks import TaskChanged
from services.deployer.clients import FlagState, Strategy
from services.deployer.operators.commands import CommandRefused
from services.deployer.operators.http import build_app
from services.deployer.operators.webhook import Webhook
from services.deployer.settings import DeployerSettings
from shared.errors import DependencyUnavailable
from tests.unit.deployer.fakes import Deployer, answer, deliveries, evaluated, in_canary, in_shadow, pair, spec

TASK = "support-desk"
FLAGS = {flag: f"ratchet.{TASK}.{flag}" for flag in ("primary", "rollback", "canary", "shadow")}


def with_share(state: FlagState, percent: int) -> FlagState:
    parameters = {**state.strategies[0]["parameters"], "rollout": str(percent)}
    return FlagState(state.enabled, ({**state.strategies[0], "parameters": parameters},))


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("primary", "primary is off: the base model serves, by hand"),
        ("rollback", "rollback is on: the previous adapter serves, by hand"),
        ("canary", "canary is off, by hand"),
        ("shadow", "shadow is off, by hand"),
    ],
)
async def test_a_hand_on_any_flag_pauses_the_candidate_until_a_person_says_go_on(flag: str, says: str) -> None:
    deployer = await in_canary()
    own = deployer.admin.flags[FLAGS[flag]]
    await deployer.admin.switch(FLAGS[flag], not own.enabled)
    await deployer.handlers.tick(TASK)
    paused = deployer.last
    assert (paused.stage, paused.paused, paused.moved_by) == (Stage.CANARY, says, "ann in Unleash")
    writes = deployer.admin.writes
    await deployer.admin.switch(FLAGS[flag], own.enabled)
    await deployer.compare_and_label(range(12, 30), "delivery")
    await deployer.see_canary(5)
    for _ in range(3):
        await deployer.handlers.tick(TASK)
    assert deployer.last == paused, "back by hand is no word that it may go on"
    assert deployer.admin.writes == writes + 1
    await deployer.commands.resume(TASK, "ben", "the outage is over")
    assert deployer.last.stage is Stage.PROMOTED
    resumed = (await deployer.rollouts.history(TASK, 10))[1]
    assert (resumed.stage, resumed.paused, resumed.moved_by) == (Stage.CANARY, "", "ben")
    assert resumed.reason == "resumed: the outage is over"


@pytest.mark.parametrize("change", [{}, {"segments": [7]}, {"constraints": [{"contextName": "plan"}]}])
async def test_a_canary_that_is_changed_before_it_begins_pauses_the_candidate(change: dict[str, Any]) -> None:
    """The canary began all the same, for everybody. It was another candidate's before."""
    deployer = await in_shadow()
    await deployer.handlers.on_evaluated(evaluated("b1"))
    await deployer.commands.rollback(TASK, "ben", "the newer one")
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage, deployer.last.paused) == ("b1", Stage.SHADOW, "")
    found = with_share(deployer.admin.flags[FLAGS["canary"]], 5 if change else 1)
    canary = deployer.admin.flags[FLAGS["canary"]] = FlagState(False, ({**found.strategies[0], **change},))
    await deployer.compare_and_label(range(12), "delivery")
    assert (deployer.last.stage, deployer.last.moved_by) == (Stage.SHADOW, "ann in Unleash")
    assert deployer.last.paused.startswith("canary has ")
    assert deployer.admin.flags[FLAGS["canary"]] == canary
    await deployer.commands.resume(TASK, "ben", "for everybody")
    assert (deployer.last.stage, deployer.admin.flags[FLAGS["canary"]].added) == (Stage.CANARY, "")


async def test_a_hand_on_a_share_pauses_and_a_resumption_sets_canary_and_shadow_again() -> None:
    deployer = await in_canary()
    own = dict(deployer.admin.flags)
    deployer.admin.flags[FLAGS["canary"]] = with_share(own[FLAGS["canary"]], 90)
    await deployer.admin.switch(FLAGS["shadow"], False)
    await deployer.handlers.tick(TASK)
    assert deployer.last.paused == "canary has another share than 5 %: 90 %; shadow is off, by hand"
    await deployer.commands.resume(TASK, "ben", "a mistake")
    assert deployer.admin.flags == own


A_PAYLOAD = {"name": "canary", "weight": 1000, "payload": {"type": "json", "value": '{"adapter": "b1"}'}}
OTHERWISE: dict[str, Any] = {
    "canary has no payload": lambda own: ({**own, "variants": []},),
    "canary's payload is {'adapter': 'b1'}": lambda own: ({**own, "variants": [A_PAYLOAD]},),
    "canary has 2 strategies": lambda own: (own, {**own, "id": "2"}),
    "canary has 2 strategies and a segment": lambda own: (own, {**own, "id": "2", "segments": [7]}),
    "canary has no strategy": lambda own: (),
    "canary has another type, stickiness, group or variant": lambda own: (
        {**own, "parameters": {**own["parameters"], "stickiness": "random"}},
    ),
}


@pytest.mark.parametrize("words", OTHERWISE)
async def test_a_pause_names_what_a_hand_did_to_the_canary_and_nothing_counts_at_a_share_that_is_not_known(
    words: str,
) -> None:
    deployer = await in_canary()
    state = deployer.admin.flags[FLAGS["canary"]]
    by_hand = replace(state, strategies=OTHERWISE[words](state.strategies[0]))
    deployer.admin.flags[FLAGS["canary"]] = by_hand
    await deployer.handlers.tick(TASK)
    assert deployer.last.paused == f"{words}, by hand"
    assert (await deployer.rollouts.last_entered(TASK)).counted_percent is None
    await deployer.compare_and_label(range(12, 30), "delivery")
    assert (deployer.last.stage, deployer.admin.flags[FLAGS["canary"]]) == (Stage.CANARY, by_hand)


@pytest.mark.parametrize(("strategies", "words"), [
    (lambda own: (own, {**own, "id": "2"}), "primary is not for everyone: it has 2 strategies"),
    (lambda own: ({**own, "name": "userWithId", "parameters": {"userIds": "7"}},),
     "primary is not for everyone: it has a strategy of type userWithId"),
    (lambda own: ({**own, "variants": []},), "primary has no payload that can be read: the base model serves"),
])  # fmt: skip
async def test_a_primary_that_is_not_for_everyone_any_more_pauses_whatever_its_first_payload_says(
    strategies: Any, words: str
) -> None:
    """One of several strategies may serve half of the users another payload; the first one was compared."""
    deployer = await in_canary()
    state = deployer.admin.flags[FLAGS["primary"]]
    deployer.admin.flags[FLAGS["primary"]] = replace(state, strategies=strategies(state.strategies[0]))
    await deployer.handlers.tick(TASK)
    assert deployer.last.paused == f"{words}, by hand"


async def test_a_candidate_that_enters_serves_nobody_by_a_canary_that_was_on_without_a_payload() -> None:
    """Its payload was given to the flag before that was turned off; where a crash came between, 5 % were served."""
    deployer = Deployer()
    deployer.admin.flags[FLAGS["canary"]] = FlagState(True, (Strategy().body(FLAGS["canary"]),))
    event = evaluated()
    for writes in range(8):
        deployer.admin.crash_at = writes
        await deployer.handlers.on_evaluated(event)
        assert deployer.admin.serves(TASK, in_canary=True) is None
    deployer.admin.crash_at = None
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.admin.serves(TASK, in_canary=True)) == (Stage.SHADOW, None)


NARROWED: dict[str, dict[str, Any]] = {
    "a constraint": {"constraints": [{"contextName": "region", "operator": "IN", "values": ["eu"]}]},
    "a segment": {"segments": [7]},
    "a disabled strategy": {"disabled": True},
    "another share": {"parameters": {"rollout": "50", "stickiness": "default", "groupId": "x"}},
    "a parent flag": {},
}


def narrowed(deployer: Deployer, flag: str, how: str) -> None:
    """What a person does to a flag, or to its strategy, in Unleash."""
    state = deployer.admin.flags[FLAGS[flag]]
    if how == "a parent flag":
        deployer.admin.flags[FLAGS[flag]] = replace(state, parents=("new-design",))
        return
    deployer.admin.flags[FLAGS[flag]] = FlagState(state.enabled, ({**state.strategies[0], **NARROWED[how]},))


@pytest.mark.parametrize("flag", ["primary", "canary", "shadow"])
@pytest.mark.parametrize("how", NARROWED)
async def test_whatever_a_hand_adds_to_a_strategy_pauses_since_it_changes_who_is_served(flag: str, how: str) -> None:
    deployer = await in_canary()
    narrowed(deployer, flag, how)
    await deployer.handlers.tick(TASK)
    assert deployer.last.paused.startswith(f"{flag} "), deployer.last.paused
    assert (deployer.last.stage, deployer.last.moved_by) == (Stage.CANARY, "ann in Unleash")


@pytest.mark.parametrize("how", NARROWED)
async def test_a_resumption_takes_back_what_a_hand_added_to_canary_and_shadow_and_waits_for_primary(how: str) -> None:
    deployer = await in_canary()
    own = dict(deployer.admin.flags)
    for flag in ("primary", "canary", "shadow"):
        narrowed(deployer, flag, how)
    await deployer.handlers.tick(TASK)
    with pytest.raises(CommandRefused, match="primary is not for everyone"):
        await deployer.commands.resume(TASK, "ben", "go")
    deployer.admin.flags[FLAGS["primary"]] = own[FLAGS["primary"]]
    await deployer.commands.resume(TASK, "ben", "go")
    assert (deployer.last.paused, deployer.admin.flags) == ("", own)


async def test_a_rollback_by_hand_that_leaves_users_out_says_so() -> None:
    """The history said that the adapter before serves again, and nothing of those whom the promoted one served on."""
    deployer = await in_canary()
    narrowed(deployer, "rollback", "a constraint")
    await deployer.admin.switch(FLAGS["rollback"], True)
    await deployer.handlers.tick(TASK)
    left_out = "perhaps not everyone: the flag has a constraint"
    assert deployer.last.paused == f"rollback is on: the previous adapter serves, {left_out}, by hand"
    deployer = await in_canary(25)
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    narrowed(deployer, "rollback", "a constraint")
    await deployer.admin.switch(FLAGS["rollback"], True)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.ROLLED_BACK
    assert deployer.last.reason == f"rollback was turned on: the base model serves again, {left_out}"


@pytest.mark.parametrize("how", NARROWED)
async def test_a_rollback_is_for_everyone_whatever_a_hand_has_added_to_its_flag(how: str) -> None:
    """Harm took a promotion back for a part of the users only, and the record said for all."""
    deployer = await in_canary(25)
    own = deployer.admin.flags[FLAGS["rollback"]]
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    narrowed(deployer, "rollback", how)
    await deployer.commands.rollback(TASK, "ben", "bad tone")
    rollback = deployer.admin.flags[FLAGS["rollback"]]
    assert rollback == replace(own, enabled=True)


@pytest.mark.parametrize("flag", ["primary", "rollback"])
async def test_nobody_resumes_while_a_hand_is_on_what_serves_everybody(flag: str) -> None:
    deployer = await in_canary()
    own = deployer.admin.flags[FLAGS[flag]]
    await deployer.admin.switch(FLAGS[flag], not own.enabled)
    await deployer.handlers.tick(TASK)
    with pytest.raises(CommandRefused, match="no pair would count"):
        await deployer.commands.resume(TASK, "ben", "go")
    assert deployer.last.paused
    assert deployer.admin.flags[FLAGS[flag]].enabled is not own.enabled


async def test_a_flag_that_was_turned_between_two_ticks_is_seen_before_any_move() -> None:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated())
    await deployer.admin.switch(FLAGS["shadow"], False)
    await deployer.compare_and_label(range(12), "delivery")  # No tick between the hand and the twelfth label.
    assert (deployer.last.stage, deployer.last.paused) == (Stage.SHADOW, "shadow is off, by hand")
    assert not deployer.admin.flags[FLAGS["canary"]].enabled


async def test_a_pause_survives_a_crash_and_an_outage_of_unleash() -> None:
    deployer = await in_canary()
    await deployer.commands.pause(TASK, "ben", "a holiday")
    again = Deployer(deployer.rollouts, deployer.ledger, deployer.admin)
    again.admin.crash_at = 0
    await again.compare_and_label_in(deployer.last, range(12, 30), "delivery")
    again.admin.crash_at = None
    await again.see_canary_of(deployer.last, 5)
    await again.handlers.tick(TASK)
    rollout = await again.rollouts.last_entered(TASK)
    assert (rollout.stage, rollout.paused) == (Stage.CANARY, "a holiday")


async def test_harm_and_the_guard_end_a_paused_candidate() -> None:
    deployer = await in_canary()
    await deployer.commands.pause(TASK, "ben", "a holiday")
    await deployer.compare_and_label(range(12, 60), "refund")
    assert deployer.last.stage is Stage.REJECTED
    deployer = await in_canary()
    await deployer.commands.pause(TASK, "ben", "a holiday")
    await deployer.see_canary(30, status=502)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.REJECTED
    assert not deployer.admin.flags[FLAGS["canary"]].enabled


async def test_a_pause_does_not_stop_the_clock_and_ends_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = await in_canary(25, max_days=10)
    entered = deployer.last.occurred_at
    await deployer.see_canary(5)
    for days in (5.0, 9.9, 10.1):
        monkeypatch.setattr("services.deployer.transitions.utc_now", lambda days=days: entered + timedelta(days=days))
        monkeypatch.setattr(
            "services.deployer.operators.commands.utc_now", lambda days=days: entered + timedelta(days=days)
        )
        if days == 5.0:
            await deployer.commands.pause(TASK, "ben", "a holiday")
        await deployer.handlers.tick(TASK)
        assert (deployer.last.stage is Stage.INCONCLUSIVE) is (days > 10)
    assert "10 days in canary without a person's word that it may go on" in deployer.last.reason
    assert deployer.admin.serves(TASK, in_canary=True) is None


async def test_the_last_step_waits_for_a_persons_approval_where_the_task_asks_for_it() -> None:
    deployer = await in_canary(12, approval=True)
    with pytest.raises(CommandRefused, match="a1 is in canary and not proven yet: wealth"):
        await deployer.commands.promote(TASK, "ben", "looks good")
    await deployer.compare_and_label(range(12, 25), "delivery")
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY
    await deployer.commands.promote(TASK, "ben", "looks good")
    assert (deployer.last.stage, deployer.last.moved_by) == (Stage.PROMOTED, "ben")
    assert deployer.last.reason.startswith("approved: looks good; wealth ")
    assert deployer.admin.serves(TASK) == "a1"


async def test_an_approval_that_the_tasks_file_asks_for_meanwhile_holds_for_the_candidate_that_is_compared() -> None:
    deployer = await in_canary(24)
    changed = spec(approval=True)
    await deployer.handlers.on_task(TaskChanged(task=TASK, task_revision=changed.revision, spec=changed))
    await deployer.see_canary(5)
    await deployer.compare_and_label(range(24, 26), "delivery")
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY, "it was promoted by the settings of its evaluation"
    await deployer.commands.promote(TASK, "ben", "looks good")
    assert (deployer.last.stage, deployer.last.moved_by) == (Stage.PROMOTED, "ben")


async def test_an_approval_that_the_tasks_file_asks_for_no_more_holds_back_no_candidate_that_is_compared() -> None:
    deployer = await in_canary(25, approval=True)
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY
    changed = spec(approval=False)
    await deployer.handlers.on_task(TaskChanged(task=TASK, task_revision=changed.revision, spec=changed))
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.moved_by) == (Stage.PROMOTED, "ratchet")


@pytest.mark.parametrize("by", ["ratchet", "ben"])
async def test_an_approval_that_is_asked_for_while_a_promotion_waits_holds_for_it_unless_a_person_made_it(
    by: str,
) -> None:
    deployer = await in_canary(25, approval=by == "ben")
    await deployer.see_canary(5)
    deployer.adapters.is_away = True
    with pytest.raises(DependencyUnavailable, match="vLLM is away"):
        await (deployer.handlers.tick(TASK) if by == "ratchet" else deployer.commands.promote(TASK, "ben", "good"))
    changed = spec(approval=True)
    await deployer.handlers.on_task(TaskChanged(task=TASK, task_revision=changed.revision, spec=changed))
    deployer.adapters.is_away = False
    for _ in range(2):
        await deployer.handlers.tick(TASK)
    if by == "ratchet":
        assert deployer.last.reason == (
            "stays in canary, its next move is not made: the task wants a person's approval by now"
        )
        assert (deployer.last.stage, deployer.admin.serves(TASK)) == (Stage.CANARY, None)
        await deployer.commands.promote(TASK, "ben", "good")
    assert (deployer.last.stage, deployer.last.moved_by) == (Stage.PROMOTED, "ben")


@pytest.mark.parametrize("passed", [True, False])
async def test_a_newer_candidate_that_comes_while_an_approved_promotion_waits_takes_no_approval_back(
    passed: bool,
) -> None:
    deployer = await in_canary(25, approval=True)
    await deployer.see_canary(5)
    deployer.adapters.is_away = True
    with pytest.raises(DependencyUnavailable, match="vLLM is away"):
        await deployer.commands.promote(TASK, "ben", "good")
    await deployer.handlers.on_evaluated(evaluated("a2", passed=passed, approval=True))
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    (promotion,) = [change for change in deployer.publisher.changes if change.stage is Stage.PROMOTED]
    assert (promotion.candidate_adapter, promotion.moved_by) == ("a1", "ben")
    assert deployer.admin.serves(TASK) == "a1"


@pytest.mark.parametrize("flag", FLAGS)
async def test_an_approval_overrules_no_hand_on_a_flag(flag: str) -> None:
    deployer = await in_canary(25, approval=True)
    await deployer.see_canary(5)
    await deployer.admin.switch(FLAGS[flag], not deployer.admin.flags[FLAGS[flag]].enabled)
    flags = dict(deployer.admin.flags)
    with pytest.raises(CommandRefused, match=f"a1 is paused: {flag} is o"):
        await deployer.commands.promote(TASK, "ben", "looks good")
    assert (deployer.last.stage, deployer.last.moved_by) == (Stage.CANARY, "ann in Unleash")
    assert deployer.admin.flags == flags


async def test_nobody_promotes_what_is_paused() -> None:
    deployer = await in_canary(25, approval=True)
    await deployer.see_canary(5)
    await deployer.commands.pause(TASK, "ben", "a holiday")
    with pytest.raises(CommandRefused, match="paused: a holiday"):
        await deployer.commands.promote(TASK, "ben", "looks good")


@pytest.mark.parametrize("command", ["promote", "resume"])
async def test_nobody_promotes_or_resumes_a_candidate_whose_task_has_changed_since_the_last_tick(command: str) -> None:
    deployer = await in_canary(25, approval=True)
    await deployer.see_canary(5)
    if command == "resume":
        await deployer.commands.pause(TASK, "ben", "a holiday")
    changed = spec(approval=True).model_copy(update={"system_prompt": "Classify with care."})
    await deployer.handlers.tasks.put(TASK, TaskChanged(task=TASK, task_revision=changed.revision, spec=changed))
    with pytest.raises(CommandRefused, match="no candidate in shadow or canary"):
        await getattr(deployer.commands, command)(TASK, "ben", "looks good")
    assert (deployer.last.stage, deployer.admin.serves(TASK)) == (Stage.INCONCLUSIVE, None)
    assert "prompt, labels or base model changed" in deployer.last.reason
    assert not deployer.admin.flags[FLAGS["canary"]].enabled


async def test_the_refusal_of_a_promotion_says_what_follows_where_somebody_sets_primary_by_hand_all_the_same() -> None:
    """It advised that, and each later candidate was paused for it, which nobody had been told."""
    deployer = await in_canary()
    own = deployer.admin.flags[FLAGS["primary"]]
    with pytest.raises(CommandRefused) as refused:
        await deployer.commands.promote(TASK, "ben", "it is good")
    assert refused.value.way_out == (
        "Wait for more labels. If primary is set by hand in Unleash instead, nothing guards a1 any more, and this "
        f"candidate and each later one is paused until ratchet.{TASK}.primary is put back and somebody resumes it."
    )
    unproven = Strategy(variant="primary", payload={"adapter": "a1", "previous": None})
    await deployer.admin.set_strategy(FLAGS["primary"], unproven)
    await deployer.handlers.tick(TASK)
    await deployer.see_canary(40, status=500)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a1", Stage.CANARY), "no guard counts"
    assert deployer.last.paused.startswith("primary's payload is")
    await deployer.commands.rollback(TASK, "ben", "a2 comes")
    await deployer.handlers.on_evaluated(evaluated("a2"))
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a2", Stage.SHADOW)
    assert deployer.last.paused.startswith("primary's payload is")
    with pytest.raises(CommandRefused, match="no pair would count"):
        await deployer.commands.resume(TASK, "ben", "go")
    deployer.admin.flags[FLAGS["primary"]] = own
    await deployer.commands.resume(TASK, "ben", "go")
    assert not deployer.last.paused


async def test_a_persons_rollback_ends_the_candidate_or_takes_the_promoted_adapter_back() -> None:
    deployer = await in_canary(25)
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    assert deployer.admin.serves(TASK) == "a1"
    await deployer.handlers.on_evaluated(evaluated("a2", against="a1"))
    await deployer.commands.rollback(TASK, "ben", "bad tone")
    assert (deployer.last.stage, deployer.last.reason, deployer.last.moved_by) == (
        Stage.REJECTED,
        "ended: bad tone",
        "ben",
    )
    assert deployer.admin.serves(TASK) == "a1", "the one that serves is another question"


async def test_a_persons_rollback_of_the_promoted_adapter_turns_the_flag() -> None:
    deployer = await in_canary(25)
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    await deployer.commands.rollback(TASK, "ben", "bad tone")
    assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.ROLLED_BACK, None)
    assert deployer.admin.flags[FLAGS["rollback"]].enabled
    assert deployer.admin.serves(TASK) is None
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.ROLLED_BACK
    with pytest.raises(CommandRefused, match="neither a candidate nor a promoted adapter"):
        await deployer.commands.rollback(TASK, "ben", "again")


async def test_a_rollback_that_a_crash_interrupts_is_finished_later() -> None:
    deployer = await in_canary(25)
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    deployer.admin.crash_at = 0
    with pytest.raises(DependencyUnavailable):
        await deployer.commands.rollback(TASK, "ben", "bad tone")
    deployer.admin.crash_at = None
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.ROLLED_BACK
    assert deployer.admin.flags[FLAGS["rollback"]].enabled


async def test_the_history_has_every_change_with_its_evidence_and_is_only_added_to() -> None:
    deployer = await in_canary(25)
    await deployer.see_canary(5)
    await deployer.commands.pause(TASK, "ben", "a holiday")
    await deployer.commands.resume(TASK, "cleo", "back")
    moves = await deployer.rollouts.history(TASK, 10)
    assert [(move.stage, move.moved_by) for move in reversed(moves)] == [
        (Stage.QUEUED, "ratchet"),
        (Stage.SHADOW, "ratchet"),
        (Stage.CANARY, "ratchet"),
        (Stage.CANARY, "ben"),
        (Stage.CANARY, "cleo"),
        (Stage.PROMOTED, "ratchet"),
    ]
    assert [move.evidence.wins for move in reversed(moves)] == [0, 0, 10, 25, 25, 25]


class Chat:
    """A receiver outside; `answers` are its next statuses, then 200."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.texts: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        status = self.answers.pop(0) if self.answers else 200
        if status == 200:
            self.texts.append(json.loads(request.content)["text"])
        return httpx.Response(status)


def posting(deployer: Deployer, chat: Chat, address: str = "https://chat.example/hook") -> Webhook:
    webhook = Webhook(DeployerSettings(deployer_webhook=address), deployer.rollouts)
    webhook._client = httpx.AsyncClient(transport=httpx.MockTransport(chat))
    return webhook


async def test_every_move_is_posted_once_in_order_with_who_and_why_and_a_link() -> None:
    deployer, chat = await in_canary(), Chat()
    await deployer.commands.pause(TASK, "ben", "a holiday")
    webhook = posting(deployer, chat)
    for _ in range(2):
        await webhook.notify()
    assert [text.split(" (by ")[0] for text in chat.texts] == [
        f"{TASK}: a1 is {stage}" for stage in ("queued", "shadow", "canary of 5 %", "canary of 5 %, paused")
    ]
    assert chat.texts[-1].endswith("(by ben): paused: a holiday\nhttp://127.0.0.1:28090/cycles/cycle-1")


async def test_a_chat_that_is_away_gets_the_moves_later_and_one_that_refuses_does_not_hold_them_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    deployer, chat = await in_canary(), Chat(503, 429, 400)
    webhook = posting(deployer, chat, "https://me:s3cret@chat.example/hook")
    for _ in range(2):
        with pytest.raises(DependencyUnavailable) as error:
            await webhook.notify()
        assert "s3cret" not in error.value.reason
    await webhook.notify()
    assert [text.split(" (by ")[0] for text in chat.texts] == [
        f"{TASK}: a1 is {stage}" for stage in ("shadow", "canary of 5 %")
    ]
    assert "refused by the webhook: 400" in caplog.text


async def test_whoever_sets_the_address_late_does_not_get_the_whole_history(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer, chat = await in_canary(), Chat()
    later = utc_now() + timedelta(days=2)
    monkeypatch.setattr("services.deployer.operators.webhook.utc_now", lambda: later)
    await posting(deployer, chat).notify()
    assert chat.texts == []


async def test_without_an_address_nothing_is_posted() -> None:
    await posting(await in_canary(), Chat(500), "").notify_forever()


@asynccontextmanager
async def api(deployer: Deployer) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(
        DeployerSettings(), deployer.rollouts, deployer.ledger, deployer.transitions, deployer.commands,
        deployer.handlers.trouble, lambda adapter: f"http://b: no artifact of {adapter}",
    )  # fmt: skip
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://d") as http:
        yield http


async def test_the_api_shows_the_control_of_a_promotion_and_what_was_seen_since() -> None:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated(canary_wealth=2, min_canary_users=0, control_days=2))
    await deployer.compare_and_label(range(20), "delivery")
    fresh = pair(deployer.last, 50, ("refund", "delivery")).model_copy(update={"after_promotion": True})
    await deployer.compare(fresh)
    await deployer.handlers.on_corrections(deliveries([answer(deployer.publisher.questions[-1], label="delivery")]))
    async with api(deployer) as http:
        (shown,) = (await http.get("/api/rollouts")).json()["rollouts"]
    assert (shown["stage"], shown["control_percent"], shown["evidence"]["control_labels"]) == ("promoted", 5, 1)
    assert 0 < shown["evidence"]["guards"] < 1, "a win speaks for it"
    since = deployer.last.promoted_at
    assert since is not None
    assert datetime.fromisoformat(shown["control_until"]) - since == timedelta(days=2)


async def test_the_api_shows_the_evidence_of_now_and_takes_commands() -> None:
    deployer = await in_canary()
    async with api(deployer) as http:
        (shown,) = (await http.get("/api/rollouts")).json()["rollouts"]
        assert (shown["stage"], shown["evidence"]["wins"], shown["canary_wealth"]) == ("canary", 12, 20.0)
        assert shown["adapters"] == {"a1": "http://b: no artifact of a1"}
        told = await http.post(f"/api/rollouts/{TASK}/pause", json={"by": "ben", "reason": "a holiday"})
        assert (told.status_code, told.json()["paused"]) == (202, "a holiday")
        again = await http.post(f"/api/rollouts/{TASK}/pause", json={"by": "ben", "reason": "a holiday"})
        assert (again.status_code, again.json()["error"]["message"]) == (409, "a1 is paused already: a holiday.")
        moves = (await http.get(f"/api/rollouts/{TASK}/moves", params={"limit": 2})).json()["moves"]
        assert [(move["stage"], move["moved_by"]) for move in moves] == [("canary", "ben"), ("canary", "ratchet")]


@pytest.mark.parametrize(
    "body",
    [{}, {"by": "ben"}, {"reason": "x"}, {"by": "", "reason": "x"}, {"by": "ben", "reason": " "},
     {"by": "b" * 101, "reason": "x"}, {"by": "ben", "reason": "x" * 1_001}, {"by": "b\n", "reason": "x", "also": 1},
     {"by": "b\u0000", "reason": "x"}],
)  # fmt: skip
async def test_a_command_needs_a_name_and_a_reason(body: dict[str, Any]) -> None:
    deployer = await in_canary()
    async with api(deployer) as http:
        refused = await http.post(f"/api/rollouts/{TASK}/pause", json=body)
        assert refused.status_code == 422
        assert not deployer.last.paused
        assert (await http.post(f"/api/rollouts/{TASK}/destroy", json={"by": "ben", "reason": "x"})).status_code == 422
        unknown = await http.post("/api/rollouts/other/pause", json={"by": "ben", "reason": "x"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (409, "refused")


async def test_an_operators_rollback_is_published_and_the_next_candidate_starts_from_it() -> None:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated(canary_wealth=2, min_canary_users=0))
    await deployer.compare_and_label(range(20), "delivery")
    await deployer.handlers.on_evaluated(evaluated("a2", against="a1", canary_wealth=2, min_canary_users=0))
    await deployer.compare_and_label(range(30, 54), "delivery")
    assert deployer.admin.serves(TASK) == "a2"
    await deployer.admin.switch(f"ratchet.{TASK}.rollback", True)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.ROLLED_BACK, "a1")
    assert deployer.admin.serves(TASK) == "a1"
    await deployer.handlers.on_evaluated(evaluated("a3", against="a1"))
    assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.SHADOW, "a1")
    assert deployer.admin.serves(TASK) == "a1"
    assert not deployer.admin.flags[f"ratchet.{TASK}.rollback"].enabled


async def test_the_end_of_a_rollback_is_published_too() -> None:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated(canary_wealth=2, min_canary_users=0))
    await deployer.compare_and_label(range(20), "delivery")
    for on, stage, primary in ((True, Stage.ROLLED_BACK, None), (False, Stage.PROMOTED, "a1")):
        await deployer.admin.switch(f"ratchet.{TASK}.rollback", on)
        await deployer.handlers.tick(TASK)
        assert (deployer.last.stage, deployer.last.primary_adapter) == (stage, primary)
        assert deployer.admin.serves(TASK) == primary


async def rejected_after_a_promotion() -> Deployer:
    """a1 serves, and b1, which was compared with it, was rejected."""
    deployer = await in_canary(25)
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    await deployer.handlers.on_evaluated(evaluated("b1", against="a1"))
    await deployer.compare_and_label(range(100, 110), "refund")
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("b1", Stage.REJECTED)
    assert deployer.admin.serves(TASK) == "a1"
    return deployer


@pytest.mark.parametrize("by_command", [True, False])
async def test_a_promotion_is_taken_back_also_after_a_later_candidate_was_rejected(by_command: bool) -> None:
    deployer = await rejected_after_a_promotion()
    if by_command:
        await deployer.commands.rollback(TASK, "ben", "bad tone")
    else:
        await deployer.admin.switch(FLAGS["rollback"], True)
        await deployer.handlers.tick(TASK)
    back = deployer.last
    assert (back.candidate_adapter, back.stage) == ("a1", Stage.ROLLED_BACK)
    assert (back.primary_adapter, back.previous_adapter) == (None, "a1")
    assert deployer.admin.serves(TASK) is None
    async with api(deployer) as http:
        (shown,) = (await http.get("/api/rollouts")).json()["rollouts"]
    assert (shown["candidate"], shown["stage"], shown["primary"]) == ("a1", "rolled_back", None)
    await deployer.handlers.tick(TASK)
    assert deployer.last == back, "it was taken back once"
    await deployer.handlers.on_evaluated(evaluated("c1"))
    await deployer.handlers.tick(TASK)
    entered = deployer.last
    assert (entered.candidate_adapter, entered.stage, entered.primary_adapter) == ("c1", Stage.SHADOW, None)
    assert (entered.paused, deployer.admin.serves(TASK)) == ("", None)
    assert not deployer.admin.flags[FLAGS["rollback"]].enabled


async def test_the_end_of_a_rollback_is_seen_also_after_a_later_candidate_was_rejected() -> None:
    deployer = await rejected_after_a_promotion()
    for on, stage in ((True, Stage.ROLLED_BACK), (False, Stage.PROMOTED)):
        await deployer.admin.switch(FLAGS["rollback"], on)
        await deployer.handlers.tick(TASK)
        assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a1", stage)
        assert deployer.last.primary_adapter == deployer.admin.serves(TASK)


async def test_a_candidate_that_waits_while_rollback_is_turned_on_enters_against_the_adapter_that_serves() -> None:
    deployer = await rejected_after_a_promotion()
    await deployer.admin.switch(FLAGS["rollback"], True)
    await deployer.handlers.on_evaluated(evaluated("c1"))  # Before any tick that reads the flags.
    assert (deployer.last.candidate_adapter, deployer.last.primary_adapter) == ("c1", None)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.paused) == (Stage.SHADOW, "")


async def test_what_was_rolled_back_before_a_later_candidate_stays_so() -> None:
    """The flag is off again since the candidate entered, when the adapter that it restored became the primary."""
    deployer = await in_canary(25)
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    await deployer.commands.rollback(TASK, "ben", "bad tone")
    await deployer.handlers.on_evaluated(evaluated("b1"))
    await deployer.compare_and_label(range(100, 110), "refund")
    ended = deployer.last
    assert (ended.candidate_adapter, ended.stage) == ("b1", Stage.REJECTED)
    for on in (False, True):
        await deployer.admin.switch(FLAGS["rollback"], on)
        await deployer.handlers.tick(TASK)
        assert (deployer.last, deployer.admin.serves(TASK)) == (ended, None)
    with pytest.raises(CommandRefused, match="neither a candidate nor a promoted adapter"):
        await deployer.commands.rollback(TASK, "ben", "again")
