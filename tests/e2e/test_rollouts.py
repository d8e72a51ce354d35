"""Candidates on a real broker, PostgreSQL and Unleash, with a fast engine, people and load all along: nobody helps.

How soon a flag follows is recorded, and held by `python -m tests.benchmarks rollout`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from schemas.rollouts import Stage
from services.deployer.flags import flag_name
from shared.settings import Settings
from tests.conftest import ROOT
from tests.docs.blocks import read_blocks, read_commands
from tests.e2e.rollouts.engine import Kind
from tests.e2e.rollouts.live import ENDS, LABELS, SERVICES, Live, live
from tests.e2e.rollouts.load import load_on
from tests.e2e.rollouts.measure import decided_at
from tests.integration.consumer_groups import skip_backlog
from tests.waiting import until

pytestmark = pytest.mark.stack
PACES = (0.3,) * 12
"""Applications that ask as often as a rollout needs: each request is work for every service."""


@pytest.fixture(scope="module")
async def system(stack_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    await skip_backlog(stack_settings, *SERVICES)
    async with live(stack_settings, tmp_path_factory.mktemp("live")) as running:
        yield running


async def is_on(system: Live, task: str, flag: str) -> bool:
    state = await system.flags.read(flag_name(task, flag))
    return state is not None and state.enabled


async def test_a_good_candidate_becomes_the_primary_and_the_next_one_is_compared_with_it(system: Live) -> None:
    spec = await system.add_task(min_canary_users=5, canary_steps=(10, 25, 50))
    async with load_on(system.gateway, spec.name, LABELS, PACES) as load:
        candidate = await system.add_candidate(spec, Kind.GOOD)
        ended = (await system.stage(candidate, *ENDS)).change
        assert ended.stage is Stage.PROMOTED, system.story(candidate)
        await until(lambda: load.asked[-1].variant == "primary", "the promoted adapter serves")
        assert load.asked[-1].adapter == candidate
        second = await system.add_candidate(spec, Kind.BAD, against=candidate)
        ended = (await system.stage(second, *ENDS)).change
    assert (ended.stage, ended.primary_adapter) == (Stage.REJECTED, candidate)
    moves = [(move["candidate"], move["stage"], move["moved_by"]) for move in await system.moves(spec.name)]
    assert moves == [
        *((candidate, stage, "ratchet") for stage in ("queued", "shadow", *["canary"] * 3, "promoted")),
        *((second, stage, "ratchet") for stage in ("queued", "shadow", "rejected")),
    ]
    assert not any(asked.is_of(second) for asked in load.asked), "what shadow stops, no user meets"
    assert load.dropped() == []


@pytest.mark.parametrize(("kind", "reason"), [(Kind.BREAKS, "fails too often"), (Kind.SLOW, "is too slow")])
async def test_what_shadow_cannot_see_is_rolled_back_from_the_canary_while_nobody_else_notices(
    system: Live, record_property: Callable[[str, object], None], kind: Kind, reason: str
) -> None:
    spec = await system.add_task(min_canary_users=10_000, canary_steps=(50,))
    async with load_on(system.gateway, spec.name, LABELS, PACES) as load:
        candidate = await system.add_candidate(spec, kind)
        ended = await system.stage(candidate, *ENDS)
        assert not await is_on(system, spec.name, "canary"), "the flag is off before the move is published"
        await until(lambda: not any(a.is_of(candidate) for a in load.asked[-40:]), "the canary serves nobody")
    assert ended.change.stage is Stage.REJECTED
    assert f"the canary {reason}" in ended.change.reason
    stages = [move["stage"] for move in await system.moves(spec.name)]
    assert stages == ["queued", "shadow", "canary", "rejected"]
    assert {a.variant for a in load.asked if not a.is_of(candidate)} == {"base"}
    assert load.dropped(broken_by=candidate) == []
    record_property("seconds", ended.at - decided_at(load, kind, candidate, spec.rollout))


async def test_the_commands_that_the_page_shows_hold_a_candidate_move_it_on_and_take_it_back(system: Live) -> None:
    page = (ROOT / "docs" / "how-to" / "control-a-rollout.md").read_text(encoding="utf-8")
    commands = [command.words[1:] for block in read_blocks("", page) for command in read_commands(block.text)]
    spec = await system.add_task(min_canary_users=5, canary_steps=(50,), approval=True)
    said: dict[str, str] = {}
    async with load_on(system.gateway, spec.name, LABELS, PACES):
        candidate = await system.add_candidate(spec, Kind.GOOD)
        await system.stage(candidate, Stage.CANARY)
        for words in commands:  # Before it is proven, `promote` is refused.
            own = [word.replace("support-desk", spec.name) for word in words]
            said[words[1]] = await until(lambda own=own: system.ratchet(*own), f"ratchet {' '.join(own)}")
    assert candidate in said["status"]
    moves = await system.moves(spec.name)
    told = [(move["reason"].partition(";")[0], move["stage"]) for move in moves if move["moved_by"] != "ratchet"]
    assert [reason for reason, _ in told] == [
        "paused: release freeze", "resumed: freeze is over", "approved: read fifty answers",
        "rolled back: wrong refunds since noon",
    ]  # fmt: skip
    assert [stage for _, stage in told[-2:]] == ["promoted", "rolled_back"]
