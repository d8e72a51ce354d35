"""The clients: they send events and record the answers in the ledger.

An event counts as accepted only after a 200 or the broker's acknowledgement. A refusal (503, no connection) is counted,
and the client continues with new events. A connection that breaks before the answer leaves the outcome unknown.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import aiohttp
import orjson
from confluent_kafka import KafkaError, Message, Producer

from schemas.base import Message as ChatMessage
from schemas.base import Role, utc_now
from schemas.predictions import Confidence, PredictionSubmitted, SubjectForgotten
from shared.identity import keyed_hash, load_or_create_key
from tests.chaos.ledger import ACCEPTED, MARKER_PREFIX, REFUSED, UNKNOWN, Ledger, Sent
from tests.chaos.people import Texts
from tests.chaos.system import System
from tests.chaos.upstream import is_low

PERSONAL_SHARE = 0.05
LOW_SHARE = 0.005
DIRECT_SHARE = 0.06
POISON = 20
USERS_TO_FORGET = 5
USERS = 2_000
_CONFIDENCE = {True: 0.3, False: 0.95}
_BATCH = 100
_TICK = 0.05
_MAX_UNACKNOWLEDGED = 2_000
_RATE_AFTER_TARGET = 0.2
"""Share of the rate that continues when the target is reached and faults are still to come."""
_TIMEOUT = aiohttp.ClientTimeout(total=20.0, connect=3.0)


@dataclass
class LoadCounts:
    """Counts of the load that the ledger does not have."""

    answers: Counter[str] = field(default_factory=Counter)
    copies: int = 0
    reordered: int = 0
    poison: int = 0
    while_broker_down: int = 0
    feedback: Counter[str] = field(default_factory=Counter)


class Load:
    """All clients of a run. `target`: the number of events to have accepted, spread over `seconds`."""

    def __init__(self, system: System, ledger: Ledger, target: int, seconds: float, seed: int) -> None:
        self._system = system
        self._ledger = ledger
        self._target = target
        self._seconds = seconds
        self._random = random.Random(seed)
        self.texts = Texts(seed + 1, PERSONAL_SHARE)
        self.counts = LoadCounts()
        self.stopping = False
        self.broker_down = False
        self._started_at = time.monotonic()
        self._number = 0
        self._feedback: deque[tuple[str, str | None]] = deque(maxlen=5_000)
        self._to_forget = [f"forgotten-{n}" for n in range(USERS_TO_FORGET)]
        self._in_flight: Counter[str] = Counter()
        self._subjects_key = load_or_create_key(system.home / "secrets", "subjects")
        self._direct = _DirectProducer(system, ledger, self.counts, random.Random(seed + 2))

    @property
    def accepted(self) -> int:
        return self._ledger.counts[ACCEPTED]

    @property
    def reached(self) -> bool:
        """True once as many events as the target are accepted."""
        return self.accepted >= self._target

    async def run(self) -> None:
        """Run until `stopping`. The rate follows the clock; after the target it is lower, until the faults end."""
        self._started_at = time.monotonic()
        http = aiohttp.ClientSession(timeout=_TIMEOUT, json_serialize=lambda value: orjson.dumps(value).decode())
        async with http, asyncio.TaskGroup() as group:
            for gateway in range(3):
                group.create_task(self._post_batches(http, gateway))
            group.create_task(self._chat(http))
            group.create_task(self._give_feedback(http))
            group.create_task(self._submit_directly())
        await self._direct.finish()

    async def wait_until_acknowledged(self, seconds: float = 60.0) -> None:
        """Wait until the broker has acknowledged another record. Raises TimeoutError."""
        before = self._direct.acknowledged
        async with asyncio.timeout(seconds):
            while self._direct.acknowledged == before and not self.stopping:
                await asyncio.sleep(0.1)

    def _is_ahead(self) -> bool:
        elapsed = (time.monotonic() - self._started_at) / self._seconds
        due = self._target * (min(elapsed, 1.0) + max(0.0, elapsed - 1.0) * _RATE_AFTER_TARGET)
        return self.accepted > due and not self.stopping

    async def _pace(self) -> None:
        """Wait until the next events are due."""
        while self._is_ahead():
            await asyncio.sleep(0.05)

    def _user(self) -> str | None:
        draw = self._random.random()
        if draw < 0.02 and self._to_forget:
            return self._random.choice(self._to_forget)
        return f"user-{self._random.randrange(USERS)}" if draw < 0.7 else None

    def _new_marker(self, channel: str) -> tuple[int, str]:
        self._number += 1
        return self._number, f"{MARKER_PREFIX}{channel}-{self._number}"

    async def _post_batches(self, http: aiohttp.ClientSession, gateway: int) -> None:
        while not self.stopping:
            await self._pace()
            size = self._random.randint(1, _BATCH) if self._random.random() < 0.3 else _BATCH
            sent, items = [], []
            for _ in range(size):
                _, marker = self._new_marker("post")
                low, user = self._random.random() < LOW_SHARE, self._user()
                sent.append(Sent(marker, "predictions", user, low))
                messages = [{"role": "user", "content": self.texts.next()}]
                item = {
                    "task": self._system.task, "messages": messages, "answer": "delivery", "model": marker,
                    "latency_ms": self._random.uniform(5, 500), "confidence": _CONFIDENCE[low],
                }  # fmt: skip
                items.append(item | ({"user": user} if user else {}))
            self._ledger.record_sending(sent)
            users = [prediction.user for prediction in sent]
            outcome, body = await self._ask(http, gateway, "/v1/predictions", items, users)
            markers = [prediction.marker for prediction in sent]
            self._record(outcome, markers, body["prediction_ids"] if outcome == ACCEPTED else [], users)
            gateway += outcome != ACCEPTED  # Like a load balancer: the next batch goes to the other gateway.

    async def _chat(self, http: aiohttp.ClientSession) -> None:
        gateway = 0
        while not self.stopping:
            await asyncio.sleep(self._random.uniform(0.05, 0.5))
            number, marker = self._new_marker("chat")
            user = self._user()
            self._ledger.record_sending([Sent(marker, "chat", user, is_low(number))])
            gateway += 1
            messages = [{"role": "user", "content": self.texts.next()}]
            request = {"model": self._system.task, "messages": messages, "seed": number}
            request |= {"user": user} if user else {}
            outcome, body = await self._ask(http, gateway, "/v1/chat/completions", request, [user])
            self._record(outcome, [marker], [body["id"]] if outcome == ACCEPTED else [], [user])

    async def _give_feedback(self, http: aiohttp.ClientSession) -> None:
        """Send feedback on accepted predictions, each at most once; one in fifty is negative."""
        gateway = 0
        while not self.stopping:
            await asyncio.sleep(self._random.uniform(0.02, 0.2))
            if not self._feedback:
                continue
            position = self._random.randrange(len(self._feedback))
            self._feedback.rotate(-position)
            prediction_id, user = self._feedback.popleft()
            if user is not None and user.startswith("forgotten-") and user not in self._to_forget:
                continue
            negative = self._random.random() < 0.02
            self._ledger.record_feedback(prediction_id, user, negative)
            body = {"prediction_id": prediction_id, "kind": "thumbs", "positive": not negative}
            gateway += 1
            body |= {"user": user} if user else {}
            outcome, _ = await self._ask(http, gateway, "/v1/feedback", body, [user])
            self._ledger.record_feedback_outcome(prediction_id, outcome)
            self.counts.feedback[outcome] += 1

    async def _ask(
        self, http: aiohttp.ClientSession, gateway: int, path: str, body: object, users: list[str | None]
    ) -> tuple[str, dict[str, object]]:
        """Send a request to a gateway, modulo their number; returns its outcome and the body of a 200."""
        urls = self._system.gateway_urls
        self._in_flight.update(user for user in users if user)
        broker_was_down = self.broker_down
        try:
            async with http.post(urls[gateway % len(urls)] + path, json=body) as response:
                data = await response.read()
                self.counts.answers[f"{path} {response.status}"] += 1
                if response.status == 200 and response.headers.get("x-ratchet-logged") != "false":
                    self.counts.while_broker_down += int(broker_was_down) * (len(body) if isinstance(body, list) else 1)
                    return ACCEPTED, orjson.loads(data)
                await asyncio.sleep(0.2)
                return REFUSED, {}
        except aiohttp.ClientConnectorError:
            self.counts.answers[f"{path} no connection"] += 1
            await asyncio.sleep(0.2)
            return REFUSED, {}
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
            self.counts.answers[f"{path} broke: {type(error).__name__}"] += 1
            return UNKNOWN, {}
        finally:
            self._in_flight.subtract(user for user in users if user)

    def _record(self, outcome: str, markers: list[str], ids: list[str], users: list[str | None]) -> None:
        if outcome == ACCEPTED:
            self._ledger.record_accepted(zip(markers, ids, strict=True))
            for prediction_id, user in zip(ids, users, strict=True):
                if self._random.random() < 0.05:
                    self._feedback.append((prediction_id, user))
        elif outcome == REFUSED:
            self._ledger.record_refused(markers)

    async def _submit_directly(self) -> None:
        """Send events to Kafka, as an application without gateway does, some more than once and out of order."""
        due, began = 0.0, time.monotonic()
        while not self.stopping:
            await asyncio.sleep(_TICK)
            self._direct.poll()
            after_target = time.monotonic() - began > self._seconds
            due += self._target * DIRECT_SHARE * _TICK / self._seconds * (_RATE_AFTER_TARGET if after_target else 1.0)
            while due >= 1.0 and self._direct.waiting < _MAX_UNACKNOWLEDGED:
                due -= 1.0
                _, marker = self._new_marker("direct")
                low, user = self._random.random() < LOW_SHARE, self._user()
                self._ledger.record_sending([Sent(marker, "direct", user, low)])
                self._direct.send(marker, self.texts.next(), user, _CONFIDENCE[low])
            if min(1.0, (time.monotonic() - began) / self._seconds) * POISON > self.counts.poison:
                self._direct.send_poison()

    async def forget(self) -> str | None:
        """Forget one user: publish `subjects.forgotten` once none of their events is in flight."""
        if not self._to_forget:
            return None
        user = self._to_forget.pop()
        while self._in_flight[user] > 0 or self._direct.has_unacknowledged(user):
            self._direct.poll()
            await asyncio.sleep(0.1)
        event = SubjectForgotten(
            task=self._system.task, task_revision="current", subject_hash=keyed_hash(self._subjects_key, user)
        )
        self._ledger.record_forgotten(user, time.time())
        self._direct.publish("subjects.forgotten.v1", self._system.task, event.model_dump_json().encode())
        return user


class _DirectProducer:
    """A producer that records the broker's acknowledgements and sends copies of some events later."""

    def __init__(self, system: System, ledger: Ledger, counts: LoadCounts, rng: random.Random) -> None:
        self._task = system.task
        self._ledger = ledger
        self._counts = counts
        self._random = rng
        self.acknowledged = 0
        self._acknowledged: list[str] = []
        self._scheduled: list[tuple[float, str, bytes, str | None]] = []
        self._unacknowledged: Counter[str] = Counter()
        self._producer = Producer({
            "bootstrap.servers": system.settings.kafka, "acks": "all", "linger.ms": 20, "message.timeout.ms": 300_000,
            "enable.idempotence": system.settings.kafka_idempotence, "reconnect.backoff.max.ms": 1_000, "log_level": 0,
        })  # fmt: skip

    @property
    def waiting(self) -> int:
        """The number of records that the broker has not acknowledged."""
        return len(self._producer)

    def has_unacknowledged(self, user: str) -> bool:
        """Return True if a record of this user is still unacknowledged."""
        return self._unacknowledged[user] > 0

    def send(self, prediction_id: str, text: str, user: str | None, confidence: float) -> None:
        """Submit one prediction one to three times; its copies come up to five seconds later, after newer ones."""
        event = PredictionSubmitted(
            task=self._task, task_revision="current", prediction_id=prediction_id, model=prediction_id, user=user,
            messages=(ChatMessage(role=Role.USER, content=text),), answer="delivery", latency_ms=12.5,
            confidence=Confidence(score=confidence), occurred_at=utc_now(),
        )  # fmt: skip
        value = event.model_dump_json().encode()
        copies = self._random.choices((1, 2, 3), (60, 25, 15))[0]
        if user:
            self._unacknowledged[user] += copies
        late = self._random.random() < 0.3
        for copy in range(copies):
            delay = self._random.uniform(0.2, 5.0) if copy or late else 0.0
            self._scheduled.append((time.monotonic() + delay, prediction_id, value, user))
        self._counts.copies += copies - 1
        self._counts.reordered += int(late)

    def send_poison(self) -> None:
        """Send a record that no service can handle: it must be dead-lettered and must not stop the partition."""
        self._counts.poison += 1
        self._producer.produce("predictions.submitted.v1", b'{"task": "no event"', f"poison-{self._counts.poison}")

    def publish(self, topic: str, key: str, value: bytes) -> None:
        self._producer.produce(topic, value, key)

    def poll(self) -> None:
        """Send what is due, and record acknowledgements."""
        now = time.monotonic()
        due = [record for record in self._scheduled if record[0] <= now]
        self._scheduled = [record for record in self._scheduled if record[0] > now]
        for _, prediction_id, value, user in sorted(due):
            self._producer.produce(
                "predictions.submitted.v1", value, prediction_id,
                on_delivery=lambda error, message, user=user: self._delivered(error, message, user),
            )  # fmt: skip
        self._producer.poll(0)
        if self._acknowledged:
            self._ledger.record_accepted((marker, marker) for marker in self._acknowledged)
            self._acknowledged.clear()

    def _delivered(self, error: KafkaError | None, message: Message, user: str | None) -> None:
        if user:
            self._unacknowledged[user] -= 1
        if error is None:
            self.acknowledged += 1
            self._acknowledged.append(message.key().decode())

    async def finish(self, seconds: float = 120.0) -> None:
        """Send the last copies and wait for all acknowledgements."""
        deadline = time.monotonic() + seconds
        while (self._scheduled or self.waiting) and time.monotonic() < deadline:
            self.poll()
            await asyncio.sleep(0.05)
        self.poll()
