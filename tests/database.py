"""A small PostgreSQL for unit tests: one server a test session, one database a process, empty tables for each test.

It starts for the first test that needs it, in a folder named by the process that began the session, so that workers of
pytest-xdist share it. It ends with that process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from importlib import import_module
from pathlib import Path

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from deploy.devstack.parts.postgres import find_programs, probe_database, server_user
from deploy.devstack.supervision.processes import ProcessIdentity, run_as
from shared.settings import Settings
from shared.storage.database import build_engine
from shared.storage.migration import migrate
from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parent.parent
UNSAFE_AND_FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "autovacuum=off")
_RUN = """
"$@" & server=$!
while [ -d /proc/$SESSION ]; do sleep 1; done
kill -INT $server; wait $server; rm -rf "$FOLDER"
"""
"""Runs the server until the session's process is gone."""


class Database:
    """A database of this process, with the migrated tables of every service that has some."""

    def __init__(self) -> None:
        session = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
        folder = Path(tempfile.gettempdir()) / f"ratchet-postgres-{session}-{ProcessIdentity.of(session).started}"
        server = f"postgresql://ratchet@/{{}}?host={folder}"
        folder.mkdir(exist_ok=True)
        with (folder / "starting").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "cluster" / "postmaster.pid").exists():
                _start(folder, session, server.format("postgres"))
        name = f"test_{os.getpid()}"
        with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        self._settings = Settings(home=folder, postgres=server.format(name))
        self._engines: dict[str, AsyncEngine] = {}

    async def engine(self, service: str) -> AsyncEngine:
        """Return an engine that sees the service's tables, which are empty now."""
        if service not in self._engines:
            await migrate(self._settings, service, ROOT / "services" / service / "migrations")
            self._engines[service] = build_engine(self._settings, service)
        metadata: sa.MetaData = import_module(f"services.{service}.tables").METADATA
        statements = "; ".join(f"DELETE FROM {table.name}" for table in reversed(metadata.sorted_tables))
        async with self._engines[service].begin() as connection:
            await connection.exec_driver_sql(statements)
        return self._engines[service]

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.dispose()


def _start(folder: Path, session: int, url: str) -> None:
    programs, cluster, user = find_programs(), folder / "cluster", server_user()
    if user:
        shutil.chown(folder, user, run_as(user)["group"])
    create = [programs / "initdb", "-D", cluster, "--username=ratchet", "--auth=trust", "--encoding=UTF8", "--locale=C"]
    subprocess.run([*create, "--no-sync"], cwd=folder, check=True, stdout=subprocess.DEVNULL, **run_as(user))
    options = (*UNSAFE_AND_FAST, "listen_addresses=", f"unix_socket_directories={folder}", "max_connections=200")
    server = [programs / "postgres", "-D", cluster, *(word for option in options for word in ("-c", option))]
    with (folder / "log").open("w") as log:
        subprocess.Popen(
            ["sh", "-c", _RUN, "postgres", *server], cwd=folder, env={"SESSION": str(session), "FOLDER": str(folder)},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **run_as(user),
        )  # fmt: skip
    deadline = time.monotonic() + PATIENCE_SECONDS
    while problem := probe_database(url):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{problem}\n{(folder / 'log').read_text()}")
        time.sleep(0.05)
