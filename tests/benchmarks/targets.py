"""The targets of the load generator: each a real process, or a tree of them, whose processor time is measured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import httpx
import psutil

from deploy.devstack.config import StackConfig
from deploy.devstack.part import Launch, Say
from deploy.devstack.ports import take_ports
from schemas.base import utc_now
from schemas.task_settings import RedactionSettings
from schemas.tasks import TaskKind, TaskSpec
from services.deployer.clients import Strategy, UnleashAdmin
from services.deployer.flags import flag_name
from services.gateway.auth.keys import ApiKey, new_key, write_keys
from services.gateway.settings import GatewaySettings
from shared.settings import Settings
from tests.benchmarks import peers
from tests.benchmarks.upstream import ADAPTER, BASE, NUMBER
from tests.conftest import ROOT
from tests.integration.gateway_process import publish_task

HOST = "127.0.0.1"
_START_SECONDS = 180.0


@cache
def texts(count: int, seed: int) -> list[str]:
    """Return texts of a kilobyte: words as often as they stand in this project's prose, so that they compress like it.

    Prose itself would compress better from the second request on: a compressor finds what it has seen.
    """
    chance = random.Random(seed)
    return [" ".join(chance.choices(_words(), k=200))[:1_000] for _ in range(count)]


@cache
def _words() -> list[str]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return re.findall(r"[\w',.?-]+", " ".join(page.read_text(encoding="utf-8") for page in pages))


@dataclass(frozen=True)
class Target:
    """A server that answers chat completions. `pid`: the root of its processes."""

    name: str
    url: str
    model: str
    pid: int
    headers: Mapping[str, str] = field(default_factory=dict)
    settle: Callable[[], None] = lambda: None
    """Returns when the target has finished the work of the requests so far."""

    def body(self, stream: bool, kilobytes: int = 0, seed: int = 0) -> str:
        """A request. `kilobytes`: of earlier messages, a kilobyte each, as a long chat or an agent sends them."""
        *earlier, asked = texts(kilobytes + 1, seed)
        turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(earlier)]
        question = {"role": "user", "content": f"{NUMBER.decode()}: {asked[:300]}"}
        request = {"model": self.model, "messages": [*turns, question], "user": f"customer-{seed}"}
        return json.dumps({**request, "stream": True} if stream else request)

    def computed(self) -> dict[int, float]:
        """Return the processor seconds of each of its processes so far, by process id."""
        found = {}
        root = psutil.Process(self.pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                found[process.pid] = times.user + times.system
        return found


@contextlib.contextmanager
def running(name: str, launch: Launch, env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process for the length of a `with`, with its output in `log`. Its children end with it."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            launch.argv, env={**env, **launch.env, "OMP_NUM_THREADS": "1"}, stdout=output, stderr=output, cwd=ROOT
        )
    try:
        yield child
    finally:
        with contextlib.suppress(psutil.Error):
            processes = [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]
            child.terminate()
            for survivor in psutil.wait_procs(processes, timeout=20)[1]:
                survivor.kill()
        child.wait()


def wait_until_ready(target: Target, child: subprocess.Popen[bytes], log: Path) -> Target:
    """Ask until there is an answer. Raises RuntimeError with the end of the log if there is none."""
    deadline, problem = time.monotonic() + _START_SECONDS, ""
    headers = {"content-type": "application/json", **target.headers}
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.post(target.url, content=target.body(False), headers=headers, timeout=10.0)
            if answer.status_code == 200:
                return target
            problem = answer.text[:500]
        time.sleep(0.2)
    raise RuntimeError(f"{target.name} does not answer: {problem}\n{log.read_text(errors='replace')[-2000:]}")


@dataclass(frozen=True)
class Workspace:
    """The folder of the processes' files and the environment that they start with."""

    config: StackConfig
    env: Mapping[str, str]

    @contextlib.contextmanager
    def target(self, name: str, launch: Launch, port: int, model: str = ADAPTER, **headers: str) -> Iterator[Target]:
        """Start a target that is ready inside the `with`."""
        log = self.config.logs / f"{name.replace(' ', '-').replace(',', '')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with running(name, launch, self.env, log) as child:
            target = Target(name, f"http://{HOST}:{port}/v1/chat/completions", model, child.pid, headers)
            yield wait_until_ready(target, child, log)


def upstream(port: int) -> Launch:
    """Return how to start the model server that answers at once, with one worker."""
    return _granian("rsgi", "tests.benchmarks.upstream:app", port, {})


def bare(port: int, to: str, server: str = "uvicorn", client: str = "aiohttp") -> Launch:
    """Return how to start the bare pass-through, with one worker on uvloop."""
    env = {"RATCHET_BENCH_UPSTREAM": to, "RATCHET_BENCH_CLIENT": client}
    if server == "granian":
        return _granian("asgi", "tests.benchmarks.pass_through:app", port, env)
    options = ("--host", HOST, "--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log")
    return Launch(argv=(sys.executable, "-m", "uvicorn", *options, "tests.benchmarks.pass_through:app"), env=env)


def _granian(interface: str, app: str, port: int, env: Mapping[str, str]) -> Launch:
    options = ("--interface", interface, "--host", HOST, "--port", str(port), "--loop", "uvloop", "--no-ws")
    argv = (sys.executable, "-m", "granian", *options, "--workers", "1", "--log-level", "warning", app)
    return Launch(argv=argv, env=env)


@contextlib.contextmanager
def ours(workspace: Workspace, settings: Settings, to: str) -> Iterator[Target]:
    """Start Ratchet's gateway with one worker as in production: an API key, spool, shipper and flags, and an adapter.

    The task redacts nothing; the benchmark `redaction` measures what redaction costs the shipper.
    """
    task = TaskSpec(
        name="bench", kind=TaskKind.GENERATION, base_model=BASE, system_prompt="Answer the customer.",
        redaction=RedactionSettings(enabled=False),
    )  # fmt: skip
    asyncio.run(_announce(settings, task))
    (port,) = take_ports(1)
    env = {"RATCHET_VLLM": to, "RATCHET_GATEWAY_PORT": str(port), "RATCHET_HOME": str(settings.home)}
    launch = Launch(argv=(sys.executable, "-m", "services.gateway.main"), env=env)
    with workspace.target("ratchet", launch, port, task.name, authorization=f"Bearer {_new_key(settings)}") as target:
        _wait_until_adapter_serves(target)
        yield replace(target, settle=lambda: _wait_until_shipped(target))


def _new_key(settings: Settings) -> str:
    """Let the gateway of this home have an API key, and return it."""
    key, digest = new_key()
    file = GatewaySettings(home=settings.home).keys_file
    file.parent.mkdir(parents=True, exist_ok=True)
    write_keys(file, [ApiKey(app="bench", digest=digest, created_at=utc_now())])
    return key


def _wait_until_shipped(target: Target) -> None:
    """Wait until the spool is shipped. Raises RuntimeError if that takes longer than two minutes."""
    deadline = time.monotonic() + 120.0
    address = target.url.replace("/v1/chat/completions", "/metrics")
    while time.monotonic() < deadline:
        lines = httpx.get(address, headers=target.headers, timeout=10.0).text.splitlines()
        if any(line.startswith("ratchet_gateway_spool_bytes ") and float(line.split()[1]) == 0.0 for line in lines):
            return
        time.sleep(0.05)
    raise RuntimeError("the shipper does not keep up")


async def _announce(settings: Settings, task: TaskSpec) -> None:
    """Publish the task on the broker and its flags in Unleash."""
    await publish_task(settings, task)
    admin = UnleashAdmin(settings.unleash, settings.unleash_admin_token)
    try:
        primary = Strategy(variant="primary", payload={"adapter": ADAPTER, "previous": None})
        await admin.ensure(flag_name(task.name, "primary"), "Serves everyone", primary, on=True)
        canary = Strategy(percent=0, stickiness="userId", variant="canary", payload={"adapter": "bench-canary"})
        await admin.ensure(flag_name(task.name, "canary"), "Serves nobody", canary, on=True)
        await admin.ensure(flag_name(task.name, "rollback"), "Off", Strategy())
    finally:
        await admin.close()


def _wait_until_adapter_serves(target: Target) -> None:
    """Wait until the gateway uses the flags and measures confidence; otherwise it would be measured doing less work."""
    deadline = time.monotonic() + 30.0
    while True:
        headers = httpx.post(target.url, content=target.body(False), headers=target.headers, timeout=10.0).headers
        if headers.get("x-ratchet-variant") == "primary" and "x-ratchet-confidence" in headers:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"the flags did not reach the gateway: {dict(headers)}")
        time.sleep(0.2)


@contextlib.contextmanager
def litellm(workspace: Workspace, to: str, say: Say) -> Iterator[Target]:
    """Start LiteLLM's proxy with one worker. Raises PartError if it cannot be installed."""
    (port,) = take_ports(1)
    launch = peers.litellm(workspace.config, to, port, say)
    with workspace.target("LiteLLM", launch, port, authorization=f"Bearer {peers.LITELLM_KEY}") as target:
        yield target


@contextlib.contextmanager
def portkey(workspace: Workspace, to: str, say: Say) -> Iterator[Target]:
    """Start Portkey's gateway. Raises PartError if it cannot be installed."""
    (port,) = take_ports(1)
    launch = peers.portkey(workspace.config, port, say)
    headers = {**peers.PORTKEY_HEADERS, "x-portkey-custom-host": f"{to}/v1"}
    with workspace.target("Portkey", launch, port, **headers) as target:
        yield target


def plain_environment() -> dict[str, str]:
    """Return the environment without Ratchet's settings, which must not leak from another stack into a benchmark."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")}
