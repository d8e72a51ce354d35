"""The Unleash client against a small server that speaks its client API."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from services.gateway.routing.arms import Primary, ServingFlags
from services.gateway.routing.flags import EnabledFlags, UnleashFlagReader, UnleashStateFile
from tests.waiting import PATIENCE_SECONDS


def flag(name: str, payload: str | None = None, percent: int = 100, stickiness: str = "default") -> dict[str, Any]:
    variants = []
    if payload is not None:
        value = {"type": "json", "value": payload}
        variants = [{"name": "v", "weight": 1000, "weightType": "variable", "stickiness": "default", "payload": value}]
    parameters = {"rollout": str(percent), "stickiness": stickiness, "groupId": name}
    strategy = {"name": "flexibleRollout", "constraints": [], "parameters": parameters, "variants": variants}
    return {"name": name, "type": "release", "enabled": True, "strategies": [strategy], "variants": []}


class FakeUnleash:
    def __init__(self) -> None:
        self.features: list[dict[str, Any]] = []
        self.delay = 0.0
        self.url = ""

    async def answer(self, _: web.Request) -> web.Response:
        await asyncio.sleep(self.delay)
        return web.json_response({"version": 2, "features": self.features})


@pytest.fixture
async def unleash() -> AsyncIterator[FakeUnleash]:
    fake, app = FakeUnleash(), web.Application()
    app.router.add_get("/api/client/features", fake.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield fake
    await runner.cleanup()


async def _until(flags: UnleashFlagReader, wanted: ServingFlags) -> None:
    await _until_true(lambda: flags.read("support", "ann") == wanted)


async def _until_true(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.05)


async def test_a_changed_flag_applies_and_survives_unleash(unleash: FakeUnleash, tmp_path: Path) -> None:
    primary = flag("ratchet.support.primary", json.dumps({"adapter": "new", "previous": "old"}))
    unleash.features = [primary]
    flags = UnleashFlagReader(unleash.url, "token", "development", tmp_path)
    try:
        await flags.start()
        await _until(flags, ServingFlags(Primary("new", "old")))
        assert flags.read("support", None) == ServingFlags(Primary("new", "old"))
        assert flags.read("other", "ann") == ServingFlags()
        unleash.features = [primary, flag("ratchet.support.rollback")]
        await _until(flags, ServingFlags(Primary("new", "old"), rollback=True))
        unleash.features = [{**primary, "enabled": False}]
        await _until(flags, ServingFlags())
        unleash.features = [primary]
        await _until(flags, ServingFlags(Primary("new", "old")))
    finally:
        await flags.close()
    later = UnleashFlagReader("http://127.0.0.1:9", "token", "development", tmp_path)
    try:
        await later.start()
        assert later.read("support", None) == ServingFlags(Primary("new", "old"))
    finally:
        await later.close()


async def test_a_canary_is_sticky_by_user_and_off_without_one(unleash: FakeUnleash, tmp_path: Path) -> None:
    unleash.features = [flag("ratchet.support.canary", '{"adapter": "next"}', percent=50, stickiness="userId")]
    flags = UnleashFlagReader(unleash.url, "token", "development", tmp_path)
    try:
        await flags.start()
        await _until_true(lambda: any(flags.read("support", f"u{user}").canary for user in range(200)))
        served = {user: flags.read("support", f"u{user}").canary for user in range(200)}
        assert 60 < sum(adapter == "next" for adapter in served.values()) < 140
        assert all(flags.read("support", f"u{user}").canary == adapter for user, adapter in served.items())
        assert flags.read("support", None).canary is None
    finally:
        await flags.close()


async def test_without_a_user_only_the_canary_is_sticky_by_the_subject(unleash: FakeUnleash, tmp_path: Path) -> None:
    """A user is the flag's `userId` as before, so that constraints that people wrote by hand go on to hold."""
    unleash.features = [
        flag("ratchet.support.canary", '{"adapter": "next"}', percent=50, stickiness="userId"),
        flag("ratchet.support.rollback", percent=50, stickiness="userId"),
    ]
    flags = UnleashFlagReader(unleash.url, "token", "development", tmp_path)
    try:
        await flags.start()
        await _until_true(lambda: any(flags.read("support", None, f"s{number}").canary for number in range(200)))
        served = [flags.read("support", None, f"s{number}") for number in range(200)]
        assert 60 < sum(found.canary == "next" for found in served) < 140
        assert [flags.read("support", None, f"s{number}") for number in range(200)] == served
        assert not any(found.rollback for found in served)
        by_user = [flags.read("support", f"u{number}") for number in range(50)]
        assert [flags.read("support", f"u{number}", f"s{number}") for number in range(50)] == by_user
        assert any(found.rollback for found in by_user)
    finally:
        await flags.close()


async def test_the_control_is_sticky_by_user_else_by_subject(unleash: FakeUnleash, tmp_path: Path) -> None:
    unleash.features = [flag("ratchet.support.control", percent=50, stickiness="userId")]
    flags = UnleashFlagReader(unleash.url, "token", "development", tmp_path)
    try:
        await flags.start()
        await _until_true(lambda: any(flags.read("support", f"u{user}").control for user in range(200)))
        for people in ([(f"u{n}", None) for n in range(200)], [(None, f"s{n}") for n in range(200)]):
            served = [flags.read("support", *person).control for person in people]
            assert 60 < sum(served) < 140
            assert [flags.read("support", *person).control for person in people] == served
        assert not flags.read("support", None).control
        assert flags.read("other", "u1") == ServingFlags()
    finally:
        await flags.close()


async def test_an_invalid_payload_counts_as_off(unleash: FakeUnleash, tmp_path: Path) -> None:
    unleash.features = [flag("ratchet.support.primary", "oops"), flag("ratchet.support.canary", '{"adapter": 1}')]
    flags = UnleashFlagReader(unleash.url, "token", "development", tmp_path)
    try:
        await flags.start()
        await _until_true(lambda: flags._client.unleash_static_context is not None)
        assert flags.read("support", "ann") == ServingFlags()
    finally:
        await flags.close()


async def test_a_silent_server_delays_the_start_for_a_second_and_the_last_known_flags_apply(
    unleash: FakeUnleash, tmp_path: Path
) -> None:
    unleash.features = [flag("ratchet.support.primary", '{"adapter": "new"}')]
    before = UnleashFlagReader(unleash.url, "token", "development", tmp_path)
    await before.start()
    await _until(before, ServingFlags(Primary("new", None)))
    await before.close()
    unleash.delay = 2 * PATIENCE_SECONDS
    flags = UnleashFlagReader(unleash.url, "token", "development", tmp_path)
    assert flags.read("support", "ann").primary == Primary("new", None)  # Before it has even started.
    started = time.monotonic()
    try:
        await flags.start()
        assert time.monotonic() - started < PATIENCE_SECONDS  # The server answers later.
        assert flags.read("support", "ann").primary == Primary("new", None)
    finally:
        await flags.close()


@pytest.mark.parametrize("torn", ["", '{"version": 2, "feat', "[]", "null", '{"features": 3}'])
async def test_a_torn_state_file_counts_as_no_flags(unleash: FakeUnleash, tmp_path: Path, torn: str) -> None:
    (tmp_path / "flags.json").write_text(torn)
    unleash.features = [flag("ratchet.support.primary", '{"adapter": "new"}')]
    flags = UnleashFlagReader(unleash.url, "token", "development", tmp_path)
    assert flags.read("support", "ann") == ServingFlags()
    try:
        await flags.start()
        await _until(flags, ServingFlags(Primary("new", None)))
    finally:
        await flags.close()


async def test_evaluated_flags_are_cached_until_flags_change(unleash: FakeUnleash, tmp_path: Path) -> None:
    unleash.features = [flag("ratchet.support.primary", '{"adapter": "new"}'), flag("ratchet.support.rollback")]
    flags = UnleashFlagReader(unleash.url, "token", "development", tmp_path)
    try:
        await flags.start()
        await _until(flags, ServingFlags(Primary("new", None), rollback=True))
        assert flags.read("support", "ben") is flags.read("support", "ann")  # For everyone the same: one evaluation.
        unleash.features = [
            flag("ratchet.support.canary", '{"adapter": "x"}', percent=50, stickiness="userId"),
            flag("ratchet.other.canary", '{"adapter": "x"}', percent=100, stickiness="userId"),
        ]
        await _until_true(lambda: flags.read("other", "ann").canary == "x")
        assert {flags.read("support", f"u{n}").canary for n in range(50)} == {"x", None}
        assert flags.read("other", "ann").canary == "x"
        assert flags.read("other", None).canary is None
    finally:
        await flags.close()


def test_only_a_flag_that_is_equal_for_all_users_is_evaluated_once() -> None:
    plain = flag("ratchet.t.primary", '{"adapter": "a"}')
    (strategy,) = plain["strategies"]
    constraint = {"contextName": "userId", "operator": "IN", "values": ["ann"]}
    two = [*strategy["variants"], {"name": "w", "weight": 500}]
    for differs in (
        {**strategy, "constraints": [constraint]},
        {**strategy, "segments": [1]},
        {**strategy, "variants": two},
        {**strategy, "name": "userWithId", "parameters": {"userIds": "ann"}},
        {**strategy, "parameters": {**strategy["parameters"], "rollout": "50"}},
        {**strategy, "parameters": {**strategy["parameters"], "stickiness": "userId"}},
    ):
        live = EnabledFlags(json.dumps({"features": [{**plain, "strategies": [differs]}]}))
        assert live.sticky_tasks == {"t"}, differs
    for same in (plain, {**plain, "enabled": False}, flag("ratchet.t.shadow", None, 10, "userId")):
        assert not EnabledFlags(json.dumps({"features": [same]})).sticky_tasks
    for more in ({"variants": [{"name": "v"}]}, {"dependencies": [{"feature": "f"}]}):
        assert EnabledFlags(json.dumps({"features": [{**plain, **more}]})).sticky_tasks == {"t"}


def test_flags_still_change_when_they_cannot_be_saved(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    state = UnleashStateFile(tmp_path / "file" / "flags.json")
    state.mset({"/client/features": '{"features": []}', "etag": ""})
    assert state.features == '{"features": []}'
    assert state.get("etag") == ""
    assert not state.exists("other")
