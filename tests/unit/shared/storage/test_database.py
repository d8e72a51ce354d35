"""Which errors of the database are its absence: what waits for it is not to be dead-lettered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy.exc as sa
from psycopg import errors

from shared.errors import DependencyUnavailable
from shared.storage.database import transaction


class Engine:
    """An engine whose transactions end with an error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[None]:
        yield
        raise self._error


def wrapped(error: Exception, kind: type[sa.DBAPIError] = sa.InternalError) -> sa.DBAPIError:
    return kind("INSERT", {}, error)


async def _raised_by(error: Exception) -> Exception:
    engine: Any = Engine(error)
    with pytest.raises(Exception) as raised:
        async with transaction(engine):
            pass
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        wrapped(errors.ReadOnlySqlTransaction("cannot execute INSERT in a read-only transaction")),
        wrapped(errors.IdleInTransactionSessionTimeout("terminating connection")),
        wrapped(errors.AdminShutdown("terminating connection"), sa.OperationalError),
        sa.TimeoutError("QueuePool limit of size 5 overflow 10 reached"),
        sa.InternalError("INSERT", {}, Exception("lost"), connection_invalidated=True),
        ConnectionResetError("reset"),
    ],
    ids=["read-only", "idle", "shut down", "no connection free", "invalidated", "socket"],
)
async def test_a_database_that_takes_no_writes_or_has_no_connection_free_is_away(error: Exception) -> None:
    assert isinstance(await _raised_by(error), DependencyUnavailable)


@pytest.mark.parametrize(
    "error",
    [
        wrapped(errors.UniqueViolation("duplicate key"), sa.IntegrityError),
        wrapped(errors.InvalidTextRepresentation("invalid input"), sa.DataError),
        ValueError("a bug"),
    ],
)
async def test_what_a_record_or_a_bug_is_to_blame_for_is_not(error: Exception) -> None:
    assert await _raised_by(error) is error
