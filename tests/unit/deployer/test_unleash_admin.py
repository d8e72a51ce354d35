"""When the deployer writes to Unleash."""

from __future__ import annotations

import httpx
import pytest

from services.deployer.clients import Strategy, UnleashAdmin
from shared.errors import DependencyUnavailable


async def test_whoever_may_not_write_any_more_makes_no_further_write_of_a_change() -> None:
    """It was asked before the first flag of a change alone: a canary went on after another process had ended it."""
    flag = {"name": "development", "enabled": False, "strategies": [{"id": "1", **Strategy().body("f")}]}
    asked: list[str] = []
    writes_left = 1

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        return httpx.Response(200, json={"name": "f", "environments": [flag]})

    async def confirm() -> None:
        nonlocal writes_left
        writes_left -= 1
        if writes_left < 0:
            raise DependencyUnavailable("the lock is lost")

    admin = UnleashAdmin("http://unleash", "token", confirm=confirm)
    admin._client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    await admin.set_strategy("f", Strategy(percent=5))
    with pytest.raises(DependencyUnavailable, match="the lock is lost"):
        await admin.switch("f", True)
    assert asked == ["GET", "PUT", "GET"]
    await admin.close()
