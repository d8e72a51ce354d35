"""Background work of a service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from shared import service
from shared.errors import DependencyUnavailable


@pytest.mark.parametrize(("error", "traced"), [(DependencyUnavailable("Kafka is away"), False), (KeyError("x"), True)])
async def test_background_work_goes_on_and_only_a_bug_leaves_a_trace(
    error: Exception, traced: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    failures: Iterator[Exception] = iter([error] * 7)

    async def work() -> None:
        for failure in failures:
            raise failure

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with caplog.at_level(logging.WARNING):
        await service._forever("log", work)
    assert slept == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert [bool(record.exc_info) for record in caplog.records] == [traced] * 7
    assert str(error) in caplog.text
