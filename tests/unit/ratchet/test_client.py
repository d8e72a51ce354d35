"""What an application logs arrives at the gateway, and never blocks the application."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import ratchet
from services.gateway.domain import PredictionIds
from tests.conftest import ROOT
from tests.waiting import PATIENCE_SECONDS

ASKED = [{"role": "user", "content": "hm?"}]


@dataclass
class FakeGateway:
    """Answers with `status(path, body)`; `accepted`: the items answered with 200, in order.

    A redirect leads to /login; `fetched`: the paths that were read by GET."""

    url: str = ""
    status: Callable[[str, Any], int] = lambda path, body: 200
    requests: list[tuple[str, Any, str | None]] = field(default_factory=list)
    accepted: list[Any] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def answer(self, path: str, key: str | None, body: Any) -> int:
        self.requests.append((path, body, key))
        status = self.status(path, body)
        if status == 200:
            self.accepted += body if isinstance(body, list) else [body]
        return status


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status = fake.answer(self.path, self.headers.get("authorization"), body)
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("location", "/login")
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "refused by the test"}}')

        def do_GET(self) -> None:
            fake.fetched.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield fake
    server.shutdown()
    server.server_close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_an_answer_and_its_feedback_arrive_in_order_under_one_id(gateway: FakeGateway) -> None:
    client = ratchet.Client(f"{gateway.url}/v1/", key="rk-1")
    prediction_id = client.log("support", ASKED, "refund", latency_ms=12, model="gpt-4o", user="ann")
    client.feedback(prediction_id, "thumbs", positive=False)
    assert client.flush(PATIENCE_SECONDS)
    (logged_at, logged, key), (feedback_at, feedback, _) = gateway.requests
    assert (logged_at, feedback_at, key) == ("/v1/predictions", "/v1/feedback", "Bearer rk-1")
    assert logged | {"prediction_id": "", "occurred_at": ""} == {
        "task": "support", "prediction_id": "", "messages": ASKED, "answer": "refund", "latency_ms": 12,
        "occurred_at": "", "model": "gpt-4o", "user": "ann",
    }  # fmt: skip
    assert feedback == {"prediction_id": prediction_id, "kind": "thumbs", "positive": False}
    ids = PredictionIds(b"k" * 32)
    assert ids.resolve(prediction_id) == ids.derive("support", logged["prediction_id"])
    client.close()


def test_waiting_answers_are_sent_in_batches(gateway: FakeGateway) -> None:
    gate = threading.Event()
    gateway.status = lambda path, body: 200 if gate.wait(PATIENCE_SECONDS) else 500
    client = ratchet.Client(gateway.url)
    for number in range(121):
        client.log("support", ASKED, str(number))
    gate.set()
    assert client.flush(PATIENCE_SECONDS)
    assert [item["answer"] for item in gateway.accepted] == [str(number) for number in range(121)]
    assert len(gateway.requests) <= 5
    client.close()


def test_batches_of_long_answers_stay_below_the_gateways_limit(gateway: FakeGateway) -> None:
    gate = threading.Event()
    gateway.status = lambda path, body: 200 if gate.wait(PATIENCE_SECONDS) else 500
    client = ratchet.Client(gateway.url)
    for _ in range(20):
        client.log("support", ASKED, "x" * 30_000)
    gate.set()
    assert client.flush(PATIENCE_SECONDS)
    assert max(len(json.dumps(body)) for _, body, _ in gateway.requests) < 256 * 1024
    assert len(gateway.accepted) == 20
    client.close()


def test_an_answer_that_arrives_later_has_the_time_at_which_it_was_logged(gateway: FakeGateway) -> None:
    answers = iter([503])
    gateway.status = lambda path, body: next(answers, 200)
    client = ratchet.Client(gateway.url)
    client.log("support", ASKED, "refund")
    assert client.flush(PATIENCE_SECONDS)
    client.log("support", ASKED, "refund", occurred_at="2026-11-23T03:00:00Z")
    assert client.flush(PATIENCE_SECONDS)
    refused, accepted, given = [body["occurred_at"] for _, body, _ in gateway.requests]
    assert refused == accepted and datetime.fromisoformat(accepted).utcoffset() == timedelta(0)
    assert given == "2026-11-23T03:00:00Z"
    client.close()


def test_an_unavailable_gateway_is_retried_with_the_same_id(gateway: FakeGateway) -> None:
    answers = iter([503, 429])
    gateway.status = lambda path, body: next(answers, 200)
    client = ratchet.Client(gateway.url)
    client.log("support", ASKED, "refund")
    assert client.flush(PATIENCE_SECONDS)
    assert len({body["prediction_id"] for _, body, _ in gateway.requests}) == 1
    assert (len(gateway.requests), len(gateway.accepted), client.dropped) == (3, 1, 0)
    client.close()


def test_a_refused_answer_does_not_affect_others_of_its_batch(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    def status(path: str, body: Any) -> int:
        gate.wait(PATIENCE_SECONDS)
        items = body if isinstance(body, list) else [body]
        return 400 if any(item["answer"] == "bad" for item in items) else 200

    gateway.status = status
    client = ratchet.Client(gateway.url)
    for answer in ("first", "one", "bad", "two"):
        client.log("support", ASKED, answer)
    gate.set()
    assert client.flush(PATIENCE_SECONDS)
    assert [item["answer"] for item in gateway.accepted] == ["first", "one", "two"]
    assert client.dropped == 1
    assert [record.getMessage().count("1 not logged: 400: ") for record in caplog.records] == [1], "no other waits"
    assert "refused by the test" in caplog.text
    client.close()


def test_a_wrong_key_is_reported_at_once(gateway: FakeGateway, caplog: pytest.LogCaptureFixture) -> None:
    gateway.status = lambda path, body: 401
    client = ratchet.Client(gateway.url, key="wrong")
    client.log("support", ASKED, "refund")
    assert client.flush(PATIENCE_SECONDS)
    assert (len(gateway.requests), client.dropped) == (1, 1)
    assert "1 not logged: 401" in caplog.text
    client.close()


def test_logging_never_waits_and_counts_what_does_not_fit(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    gateway.status = lambda path, body: 200 if gate.wait(PATIENCE_SECONDS) else 500
    client = ratchet.Client(gateway.url, max_waiting=10)
    client.log("support", ASKED, "first")
    while not gateway.requests:
        time.sleep(0.01)
    started = time.perf_counter()
    for number in range(100):
        client.log("support", ASKED, str(number))
    assert time.perf_counter() - started < PATIENCE_SECONDS  # The gateway answers later.
    assert client.dropped == 90
    assert caplog.text.count("10 are waiting already") == 1
    gate.set()
    assert client.flush(PATIENCE_SECONDS)
    assert len(gateway.accepted) == 11
    client.close()


def test_without_a_gateway_the_application_runs_on_and_its_end_reports_the_loss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = ratchet.Client("http://127.0.0.1:9")
    client.log("support", ASKED, "refund")
    assert not client.flush(0.1)
    with caplog.at_level(logging.WARNING, "ratchet"):
        client.close(0.1)
    assert client.dropped == 1
    assert "not sent within 0.1 s" in caplog.text
    client.log("support", ASKED, "late")
    assert client.dropped == 2


def test_an_item_that_is_not_json_is_dropped_and_reported(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    client = ratchet.Client(gateway.url)
    client.log("support", [{"role": "user", "content": {1, 2}}], "refund")
    assert client.dropped == 1
    assert "not JSON" in caplog.text
    client.close()


def test_after_the_retries_an_item_is_dropped_and_the_rest_is_sent(gateway: FakeGateway) -> None:
    answers = iter([503, 503])
    gateway.status = lambda path, body: next(answers, 200)
    client = ratchet.Client(gateway.url, retry_seconds=0.6)
    client.log("support", ASKED, "lost")
    while len(gateway.requests) < 2:
        time.sleep(0.01)
    client.log("support", ASKED, "sent")
    assert client.flush(PATIENCE_SECONDS)
    assert [item["answer"] for item in gateway.accepted] == ["sent"]
    assert client.dropped == 1
    client.close()


def test_feedback_that_is_answered_with_500_does_not_hold_up_the_rest_and_is_sent_again(gateway: FakeGateway) -> None:
    healed = threading.Event()
    gateway.status = lambda path, body: 200 if path == "/v1/predictions" or healed.is_set() else 500
    client = ratchet.Client(gateway.url)
    client.feedback("support/bad", "thumbs", positive=True)
    for number in range(100):
        client.log("support", ASKED, str(number))
    wait_until(lambda: len(gateway.accepted) == 100)
    assert [item["answer"] for item in gateway.accepted] == [str(number) for number in range(100)]
    healed.set()
    assert client.flush(PATIENCE_SECONDS)
    assert (gateway.accepted[-1]["prediction_id"], client.dropped) == ("support/bad", 0)
    client.close()


@pytest.mark.parametrize("status", [400, 500])
def test_one_answer_that_fails_its_batch_is_found_by_halving_and_the_others_arrive_once(
    gateway: FakeGateway, status: int
) -> None:
    gate = threading.Event()

    def answer(path: str, body: Any) -> int:
        gate.wait(PATIENCE_SECONDS)
        items = body if isinstance(body, list) else [body]
        return status if any(item["answer"] == "bad" for item in items) else 200

    gateway.status = answer
    client = ratchet.Client(gateway.url, retry_seconds=0.1)
    answers = ["first", *map(str, range(60))]
    answers[30] = "bad"
    for text in answers:
        client.log("support", ASKED, text)
    gate.set()
    assert client.flush(PATIENCE_SECONDS)
    assert [item["answer"] for item in gateway.accepted] == [text for text in answers if text != "bad"]
    assert (client.dropped, len(gateway.requests) < 25) == (1, True)
    client.close()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_the_gateway_refuses_is_sent_once_counted_and_logged_once_with_the_reason(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    gateway.status = lambda path, body: status
    client = ratchet.Client(gateway.url)
    for _ in range(5):
        client.feedback("support/own", "thumbs", positive=True)
    assert client.flush(PATIENCE_SECONDS)
    assert (len(gateway.requests), client.dropped) == (5, 5)
    assert [record.getMessage().count(f"{status}: ") for record in caplog.records] == [1]
    assert "refused by the test" in caplog.text
    client.close()


def test_flush_returns_after_what_was_dropped_is_counted_and_logged(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = []

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            time.sleep(0.3)
            reports.append(record.getMessage())

    monkeypatch.setattr(ratchet.client.logger, "handlers", [Slow()])
    gateway.status = lambda path, body: 400
    client = ratchet.Client(gateway.url)
    client.log("support", ASKED, "refund")
    assert client.flush(PATIENCE_SECONDS)
    assert (client.dropped, len(reports)) == (1, 1)
    client.close()


def test_a_log_handler_that_fails_does_not_end_the_sending(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("the application's own mistake")

    monkeypatch.setattr(ratchet.client.logger, "handlers", [Broken()])
    gateway.status = lambda path, body: 400 if "other" in json.dumps(body) else 200
    client = ratchet.Client(gateway.url)
    for task in ("other", "support"):
        client.log(task, ASKED, "refund")
        assert client.flush(PATIENCE_SECONDS)
    client.log("support", ASKED, "refund", metadata=object())  # It cannot be sent, and the handler is called here.
    assert (len(gateway.accepted), client.dropped) == (1, 2)
    client.close()


def test_a_key_that_is_not_for_one_task_does_not_lose_the_answers_of_another(gateway: FakeGateway) -> None:
    gate = threading.Event()

    def answer(path: str, body: Any) -> int:
        gate.wait(PATIENCE_SECONDS)
        return 403 if any(item["task"] == "other" for item in (body if isinstance(body, list) else [body])) else 200

    gateway.status = answer
    client = ratchet.Client(gateway.url)
    for task in ("support", "support", "other", "support"):
        client.log(task, ASKED, "refund")
    gate.set()
    assert client.flush(PATIENCE_SECONDS)
    assert (len(gateway.accepted), client.dropped) == (3, 1)
    client.close()


def test_later_feedback_on_an_answer_does_not_overtake_what_waits_for_its_next_attempt(gateway: FakeGateway) -> None:
    failing = threading.Event()
    failing.set()
    gateway.status = lambda path, body: 500 if failing.is_set() and body.get("prediction_id") == "support/a" else 200
    client = ratchet.Client(gateway.url)
    client.feedback("support/a", "thumbs", positive=True)
    wait_until(lambda: bool(gateway.requests))
    client.feedback("support/a", "thumbs", positive=False)
    client.feedback("support/b", "thumbs", positive=True)
    wait_until(lambda: bool(gateway.accepted))
    failing.clear()
    assert client.flush(PATIENCE_SECONDS)
    assert [(item["prediction_id"], item["positive"]) for item in gateway.accepted] == [
        ("support/b", True), ("support/a", True), ("support/a", False),
    ]  # fmt: skip
    client.close()


def test_over_a_rate_limit_batches_stay_whole_and_nothing_is_lost(gateway: FakeGateway) -> None:
    statuses, gate = iter([200, 429, 429]), threading.Event()
    gateway.status = lambda path, body: next(statuses, 200) if gate.wait(PATIENCE_SECONDS) else 500
    client = ratchet.Client(gateway.url)
    for number in range(51):
        client.log("support", ASKED, str(number))
    gate.set()
    assert client.flush(PATIENCE_SECONDS)
    assert [item["answer"] for item in gateway.accepted] == [str(number) for number in range(51)]
    assert (len(gateway.requests) <= 5, client.dropped) == (True, 0)
    client.close()


def test_an_outage_costs_one_request_per_pause_and_loses_nothing(gateway: FakeGateway) -> None:
    down = threading.Event()
    down.set()
    gateway.status = lambda path, body: 503 if down.is_set() else 200
    client = ratchet.Client(gateway.url)
    for number in range(200):
        client.log("support", ASKED, str(number))
    time.sleep(2)
    assert len(gateway.requests) < 15
    down.clear()
    assert client.flush(PATIENCE_SECONDS)
    assert sorted(int(item["answer"]) for item in gateway.accepted) == list(range(200))
    assert client.dropped == 0
    client.close()


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_gateway_answers_for_a_while_all_arrives_and_feedback_on_one_answer_stays_in_order(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("ratchet.client._FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("ratchet.client._MAX_PAUSE_SECONDS", 0.01)
    chance = random.Random(seed)
    statuses = iter(chance.choices([200, 500, 503, 429], k=300))
    gateway.status = lambda path, body: next(statuses, 200)
    client = ratchet.Client(gateway.url)
    for number in range(300):
        if chance.random() < 0.6:
            client.log("support", ASKED, str(number))
        else:
            client.feedback(f"support/{chance.randrange(9)}", "edited", text=str(number))
    assert client.flush(PATIENCE_SECONDS)
    order: dict[str, list[int]] = {}
    for item in gateway.accepted:
        order.setdefault(item["prediction_id"], []).append(int(item.get("answer") or item["text"]))
    assert sorted(number for numbers in order.values() for number in numbers) == list(range(300))
    assert all(numbers == sorted(numbers) for numbers in order.values())
    assert client.dropped == 0
    client.close()


def test_what_waits_is_bounded_by_bytes(gateway: FakeGateway, caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    gateway.status = lambda path, body: 200 if gate.wait(PATIENCE_SECONDS) else 500
    client = ratchet.Client(gateway.url, max_waiting_bytes=100_000)
    for number in range(20):
        client.log("support", ASKED, f"{number}" + "x" * 10_000)
    client.log("support", ASKED, "fits")
    assert client.dropped == 11
    assert caplog.text.count("max_waiting_bytes") == 1
    gate.set()
    assert client.flush(PATIENCE_SECONDS)
    assert [item["answer"].rstrip("x") for item in gateway.accepted] == [*map(str, range(9)), "fits"]
    client.log("support", ASKED, "y" * 90_000)  # What was sent makes room.
    client.log("support", ASKED, "z" * 100_000)
    assert client.flush(PATIENCE_SECONDS)
    assert (len(gateway.accepted), client.dropped) == (11, 12)
    client.close()


def test_the_end_counts_what_was_set_aside_too(gateway: FakeGateway) -> None:
    gateway.status = lambda path, body: 500
    client = ratchet.Client(gateway.url)
    for _ in range(2):
        client.feedback("support/a", "thumbs", positive=True)
    wait_until(lambda: len(gateway.requests) == 1)
    client.close(0.1)
    assert client.dropped == 2


def test_the_end_of_the_program_sends_the_queue(gateway: FakeGateway) -> None:
    code = f"import ratchet; ratchet.Client({gateway.url!r}).log('support', [], 'last')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=PATIENCE_SECONDS)
    assert [item["answer"] for item in gateway.accepted] == ["last"]


def test_what_an_application_logs_at_its_own_end_is_sent(gateway: FakeGateway) -> None:
    code = (
        f"import atexit, ratchet; client = ratchet.Client({gateway.url!r});"
        "atexit.register(lambda: client.log('support', [], 'at the end')); client.log('support', [], 'before')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=PATIENCE_SECONDS)
    assert [item["answer"] for item in gateway.accepted] == ["before", "at the end"]


def test_a_forked_worker_sends_only_its_own_items(gateway: FakeGateway) -> None:
    client = ratchet.Client(gateway.url)
    client.log("support", ASKED, "parent")
    assert client.flush(PATIENCE_SECONDS)

    def work() -> None:
        client.log("support", ASKED, "child")
        assert client.flush(PATIENCE_SECONDS)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(PATIENCE_SECONDS)
    assert child.exitcode == 0
    assert [item["answer"] for item in gateway.accepted] == ["parent", "child"]
    client.close()


def run_forked(work: Callable[[], None]) -> int | None:
    """Run it in a forked process, which ends as a worker of multiprocessing does; returns its exit code."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(PATIENCE_SECONDS)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode


def test_what_a_worker_of_multiprocessing_logs_last_is_sent_before_its_end(gateway: FakeGateway) -> None:
    client = ratchet.Client(gateway.url, exit_seconds=PATIENCE_SECONDS)

    def work() -> None:
        for number in range(200):
            client.log("support", ASKED, str(number))

    assert run_forked(work) == 0
    assert sorted(int(item["answer"]) for item in gateway.accepted) == list(range(200))
    client.close()


def test_a_worker_forked_while_the_parents_queue_is_full_and_locked_waits_for_nothing(gateway: FakeGateway) -> None:
    client = ratchet.Client("http://127.0.0.1:1")  # Nobody answers there.
    client.log("support", ASKED, "parent")

    def work() -> None:
        assert client.flush(PATIENCE_SECONDS), "the queue is the parent's"
        client.close()

    with client._change:  # Another thread of the parent may hold it at any moment.
        exit_code = run_forked(work)
    assert exit_code == 0
    client.close(0)


def test_a_client_that_was_closed_before_a_fork_logs_again_in_the_worker(gateway: FakeGateway) -> None:
    client = ratchet.Client(gateway.url)
    client.close()

    def work() -> None:
        client.log("support", ASKED, "child")  # Sent at the worker's end.

    assert run_forked(work) == 0
    assert [item["answer"] for item in gateway.accepted] == ["child"]


def test_threads_of_a_forked_worker_lose_nothing_of_each_other(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = ratchet.Client(gateway.url)

    def work() -> None:
        started = threading.Barrier(2)
        getpid = os.getpid

        def slow_getpid() -> int:
            with contextlib.suppress(threading.BrokenBarrierError):
                started.wait(1.0)
            return getpid()

        monkeypatch.setattr("os.getpid", slow_getpid)
        threads = [threading.Thread(target=client.log, args=("support", ASKED, name)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.flush(PATIENCE_SECONDS)

    assert run_forked(work) == 0
    assert sorted(item["answer"] for item in gateway.accepted) == ["a", "b"]
    client.close()


def test_without_a_thread_nothing_raises_or_waits_and_the_next_answer_starts_one(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = ratchet.Client(gateway.url)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        client.log("support", ASKED, "lost")
        assert client.dropped == 1
        assert client.flush(0)
    client.log("support", ASKED, "kept")
    assert client.flush(PATIENCE_SECONDS)
    assert [item["answer"] for item in gateway.accepted] == ["kept"]
    client.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_taken_for_an_answer_of_the_gateway_and_gets_no_key(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    gateway.status = lambda path, body: status
    client = ratchet.Client(gateway.url, key="rk-1", retry_seconds=0.1)
    client.log("support", ASKED, "refund")
    assert client.flush(PATIENCE_SECONDS)
    assert client.dropped == 1
    assert "redirected to /login" in caplog.text
    assert gateway.fetched == []
    client.close()


@pytest.mark.parametrize(
    "url",
    [
        "gateway:28080", "http://", "http://gate way", "http://gateway:port", "http://gateway:99999",
        "http://gateway/v1?key=s3cret", "http://me:s3cret@gateway", "http://gateway\n", "ftp://gateway",
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_the_gateways_is_refused_at_once_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="http") as refused:
        ratchet.Client(url)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("key", ["rk_s3cret\n", "rk_s3cret\u2014", "Bearer rk_s3cret"])
def test_a_key_that_no_header_may_have_is_refused_at_once_and_in_no_log(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    with pytest.raises(ValueError, match="key") as refused:
        client = ratchet.Client(gateway.url, key=key)
        client.log("support", ASKED, "refund")
        client.close(PATIENCE_SECONDS)
    assert "s3cret" not in f"{refused.value} {caplog.text}"


def test_while_the_gateway_is_away_the_log_says_why_and_so_does_the_end(caplog: pytest.LogCaptureFixture) -> None:
    client = ratchet.Client("http://127.0.0.1:9")
    client.log("support", ASKED, "refund")
    wait_until(lambda: "1 wait to be sent again: gateway unavailable" in caplog.text)
    client.close(0.1)
    assert "1 not logged: not sent within 0.1 s before the end (gateway unavailable: " in caplog.text
    assert client.dropped == 1


def test_messages_nested_too_deep_for_json_raise_nothing(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    client = ratchet.Client(gateway.url)
    client.log("support", [{"role": "user", "content": deep}], "refund")
    assert client.dropped == 1
    assert "not JSON" in caplog.text
    client.close()
