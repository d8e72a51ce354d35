"""Every number of a task's YAML has limits within which what is calculated of it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.base import utc_now
from schemas.rollouts import Stage
from schemas.task_settings import DatasetSettings, RolloutSettings, TrainingSettings
from schemas.tasks import Comparator, Compare, TaskSpec
from services.deployer.domain import Ledger, decide
from services.deployer.statistics.canary import Arms, CanaryCounts, canary_failure
from services.deployer.statistics.guards import Guard

PUBLISHED = {"GoldenSet"}
"""Written by the scheduler, not by people."""


def numbers(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())):
        yield from numbers(part)
    if schema.get("type") in ("integer", "number"):
        yield schema


def test_every_number_of_a_tasks_file_has_a_least_and_a_greatest_value() -> None:
    schema = TaskSpec.model_json_schema()
    sections = {"TaskSpec": schema, **schema["$defs"]}
    without = [
        f"{name}.{field}"
        for name, section in sections.items() if name not in PUBLISHED
        for field, found in section.get("properties", {}).items()
        for number in numbers(found)
        if not ({"minimum", "exclusiveMinimum"} & number.keys() and {"maximum", "exclusiveMaximum"} & number.keys())
    ]  # fmt: skip
    assert without == []


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize("section", [TrainingSettings, DatasetSettings])
def test_a_seed_that_no_generator_takes_is_refused(section: Any, seed: int) -> None:
    with pytest.raises(ValidationError):
        section(seed=seed)


def test_an_infinite_tolerance_is_refused_since_no_event_can_carry_it() -> None:
    with pytest.raises(ValidationError):
        Comparator(compare=Compare.NUMBER, tolerance=float("inf"))


def test_the_longest_time_of_a_rollout_is_a_time() -> None:
    with pytest.raises(ValidationError):
        RolloutSettings(max_days=10**10)
    longest = RolloutSettings(max_days=365)
    expired = decide(Stage.SHADOW, Ledger([], 0, CanaryCounts()), 0.001, longest, timedelta(days=366))
    assert expired is not None and expired.stage is Stage.INCONCLUSIVE
    assert utc_now() - timedelta(days=longest.max_days) < utc_now()


def test_a_level_that_is_as_good_as_none_is_refused_since_nothing_is_divided_by_it() -> None:
    with pytest.raises(ValidationError):
        RolloutSettings(yearly_false_promotion=5e-324)


def test_guards_with_the_greatest_ratio_still_end_a_canary_in_which_everybody_fails() -> None:
    greatest = RolloutSettings(max_error_ratio=10.0)
    counts = CanaryCounts(400, 400, 5, 400, arms={Guard.ERRORS: [Arms(5, 400, 400)]})
    assert canary_failure(counts, greatest)
    with pytest.raises(ValidationError):
        RolloutSettings(max_error_ratio=1e9)
