"""What the deployer takes for an answer of Unleash."""

from __future__ import annotations

import httpx
import pytest

from services.deployer.clients import Strategy, UnleashAdmin
from shared.errors import DependencyUnavailable


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(302, headers={"location": "https://login.example/"}, text="<a href='https://login.example/'>"),
        httpx.Response(307, headers={"location": "https://login.example/"}),
        httpx.Response(200, text="<html>We are back soon.</html>"),
        httpx.Response(200, text='{"name": "f", "environ'),
    ],
    ids=["a login", "a login without a page", "a maintenance", "cut"],
)
async def test_a_proxy_that_answers_in_the_place_of_unleash_is_an_unleash_that_is_away(
    response: httpx.Response,
) -> None:
    """It was an internal error: what a decision was about became a dead letter, a task's first verdict unread."""
    admin = UnleashAdmin("http://unleash", "token")
    admin._client = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: response))
    for asked in (admin.read("f"), admin.switch("f", True), admin.newest_changes(20)):
        with pytest.raises(DependencyUnavailable, match="what answered is not Unleash") as raised:
            await asked
        assert "RATCHET_UNLEASH" in raised.value.way_out
    await admin.close()


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
