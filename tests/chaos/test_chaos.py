"""The short run: on Apache Kafka if KAFKA_HOME is set, on the broker that RATCHET_KAFKA names, or on the local one.

On the local broker it takes four minutes, on others about one and a half.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.run import SHORT, run_chaos
from tests.conftest import shared_home

pytestmark = pytest.mark.stack


@pytest.fixture
def home() -> Path:
    """The folder of the run, deleted if it passes; otherwise logs, ledger and lake stay."""
    return shared_home() / "chaos" / f"test-{os.getpid()}"


async def test_under_faults_of_every_kind_nothing_is_lost_doubled_changed_or_leaked(home: Path) -> None:
    outcome = await run_chaos(home, SHORT, lambda progress: None)
    assert outcome.verdict == [], f"{outcome.summary()}; logs, ledger and lake are in {home}"
    assert outcome.checked is not None
    assert outcome.checked.predictions.stored >= SHORT.events * 0.9  # All but those of forgotten people.
