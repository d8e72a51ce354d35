"""The system under test: broker, database, flag server, model server and all services, each a process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from deploy.devstack import stack
from deploy.devstack.catalog import part_named, select
from deploy.devstack.config import HOST, StackConfig
from deploy.devstack.credentials import Credentials
from deploy.devstack.install.models import ensure_embedding_model
from deploy.devstack.part import Launch, StackPart, tail
from deploy.devstack.parts.kafka import is_tansu
from deploy.devstack.parts.postgres import probe_database
from deploy.devstack.ports import take_ports
from schemas.catalog import SERVICES
from shared.kafka.topics import create_topics
from shared.settings import Settings
from tests.chaos.processes import Program, Programs
from tests.chaos.tasks import task_names, write_tasks
from tests.conftest import ROOT, remove_database, shared_home

WRITERS = ("prediction_log", "prediction_log-2")
GATEWAYS = ("gateway", "gateway-2")
EVENT_PATH = ("gateway", "prediction_log", "failure_miner", "scheduler")
"""Services on an event's path, and the one that publishes the tasks."""
STORE, BROKER, DATABASE, FLAGS, MODEL = "s3", "kafka", "postgres", "unleash", "model"
TANSU_ONLY = "--advertised-listener-url"
"""In the command line of tansu, a child of the broker's process, and of no other."""
SPOOL_BYTES, LAKE_BYTES = 64 * 1024**2, 1024**3

EVENT_BYTES = 160 * 1024
"""The limit of an event, so low that few requests are needed to pass it."""


class StartError(Exception):
    """A process did not start or did not recover; the message has the end of its log."""


class System:
    """All processes of a run. `remove` deletes `home`; with `disks`, spool and lake are on small disks of their own.

    `tasks`: one that asks for labels, and one that answers in texts.
    """

    def __init__(self, home: Path, *, disks: bool, services: Sequence[str] = SERVICES) -> None:
        self.home = home
        self.disks = disks
        self._services = services
        self.token = secrets.token_hex(4)
        self.tasks: Sequence[str] = task_names(self.token)
        self.spool_disk, self.lake_disk = home / "spool-disk", home / "lake-disk"
        self.spool, self.lake = self.spool_disk / "spool", self.lake_disk / "lake"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RATCHET_")}
        shared = shared_home()
        (shared / "models").mkdir(parents=True, exist_ok=True)
        self._models = shared / "models"
        ports = take_ports(2)
        self.gateway_urls = tuple(f"http://{HOST}:{port}" for port in ports)
        self._model_port = take_ports(1)[0]
        tools = os.environ.get("RATCHET_TOOLS", str(shared / "tools"))
        overrides = {
            "HOME": str(home),
            "TOOLS": tools,
            "LAKE": str(self.lake),
            "GATEWAY_SPOOL_FOLDER": str(self.spool),
            "GATEWAY_EVENT_BYTES": str(EVENT_BYTES),
            "VLLM": f"http://{HOST}:{self._model_port}",
            # Frequent enough to happen during faults; small files of the spool end and are deleted meanwhile.
            "GATEWAY_SPOOL_SEGMENT_BYTES": str(1024**2),
            "PREDICTION_LOG_MAINTENANCE_SECONDS": "40",
        }
        self.env = {
            **inherited, **stack.free_ports(), **{f"RATCHET_{name}": value for name, value in overrides.items()},
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        if external := os.environ.get("RATCHET_KAFKA"):
            self.env["RATCHET_KAFKA"] = external
        self.config = StackConfig.load(home, self.env)
        self.programs: Programs | None = None
        self._mounted: list[Path] = []

    @property
    def broker_kind(self) -> str:
        """apache, tansu (keeps its data in the store) or external (must not be stopped)."""
        if BROKER in self.config.externals:
            return "external"
        return "tansu" if is_tansu(self.config) else "apache"

    @property
    def settings(self) -> Settings:
        values = {k[8:].lower(): v for k, v in self.env.items() if k.startswith("RATCHET_")}
        return Settings(
            **{k: v for k, v in values.items() if k in Settings.model_fields and k != "home"}, home=self.home
        )

    def program(self, name: str) -> Program:
        assert self.programs is not None
        return self.programs.by_name[name]

    @property
    def services(self) -> list[str]:
        """Names of the service processes."""
        return [*self._services, GATEWAYS[1], WRITERS[1]]

    @property
    def gateways(self) -> Sequence[str]:
        """Names of the gateways' processes, in the order of `gateway_urls`."""
        return GATEWAYS

    async def start(self, say: Callable[[str], None]) -> None:
        """Start everything; returns when the gateways know the tasks. Raises StartError."""
        self._prepare()
        parts = [
            part for part in select(self.config, (BROKER, DATABASE, FLAGS)) if part.name not in self.config.externals
        ]
        for part in parts:
            await asyncio.to_thread(part.install, self.config, say)
        await asyncio.to_thread(ensure_embedding_model, self.config, say)
        for name in (BROKER, DATABASE, FLAGS):
            self.env |= part_named(name).environment(self.config)
        self.programs = Programs(self.env, self.home / "logs", self.token)
        say("starting broker, database and flag server")
        await asyncio.gather(
            self._start_in_order([part for part in parts if part.name in (STORE, BROKER)], say),
            self._start_in_order([part for part in parts if part.name in (DATABASE, FLAGS)], say),
        )
        await asyncio.to_thread(create_topics, self.settings)
        say(f"starting {len(self.services)} processes of {len(self._services)} services")
        self._start_models()
        for name in self.services:
            self._start_service(name)
        await self._wait_until_ready()

    async def _start_in_order(self, parts: Sequence[StackPart], say: Callable[[str], None]) -> None:
        """Start each part and wait for it, except the flag server: it is slow, and the gateways do not wait for it."""
        assert self.programs is not None
        for part in parts:
            self.programs.start(part.name, await asyncio.to_thread(part.launch, self.config))
            if part.name != FLAGS:
                await self.wait_until_up(part.name)
                await asyncio.to_thread(part.finish, self.config, say)

    def _prepare(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        for folder in (self.lake_disk, self.spool_disk, self.home / "tasks", self.home / "secrets"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.home / "secrets").chmod(0o700)
        Credentials.load(self.home)
        (self.home / "models").symlink_to(self._models)
        self._write_tasks()
        if self.disks:
            for folder, size in ((self.spool_disk, SPOOL_BYTES), (self.lake_disk, LAKE_BYTES)):
                subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
                self._mounted.append(folder)

    def _write_tasks(self) -> None:
        write_tasks(self.home / "tasks", self.tasks)

    def _start_models(self) -> None:
        assert self.programs is not None
        self.programs.start(MODEL, python("tests.chaos.load.upstream", str(self._model_port)))

    def _start_service(self, name: str) -> None:
        assert self.programs is not None
        service = name.partition("-")[0]
        env = {}
        if name in self.gateways:
            env["RATCHET_GATEWAY_PORT"] = self.gateway_urls[self.gateways.index(name)].rpartition(":")[2]
        self.programs.start(name, python(f"services.{service}.main"), env)

    async def _wait_until_ready(self, seconds: float = 180.0) -> None:
        deadline = time.monotonic() + seconds
        async with httpx.AsyncClient(timeout=5.0) as http:
            for (name, url), task in itertools.product(zip(self.gateways, self.gateway_urls, strict=True), self.tasks):
                problem = ""
                while True:
                    with contextlib.suppress(httpx.HTTPError):
                        response = await http.get(f"{url}/v1/models/{task}")
                        if response.is_success:
                            break
                        problem = response.text
                    if time.monotonic() > deadline:
                        log = self.home / "logs" / f"{name}.log"
                        raise StartError(f"{name} is not ready: {problem or 'no answer'}\n{tail(log)}")
                    self.programs and self.programs.check()
                    await asyncio.sleep(0.3)

    async def wait_until_up(self, name: str, seconds: float = 90.0) -> None:
        """Wait until store, broker, database or flag server answers a real request. Raises StartError."""
        part: StackPart = part_named(name)
        deadline = time.monotonic() + seconds
        while problem := await self._problem(part):
            if time.monotonic() > deadline:
                raise StartError(f"{name} did not start: {problem}\n{tail(self.home / 'logs' / f'{name}.log')}")
            await asyncio.sleep(0.3)

    async def _problem(self, part: StackPart) -> str | None:
        if part.name not in self.config.externals and not (self.programs and part.name in self.programs.by_name):
            return "not started yet"
        return await asyncio.to_thread(part.probe, self.config)

    async def wait_until_recovered(self) -> None:
        """Wait until store, broker, database and both gateways answer. Raises StartError."""
        assert self.programs is not None
        for name in (STORE, BROKER, DATABASE):
            if name in self.programs.by_name:
                await self.wait_until_up(name)
        await self._wait_until_ready()

    def spool_bytes(self) -> int:
        """Return the bytes of all files in the spools."""
        return sum(_size(path) for path in self.spool.rglob("*") if path.is_file())

    def database_up(self) -> bool:
        return probe_database(self.settings.postgres) is None

    async def close(self) -> None:
        """Stop every process and unmount the small disks."""
        if self.programs is not None:
            await self.programs.close()
        for folder in self._mounted:
            await asyncio.to_thread(_unmount, folder)
        self._mounted.clear()

    def remove(self, *, everything: bool) -> None:
        """Delete the database, which may be outside `home`; with `everything` also logs, ledger and lake."""
        remove_database(self.config)
        if everything:
            shutil.rmtree(self.home, ignore_errors=True)


def _unmount(folder: Path) -> None:
    """Unmount the disk now, or as soon as no file on it is open."""
    if subprocess.run(["umount", str(folder)], check=False, capture_output=True).returncode != 0:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def can_mount() -> bool:
    """Return True if a small disk can be mounted, which takes root (or CAP_SYS_ADMIN)."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"ratchet-mount-{os.getpid()}"
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False, capture_output=True
        )
        if mounted.returncode == 0:
            subprocess.run(["umount", str(folder)], check=False)
        return mounted.returncode == 0
    finally:
        folder.rmdir()


def python(module: str, *arguments: str) -> Launch:
    """Return how a module is run."""
    return Launch(argv=(sys.executable, "-m", module, *arguments), cwd=str(ROOT), grace_seconds=20.0)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
