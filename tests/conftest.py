"""The real stack for tests: a home and ports of its own, started for the first test that needs it, stopped at the end.

Programs are installed once, into the checkout's `.ratchet/tools`, and models once, into `.ratchet/models`; all state
is deleted. To use a running stack (much faster while developing): RATCHET_TEST_HOME=<its home>.
"""

from __future__ import annotations

import asyncio
import faulthandler
import io
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from traceback import walk_tb

import pytest
from hypothesis import HealthCheck, settings

from deploy.devstack import stack
from deploy.devstack.config import PORTS, StackConfig
from deploy.devstack.install.models import ensure_embedding_model
from deploy.devstack.part import tail
from deploy.devstack.parts.postgres import data_folder, data_folder_record
from deploy.devstack.ports import take_ports
from deploy.devstack.supervision import records
from shared.kafka import consumers
from shared.kafka.topics import create_topics
from shared.settings import Settings
from tests.database import Database

ROOT = Path(__file__).parent.parent
# The same examples in each run, however busy the machine is; `--hypothesis-profile explore` draws others.
settings.register_profile(
    "ratchet", derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("ratchet"), derandomize=False, max_examples=200)
settings.load_profile("ratchet")
os.environ["COLUMNS"] = "200"  # Of the terminal that the command prints to, also where a worker of xdist names another.


@pytest.fixture(autouse=True)
def retries_come_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again waits for milliseconds: nobody is away for long on purpose."""
    monkeypatch.setattr(consumers, "FIRST_PAUSE_SECONDS", 0.005)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tests that need Apache Kafka if the broker is tansu, with their reason."""
    marker = item.get_closest_marker("apache_kafka")
    if marker is not None and on_tansu():
        pytest.skip(marker.args[0])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files that need vLLM last: on a new machine it is installed beside the others."""
    needing = {item.path for item in items if needs_vllm(item)}
    items.sort(key=lambda item: item.path in needing)


def needs_vllm(item: pytest.Item) -> bool:
    return "vllm" in getattr(item, "fixturenames", ())


def pytest_collection_finish(session: pytest.Session) -> None:
    """Install vLLM beside the tests that do not need it: on a new machine it takes from two to ten minutes."""
    if session.config.option.collectonly or not any(map(needs_vllm, session.items)):
        return
    home = shared_home()
    env = {
        **os.environ,
        "RATCHET_HOME": str(home),
        "RATCHET_TOOLS": os.environ.get("RATCHET_TOOLS", str(home / "tools")),
    }
    (home / "logs").mkdir(parents=True, exist_ok=True)
    with (home / "logs" / "install-for-tests.log").open("wb") as log:
        argv = ["nice", "-n", "10", sys.executable, "-m", "deploy.cli.app", "install", "vllm"]
        process = subprocess.Popen(argv, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    session.config.add_cleanup(process.terminate)


def shared_home() -> Path:
    """Return the folder of the programs and models that all test sessions of this checkout share."""
    return Path(os.environ.get("RATCHET_HOME", ROOT / ".ratchet")).absolute()


def on_tansu() -> bool:
    """Return True if the broker of these tests is, or will be, tansu."""
    if home := os.environ.get("RATCHET_TEST_HOME"):
        return not Settings.load(home=Path(home).absolute()).kafka_idempotence
    if os.environ.get("RATCHET_KAFKA"):
        return not Settings().kafka_idempotence
    return not os.environ.get("KAFKA_HOME")


class TestStack:
    """A stack for tests, whose parts start when a test first needs them."""

    __test__ = False

    def __init__(self, home: Path) -> None:
        self.home = home
        shared = shared_home()
        (shared / "models").mkdir(parents=True, exist_ok=True)
        (home / "models").symlink_to(shared / "models")
        ports = dict(zip(PORTS, map(str, take_ports(len(PORTS))), strict=True))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")}
        tools = os.environ.get("RATCHET_TOOLS", str(shared / "tools"))
        self.env = {
            **inherited,
            "RATCHET_HOME": str(home),
            "RATCHET_TOOLS": tools,
            **{f"RATCHET_{name.upper()}_PORT": port for name, port in ports.items()},
        }
        if external := os.environ.get("RATCHET_KAFKA"):
            self.env["RATCHET_KAFKA"] = external

    def start(self, parts: Sequence[str]) -> Settings:
        stack.up(parts, self.home, env=self.env)
        return Settings.load(home=self.home)

    def stop(self) -> None:
        config = StackConfig.load(self.home, self.env)
        for record in records.read_all(config).values():
            if record.restarts:
                EXITED.append(f"{record.part}, {record.restarts} times:\n{tail(record.log, 40)}")
        stack.down(home=self.home, env=self.env)
        remove_database(config)


def remove_database(config: StackConfig) -> None:
    """Delete the database of a home that is deleted next: it is elsewhere where PostgreSQL's user cannot enter it."""
    data = data_folder(config)
    shutil.rmtree(data if data.is_relative_to(config.home) else data.parent, ignore_errors=True)
    data_folder_record(config).unlink(missing_ok=True)


EXITED: list[str] = []
"""Parts of the tests' own stack that exited by themselves, with the end of their log."""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a case of bytes by its parameter, not its content: gzip has the time in it, and workers must agree."""
    return argname if isinstance(val, bytes) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show which parts exited by themselves: a test that failed meanwhile says only that nobody answered."""
    for part in EXITED:
        terminalreporter.section("a part of the stack exited by itself")
        terminalreporter.write_line(part)


def pytest_exception_interact(call: pytest.CallInfo[object], report: pytest.TestReport) -> None:
    """Show where each task waits in a test that took too long: its own traceback ends in the event loop."""
    if call.excinfo is None or "pytest-timeout" not in str(call.excinfo.value):
        return
    loops = {frame.f_locals["self"] for frame, _ in walk_tb(call.excinfo.tb) if frame.f_code.co_name == "run_forever"}
    for task in (task for loop in loops for task in asyncio.all_tasks(loop)):
        stack = io.StringIO()
        task.print_stack(file=stack)
        report.sections.append(("a task that was not done", stack.getvalue()))


EXIT_SECONDS = 120.0
"""How long the tests' process may take to exit after its last test."""


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """End a process that a thread holds after its last test, and show the stacks: a check would wait for it."""
    faulthandler.dump_traceback_later(EXIT_SECONDS, exit=True)


@pytest.fixture(scope="session")
async def database() -> AsyncIterator[Database]:
    """A database for unit tests, on a server of this session; each test's tables are empty (`Database.engine`)."""
    database = Database()
    yield database
    await database.close()


@pytest.fixture(scope="session")
def test_stack() -> Iterator[TestStack | None]:
    """The stack of this test session; None: the running one of RATCHET_TEST_HOME is used."""
    if os.environ.get("RATCHET_TEST_HOME"):
        yield None
        return
    home = ROOT / ".ratchet" / "tests" / str(os.getpid())
    home.mkdir(parents=True)
    running = TestStack(home)
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def stack_settings(test_stack: TestStack | None) -> Settings:
    """Settings of a running broker (with all topics), PostgreSQL and Unleash; the embedding model is installed."""
    if test_stack is None:
        settings = Settings.load(home=Path(os.environ["RATCHET_TEST_HOME"]).absolute())
    else:
        settings = test_stack.start(["kafka", "postgres", "unleash"])
        config = StackConfig.load(test_stack.home, test_stack.env)
        ensure_embedding_model(config, lambda words: None)
    create_topics(settings)
    return settings


@pytest.fixture(scope="session")
def vllm(test_stack: TestStack | None, stack_settings: Settings) -> str:
    """The address of a running vLLM with the small base model; about a minute the first time."""
    if test_stack is not None:
        test_stack.start(["vllm"])
    return stack_settings.vllm_urls[0]
