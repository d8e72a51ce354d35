"""Every route of a task needs an API key, and no key ever gets into a log or a metric."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, AuthenticationError, PermissionDeniedError, RateLimitError

from services.gateway.auth.grants import AccessControl
from services.gateway.auth.keys import ApiKey, new_key, write_keys
from services.gateway.upstreams.upstream import UpstreamFailed
from shared.http import with_cors
from tests.unit.gateway.conftest import Gateway, serving

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


@dataclass
class Guarded:
    """A gateway with two keys: one for everything, one for `support` alone."""

    gateway: Gateway
    whole: str
    support: str

    async def send(self, method: str, path: str, key: str | None, body: Any = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return await self.gateway.http.request(method, path, json=body, headers=headers)

    def openai(self, key: str, **more: Any) -> AsyncOpenAI:
        transport = httpx.AsyncClient(transport=httpx.ASGITransport(self.gateway.app), base_url="http://gateway")
        return AsyncOpenAI(base_url="http://gateway/v1", api_key=key, http_client=transport, max_retries=0, **more)


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    (whole, whole_digest), (support, support_digest) = new_key(), new_key()
    created: dict[str, Any] = {"created_at": datetime.now(UTC)}
    write_keys(
        tmp_path / "keys.json",
        [
            ApiKey(app="shop", digest=whole_digest, **created),
            ApiKey(app="desk", digest=support_digest, tasks=("support",), requests_per_second=1.0, burst=4, **created),
        ],
    )
    access = AccessControl(tmp_path / "keys.json", tmp_path / "had-keys")
    access.reload()
    async with serving(access=access) as gateway:
        yield Guarded(gateway, whole, support)


def external(task: str) -> dict[str, Any]:
    return {"task": task, **CHAT, "answer": "hi", "latency_ms": 1}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/chat/completions", {"model": "haiku", **CHAT}),
        ("POST", "/v1/completions", {"model": "haiku", "prompt": "hello"}),
        ("POST", "/v1/responses", {"model": "haiku", "input": "hello"}),
        ("POST", "/v1/embeddings", {"model": "haiku", "input": "hello"}),
        ("POST", "/v1/predictions", external("haiku")),
        ("POST", "/v1/predictions", [external("support"), external("haiku")]),
        ("GET", "/v1/models/haiku", None),
    ],
)
async def test_no_key_is_401_and_another_apps_key_is_403(guarded: Guarded, method: str, path: str, body: Any) -> None:
    for key, status in ((None, 401), ("rk_wrong", 401), (guarded.support, 403)):
        response = await guarded.send(method, path, key, body)
        assert (response.status_code, set(response.json()["error"])) == (status, {"message", "type", "param", "code"})
    assert guarded.gateway.upstream.asked == []
    assert guarded.gateway.log.appends == []


async def test_feedback_needs_a_key_of_the_predictions_task(guarded: Guarded) -> None:
    body = {"prediction_id": guarded.gateway.ids.new("haiku"), "kind": "thumbs", "positive": True}
    sent = [await guarded.send("POST", "/v1/feedback", key, body) for key in (None, guarded.support, guarded.whole)]
    assert [response.status_code for response in sent] == [401, 403, 200]
    assert len(guarded.gateway.log.events) == 1


async def test_models_are_the_tasks_of_the_key(guarded: Guarded) -> None:
    assert (await guarded.send("GET", "/v1/models", None)).status_code == 401
    for key, names in ((guarded.support, ["support"]), (guarded.whole, ["haiku", "support"])):
        listed = (await guarded.send("GET", "/v1/models", key)).json()["data"]
        assert [model["id"] for model in listed] == names


async def test_health_and_readiness_need_no_key(guarded: Guarded) -> None:
    for path in ("/healthz", "/readyz"):
        assert (await guarded.send("GET", path, None)).status_code == 200


async def test_metrics_which_name_every_task_need_a_key_for_every_task(guarded: Guarded) -> None:
    sent = [await guarded.send("GET", "/metrics", key) for key in (None, "rk_wrong", guarded.support, guarded.whole)]
    assert [response.status_code for response in sent] == [401, 401, 403, 200]
    assert ["ratchet_gateway_" in response.text for response in sent] == [False, False, False, True]


async def test_a_setting_opens_the_metrics_to_whoever_reaches_the_gateway(tmp_path: Path) -> None:
    access = AccessControl(tmp_path / "keys.json", tmp_path / "had-keys", required=True)
    access.reload()
    async with serving(access=access, public_metrics=True) as gateway:
        assert (await gateway.http.get("/metrics")).status_code == 200
        assert (await gateway.http.get("/v1/models")).status_code == 401


@pytest.mark.parametrize(
    ("client", "headers", "key", "sees"),
    [
        ("127.0.0.1", {}, False, True),
        ("::1", {}, False, True),
        ("::ffff:127.0.0.1", {}, False, True),
        ("10.0.0.9", {}, False, False),
        ("10.0.0.9", {"authorization": "Bearer rk_wrong"}, False, False),
        ("10.0.0.9", {}, True, True),
        ("127.0.0.1", {"x-forwarded-for": "10.0.0.9"}, False, False),
        ("127.0.0.1", {"forwarded": "for=10.0.0.9"}, False, False),
        ("127.0.0.1", {"x-forwarded-for": "10.0.0.9"}, True, True),
    ],
)
async def test_readiness_is_detailed_for_a_key_or_from_loopback_alone(
    guarded: Guarded, client: str, headers: dict[str, str], key: bool, sees: bool
) -> None:
    guarded.gateway.missing.append("a part with a name")
    if key:
        headers = headers | {"authorization": f"Bearer {guarded.support}"}
    transport = httpx.ASGITransport(guarded.gateway.app, client=(client, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        response = await http.get("/readyz", headers=headers)
    assert response.status_code == 503
    summary = {"ready": False, "missing_count": 1}
    detailed = {"ready": False, "missing": ["a part with a name"], "notes": []}
    assert response.json() == (detailed if sees else summary)


async def test_the_openai_client_sends_the_key_and_raises_its_own_errors(guarded: Guarded) -> None:
    asked: Any = {"model": "support", **CHAT}
    async with guarded.openai(guarded.support) as client:
        answer = await client.chat.completions.create(**asked)
        assert answer.choices[0].message.content == "refund"
        with pytest.raises(PermissionDeniedError, match="not for the task 'haiku'"):
            await client.chat.completions.create(**asked | {"model": "haiku"})
        with pytest.raises(RateLimitError) as limited:
            for _ in range(4):
                await client.chat.completions.create(**asked)
        assert limited.value.code == "rate_limit_exceeded"
        assert 0 < int(limited.value.response.headers["retry-after-ms"]) <= 1_000
    async with guarded.openai("rk_wrong") as client:
        with pytest.raises(AuthenticationError, match="unknown"):
            await client.chat.completions.create(**asked)


async def test_no_key_gets_into_logs_metrics_events_or_upstream(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    gateway, stranger = guarded.gateway, new_key()[0]
    asked = {"model": "support", **CHAT}
    failures: list[Any] = [
        UpstreamFailed(500, "the model broke", "error"),
        RuntimeError("internal error in a test"),
        None,
    ]
    for failure in failures:
        gateway.upstream.failure = failure
        for key in (guarded.whole, guarded.support, stranger):
            await guarded.send("POST", "/v1/chat/completions", key, asked)
    await guarded.send("POST", f"/v1/{guarded.whole}", guarded.whole, asked)
    logged = [record.getMessage() + (record.exc_text or "") for record in caplog.records if record.name != "httpx"]
    assert any("internal error in a test" in text for text in logged)
    logged += [
        (await guarded.send("GET", "/metrics", guarded.whole)).text,
        repr(gateway.log.appends),
        repr(gateway.upstream.asked),
    ]
    assert "prediction_id" in logged[-2]
    secrets = [key.removeprefix("rk_") for key in (guarded.whole, guarded.support, stranger)]
    assert [text for text in logged for secret in secrets if secret in text] == []


async def test_cors_allows_only_the_configured_origins(guarded: Guarded) -> None:
    asks = {"origin": "https://app.example", "access-control-request-method": "POST"}
    wants = {"access-control-request-headers": "authorization,content-type,x-stainless-lang"}
    app = guarded.gateway.app
    assert with_cors(app, ()) is app
    answers = []
    for origins in ((), ("https://other.example",), ("https://app.example",)):
        transport = httpx.ASGITransport(with_cors(app, origins))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            before = await http.options("/v1/chat/completions", headers=asks | wants)
            sent = {"origin": asks["origin"], "authorization": f"Bearer {guarded.whole}"}
            response = await http.post("/v1/chat/completions", json={"model": "support", **CHAT}, headers=sent)
            assert response.status_code == 200
            allowed = "access-control-allow-origin"
            answers.append((before.status_code == 200, before.headers.get(allowed), response.headers.get(allowed)))
            refused = await http.post("/v1/chat/completions", json={}, headers={"origin": asks["origin"]})
            assert refused.headers.get(allowed) == response.headers.get(allowed)
    assert answers == [(False, None, None), (False, None, None), (True, "https://app.example", "https://app.example")]
