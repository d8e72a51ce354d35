"""The Unleash client against a small server that speaks its client API."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from services.gateway.clients import UnleashFlags
from services.gateway.domain import Primary, TaskFlags


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


async def _until(flags: UnleashFlags, wanted: TaskFlags, seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while flags.of("support", "ann") != wanted:
        assert time.monotonic() < deadline, flags.of("support", "ann")
        await asyncio.sleep(0.05)


async def test_a_flag_that_moves_is_seen_within_three_seconds_and_outlives_its_server(
    unleash: FakeUnleash, tmp_path: Path
) -> None:
    primary = flag("ratchet.support.primary", json.dumps({"adapter": "new", "previous": "old"}))
    unleash.features = [primary]
    flags = UnleashFlags(unleash.url, "token", 1, tmp_path)
    try:
        await flags.start()
        assert flags.of("support", None) == TaskFlags(Primary("new", "old"))
        assert flags.of("other", "ann") == TaskFlags()
        unleash.features = [primary, flag("ratchet.support.rollback")]
        await _until(flags, TaskFlags(Primary("new", "old"), rollback=True))
        unleash.features = [{**primary, "enabled": False}]
        await _until(flags, TaskFlags())
        unleash.features = [primary]
        await _until(flags, TaskFlags(Primary("new", "old")))
    finally:
        await flags.close()
    later = UnleashFlags("http://127.0.0.1:9", "token", 1, tmp_path)
    try:
        await later.start()
        assert later.of("support", None) == TaskFlags(Primary("new", "old"))
    finally:
        await later.close()


async def test_a_canary_is_sticky_by_user_and_off_without_one(unleash: FakeUnleash, tmp_path: Path) -> None:
    unleash.features = [flag("ratchet.support.canary", '{"adapter": "next"}', percent=50, stickiness="userId")]
    flags = UnleashFlags(unleash.url, "token", 1, tmp_path)
    try:
        await flags.start()
        served = {user: flags.of("support", f"u{user}").canary for user in range(200)}
        assert 60 < sum(adapter == "next" for adapter in served.values()) < 140
        assert all(flags.of("support", f"u{user}").canary == adapter for user, adapter in served.items())
        assert flags.of("support", None).canary is None
    finally:
        await flags.close()


async def test_a_broken_payload_counts_as_a_flag_that_is_off(unleash: FakeUnleash, tmp_path: Path) -> None:
    unleash.features = [flag("ratchet.support.primary", "oops"), flag("ratchet.support.canary", '{"adapter": 1}')]
    flags = UnleashFlags(unleash.url, "token", 1, tmp_path)
    try:
        await flags.start()
        assert flags.of("support", "ann") == TaskFlags()
    finally:
        await flags.close()


async def test_a_silent_server_holds_the_start_for_seconds_only(unleash: FakeUnleash, tmp_path: Path) -> None:
    unleash.delay = 30.0
    flags = UnleashFlags(unleash.url, "token", 1, tmp_path)
    started = time.monotonic()
    try:
        await flags.start()
        assert time.monotonic() - started < 6.0
        assert flags.of("support", "ann") == TaskFlags()
    finally:
        await flags.close()
