"""The system under test: broker, database, flag server, model server and all services, each in its own process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from deploy.devstack.catalog import part_named
from deploy.devstack.config import HOST, StackConfig
from deploy.devstack.credentials import Credentials
from deploy.devstack.install.models import ensure_embedding_model
from deploy.devstack.part import Launch, Part
from deploy.devstack.parts.kafka import distribution
from deploy.devstack.parts.postgres import data_folder, probe_database
from deploy.devstack.stack import free_ports
from schemas.catalog import SERVICES
from shared.kafka.topics import create_topics
from shared.settings import Settings
from tests.chaos.processes import Keeper, Program

ROOT = Path(__file__).parents[2]
WRITERS = ("prediction_log", "prediction_log-2")
GATEWAYS = ("gateway", "gateway-2")
ON_THE_WAY = ("gateway", "prediction_log", "failure_miner", "scheduler")
"""Services that an event passes, and the one that tells them the tasks."""
BROKER, DATABASE, FLAGS, MODEL = "kafka", "postgres", "unleash", "model"
SPOOL_BYTES, LAKE_BYTES = 64 * 1024**2, 1024**3

TASK = """\
name: {name}
kind: classification
base_model: chaos-base
system_prompt: Classify the customer's message. Answer with one label.
labels: [delivery, refund, login]
cron: "0 3 1 1 *"
failures: {{confidence_threshold: 0.6, review_budget_per_day: 100}}
"""


class Broken(Exception):
    """Something did not start or come back; says what and where its log is."""


class System:
    """Everything that runs. `home` is thrown away by `remove`; with `disks`, spool and lake lie on small disks."""

    def __init__(self, home: Path, *, disks: bool, services: Sequence[str] = SERVICES) -> None:
        self.home = home
        self.disks = disks
        self._services = services
        self.token = secrets.token_hex(4)
        self.task = f"chaos-{self.token}"
        self.spool_disk, self.lake_disk = home / "spool-disk", home / "lake-disk"
        self.spool, self.lake = self.spool_disk / "spool", self.lake_disk / "lake"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RATCHET_")}
        shared = Path(os.environ.get("RATCHET_HOME", ROOT / ".ratchet")).absolute()
        (shared / "models").mkdir(parents=True, exist_ok=True)
        self._models = shared / "models"
        ports = _free_ports(2)
        self.gateway_urls = tuple(f"http://{HOST}:{port}" for port in ports)
        self._model_port = _free_ports(1)[0]
        tools = os.environ.get("RATCHET_TOOLS", str(shared / "tools"))
        ours = {
            "HOME": str(home),
            "TOOLS": tools,
            "LAKE": str(self.lake),
            "GATEWAY_SPOOL_FOLDER": str(self.spool),
            "VLLM": f"http://{HOST}:{self._model_port}",
            # So often that they meet the faults, too.
            "PREDICTION_LOG_MAINTENANCE_SECONDS": "40",
            "PREDICTION_LOG_ROLL_UP_SECONDS": "15",
        }
        self.env = {
            **kept, **free_ports(), **{f"RATCHET_{name}": value for name, value in ours.items()},
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        if own := os.environ.get("RATCHET_KAFKA"):
            self.env["RATCHET_KAFKA"] = own
        self.config = StackConfig.load(home, self.env)
        self.keeper: Keeper | None = None
        self._mounted: list[Path] = []

    @property
    def broker_kind(self) -> str:
        """apache, tansu (forgets everything when it ends) or external (not ours to stop)."""
        if BROKER in self.config.externals:
            return "external"
        return "apache" if distribution(self.config) else "tansu"

    @property
    def settings(self) -> Settings:
        values = {k[8:].lower(): v for k, v in self.env.items() if k.startswith("RATCHET_")}
        return Settings(
            **{k: v for k, v in values.items() if k in Settings.model_fields and k != "home"}, home=self.home
        )

    def program(self, name: str) -> Program:
        assert self.keeper is not None
        return self.keeper.programs[name]

    @property
    def services(self) -> list[str]:
        """Names of the service processes."""
        return [*self._services, GATEWAYS[1], WRITERS[1]]

    async def start(self, say: Callable[[str], None]) -> None:
        """From nothing to gateways that know the task. Raises Broken."""
        self._prepare()
        parts = [part_named(name) for name in (BROKER, DATABASE, FLAGS) if name not in self.config.externals]
        for part in parts:
            await asyncio.to_thread(part.install, self.config, say)
        await asyncio.to_thread(ensure_embedding_model, self.config, say)
        for name in (BROKER, DATABASE, FLAGS):
            self.env |= part_named(name).environment(self.config)
        self.keeper = Keeper(self.env, self.home / "logs", self.token)
        say("starting broker, database and flag server")
        await asyncio.gather(*(self._start_part(part, say) for part in parts))
        await asyncio.to_thread(create_topics, self.settings)
        say(f"starting {len(self.services)} processes of {len(self._services)} services")
        self.keeper.start(MODEL, _python("tests.chaos.upstream", str(self._model_port)))
        for name in self.services:
            self._start_service(name)
        await self._until_ready()

    async def _start_part(self, part: Part, say: Callable[[str], None]) -> None:
        """The flag server is not waited for: it is slow, and the gateways do not wait for it either."""
        assert self.keeper is not None
        if part.name == FLAGS:
            await self.until_up(DATABASE)
            await asyncio.to_thread(part_named(DATABASE).finish, self.config, say)
        self.keeper.start(part.name, await asyncio.to_thread(part.launch, self.config))
        if part.name != FLAGS:
            await self.until_up(part.name)

    def _prepare(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        for folder in (self.lake_disk, self.spool_disk, self.home / "tasks", self.home / "secrets"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.home / "secrets").chmod(0o700)
        Credentials.load(self.home)
        (self.home / "models").symlink_to(self._models)
        (self.home / "tasks" / f"{self.task}.yaml").write_text(TASK.format(name=self.task))
        if self.disks:
            for folder, size in ((self.spool_disk, SPOOL_BYTES), (self.lake_disk, LAKE_BYTES)):
                subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
                self._mounted.append(folder)

    def _start_service(self, name: str) -> None:
        assert self.keeper is not None
        service = name.partition("-")[0]
        env = {}
        if name in GATEWAYS:
            env["RATCHET_GATEWAY_PORT"] = self.gateway_urls[GATEWAYS.index(name)].rpartition(":")[2]
        self.keeper.start(name, _python(f"services.{service}.main"), env)

    async def _until_ready(self, seconds: float = 180.0) -> None:
        deadline = time.monotonic() + seconds
        async with httpx.AsyncClient(timeout=5.0) as http:
            for name, url in zip(GATEWAYS, self.gateway_urls, strict=True):
                trouble = ""
                while True:
                    with contextlib.suppress(httpx.HTTPError):
                        answer = await http.get(f"{url}/v1/models/{self.task}")
                        if answer.is_success:
                            break
                        trouble = answer.text
                    if time.monotonic() > deadline:
                        log = self.home / "logs" / f"{name}.log"
                        raise Broken(f"{name} did not get ready: {trouble or 'no answer'}\n{_tail(log)}")
                    self.keeper and self.keeper.check()
                    await asyncio.sleep(0.3)

    async def until_up(self, name: str, seconds: float = 90.0) -> None:
        """Wait until broker, database or flag server answers a real question. Raises Broken."""
        part: Part = part_named(name)
        deadline = time.monotonic() + seconds
        while trouble := await self._trouble(part):
            if time.monotonic() > deadline:
                raise Broken(f"{name} did not come up: {trouble}\n{_tail(self.home / 'logs' / f'{name}.log')}")
            await asyncio.sleep(0.3)

    async def _trouble(self, part: Part) -> str | None:
        if part.name not in self.config.externals and not (self.keeper and part.name in self.keeper.programs):
            return "it was not started yet"
        return await asyncio.to_thread(part.probe, self.config)

    async def until_whole(self) -> None:
        """Wait until everything that was stopped is back, and both gateways answer."""
        for name in (BROKER, DATABASE):
            if name not in self.config.externals:
                await self.until_up(name)
        await self._until_ready()

    def spool_bytes(self) -> int:
        """Bytes of all files in the spools."""
        return sum(_size(path) for path in self.spool.rglob("*") if path.is_file())

    def database_up(self) -> bool:
        return probe_database(self.settings.postgres) is None

    async def close(self) -> None:
        """Stop every process and take the small disks away."""
        if self.keeper is not None:
            await self.keeper.close()
        for folder in self._mounted:
            await asyncio.to_thread(_unmount, folder)
        self._mounted.clear()

    def remove(self, *, all_of_it: bool) -> None:
        """Throw away the database, which may lie elsewhere, and with `all_of_it` logs, ledger and lake too."""
        data = data_folder(self.config)
        shutil.rmtree(data, ignore_errors=True)
        if not data.is_relative_to(self.home):
            shutil.rmtree(data.parent, ignore_errors=True)
        if all_of_it:
            shutil.rmtree(self.home, ignore_errors=True)


def _unmount(folder: Path) -> None:
    """Now, or as soon as nobody has a file open there."""
    if subprocess.run(["umount", str(folder)], check=False, capture_output=True).returncode != 0:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def can_mount() -> bool:
    """Whether a small disk of our own can be mounted: that takes root (or CAP_SYS_ADMIN)."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"ratchet-mount-{os.getpid()}"
    folder.mkdir()
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False, capture_output=True
        )
        if made.returncode == 0:
            subprocess.run(["umount", str(folder)], check=False)
        return made.returncode == 0
    finally:
        folder.rmdir()


def _python(module: str, *arguments: str) -> Launch:
    return Launch(argv=(sys.executable, "-m", module, *arguments), cwd=str(ROOT), grace_seconds=20.0)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((HOST, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _tail(log: Path, lines: int = 12) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(no log)"
