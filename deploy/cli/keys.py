"""`ratchet keys`: the API keys with which applications use the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from deploy.cli.output import show_blocks, warn
from services.gateway.auth.keys import ApiKey, locked_for_editing, new_key, read_keys, remember_keys, write_keys
from services.gateway.settings import GatewaySettings
from shared.errors import RatchetError
from shared.report.blocks import Table

HELP = """API keys: which application may use the gateway, for which tasks, how often.

Without keys a gateway on loopback is open to whoever reaches it. From the first key on, and on any other address
([bold]RATCHET_GATEWAY_HOST[/bold]), every request needs one, also after the last key is revoked or their file is lost:
[bold]Authorization: Bearer rk_…[/bold], what OpenAI's clients send as their `api_key` (or the header `api-key`). A
running gateway picks up a change within a second or two. <home>/gateway/keys.json stores hashes only: a lost key
cannot be shown again, only replaced.

[bold]Steps[/bold]

  ratchet keys create shop                            a key for everything

  ratchet keys create shop --task support-desk        for one task

  ratchet keys list                                   which application has which key, until when

  ratchet keys rotate shop                            a new key; the old one expires a day later

  ratchet keys revoke 3f0c52d1a9be                    expires at once, by its id
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=HELP)
Name = Annotated[str, typer.Argument(metavar="APP", help="The application: lower case, digits, dots, dashes.")]


@contextmanager
def _keys(changing: bool = True) -> Iterator[tuple[Path, tuple[ApiKey, ...] | None]]:
    """Yield the keys' file and its content; with `changing`, under the lock that other writers take too."""
    path = GatewaySettings.load().keys_file
    try:
        with locked_for_editing(path) if changing else nullcontext():
            yield path, read_keys(path)
    except OSError as error:
        reason = f"{path} cannot be written: {error.strerror}"
        raise RatchetError(reason, "RATCHET_HOME or RATCHET_GATEWAY_KEYS_FILE says where it is.") from error


@app.command()
def create(
    name: Name,
    task: Annotated[list[str] | None, typer.Option("--task", help="Only this task; repeatable. Default: all.")] = None,
    expires: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Days from now until it expires; default: never.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="N", help="Requests a second, of all the app's keys; default: no limit.")
    ] = None,
    burst: Annotated[
        int | None, typer.Option(metavar="N", help="Requests at once; default: as many as --rate allows in a second.")
    ] = None,
    bytes_per_minute: Annotated[
        int | None, typer.Option(metavar="N", help="Bytes of the requests' bodies a minute; default: no limit.")
    ] = None,
    pass_through: Annotated[
        bool, typer.Option("--pass-through", help="Also models that are no task: RATCHET_GATEWAY_PASS_MODELS.")
    ] = False,
) -> None:
    """Create a key for an application and print it, once. Keys that the application has already stay valid.

    Only the key goes to standard output. Limits hold for all workers of a gateway together. A request over a limit gets
    429 and the time to retry after.

    [bold]Examples[/bold]

      ratchet keys create shop

      ratchet keys create shop --task support-desk --task reviews --expires 90

      ratchet keys create agents --pass-through          also models that are no task

      ratchet keys create nightly-import --rate 5 --burst 20 --bytes-per-minute 2000000

      KEY=$(ratchet keys create shop)
    """
    if burst and not rate:
        raise typer.BadParameter("--burst says how far --rate may be exceeded: give --rate too")
    if expires is not None and not 0 < expires <= 36_500:
        raise typer.BadParameter("--expires is in days from now, more than 0 and at most 36500")
    now = _now()
    key, created = _new_key(
        app=name, created_at=now, expires_at=now + timedelta(days=expires) if expires else None,
        tasks=tuple(dict.fromkeys(task)) if task else None, requests_per_second=rate, burst=burst,
        bytes_per_minute=bytes_per_minute, pass_through=pass_through,
    )  # fmt: skip
    with _keys() as (path, keys):
        remember_keys(GatewaySettings.load().had_keys_file)
        write_keys(path, [*(keys or ()), created])
    if keys is None:
        warn("This is the first key: from now on the gateway refuses every request without one.", "yellow")
    _print_new_key(key, created)


@app.command("list")
def list_keys(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show every key by its id: application, tasks, limits and expiry (UTC). The keys themselves are stored nowhere.

    [bold]Examples[/bold]

      ratchet keys list

      ratchet keys list --json
    """
    with _keys(changing=False) as (_, keys):
        pass
    shown = sorted(keys or (), key=lambda key: (key.app, key.created_at))
    if as_json:
        found = [{"id": key.id, **key.model_dump(mode="json", exclude={"digest"})} for key in shown]
        return typer.echo(json.dumps(found, indent=2))
    if not keys:
        state = "All keys are revoked."
        if keys is None:
            state = "No keys: a gateway on loopback that has never had one is open to anyone who reaches it."
        warn(f"{state} Create one: ratchet keys create APP")
        return
    rows = [(key.id, key.app, _tasks(key), _limits(key), f"{key.created_at:%Y-%m-%d}", _expiry(key)) for key in shown]
    columns = ("id", "app", "tasks", "limits", "created", "expires")
    show_blocks(Table(columns, rows, whole=("id", "created", "expires")))


@app.command()
def revoke(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID…", help="As `ratchet keys list` shows them.")] = None,
    name: Annotated[str | None, typer.Option("--app", metavar="APP", help="All keys of this application.")] = None,
) -> None:
    """Revoke keys at once. Requests in flight are still answered.

    [bold]Examples[/bold]

      ratchet keys revoke 3f0c52d1a9be

      ratchet keys revoke --app shop
    """
    if not ids and not name:
        raise typer.BadParameter("name keys by their ids, or an application with --app")
    with _keys() as (path, stored):
        keys = stored or ()
        unknown = set(ids or ()) - {key.id for key in keys}
        if unknown or (name and all(key.app != name for key in keys)):
            reason = f"no key has the id {', '.join(sorted(unknown))}" if unknown else f"{name} has no key"
            raise RatchetError(f"{reason}; nothing was revoked", "List the keys: ratchet keys list")
        remaining = [key for key in keys if key.id not in (ids or ()) and key.app != name]
        write_keys(path, remaining)
    warn(f"{len(keys) - len(remaining)} revoked, {len(remaining)} left")
    if not remaining:
        way_out = f"To open it to everyone again, delete {path} and restart it with RATCHET_GATEWAY_REQUIRE_KEYS=false."
        warn(f"No key is left: the gateway refuses every request. {way_out}", "yellow")


@app.command()
def rotate(
    name: Name,
    overlap: Annotated[
        float, typer.Option(metavar="HOURS", min=0.0, max=8_784.0, help="Hours that the old keys stay valid.")
    ] = 24.0,
    key_id: Annotated[str | None, typer.Option("--key", metavar="ID", help="Replace only this key.")] = None,
) -> None:
    """Create a key with the grants of the old one and print it, once; the old one expires after the overlap.

    Give the new key to the application within that time. The new key's lifetime is the old one's.

    [bold]Examples[/bold]

      ratchet keys rotate shop

      ratchet keys rotate shop --overlap 1

      ratchet keys rotate shop --key 3f0c52d1a9be         if its keys have different grants
    """
    now = _now()
    with _keys() as (path, stored):
        old = _keys_to_replace(stored or (), name, key_id, now)
        latest = max(old, key=lambda key: key.created_at)
        expires = now + (latest.expires_at - latest.created_at) if latest.expires_at else None
        key, created = _new_key(**latest.model_dump(exclude={"digest"}) | {"created_at": now, "expires_at": expires})
        end = now + timedelta(hours=overlap)
        valid = [_expire_by(key, end) if key in old else key for key in stored or () if not key.expired(now)]
        write_keys(path, [*valid, created])
    warn(f"Old keys: {', '.join(key.id for key in old)}, valid until {end:%Y-%m-%d %H:%M} UTC at the latest.")
    _print_new_key(key, created)


def _keys_to_replace(keys: Sequence[ApiKey], name: str, key_id: str | None, now: datetime) -> list[ApiKey]:
    """Return the valid keys that a rotation replaces; all have the same grants and limits."""
    old = [key for key in keys if key.app == name and not key.expired(now) and key_id in (None, key.id)]
    if not old:
        reason = f"{name} has no valid key" + (f" with the id {key_id}" if key_id else "")
        raise RatchetError(reason, f"List the keys: ratchet keys list. Create one: ratchet keys create {name}")
    if len({(_tasks(key), _limits(key)) for key in old}) > 1:
        ids = ", ".join(f"{key.id} ({_tasks(key)})" for key in old)
        raise RatchetError(f"the keys of {name} have different grants: {ids}", "Choose one: --key ID")
    return old


def _expire_by(key: ApiKey, end: datetime) -> ApiKey:
    return key.model_copy(update={"expires_at": min(end, key.expires_at or end)})


def _new_key(**fields: Any) -> tuple[str, ApiKey]:
    """Make a key and its record in the file. Raises BadParameter, with the option's name, for an invalid value."""
    key, digest = new_key()
    try:
        return key, ApiKey(digest=digest, **fields)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        field = str(first["loc"][0])
        if field == "app":
            raise typer.BadParameter("APP: lower-case letters, digits, dots, dashes; 64 at most") from None
        option = "rate" if field == "requests_per_second" else field.replace("_", "-")
        raise typer.BadParameter(f"--{option}: {first['msg']}") from None


def _print_new_key(key: str, created: ApiKey) -> None:
    grants = f"{created.id}: {created.app} may use {_tasks(created)}; limits: {_limits(created)}"
    warn(f"{grants}; expires: {_expiry(created)}. The key is shown this once:")
    typer.echo(key)


def _tasks(key: ApiKey) -> str:
    tasks = ", ".join(key.tasks) if key.tasks is not None else "all tasks"
    return f"{tasks}, and models that pass through" if key.pass_through else tasks


def _limits(key: ApiKey) -> str:
    rate = f"{key.requests_per_second:g}/s" if key.requests_per_second else ""
    burst = f", {key.burst} at once" if key.burst else ""
    size = f"{key.bytes_per_minute} bytes/min" if key.bytes_per_minute else ""
    return ", ".join(filter(None, (rate + burst, size))) or "none"


def _expiry(key: ApiKey) -> str:
    if key.expires_at is None:
        return "never"
    return f"{key.expires_at:%Y-%m-%d %H:%M}" + (" (expired)" if key.expired(_now()) else "")


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
