"""The local stack with real programs: up, up again, a crash, status, down. Home and ports are the tests' own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest

from deploy.devstack import stack
from deploy.devstack.catalog import part_named
from deploy.devstack.config import StackConfig
from deploy.devstack.ports import port_is_free
from deploy.devstack.supervision import records
from tests.conftest import ROOT, on_tansu, remove_database, shared_home
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.stack

FAST_PARTS = ("kafka", "postgres", "unleash")


@dataclass(frozen=True)
class Home:
    path: Path
    env: dict[str, str]

    def up(self, *parts: str) -> StackConfig:
        return stack.up(parts, self.path, env=self.env)

    def status(self) -> dict[str, stack.PartStatus]:
        return {row.part: row for row in stack.status(self.path, env=self.env)}

    def stack_env(self) -> dict[str, str]:
        lines = (self.path / "stack.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if not line.startswith("#"))

    def ratchet(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {**self.env, "COLUMNS": "200"}
        command = [sys.executable, "-m", "deploy.cli.app", *arguments]
        return subprocess.run(
            command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """A running stack in the checkout's ignored folder, which `nobody`, who runs PostgreSQL for root, can reach."""
    shared = shared_home()
    path = ROOT / ".ratchet" / "tests" / f"stack-{os.getpid()}"
    path.mkdir(parents=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")}
    tools = os.environ.get("RATCHET_TOOLS", str(shared / "tools"))
    home = Home(path, {**inherited, **stack.free_ports(), "RATCHET_HOME": str(path), "RATCHET_TOOLS": tools})
    try:
        home.up(*FAST_PARTS)
        yield home
    finally:
        stack.down(home=path, env=home.env)
        remove_database(StackConfig.load(path, home.env))
        shutil.rmtree(path, ignore_errors=True)


def test_parts_answer_at_the_addresses_in_stack_env(home: Home) -> None:
    values = home.stack_env()
    with psycopg.connect(values["RATCHET_POSTGRES"]) as connection:
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
    url, admin = values["RATCHET_UNLEASH"], values["RATCHET_UNLEASH_ADMIN_TOKEN"]
    features = httpx.get(
        f"{url}/api/admin/projects/default/features", headers={"Authorization": admin}, timeout=PATIENCE_SECONDS
    )
    assert features.status_code == 200
    assert [home.status()[part].state for part in FAST_PARTS] == ["ready"] * 3


def test_the_database_needs_its_password(home: Home) -> None:
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(home.stack_env()["RATCHET_POSTGRES"], password="wrong")


def test_secrets_are_readable_by_their_owner_only(home: Home) -> None:
    for path in (home.path / "stack.env", home.path / "secrets" / "stack.json", *(home.path / "state").rglob("*.json")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_second_up_changes_nothing(home: Home) -> None:
    before = {part: home.status()[part].pid for part in FAST_PARTS}
    home.up(*FAST_PARTS)
    assert {part: home.status()[part].pid for part in FAST_PARTS} == before


def test_a_killed_part_is_restarted(home: Home) -> None:
    pid = home.status()["postgres"].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (row := home.status()["postgres"]).state != "ready" or row.pid == pid:
        assert time.monotonic() < deadline, row
        time.sleep(0.3)
    assert row.restarts >= 1


def test_up_replaces_a_part_whose_supervisor_was_killed(home: Home) -> None:
    record = records.read(StackConfig.load(home.path, home.env), "unleash")
    assert record and record.supervisor and record.child
    record.supervisor.signal(signal.SIGKILL)
    record.supervisor.wait_gone(5)
    assert home.status()["unleash"].state == "unsupervised"
    home.up("unleash")
    assert home.status()["unleash"].state == "ready"
    assert not record.child.alive()


def test_the_status_table_names_every_part_and_shows_no_password(home: Home) -> None:
    result = home.ratchet("status")
    assert result.returncode == 0, result.stderr
    for word in (*home.status(), "own", "ready", "kafka.log"):
        assert word in result.stdout
    password = home.stack_env()["RATCHET_POSTGRES"].split(":")[2].split("@")[0]
    assert password not in result.stdout


def test_a_parts_log_is_printed_and_an_unknown_part_is_an_error(home: Home) -> None:
    assert "database system is ready" in home.ratchet("logs", "postgres", "-n", "500").stdout
    unknown = home.ratchet("logs", "postgers")
    assert unknown.returncode == 1
    assert "postgres" in unknown.stderr


def test_an_external_database_is_used_and_not_stopped(home: Home, tmp_path: Path) -> None:
    url = home.stack_env()["RATCHET_POSTGRES"]
    env = {**home.env, **stack.free_ports(), "RATCHET_HOME": str(tmp_path), "RATCHET_POSTGRES": url}
    stack.up(["postgres"], tmp_path, env=env)
    row = next(row for row in stack.status(tmp_path, env=env) if row.part == "postgres")
    assert (row.owner, row.state) == ("external", "ready")
    assert stack.down(home=tmp_path, env=env) == []
    assert home.status()["postgres"].state == "ready"


def test_a_port_in_use_is_reported_with_its_variable(home: Home, tmp_path: Path) -> None:
    port = home.env["RATCHET_UNLEASH_PORT"]
    env = {**home.env, **stack.free_ports(), "RATCHET_HOME": str(tmp_path), "RATCHET_KAFKA_PORT": port}
    try:
        with pytest.raises(stack.StackError) as error:
            stack.up(["kafka"], tmp_path, env=env)
    finally:
        stack.down(home=tmp_path, env=env)  # The S3 server below the broker may have started.
    assert port in error.value.failures["kafka"].reason
    assert "RATCHET_KAFKA_PORT" in error.value.failures["kafka"].way_out


def test_a_wrong_token_of_an_external_unleash_is_reported(home: Home, tmp_path: Path) -> None:
    address = {"RATCHET_UNLEASH": home.stack_env()["RATCHET_UNLEASH"]}
    tokens = {"RATCHET_UNLEASH_CLIENT_TOKEN": "default:development.no", "RATCHET_UNLEASH_ADMIN_TOKEN": "*:*.no"}
    env = {**home.env, **stack.free_ports(), "RATCHET_HOME": str(tmp_path), **address, **tokens}
    with pytest.raises(stack.StackError, match="client token"):
        stack.up(["unleash"], tmp_path, env=env)


def test_down_stops_everything_and_up_continues_with_the_same_data(home: Home) -> None:
    url = home.stack_env()["RATCHET_POSTGRES"]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE persistent (x int)")
    started = records.read_all(StackConfig.load(home.path, home.env)).values()
    with_s3 = {"s3"} if on_tansu() else set()
    assert set(stack.down(home=home.path, env=home.env)) == {*FAST_PARTS, *with_s3}
    assert not any(record.supervised or record.running for record in started)
    ports = [port for name in ("s3", *FAST_PARTS) for port in part_named(name).ports]
    assert all(port_is_free(int(home.env[f"RATCHET_{port.upper()}_PORT"])) for port in ports)
    assert stack.down(home=home.path, env=home.env) == []
    home.up("postgres")
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM persistent").fetchone() == (0,)
