from __future__ import annotations

import functools
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from services.gateway.asgi.large_work import LargeWork
from services.gateway.asgi.protocol import HttpProtocol
from services.gateway.auth.grants import AccessControl
from services.gateway.main import build
from services.gateway.processes.file_limit import raise_file_limit
from services.gateway.settings import GatewaySettings
from shared.errors import ConfigurationError, DependencyUnavailable
from shared.kafka.latest_by_key import LatestByKey

HEAVY = ("torch", "transformers", "numpy", "sqlalchemy", "deltalake", "sklearn", "spacy", "faker")


def test_the_gateway_imports_nothing_heavy() -> None:
    code = f"import sys, services.gateway.main; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


async def test_a_gateway_without_tasks_and_replicas_is_alive_but_not_ready(tmp_path: Path) -> None:
    service = build(GatewaySettings(home=tmp_path, unleash="http://127.0.0.1:9", vllm="http://127.0.0.1:9"))
    assert service.http is not None
    transport = httpx.ASGITransport(app=service.http.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        assert (await http.get("/healthz")).status_code == 200
        ready = await http.get("/readyz")
    assert ready.status_code == 503
    assert [problem.partition(":")[0] for problem in ready.json()["missing"]] == [
        "no task is known", "no model server answers", "the API keys are not read yet",
    ]  # fmt: skip
    assert [note.partition(":")[0] for note in ready.json()["notes"]] == [
        "the shipper is not running",
        "Unleash does not answer",
    ]
    assert (tmp_path / "secrets" / "prediction-ids").stat().st_mode & 0o077 == 0


async def test_an_external_api_makes_the_gateway_ready_without_replicas(tmp_path: Path) -> None:
    service = build(
        GatewaySettings(
            home=tmp_path, unleash="http://127.0.0.1:9", vllm="http://127.0.0.1:9",
            gateway_fallback_url="https://me:s3cret@api.example.com/v1?key=s3cret", gateway_fallback_model="large",
        )
    )  # fmt: skip
    assert service.http is not None
    transport = httpx.ASGITransport(app=service.http.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        ready = (await http.get("/readyz")).json()
    assert not any("model server" in problem for problem in ready["missing"])
    assert "s3cret" not in str(ready)
    assert "no model server answers: https://api.example.com/v1 stands in with large" in ready["notes"]


def test_a_worker_works_on_one_large_body_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[LargeWork] = []

    def make() -> LargeWork:
        made.append(LargeWork())
        return made[-1]

    for module in [m for name, m in sys.modules.items() if name.startswith("services.gateway.")]:
        if hasattr(module, "LargeWork"):
            monkeypatch.setattr(module, "LargeWork", make)
    build(GatewaySettings(home=tmp_path))
    assert len(made) == 1


async def test_the_setting_of_origins_names_the_pages_that_may_use_a_gateway_without_keys(tmp_path: Path) -> None:
    service = build(GatewaySettings(home=tmp_path, gateway_cors_origins="https://app.example/"))
    (start,) = (hook for hook in service.prepare if isinstance(getattr(hook, "__self__", None), AccessControl))
    await start()
    assert service.http is not None
    transport = httpx.ASGITransport(app=service.http.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        for path in ("/v1/chat/completions", "/v1/messages", "/v1/feedback", "/v1/predictions", "/v1/traces"):
            statuses = [
                (await http.post(path, json={"model": "x"}, headers={"origin": origin})).status_code
                for origin in ("https://evil.example", "https://app.example")
            ]
            assert statuses[0] == 403
            assert statuses[1] != 403


def test_no_error_of_a_setting_shows_the_password_in_an_address(tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as refused:
        GatewaySettings(home=tmp_path, gateway_fallback_url="me:s3cret@api.example.com")
    with pytest.raises(ConfigurationError, match="not the address of a model server") as unusable:
        build(GatewaySettings(home=tmp_path, vllm="http://me:s3cret@127.0.0.1:http"))
    assert "s3cret" not in f"{refused.value} {unusable.value.reason} {unusable.value.way_out}"


def test_clients_that_do_not_read_are_cut_off_and_the_file_limit_is_raised_at_the_start(tmp_path: Path) -> None:
    service = build(GatewaySettings(home=tmp_path))
    assert service.http is not None
    assert service.http.options["http"] is HttpProtocol
    assert raise_file_limit in service.prepare


def test_the_gateway_learns_when_it_has_read_all_tasks_that_the_broker_has(tmp_path: Path) -> None:
    (reading,) = build(GatewaySettings(home=tmp_path)).connected
    assert isinstance(reading, functools.partial)
    assert reading.func.__qualname__ == LatestByKey.read_to_end.__qualname__


async def test_workers_do_not_start_on_a_port_of_another_process_and_say_which_it_is(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (prepare,) = build(GatewaySettings(home=tmp_path, gateway_workers=2, gateway_port=port)).prepare
        with pytest.raises(DependencyUnavailable, match=f"127.0.0.1:{port}") as raised:
            await prepare()
    assert "RATCHET_GATEWAY_PORT" in raised.value.way_out
    await prepare()


def test_with_several_workers_the_gateway_supervises_them(tmp_path: Path) -> None:
    service = build(GatewaySettings(home=tmp_path, gateway_workers=3))
    assert (service.http, service.broker, len(service.background)) == (None, None, 3)
    with pytest.raises(ConfigurationError, match="need one port"):
        build(GatewaySettings(home=tmp_path, gateway_workers=2, gateway_port=0))


def test_times_and_sizes_of_one_idea_follow_from_one_setting(tmp_path: Path) -> None:
    settings = GatewaySettings(home=tmp_path, gateway_upstream_seconds=40.0, gateway_max_body_bytes=2_000)
    limits, bodies = settings.upstream_limits, settings.body_limits
    assert (limits.total, limits.stream, limits.piece) == (40.0, 200.0, 20.0)
    assert (bodies.body, bodies.worker, bodies.app) == (2_000, 16_000, 4_000)
