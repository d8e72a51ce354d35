"""The broker that the gateway's tests share, except those that stop it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.gateway_process import OwnBroker, own_broker


@pytest.fixture(scope="session")
def shared_broker() -> Iterator[OwnBroker]:
    with own_broker("shared") as broker:
        yield broker
