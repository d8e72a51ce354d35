"""`ratchet shadow`: an operator sees why requests became no pairs, and what a candidate answers to old ones."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli.app import app
from deploy.cli.shadow import commands
from deploy.cli.shadow import replay as replaying
from deploy.cli.shadow.replay import Diagnosis, diagnose, sample
from schemas.base import Variant, utc_now
from schemas.predictions import PredictionLogged
from services.shadow.domain import Outcome
from services.shadow.storage import Summary
from shared.settings import Settings
from tests.conftest import ROOT
from tests.unit.shadow.fakes import CUTOFF, BothArms, Load, answer, prediction, reply, rollout


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Summary]:
    summaries: list[Summary] = []

    async def read(settings: Settings) -> Sequence[Summary]:
        return summaries

    monkeypatch.setattr(commands, "_summaries", read)
    return summaries


def test_every_outcome_is_explained_by_the_command_and_in_the_documentation() -> None:
    shown = {str(outcome) for outcome in Outcome} - {"deferred"} | {"waiting", "backlog"}
    assert set(commands.MEANINGS) == shown
    page = (ROOT / "docs" / "how-to" / "explain-missing-pairs.md").read_text()
    assert [name for name in shown if f"`{name}`" not in page] == []


def test_the_status_of_one_task_or_of_all(found: list[Summary]) -> None:
    found += [
        Summary("support-desk", "rollout-1", 1_200, {"pair": 2_000, "waiting": 3, "rate": 17}),
        Summary("haiku", "rollout-2", 0, {"not_whole": 5}),
    ]
    everything = CliRunner().invoke(app, ["shadow", "status"])
    assert everything.exit_code == 0
    for words in ("support-desk: rollout-1; 1,200 tokens", "2,000", "over shadow_requests_per_second", "haiku"):
        assert words in everything.output
    one = CliRunner().invoke(app, ["shadow", "status", "haiku", "--json"])
    assert json.loads(one.output) == [
        {"task": "haiku", "rollout_id": "rollout-2", "tokens_today": 0, "requests": {"not_whole": 5}}
    ]


def test_before_the_first_candidate_there_is_nothing_to_show(found: list[Summary]) -> None:
    assert "shadow begins when a candidate passes" in CliRunner().invoke(app, ["shadow", "status"]).output


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_the_status_of_a_task_without_requests_is_an_error_that_names_those_with_some(
    found: list[Summary], arguments: tuple[str, ...]
) -> None:
    found.append(Summary("haiku", "rollout-2", 0, {"not_whole": 5}))
    result = CliRunner().invoke(app, ["shadow", "status", "haiko", *arguments])
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert "haiko has had no candidate whose requests" in result.stderr and "Tasks that had: haiku" in result.stderr


async def stream(*events: PredictionLogged) -> AsyncIterator[PredictionLogged]:
    for event in events:
        yield event


async def test_a_diagnosis_takes_the_tasks_requests_of_the_last_days_that_can_be_replayed() -> None:
    def of(number: int, **changes: Any) -> PredictionLogged:
        return prediction(number, **{"occurred_at": utc_now() - timedelta(days=3), **changes})

    usable = [of(number) for number in range(50)]
    others = [
        of(100, occurred_at=utc_now() - timedelta(days=8)),
        of(101, task="another"),
        of(102, answers=(answer(truncated=True),)),
        of(103, variant=Variant.CANARY, adapter="a1"),
    ]
    everything = await sample(stream(*usable, *others), rollout(), 7.0, 500)
    assert {event.request_id for event in everything} == {event.request_id for event in usable}
    some = await sample(stream(*usable, *others), rollout(), 7.0, 10)
    again = await sample(stream(*reversed(usable)), rollout(), 7.0, 10)
    assert {event.request_id for event in some} == {event.request_id for event in again}
    assert len(some) == 10


async def test_a_diagnosis_says_where_the_answers_differ() -> None:
    arms = BothArms()
    old = prediction(2, occurred_at=CUTOFF - timedelta(days=1), answers=(answer("Delivery", "support-desk.2"),))
    found = await diagnose([prediction(1), old], rollout(), arms, Load().is_busy, 4)
    assert [(one.production, one.candidate, one.agree, one.before_cutoff) for one in found.comparisons] == [
        ("refund", "delivery", False, False), ("Delivery", "delivery", True, True),
    ]  # fmt: skip
    arms.given = None
    assert (await diagnose([prediction(1)], rollout(), arms, Load().is_busy, 4)).void == 1
    arms.given = reply(None)
    (erred,) = (await diagnose([prediction(1, redactions=1)], rollout(), arms, Load().is_busy, 4)).comparisons
    assert (erred.production, erred.candidate, erred.agree) == ("login", None, False)


async def test_a_diagnosis_waits_while_the_engine_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "_BUSY_PAUSE_SECONDS", 0.0)
    load = Load()
    load.busy_for = 5
    assert len((await diagnose([prediction(1)], rollout(), BothArms(), load.is_busy, 4)).comparisons) == 1
    assert load.busy_for < 0


def test_the_command_shows_what_differs_and_that_nothing_bets(monkeypatch: pytest.MonkeyPatch) -> None:
    async def replay_logged(*_: object) -> Diagnosis:
        return await diagnose([prediction(1), prediction(2)], rollout(), BothArms(), Load().is_busy, 4)

    monkeypatch.setattr(replaying, "replay_logged", replay_logged)
    shown = CliRunner().invoke(app, ["shadow", "replay", "support-desk"])
    assert shown.exit_code == 0
    assert "2 requests replayed on a1, 2 answers differ" in shown.output
    assert "Nothing here bets." in shown.output
    as_json = json.loads(CliRunner().invoke(app, ["shadow", "replay", "support-desk", "--json"]).output)
    assert [one["candidate"] for one in as_json["comparisons"]] == ["delivery", "delivery"]
