"""For which names the console answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse

from services.console.http import AllowedHosts, build_app
from services.console.settings import ConsoleSettings


async def get(path: str, host: str, tmp_path: Path, **settings: Any) -> httpx.Response:
    app = build_app(ConsoleSettings(home=tmp_path, **settings), None, None)  # type: ignore[arg-type]  # nothing is read
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.get(path, headers={"host": host})


ANY = "/openapi.json"
PROXIED = {"console_allowed_hosts": "reviews.example.com, https://Desk.example.com:8443"}


@pytest.mark.parametrize(
    ("host", "settings"),
    [
        ("localhost:28090", {}),
        ("LOCALHOST", {}),
        ("127.0.0.1:28090", {}),
        ("[::1]:28090", {}),
        ("10.1.2.3", {"console_host": "0.0.0.0"}),
        ("console.internal:28090", {"console_host": "console.internal"}),
        ("reviews.example.com", PROXIED),
        ("desk.example.com:8443", PROXIED),
    ],
)
async def test_the_console_answers_to_the_names_that_are_its_own_and_to_ip_addresses(
    host: str, settings: dict[str, str], tmp_path: Path
) -> None:
    assert (await get(ANY, host, tmp_path, **settings)).status_code == 200


@pytest.mark.parametrize("bound_to", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(
    "host",
    ["evil.example:28090", "localhost.evil.example", "127.0.0.1.evil.example", "[::1", "reviews.example.com.evil"],
)
async def test_a_site_whose_name_points_to_the_console_reads_nothing_of_it_and_the_refusal_names_the_setting(
    bound_to: str, host: str, tmp_path: Path
) -> None:
    refused = await get(ANY, host, tmp_path, console_host=bound_to, **PROXIED)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "host_not_allowed")
    assert "RATCHET_CONSOLE_ALLOWED_HOSTS" in refused.json()["error"]["message"]
    assert (await get("/", host, tmp_path, **PROXIED)).status_code == 400


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_are_answered_by_whatever_name_they_ask(path: str, tmp_path: Path) -> None:
    assert (await get(path, "console.default.svc", tmp_path)).status_code == 200


def test_an_open_pages_connection_is_refused_under_another_name() -> None:
    async def accept(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})

    client = TestClient(AllowedHosts(accept, frozenset({"localhost"})))
    with client.websocket_connect("/_nicegui_ws", headers={"host": "localhost:28090"}):
        pass
    with (
        pytest.raises(WebSocketDenialResponse),
        client.websocket_connect("/_nicegui_ws", headers={"host": "evil.example:28090"}),
    ):
        pass
