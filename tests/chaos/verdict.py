"""Why a run failed, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tests.chaos.checks.predictions import PROBLEMS, Finding
from tests.chaos.faults import too_few
from tests.chaos.load.people import PLACES
from tests.chaos.report import Outcome

TABLES = {"predictions": "prediction_id", "feedback": "event_id", "requests": "event_id"}
"""The tables of the lake that are checked, and a key of each."""


def verdict(outcome: Outcome, events: int, planned: Mapping[str, int]) -> list[str]:
    """Return a sentence for every guarantee that did not hold. `events`: how many had to be accepted."""
    return [*_lake(outcome), *_others(outcome), *_too_little(outcome, events, planned)]


def _lake(outcome: Outcome) -> Iterator[str]:
    for name in TABLES:
        found: Finding = getattr(outcome.checked, name)
        for problem in PROBLEMS:
            if count := getattr(found, problem):
                examples = ", ".join(found.examples.get(problem, [])[:3])
                yield f"{name}: {count:,} {problem.replace('_', ' ')} ({examples})"


def _others(outcome: Outcome) -> Iterator[str]:
    for problem in ("missing", "doubled", "forgotten, still there"):
        if outcome.questions[problem]:
            yield f"failure miner: {outcome.questions[problem]} {problem}"
    if outcome.leaks:
        yield f"personal data at rest: {outcome.leaks}"
    if others := {s: n for s, n in outcome.dead_letters.items() if not s.startswith("poison")}:
        yield f"dead letters that were not poison: {others}, see dead_letter_errors"
    if outcome.dead_letters["poison_dead_lettered"] != outcome.dead_letters["poison_sent"]:
        yield f"poison sent and dead-lettered differ: {outcome.dead_letters}"


def _too_little(outcome: Outcome, events: int, planned: Mapping[str, int]) -> Iterator[str]:
    """What was not tested, although it had to be."""
    assert outcome.checked is not None
    if outcome.load["accepted"] < events:
        yield f"only {outcome.load['accepted']:,} events were accepted"
    if outcome.checked.predictions.forgotten == 0:
        yield "no user with accepted events was forgotten, so erasure was not tested"
    if unseeded := set(PLACES) - set(outcome.load["seeded"]):
        yield f"no personal data was seeded in: {', '.join(sorted(unseeded))}"
    yield from too_few(planned, outcome.faults)
    if planned["broker"] and not outcome.load["accepted_while_the_broker_was_away"]:
        yield "no event was accepted while the broker was away, so the spool was not tested"
