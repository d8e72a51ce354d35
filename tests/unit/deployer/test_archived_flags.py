"""Flags that somebody archived or deleted: off, by a hand, and no obstacle to whatever takes exposure back."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import httpx
import pytest

from schemas.base import Variant, utc_now
from schemas.rollouts import Stage
from services.deployer.clients import FlagState, Strategy, UnleashAdmin
from services.deployer.operators.commands import CommandRefused
from shared.errors import DependencyUnavailable
from tests.unit.deployer.fakes import Deployer, deliveries, evaluated, in_canary, observed

TASK = "support-desk"
FLAGS = {flag: f"ratchet.{TASK}.{flag}" for flag in ("primary", "rollback", "canary", "shadow", "control")}


@pytest.mark.parametrize("flag", ["primary", "rollback", "canary", "shadow"])
@pytest.mark.parametrize("is_deleted", [False, True])
async def test_an_archived_or_deleted_flag_pauses_the_candidate_and_is_no_obstacle_to_its_end(
    flag: str, is_deleted: bool
) -> None:
    deployer = await in_canary()
    deployer.admin.archive(FLAGS[flag], is_deleted=is_deleted)
    await deployer.handlers.tick(TASK)
    gone = "was deleted" if is_deleted else "is archived"
    assert (deployer.last.stage, deployer.last.moved_by) == (Stage.CANARY, "ann in Unleash")
    assert deployer.last.paused.startswith(f"{flag} {gone}")
    await deployer.compare_and_label(range(12, 30), "delivery")
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY, "it was promoted, since a flag that does not exist differed in nothing"
    with pytest.raises(CommandRefused, match=f"{flag} {gone}"):
        await deployer.commands.resume(TASK, "ben", "go")
    await deployer.commands.rollback(TASK, "ben", "no more")
    assert (deployer.last.stage, await deployer.rollouts.unsettled(TASK)) == (Stage.REJECTED, [])
    assert deployer.admin.serves(TASK, in_canary=True) is None


async def test_an_archived_flag_that_is_revived_goes_on_by_a_persons_word() -> None:
    deployer = await in_canary()
    own = deployer.admin.flags[FLAGS["canary"]]
    deployer.admin.archive(FLAGS["canary"])
    await deployer.handlers.tick(TASK)
    deployer.admin.flags[FLAGS["canary"]] = FlagState(False, own.strategies)  # Unleash revives a flag turned off.
    await deployer.commands.resume(TASK, "ben", "go")
    assert (deployer.last.paused, deployer.admin.flags[FLAGS["canary"]]) == ("", own)


async def test_the_next_candidate_enters_and_is_paused_where_its_canary_is_archived_still() -> None:
    deployer = await in_canary()
    deployer.admin.archive(FLAGS["canary"])
    await deployer.handlers.tick(TASK)
    await deployer.commands.rollback(TASK, "ben", "no more")
    await deployer.handlers.on_evaluated(evaluated("b1"))
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("b1", Stage.SHADOW)
    assert deployer.last.paused == "canary is archived, by hand"


async def with_a_previous(**rollout: object) -> Deployer:
    """b1 serves everyone, and a1 did before it."""
    deployer = await in_canary(25)
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    await deployer.handlers.on_evaluated(evaluated("b1", against="a1", **rollout))
    await deployer.compare_and_label(range(100, 125), "delivery")
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("b1", Stage.PROMOTED)
    return deployer


@pytest.mark.parametrize("is_deleted", [False, True])
async def test_a_rollback_whose_flag_is_archived_or_deleted_is_done_by_the_primarys_payload(is_deleted: bool) -> None:
    """It waited for the flag to be revived, for ever, and everything else of the task with it."""
    deployer = await with_a_previous()
    deployer.admin.archive(FLAGS["rollback"], is_deleted=is_deleted)
    await deployer.commands.rollback(TASK, "ben", "bad tone")
    for _ in range(2):
        await deployer.handlers.tick(TASK)
        assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.ROLLED_BACK, "a1")
        assert deployer.admin.serves(TASK) == "a1"
    assert await deployer.rollouts.unsettled(TASK) == []
    if not is_deleted:  # Unleash revives a flag turned off.
        deployer.admin.flags[FLAGS["rollback"]] = FlagState(False, deployer.admin.flags[FLAGS["rollback"]].strategies)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.admin.serves(TASK)) == (Stage.ROLLED_BACK, "a1"), "b1 does not serve again"
    await deployer.handlers.on_evaluated(evaluated("c1", against="a1"))
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage, deployer.last.paused) == ("c1", Stage.SHADOW, "")
    assert deployer.admin.serves(TASK) == "a1"


async def test_guards_take_a_promotion_back_where_the_flag_of_rollback_is_archived() -> None:
    deployer = await with_a_previous(control_days=7)
    deployer.admin.archive(FLAGS["rollback"])
    later = {"adapter": "b1", "occurred_at": utc_now() + timedelta(minutes=1)}
    failed = [observed(deployer.last, n, Variant.PRIMARY, 502).model_copy(update=later) for n in range(200)]
    await deployer.handlers.on_observed(deliveries(failed))
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.moved_by) == (Stage.ROLLED_BACK, "ratchet")
    assert deployer.admin.serves(TASK) == "a1"


async def test_what_a_task_waits_for_is_told_with_the_way_out() -> None:
    deployer = await in_canary(25)
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    for flag in ("rollback", "primary"):
        deployer.admin.archive(FLAGS[flag])
    with pytest.raises(DependencyUnavailable, match="is archived"):
        await deployer.commands.rollback(TASK, "ben", "bad tone")
    assert deployer.last.stage is Stage.PROMOTED, "it is not said to be done"
    await deployer.handlers.on_evaluated(evaluated("b1", against="a1"))
    assert deployer.handlers.trouble[TASK].endswith("is archived, or was deleted. Revive it in Unleash.")


async def test_a_promotion_whose_controls_flag_is_archived_has_none() -> None:
    deployer = await in_canary(25, control_days=7)
    await deployer.admin.ensure(FLAGS["control"], "of the last promotion", Strategy(percent=5))
    deployer.admin.archive(FLAGS["control"])
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.control) == (Stage.PROMOTED, False)
    assert deployer.last.reason == "its control has ended: its flag was changed by hand"
    assert deployer.admin.serves(TASK) == "a1"


class Unleash:
    """As Unleash 8.2.0 answers about one flag: an archived one has an environment, as it was, and is no feature.

    Segments are among the strategies of a feature, not among those of its environment.
    """

    def __init__(self, *, archived: bool, exists: bool = True) -> None:
        self.archived, self.exists = archived, exists
        self.strategies = [{"id": "1", **Strategy(percent=5).body("f"), "title": None}]
        self.dependencies: list[dict[str, Any]] = []
        self.writes: list[str] = []
        self.reads = 0
        self.database_fails = 0
        """So many of the next reads."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api/admin/projects/default/features")
        self.reads += request.method == "GET"
        if request.url.params.get("namePrefix") == "f":
            is_listed = self.exists and not self.archived
            return self.or_fails({"features": [{"name": "f2"}, *([{"name": "f"}] if is_listed else [])]})
        if request.method != "GET":
            self.writes.append(f"{request.method} {path}")
            return self.answer(400, {"name": "ArchivedFeatureError"}) if self.archived else self.answer(200, {})
        if self.database_answers_not() or not self.exists or (path == "/f" and self.archived):
            return self.answer(404, {"name": "NotFoundError"})
        if path == "/f":
            other = {"name": "production", "enabled": False, "strategies": []}
            own = {"name": "development", "enabled": True, "strategies": self.strategies}
            return self.answer(200, {"name": "f", "environments": [other, own], "dependencies": self.dependencies})
        strategies = [{name: value for name, value in s.items() if name != "segments"} for s in self.strategies]
        return self.answer(200, {"name": "f", "enabled": True, "strategies": strategies})

    def or_fails(self, body: dict[str, Any]) -> httpx.Response:
        return self.answer(500, {"name": "InternalError"}) if self.database_answers_not() else self.answer(200, body)

    def database_answers_not(self) -> bool:
        self.database_fails -= 1
        return self.database_fails >= 0

    def answer(self, status: int, body: dict[str, Any]) -> httpx.Response:
        return httpx.Response(status, content=json.dumps(body))

    def admin(self) -> UnleashAdmin:
        admin = UnleashAdmin("http://unleash", "token")
        admin._client = httpx.AsyncClient(transport=httpx.MockTransport(self))
        return admin


async def test_an_archived_flag_of_unleash_is_read_as_off_though_its_environment_says_on() -> None:
    unleash = Unleash(archived=True)
    state = await unleash.admin().read("f")
    assert state is not None and (state.archived, state.enabled) == (True, False)
    assert await Unleash(archived=False, exists=False).admin().read("f") is None
    state = await Unleash(archived=False).admin().read("f")
    assert state is not None and (state.archived, state.enabled) == (False, True)


@pytest.mark.parametrize("failures", [1, 2])
async def test_a_flag_that_unleash_does_not_find_while_its_database_is_away_is_not_gone(failures: int) -> None:
    """It was archived to us, or deleted, by a hand: the candidate waited until a person said that it goes on."""
    unleash = Unleash(archived=False)
    unleash.database_fails = failures
    with pytest.raises(DependencyUnavailable):
        await unleash.admin().read("f")
    state = await unleash.admin().read("f")
    assert state is not None and state.enabled


async def test_a_flag_is_read_with_one_request_segments_and_all() -> None:
    unleash = Unleash(archived=False)
    unleash.strategies[0]["segments"] = [7]
    state = await unleash.admin().read("f")
    assert state is not None and state.strategies == tuple(unleash.strategies)
    assert unleash.reads == 1


async def test_a_parent_of_a_flag_is_read_with_it_and_taken_off_once_its_strategy_is_set() -> None:
    unleash = Unleash(archived=False)
    unleash.dependencies = [{"feature": "new-design", "enabled": True, "variants": []}]
    state = await unleash.admin().read("f")
    assert state is not None and (state.parents, state.added) == (("new-design",), "a parent flag (new-design)")
    await unleash.admin().set_strategy("f", Strategy(percent=5))
    assert unleash.writes == ["DELETE /f/dependencies"]
    unleash.writes.clear()
    await unleash.admin().set_strategy("f", Strategy(percent=7))
    assert unleash.writes == ["PUT /f/environments/development/strategies/1", "DELETE /f/dependencies"]
    unleash.dependencies.clear()
    await unleash.admin().set_strategy("f", Strategy(percent=5))
    assert len(unleash.writes) == 2


@pytest.mark.parametrize(("unleash", "gone"), [
    (Unleash(archived=True), "is archived"), (Unleash(archived=False, exists=False), "does not exist"),
])  # fmt: skip
async def test_turning_off_what_is_archived_or_deleted_is_done_and_turning_it_on_is_refused(
    unleash: Unleash, gone: str
) -> None:
    admin = unleash.admin()
    await admin.switch("f", False)
    for raising in (admin.switch("f", True), admin.set_strategy("f", Strategy(percent=7))):
        with pytest.raises(DependencyUnavailable, match=gone):
            await raising
    if unleash.archived:
        await admin.ensure("f", "a test", Strategy(percent=7), on=True)
    assert unleash.writes == [], "an archived flag keeps its name, and refuses every write"


async def test_a_candidate_enters_where_the_primary_that_a_rollback_left_is_archived_and_is_paused() -> None:
    deployer = await in_canary(25)
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    await deployer.commands.rollback(TASK, "ben", "bad tone")
    deployer.admin.archive(FLAGS["primary"])
    await deployer.handlers.on_evaluated(evaluated("b1"))
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("b1", Stage.SHADOW)
    assert deployer.last.paused == "primary is archived: the base model serves, by hand"
