"""Settings of the local stack: one frozen object, read from the environment once and passed down.

`RATCHET_HOME` holds all state; `RATCHET_TOOLS` the installed programs (large; several homes may share them). The user's
own server replaces a part: `RATCHET_KAFKA`, `RATCHET_POSTGRES`, `RATCHET_UNLEASH`, `RATCHET_VLLM`, `RATCHET_MODELS`.
`RATCHET_STORAGE` is remembered in `stack.env`, because the lake would seem empty without it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from deploy.devstack.errors import PartError
from schemas.catalog import SERVICES
from shared.addresses import client_address, client_host

CHECKOUT = Path(__file__).parents[2]
DEFAULT_BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
HOST = "127.0.0.1"
DATA_BUCKET = "ratchet"
"""The bucket of the lake and the artifacts, with `RATCHET_STORAGE=s3`."""

PORTS = {
    "kafka": 29092,
    "kafka_internal": 29093,
    "s3": 28333,
    "s3_grpc": 28334,
    "s3_filer": 28335,
    "s3_filer_grpc": 28336,
    "s3_master": 28337,
    "s3_master_grpc": 28338,
    "s3_volume": 28339,
    "s3_volume_grpc": 28340,
    "postgres": 25432,
    "unleash": 24242,
    "vllm": 28000,
    "models": 28001,
    "gateway": 28080,
    "console": 28090,
    "scheduler": 28091,
    "deployer": 28092,
}


@dataclass(frozen=True)
class StackConfig:
    """Paths, ports and external servers of one home.

    `hosts`: service → where it listens, if not on `HOST`. `externals`: part name → address of the user's own server.
    `storage`: where the lake and the artifacts are, `folder`
    (in the home) or `s3` (in the stack's own S3 server).
    """

    home: Path
    tools: Path
    ports: Mapping[str, int]
    hosts: Mapping[str, str] = field(default_factory=dict)
    externals: Mapping[str, str] = field(default_factory=dict)
    kafka_home: Path | None = None
    storage: str = "folder"
    base_model: str = DEFAULT_BASE_MODEL
    unleash_client_token: str = ""
    unleash_admin_token: str = ""

    @classmethod
    def load(cls, home: Path | None = None, env: Mapping[str, str] | None = None) -> StackConfig:
        """Read `env` (default: this process's environment). Raises PartError for an invalid value."""
        values = os.environ if env is None else env
        folder = Path(home or values.get("RATCHET_HOME") or ".ratchet").absolute()
        ports = _ports(values)
        return cls(
            home=folder,
            tools=Path(values.get("RATCHET_TOOLS") or folder / "tools").absolute(),
            ports=ports,
            hosts=_hosts(values),
            externals=_externals(values, ports),
            kafka_home=_kafka_home(values),
            storage=_storage(values, folder),
            base_model=values.get("RATCHET_BASE_MODEL") or DEFAULT_BASE_MODEL,
            unleash_client_token=values.get("RATCHET_UNLEASH_CLIENT_TOKEN", ""),
            unleash_admin_token=values.get("RATCHET_UNLEASH_ADMIN_TOKEN", ""),
        )

    def address(self, part: str) -> str:
        """Return host:port where clients on this machine reach the stack's own `part`."""
        return client_address(self.hosts.get(part, HOST), self.ports[part])

    def host(self, port: str) -> str:
        """Return the host at which clients on this machine reach what listens on the port of that name."""
        return client_host(self.hosts.get(port, HOST))

    @property
    def base_model_name(self) -> str:
        """The short name: the folder under `models/`, vLLM's served name, and the base that adapters refer to."""
        return self.base_model.rstrip("/").rsplit("/", 1)[-1]

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def adapters(self) -> Path:
        """Where vLLM looks for adapters. Of those in S3 it is the services' cache (`ArtifactStore.fetch`)."""
        artifacts = self.home / "cache" / DATA_BUCKET / "artifacts" if self.storage == "s3" else self.home / "artifacts"
        return artifacts / "adapters"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def records(self) -> Path:
        """The folder with one file per running part: its supervisor, and how it was started."""
        return self.home / "state" / "pids"


def _ports(env: Mapping[str, str]) -> dict[str, int]:
    ports: dict[str, int] = {}
    for name, default in PORTS.items():
        variable = f"RATCHET_{name.upper()}_PORT"
        part, _, inner = name.partition("_")
        if inner and f"RATCHET_{part.upper()}_PORT" in env:  # Inner ports follow the one that clients use.
            default = ports[part] + default - PORTS[part]
        text = env.get(variable) or str(default)
        if not text.isdigit() or not 0 < int(text) < 65536:
            raise PartError(f"{variable}={text!r} is not a port", f"Set {variable} to a number from 1 to 65535.")
        ports[name] = int(text)
    return ports


def _hosts(env: Mapping[str, str]) -> dict[str, str]:
    hosts = {name: env.get(f"RATCHET_{name.upper()}_HOST", HOST) for name in PORTS if name in SERVICES}
    return {name: host for name, host in hosts.items() if host != HOST}


def _externals(env: Mapping[str, str], ports: Mapping[str, int]) -> dict[str, str]:
    """Return the addresses of the user's own servers. Raises PartError, without the address: a password may be in it.

    The stack's own address means that the user exported `stack.env`: that part is not external.
    """
    externals = {}
    for part in ("kafka", "postgres", "unleash", "vllm", "models"):
        variable = f"RATCHET_{part.upper()}"
        value = env.get(variable, "").strip()
        listed = value.split(",") if part in ("kafka", "vllm") else [value]  # Elsewhere a comma may be in a password.
        try:
            addresses = [_host_port(address) for address in listed if address.strip()]
        except ValueError:
            way_out = "Write host:port, or a URL; in a user's name or password, / is %2F, ? is %3F, # is %23, [ is %5B."
            raise PartError(f"{variable} is not an address", way_out) from None
        if addresses and addresses != [f"{HOST}:{ports[part]}"]:
            externals[part] = value.rstrip("/")
    return externals


def _host_port(text: str) -> str:
    """Return host:port of an address. Raises ValueError, whose text may have a part of a password."""
    address = text.strip()
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    return f"{parts.hostname}:{parts.port}"


def _storage(env: Mapping[str, str], home: Path) -> str:
    value = env.get("RATCHET_STORAGE") or stored_storage(home)
    if value not in ("folder", "s3"):
        raise PartError(f"RATCHET_STORAGE={value!r} is neither folder nor s3", "Set it to folder or s3.")
    return value


def stored_storage(home: Path) -> str:
    """Return where the last `ratchet up` of this home put the lake and the artifacts."""
    path = home / "stack.env"
    return "s3" if path.exists() and "RATCHET_STORAGE=s3" in path.read_text().splitlines() else "folder"


def _kafka_home(env: Mapping[str, str]) -> Path | None:
    value = env.get("KAFKA_HOME", "")
    if not value:
        return None
    folder = Path(value).absolute()
    if not any((folder / "libs").glob("*.jar")):
        raise PartError(
            f"KAFKA_HOME={value} is not a Kafka distribution: it has no libs/*.jar",
            "Point KAFKA_HOME at an unpacked Apache Kafka, or unset it to use tansu.",
        )
    return folder
