"""Reads what a run left: topics from their start, each task's history by HTTP, and the deployer's ledger by SQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx
import psycopg

from tests.chaos.checks.leaks import records
from tests.chaos.rollouts.checks.history import (
    Answer,
    Change,
    Draw,
    Entry,
    History,
    Move,
    Pair,
    Request,
    Rules,
    Sample,
)
from tests.chaos.rollouts.system import RolloutSystem
from tests.chaos.rollouts.tasks import MIN_TICKETS, ROLLOUT

_MOST_MOVES = 1_000
RULES = Rules(
    ROLLOUT.yearly_false_promotion, ROLLOUT.cycles_per_year, ROLLOUT.canary_wealth, ROLLOUT.canary_steps,
    ROLLOUT.min_canary_users, ROLLOUT.max_labels, MIN_TICKETS, ROLLOUT.control_percent, ROLLOUT.control_days * 86_400,
)  # fmt: skip
WITH_VLLM = replace(RULES, late_seconds=300.0, reloading_seconds=240.0)
"""vLLM takes a minute to restart, and proves one adapter after the other, at ten requests a second."""
Object = dict[str, Any]


def read_history(system: RolloutSystem, expected: Mapping[str, str], samples: Sequence[Sample]) -> History:
    """Read everything. Raises httpx.HTTPError, psycopg.Error or TimeoutError while something is away."""
    events = _events(system.settings.kafka)
    with psycopg.connect(system.settings.postgres, connect_timeout=5) as connection:
        entries = [
            Entry(*row) for row in connection.execute(
                "SELECT rollout_id, pair_id, user_key, agree, ticket_id, ticket_order, coalesce(asked, false), "
                "outcome, fresh FROM deployer.ledger"
            )
        ]  # fmt: skip
        draws = [
            Draw(rollout_id, task, at.timestamp(), drawn, alpha) for rollout_id, task, at, drawn, alpha in
            connection.execute(
                "SELECT rollout_id, task, entered_at, alpha_drawn, alpha FROM deployer.rollouts "
                "WHERE entered_at IS NOT NULL"
            )
        ]  # fmt: skip
    return History(
        RULES if system.vllm_url is None else WITH_VLLM, expected, _moves(system),
        changes=[_change(event) for event, _ in events["rollouts.changed.v1"]],
        pairs=[_pair(event, place) for event, place in events["shadow.compared.v1"]],
        answers=[_answer(e, place) for e, place in events["corrections.submitted.v1"] if e["ticket_id"]],
        entries=entries, draws=draws,
        requests=[_request(event) for event, _ in events["requests.observed.v1"]],
        samples=samples,
    )  # fmt: skip


def _events(kafka: str) -> dict[str, list[tuple[Object, tuple[int, int]]]]:
    names = ("rollouts.changed.v1", "shadow.compared.v1", "corrections.submitted.v1", "requests.observed.v1")
    found: dict[str, list[tuple[Object, tuple[int, int]]]] = {name: [] for name in names}
    for record in records(kafka, names):
        place = record.partition() or 0, record.offset() or 0
        found[str(record.topic())].append((json.loads(record.value() or b""), place))
    return found


def _moves(system: RolloutSystem) -> list[Move]:
    found = []
    for task in system.tasks:
        url = f"{system.deployer_url}/api/rollouts/{task}/moves"
        answer = httpx.get(url, params={"limit": _MOST_MOVES}, timeout=20.0)
        answer.raise_for_status()
        found += [
            Move(
                move["rollout_id"], move["version"], _seconds(move["at"]), task, move["candidate"], move["stage"],
                move["reason"], move["evidence"], move["paused"], move["canary_percent"], move["moved_by"],
            )
            for move in answer.json()["moves"]
        ]  # fmt: skip
    return found


def _change(event: Object) -> Change:
    return Change(
        event["rollout_id"], _seconds(event["occurred_at"]), event["stage"], event["primary_adapter"], event["reason"]
    )


def _pair(event: Object, place: tuple[int, int]) -> Pair:
    candidate = event["candidate_answer"]
    return Pair(
        event["rollout_id"], event["pair_id"], event["prediction_id"], event["subject"],
        event["production_answer"]["text"], None if candidate is None else candidate["text"],
        event["production_adapter"], place, event["after_promotion"],
    )  # fmt: skip


def _answer(event: Object, place: tuple[int, int]) -> Answer:
    return Answer(
        event["ticket_id"], event["request_id"], event["reviewer"], event["label"], _seconds(event["occurred_at"]),
        place,
    )  # fmt: skip


def _request(event: Object) -> Request:
    subject = event["subject"] or event["user_hash"] or ""
    return Request(
        event["task"], event["adapter"], event["variant"], subject, event["status"], event["latency_ms"],
        _seconds(event["occurred_at"]),
    )  # fmt: skip


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
