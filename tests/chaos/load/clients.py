"""All clients of a run: they send requests of every kind and record the answers in the ledger.

A request counts as accepted only after a 200, a stream's end or the broker's acknowledgement. A refusal (503, no
connection) is counted, and the client continues with new requests. A connection that breaks before the answer leaves
the outcome unknown.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from dataclasses import dataclass, field

from schemas.predictions import SubjectForgotten
from shared.identity import keyed_hash, load_or_create_key
from tests.chaos.ledger import ACCEPTED, REFUSED, Ledger, Sent
from tests.chaos.load.asking import Asker, Ended
from tests.chaos.load.conversations import Object
from tests.chaos.load.direct import DirectProducer
from tests.chaos.load.people import Texts
from tests.chaos.load.requests import Request, Requests
from tests.chaos.system import System

PERSONAL_SHARE = 0.05
DIRECT_SHARE = 0.06
POISON = 20
USERS_TO_FORGET = 5
USERS = 2_000
_BATCH = 100
_TICK = 0.05
_TALKERS = 3
_MAX_UNACKNOWLEDGED = 2_000
_FEEDBACK_SHARE = 0.05
_RATE_AFTER_TARGET = 0.2
"""Share of the rate that continues when the target is reached and faults are still to come."""


@dataclass
class LoadCounts:
    """Counts of the load that the ledger does not have."""

    while_broker_down: int = 0
    both_ways: int = 0
    feedback: Counter[str] = field(default_factory=Counter)


class Load:
    """All clients of a run. `target`: the number of answers to have accepted, spread over `seconds`."""

    def __init__(self, system: System, ledger: Ledger, target: int, seconds: float, seed: int) -> None:
        self._system = system
        self._ledger = ledger
        self._target = target
        self._seconds = seconds
        self._random = random.Random(seed)
        self._asker = Asker(system.gateway_urls)
        self.texts = Texts(seed + 1, PERSONAL_SHARE)
        self._requests = Requests(self.texts, random.Random(seed + 3), system)
        self.direct = DirectProducer(system, ledger, random.Random(seed + 2))
        self.counts = LoadCounts()
        self.stopping = False
        self.broker_down = False
        self._started_at = time.monotonic()
        self._feedback: deque[tuple[str, str, str | None]] = deque(maxlen=5_000)
        self._again: deque[tuple[Sent, Object]] = deque()
        self._to_forget = [f"forgotten-{n}" for n in range(USERS_TO_FORGET)]

    @property
    def answers(self) -> Counter[str]:
        """How many answers of each status the clients got, by path."""
        return self._asker.answers

    @property
    def accepted(self) -> int:
        return self._ledger.counts[ACCEPTED]

    @property
    def reached(self) -> bool:
        """True once as many answers as the target are accepted."""
        return self.accepted >= self._target

    async def run(self) -> None:
        """Run until `stopping`. The rate follows the clock; after the target it is lower, until the faults end."""
        self._started_at = time.monotonic()
        async with self._asker, asyncio.TaskGroup() as group:
            for gateway in range(3):
                group.create_task(self._post_batches(gateway))
            group.create_task(self._chat())
            for gateway in range(_TALKERS):
                group.create_task(self._talk(gateway))
            group.create_task(self._give_feedback())
            group.create_task(self._submit_directly())
            group.create_task(self._submit_again())
        await self.direct.finish()

    async def wait_until_acknowledged(self, seconds: float = 60.0) -> None:
        """Wait until the broker has acknowledged another record. Raises TimeoutError."""
        before = self.direct.acknowledged
        async with asyncio.timeout(seconds):
            while self.direct.acknowledged == before and not self.stopping:
                await asyncio.sleep(0.1)

    def _is_ahead(self) -> bool:
        elapsed = (time.monotonic() - self._started_at) / self._seconds
        due = self._target * (min(elapsed, 1.0) + max(0.0, elapsed - 1.0) * _RATE_AFTER_TARGET)
        return self.accepted > due and not self.stopping

    async def _pace(self) -> None:
        """Wait until the next requests are due."""
        while self._is_ahead():
            await asyncio.sleep(0.05)

    def _user(self) -> str | None:
        draw = self._random.random()
        if draw < 0.02 and self._to_forget:
            return self._random.choice(self._to_forget)
        return f"user-{self._random.randrange(USERS)}" if draw < 0.7 else None

    async def _post_batches(self, gateway: int) -> None:
        """Send predictions that were made elsewhere, most of them a hundred at a time."""
        while not self.stopping:
            await self._pace()
            size = self._random.randint(1, _BATCH) if self._random.random() < 0.3 else _BATCH
            requests = [self._requests.prediction(self._user()) for _ in range(size)]
            self._ledger.record_sending([request.sent for request in requests])
            broker_was_down = self.broker_down
            users, bodies = [request.sent.user for request in requests], [request.body for request in requests]
            ended = await self._asker.ask(gateway, "/v1/predictions", bodies, users)
            ids = ended.ids if ended.outcome == ACCEPTED else [""] * size
            for request, prediction_id in zip(requests, ids, strict=True):
                self._record(request, ended._replace(ids=[prediction_id]), broker_was_down)
            gateway += ended.outcome != ACCEPTED  # Like a load balancer: the next batch goes to the other gateway.

    async def _chat(self) -> None:
        """Ask for labels."""
        gateway = 0
        while not self.stopping:
            await asyncio.sleep(self._random.uniform(0.05, 0.5))
            gateway += 1
            await self._ask(gateway, self._requests.label(self._user()))

    async def _talk(self, gateway: int) -> None:
        """Ask for answers to conversations of every kind."""
        while not self.stopping:
            await self._pace()
            await asyncio.sleep(self._random.uniform(0.05, 0.5))
            gateway += 1
            await self._ask(gateway, self._requests.conversation(self._user()))

    async def _ask(self, gateway: int, request: Request) -> None:
        self._ledger.record_sending([request.sent])
        broker_was_down = self.broker_down
        ended = await self._asker.ask(gateway, request.path, request.body, [request.sent.user], leaves=request.leaves)
        self._record(request, ended, broker_was_down)

    def _record(self, request: Request, ended: Ended, broker_was_down: bool) -> None:
        sent = request.sent
        if ended.outcome == REFUSED:
            self._ledger.record_refused([sent.marker])
        if ended.outcome != ACCEPTED:
            return
        self._ledger.record_accepted([(sent.marker, ended.ids)])
        self.counts.while_broker_down += int(broker_was_down)
        for prediction_id in ended.ids:
            if self._random.random() < _FEEDBACK_SHARE:
                self._feedback.append((prediction_id, sent.marker, sent.user))

    async def _give_feedback(self) -> None:
        """Send feedback on accepted predictions, each at most once; one in fifty is negative."""
        gateway = 0
        while not self.stopping:
            await asyncio.sleep(self._random.uniform(0.02, 0.2))
            if not self._feedback:
                continue
            position = self._random.randrange(len(self._feedback))
            self._feedback.rotate(-position)
            reference, marker, user = self._feedback.popleft()
            if user is not None and user.startswith("forgotten-") and user not in self._to_forget:
                continue
            negative = self._random.random() < 0.02
            self._ledger.record_feedback(reference, marker, user, negative)
            body = {"prediction_id": reference, "kind": "thumbs", "positive": not negative}
            gateway += 1
            body |= {"user": user} if user else {}
            ended = await self._asker.ask(gateway, "/v1/feedback", body, [user])
            self._ledger.record_feedback_outcome(reference, ended.outcome, ended.body.get("prediction_id"))
            self.counts.feedback[ended.outcome] += 1

    async def _submit_directly(self) -> None:
        """Send events to Kafka, as an application without gateway does, some more than once and out of order."""
        due, began = 0.0, time.monotonic()
        while not self.stopping:
            await asyncio.sleep(_TICK)
            self.direct.poll()
            after_target = time.monotonic() - began > self._seconds
            due += self._target * DIRECT_SHARE * _TICK / self._seconds * (_RATE_AFTER_TARGET if after_target else 1.0)
            while due >= 1.0 and self.direct.waiting < _MAX_UNACKNOWLEDGED:
                due -= 1.0
                sent, event, body = self._requests.submission(self._user())
                self._ledger.record_sending([sent])
                self.direct.send(event)
                if body is not None and sent.user not in self._to_forget:
                    self._again.append((sent, body))
                if self._random.random() < _FEEDBACK_SHARE:  # By the application's own id.
                    self._feedback.append((f"{sent.task}/{event.prediction_id}", sent.marker, sent.user))
            if min(1.0, (time.monotonic() - began) / self._seconds) * POISON > self.direct.counts.poison:
                self.direct.send_poison()

    async def _submit_again(self) -> None:
        """Send some of the predictions that went to Kafka by HTTP, too, under the same ids."""
        gateway = 0
        while not self.stopping:
            await asyncio.sleep(self._random.uniform(0.05, 0.5))
            if not self._again:
                continue
            gateway += 1
            sent, body = self._again.popleft()
            ended = await self._asker.ask(gateway, "/v1/predictions", [body], [sent.user])
            if ended.outcome == ACCEPTED:
                self._ledger.record_accepted([(sent.marker, ended.ids)])
                self.counts.both_ways += 1

    async def forget(self) -> str | None:
        """Forget one user: publish `subjects.forgotten` once none of their events is in flight."""
        if not self._to_forget:
            return None
        user = self._to_forget.pop()
        while self._asker.in_flight[user] > 0 or self.direct.has_unacknowledged(user):
            self.direct.poll()
            await asyncio.sleep(0.1)
        key = load_or_create_key(self._system.home / "secrets", "subjects")
        self._ledger.record_forgotten(user, time.time())
        for task in self._system.tasks:
            event = SubjectForgotten(task=task, task_revision="current", subject_hash=keyed_hash(key, user))
            self.direct.publish("subjects.forgotten.v1", task, event.model_dump_json().encode())
        return user
