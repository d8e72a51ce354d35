from __future__ import annotations

import pytest

from tests.database import Database
from tests.unit.shadow.fakes import Shadow


@pytest.fixture
async def shadow(database: Database) -> Shadow:
    return await Shadow.on(database)
