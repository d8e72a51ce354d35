"""`ratchet keys`: the API keys with which applications use the gateway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from services.gateway.auth.keys import ApiKey, KeysUnreadable, locked_for_editing, new_key, read_keys, write_keys
from services.gateway.settings import GatewaySettings

HELP = """API keys: which application may use the gateway, for which tasks, how often.

Without keys the gateway is open to whoever reaches it. From the first key on, every request needs one:
[bold]Authorization: Bearer rk_…[/bold], what OpenAI's clients send as their `api_key` (or the header `api-key`). A
running gateway knows of a change within a second or two. Keys lie in <home>/gateway/keys.json as hashes: a lost one
cannot be shown again, only replaced.

[bold]Steps[/bold]

  ratchet keys create shop                            a key for everything

  ratchet keys create shop --task support-desk        for one task

  ratchet keys list                                   who has which, until when

  ratchet keys rotate shop                            a new one; the old one ends a day later

  ratchet keys revoke 3f0c52d1a9be                    ends at once, by its id
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=HELP)
console = Console()
errors = Console(stderr=True)
"""What explains goes here, so that the output of `create` is the key alone: KEY=$(ratchet keys create shop)."""

Name = Annotated[str, typer.Argument(metavar="APP", help="The application: lower case, digits, dots, dashes.")]


def _give_up(reason: str, way_out: str) -> NoReturn:
    errors.print(reason, style="red", markup=False, soft_wrap=True)
    errors.print(way_out, markup=False, soft_wrap=True)
    raise typer.Exit(1)


@contextmanager
def _keys(changing: bool = True) -> Iterator[tuple[Path, tuple[ApiKey, ...] | None]]:
    """The file and what is in it; while `changing`, nobody else does. What goes wrong is told, with the way out."""
    path = GatewaySettings.load().keys_file
    try:
        with locked_for_editing(path) if changing else nullcontext():
            yield path, read_keys(path)
    except KeysUnreadable as error:
        _give_up(error.reason, error.way_out)
    except OSError as error:
        _give_up(f"{path} cannot be written: {error.strerror}", "RATCHET_HOME or RATCHET_GATEWAY_KEYS_FILE says where.")


@app.command()
def create(
    name: Name,
    task: Annotated[list[str] | None, typer.Option("--task", help="Only this task; repeatable. Default: all.")] = None,
    expires: Annotated[float | None, typer.Option(metavar="DAYS", help="Default: never.")] = None,
    rate: Annotated[float | None, typer.Option(metavar="N", help="Requests a second, of all the app's keys.")] = None,
    burst: Annotated[int | None, typer.Option(metavar="N", help="Requests at once; default: one second's.")] = None,
    bytes_per_minute: Annotated[int | None, typer.Option(metavar="N", help="Of the requests' bodies.")] = None,
) -> None:
    """Make a key for an application and print it, once. Keys that the application has stay valid.

    Limits hold for each gateway process. A request over one gets 429 and when to come again.

    [bold]Examples[/bold]

      ratchet keys create shop

      ratchet keys create shop --task support-desk --task reviews --expires 90

      ratchet keys create nightly-import --rate 5 --burst 20 --bytes-per-minute 2000000

      KEY=$(ratchet keys create shop)                     only the key goes to the output
    """
    if burst and not rate:
        raise typer.BadParameter("--burst says how far --rate may be passed: give --rate too")
    if expires is not None and not 0 < expires <= 36_500:
        raise typer.BadParameter("--expires is in days from now, more than 0 and at most 36500")
    now = _now()
    key, made = _made(
        app=name, created_at=now, expires_at=now + timedelta(days=expires) if expires else None,
        tasks=tuple(dict.fromkeys(task)) if task else None, requests_per_second=rate, burst=burst,
        bytes_per_minute=bytes_per_minute,
    )  # fmt: skip
    with _keys() as (path, keys):
        write_keys(path, [*(keys or ()), made])
    if keys is None:
        errors.print(
            "This is the first key: from now on the gateway refuses every request without one.", style="yellow"
        )
    _hand_out(key, made)


@app.command("list")
def list_keys() -> None:
    """Every key by its id: whose, for which tasks, with which limits, until when. The keys themselves are not known."""
    with _keys(changing=False) as (_, keys):
        pass
    if not keys:
        said = (
            "No keys: whoever reaches the gateway may use it."
            if keys is None
            else "All keys are revoked: none gets in."
        )
        errors.print(said, "A key: ratchet keys create APP", soft_wrap=True)
        return
    table = Table("id", "app", "tasks", "limits", "created", "expires")
    for key in sorted(keys, key=lambda one: (one.app, one.created_at)):
        table.add_row(key.id, key.app, _tasks(key), _limits(key), f"{key.created_at:%Y-%m-%d}", _until(key))
    console.print(table)


@app.command()
def revoke(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID…", help="As `ratchet keys list` shows them.")] = None,
    name: Annotated[str | None, typer.Option("--app", metavar="APP", help="All keys of this application.")] = None,
) -> None:
    """End keys at once. Requests that are on their way are still answered.

    [bold]Examples[/bold]

      ratchet keys revoke 3f0c52d1a9be

      ratchet keys revoke --app shop
    """
    if not ids and not name:
        raise typer.BadParameter("name keys by their ids, or an application with --app")
    with _keys() as (path, found):
        keys = found or ()
        unknown = set(ids or ()) - {key.id for key in keys}
        if unknown or (name and all(key.app != name for key in keys)):
            wrong = f"no key has the id {', '.join(sorted(unknown))}" if unknown else f"{name} has no key"
            _give_up(f"{wrong}; nothing was revoked", "See what there is: ratchet keys list")
        left = [key for key in keys if key.id not in (ids or ()) and key.app != name]
        write_keys(path, left)
    errors.print(f"{len(keys) - len(left)} revoked, {len(left)} left")
    if not left:
        way = f"To have it open again, delete {path} and restart it."
        errors.print(f"No key is left: the gateway refuses every request. {way}", style="yellow", soft_wrap=True)


@app.command()
def rotate(
    name: Name,
    overlap: Annotated[
        float, typer.Option(metavar="HOURS", min=0.0, max=8_784.0, help="How long the old keys stay valid.")
    ] = 24.0,
    key_id: Annotated[str | None, typer.Option("--key", metavar="ID", help="Replace only this key.")] = None,
) -> None:
    """Make a new key with what the old one may, and print it, once; the old one ends after the overlap.

    Give the new key to the application within that time. A new key lives as long as the old one was made for.

    [bold]Examples[/bold]

      ratchet keys rotate shop

      ratchet keys rotate shop --overlap 1

      ratchet keys rotate shop --key 3f0c52d1a9be         where its keys are for different things
    """
    now = _now()
    with _keys() as (path, found):
        old = _replaced(found or (), name, key_id, now)
        last = max(old, key=lambda one: one.created_at)
        expires = now + (last.expires_at - last.created_at) if last.expires_at else None
        key, made = _made(**last.model_dump(exclude={"digest"}) | {"created_at": now, "expires_at": expires})
        end = now + timedelta(hours=overlap)
        kept = [_ending(one, end) if one in old else one for one in found or () if not one.expired(now)]
        write_keys(path, [*kept, made])
    errors.print(f"The old: {', '.join(one.id for one in old)}, valid until {end:%Y-%m-%d %H:%M} UTC at the latest.")
    _hand_out(key, made)


def _replaced(keys: Sequence[ApiKey], name: str, key_id: str | None, now: datetime) -> list[ApiKey]:
    """The valid keys that a rotation replaces; they may all the same."""
    valid = [key for key in keys if key.app == name and not key.expired(now)]
    old = [key for key in valid if key_id in (None, key.id)]
    if not old:
        which = f"{name} has no valid key" + (f" with the id {key_id}" if key_id else "")
        _give_up(which, f"See what there is: ratchet keys list; a first one: ratchet keys create {name}")
    if len({(_tasks(key), _limits(key)) for key in old}) > 1:
        ids = ", ".join(f"{key.id} ({_tasks(key)})" for key in old)
        _give_up(f"the keys of {name} are for different things: {ids}", "Say which one: --key ID")
    return old


def _ending(key: ApiKey, end: datetime) -> ApiKey:
    return key.model_copy(update={"expires_at": min(end, key.expires_at or end)})


def _made(**known: Any) -> tuple[str, ApiKey]:
    """A new key, and what the file keeps of it. A value that no key can have is refused as the command's."""
    key, digest = new_key()
    try:
        return key, ApiKey(digest=digest, **known)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        field = str(first["loc"][0])
        if field == "app":
            raise typer.BadParameter("APP: lower-case letters, digits, dots, dashes; 64 at most") from None
        option = "rate" if field == "requests_per_second" else field.replace("_", "-")
        raise typer.BadParameter(f"--{option}: {first['msg']}") from None


def _hand_out(key: str, made: ApiKey) -> None:
    errors.print(
        f"{made.id}: {made.app} may use {_tasks(made)}; limits: {_limits(made)}; expires: {_until(made)}. "
        "The key is shown this once:",
        soft_wrap=True, markup=False,
    )  # fmt: skip
    typer.echo(key)


def _tasks(key: ApiKey) -> str:
    return ", ".join(key.tasks) if key.tasks is not None else "all tasks"


def _limits(key: ApiKey) -> str:
    rate = f"{key.requests_per_second:g}/s" if key.requests_per_second else ""
    burst = f", {key.burst} at once" if key.burst else ""
    size = f"{key.bytes_per_minute} bytes/min" if key.bytes_per_minute else ""
    return ", ".join(filter(None, (rate + burst, size))) or "none"


def _until(key: ApiKey) -> str:
    if key.expires_at is None:
        return "never"
    return f"{key.expires_at:%Y-%m-%d %H:%M}" + (" (expired)" if key.expired(_now()) else "")


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
