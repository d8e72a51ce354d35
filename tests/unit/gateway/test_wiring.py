from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx

from services.gateway.main import build
from services.gateway.settings import GatewaySettings

HEAVY = ("torch", "transformers", "numpy", "sqlalchemy", "deltalake", "sklearn", "spacy", "faker")


def test_the_gateway_imports_nothing_heavy() -> None:
    code = f"import sys, services.gateway.main; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


async def test_a_gateway_that_has_read_and_heard_nothing_is_alive_but_not_ready(tmp_path: Path) -> None:
    service = build(GatewaySettings(home=tmp_path, unleash="http://127.0.0.1:9", vllm="http://127.0.0.1:9"))
    assert service.http is not None
    transport = httpx.ASGITransport(app=service.http)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        assert (await http.get("/healthz")).status_code == 200
        ready = await http.get("/readyz")
    assert ready.status_code == 503
    assert [problem.partition(":")[0] for problem in ready.json()["missing"]] == [
        "no task is known", "no model server answers",
    ]  # fmt: skip
    assert ready.json()["notes"] == [
        "the shipper is not running: events wait in the spool, nothing reaches Kafka",
        "Unleash does not answer: the last known flags hold",
    ]
    assert (tmp_path / "secrets" / "prediction-ids").stat().st_mode & 0o077 == 0
