from __future__ import annotations

import logging
import resource

import pytest

from services.gateway.processes.file_limit import raise_file_limit


async def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be_and_the_log_says_what_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = min(soft, hard, 4_096) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (lower, hard))
    try:
        with caplog.at_level(logging.INFO):
            await raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        assert f"at most {hard} open files (the limit was {lower})" in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_limit_that_cannot_be_raised_does_not_stop_the_gateway(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    await raise_file_limit()
    assert "the limit cannot be raised" in caplog.text
