"""What an application logs arrives, and never holds the application up."""

from __future__ import annotations

import json
import logging
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import ratchet
from services.gateway.domain import PredictionIds
from tests.conftest import ROOT

ASKED = [{"role": "user", "content": "hm?"}]


@dataclass
class FakeGateway:
    """Answers with `status(path, body)`; what it answered with 200 is `taken`, in order."""

    url: str = ""
    status: Callable[[str, Any], int] = lambda path, body: 200
    asked: list[tuple[str, Any, str | None]] = field(default_factory=list)
    taken: list[Any] = field(default_factory=list)

    def answer(self, path: str, key: str | None, body: Any) -> int:
        self.asked.append((path, body, key))
        status = self.status(path, body)
        if status == 200:
            self.taken += body if isinstance(body, list) else [body]
        return status


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(fake.answer(self.path, self.headers.get("authorization"), body))
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "such is life"}}')

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield fake
    server.shutdown()
    server.server_close()


def test_an_answer_and_what_was_thought_of_it_arrive_in_order_under_one_name(gateway: FakeGateway) -> None:
    client = ratchet.Client(f"{gateway.url}/v1/", key="rk-1")
    name = client.log("support", ASKED, "refund", latency_ms=12, model="gpt-4o", user="ann")
    client.feedback(name, "thumbs", positive=False)
    assert client.flush()
    (logged_at, logged, key), (told_at, told, _) = gateway.asked
    assert (logged_at, told_at, key) == ("/v1/predictions", "/v1/feedback", "Bearer rk-1")
    assert logged | {"prediction_id": ""} == {
        "task": "support", "prediction_id": "", "messages": ASKED, "answer": "refund", "latency_ms": 12,
        "model": "gpt-4o", "user": "ann",
    }  # fmt: skip
    assert told == {"prediction_id": name, "kind": "thumbs", "positive": False}
    ids = PredictionIds(b"k" * 32)
    assert ids.resolve(name) == ids.derive("support", logged["prediction_id"])
    client.close()


def test_answers_that_wait_go_together(gateway: FakeGateway) -> None:
    gate = threading.Event()
    gateway.status = lambda path, body: 200 if gate.wait(5) else 500
    client = ratchet.Client(gateway.url)
    for number in range(121):
        client.log("support", ASKED, str(number))
    gate.set()
    assert client.flush()
    assert [item["answer"] for item in gateway.taken] == [str(number) for number in range(121)]
    assert len(gateway.asked) <= 5
    client.close()


def test_long_answers_stay_below_the_gateways_limit(gateway: FakeGateway) -> None:
    gate = threading.Event()
    gateway.status = lambda path, body: 200 if gate.wait(5) else 500
    client = ratchet.Client(gateway.url)
    for _ in range(20):
        client.log("support", ASKED, "x" * 30_000)
    gate.set()
    assert client.flush()
    assert max(len(json.dumps(body)) for _, body, _ in gateway.asked) < 256 * 1024
    assert len(gateway.taken) == 20
    client.close()


def test_a_gateway_that_is_away_is_waited_for_and_nothing_is_sent_under_another_name(gateway: FakeGateway) -> None:
    answers = iter([503, 429])
    gateway.status = lambda path, body: next(answers, 200)
    client = ratchet.Client(gateway.url)
    client.log("support", ASKED, "refund")
    assert client.flush()
    assert len({body["prediction_id"] for _, body, _ in gateway.asked}) == 1
    assert (len(gateway.asked), len(gateway.taken), client.dropped) == (3, 1, 0)
    client.close()


def test_one_bad_answer_takes_no_other_with_it(gateway: FakeGateway, caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()

    def status(path: str, body: Any) -> int:
        gate.wait(5)
        items = body if isinstance(body, list) else [body]
        return 400 if any(item["answer"] == "bad" for item in items) else 200

    gateway.status = status
    client = ratchet.Client(gateway.url)
    for answer in ("first", "one", "bad", "two"):
        client.log("support", ASKED, answer)
    gate.set()
    assert client.flush()
    assert [item["answer"] for item in gateway.taken] == ["first", "one", "two"]
    assert client.dropped == 1
    assert "such is life" in caplog.text
    client.close()


def test_a_wrong_key_is_told_at_once(gateway: FakeGateway, caplog: pytest.LogCaptureFixture) -> None:
    gateway.status = lambda path, body: 401
    client = ratchet.Client(gateway.url, key="wrong")
    client.log("support", ASKED, "refund")
    assert client.flush()
    assert (len(gateway.asked), client.dropped) == (1, 1)
    assert "1 not logged: 401" in caplog.text
    client.close()


def test_logging_never_waits_and_what_does_not_fit_is_counted(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    gateway.status = lambda path, body: 200 if gate.wait(10) else 500
    client = ratchet.Client(gateway.url, most_waiting=10)
    client.log("support", ASKED, "first")
    while not gateway.asked:
        time.sleep(0.01)
    started = time.perf_counter()
    for number in range(100):
        client.log("support", ASKED, str(number))
    assert time.perf_counter() - started < 0.5
    assert client.dropped == 90
    assert caplog.text.count("10 wait already") == 1
    gate.set()
    assert client.flush()
    assert len(gateway.taken) == 11
    client.close()


def test_nobody_there_costs_the_application_nothing_and_the_end_tells_of_it(caplog: pytest.LogCaptureFixture) -> None:
    client = ratchet.Client("http://127.0.0.1:9")
    client.log("support", ASKED, "refund")
    assert not client.flush(0.1)
    with caplog.at_level(logging.WARNING, "ratchet"):
        client.close(0.1)
    assert client.dropped == 1
    assert "not sent within 0.1 s" in caplog.text
    client.log("support", ASKED, "late")
    assert client.dropped == 2


def test_what_is_no_json_is_dropped_and_told(gateway: FakeGateway, caplog: pytest.LogCaptureFixture) -> None:
    client = ratchet.Client(gateway.url)
    client.log("support", [{"role": "user", "content": {1, 2}}], "refund")
    assert client.dropped == 1
    assert "no JSON" in caplog.text
    client.close()


def test_after_the_retries_it_is_dropped_and_the_rest_goes_on(gateway: FakeGateway) -> None:
    answers = iter([503, 503])
    gateway.status = lambda path, body: next(answers, 200)
    client = ratchet.Client(gateway.url, retry_seconds=0.6)
    client.log("support", ASKED, "lost")
    while len(gateway.asked) < 2:
        time.sleep(0.01)
    client.log("support", ASKED, "kept")
    assert client.flush()
    assert [item["answer"] for item in gateway.taken] == ["kept"]
    assert client.dropped == 1
    client.close()


def test_the_end_of_the_program_sends_what_waits(gateway: FakeGateway) -> None:
    code = f"import ratchet; ratchet.Client({gateway.url!r}).log('support', [], 'last')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)
    assert [item["answer"] for item in gateway.taken] == ["last"]


def test_a_forked_worker_sends_its_own_and_only_that(gateway: FakeGateway) -> None:
    client = ratchet.Client(gateway.url)
    client.log("support", ASKED, "parent")
    assert client.flush()

    def work() -> None:
        client.log("support", ASKED, "child")
        assert client.flush()

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert [item["answer"] for item in gateway.taken] == ["parent", "child"]
    client.close()


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="http"):
        ratchet.Client("gateway:28080")
