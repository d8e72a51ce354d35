"""`ratchet dlq`: shows the messages that services could not handle, and sends them again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import typer

from deploy.cli.output import console, say, show_blocks
from schemas.catalog import SERVICES
from services.gateway.settings import GatewaySettings
from shared.errors import InvalidMessage
from shared.kafka.dead_letters import (
    MAX_SHOWN,
    DeadLetter,
    PendingDeadLetters,
    count_pending,
    read_dead_letters,
    replay_dead_letters,
)
from shared.privacy.encryption import load_cipher
from shared.report.blocks import Table
from shared.settings import Settings
from shared.spool import Record, Spool, list_slots
from shared.tracing import pick_trace_headers

HELP = """Messages that the services could not handle: look at them, fix the cause, send them again.

A message that can never succeed is stored, encrypted, in its service's dead-letter topic, and its partition moves on.
An unavailable database or broker makes no dead letters: those messages wait.

[bold]Steps[/bold]

  ratchet dlq list                     which services have dead letters, and why the last one failed

  ratchet dlq show prediction_log      the dead letters, decrypted: reason and body (may be personal data)

  ratchet dlq replay prediction_log    once the cause is fixed: to that service alone, oldest first
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=HELP)
MAX_BODY_BYTES = 2_000
"""Of a dead letter's body that `show` prints."""

Result = TypeVar("Result")
Service = Annotated[str, typer.Argument(help=f"One of: {', '.join(SERVICES)}")]


@app.command("list")
def list_dead_letters() -> None:
    """Show how many dead letters wait, by service, and when (UTC) and with what kind of error the last one failed.

    `ratchet dlq show SERVICE` has the rest; `ratchet dlq replay SERVICE` sends them again.
    """
    rows = []
    for service, pending in zip(SERVICES, _run(_count_all(Settings.load())), strict=True):
        # Only the kind: the text of an error may quote the message, and nobody asked to see that here.
        last = pending.last
        kind, failed_at = (last.error.split(":")[0][:60], last.failed_at[:19]) if last else ("", "")
        rows.append((service, pending.count, kind, failed_at))
    show_blocks(Table(("service", "waiting", "last error", "at"), rows, whole=("at",)))


async def _count_all(settings: Settings) -> list[PendingDeadLetters]:
    return await asyncio.gather(*(count_pending(settings, service) for service in SERVICES))


@app.command()
def show(
    service: Service,
    limit: Annotated[int, typer.Option(min=1, max=MAX_SHOWN, help="How many of the newest dead letters to show.")] = 20,
) -> None:
    """Show a service's dead letters, decrypted: where each came from, why it failed, and its body.

    Dead letters are encrypted on the broker. What you see may be personal data: it was not redacted.

    [bold]Example[/bold]

      ratchet dlq show prediction_log --limit 5
    """
    dead_letters = _run(read_dead_letters(Settings.load(), _checked(service), limit))
    for dead_letter in dead_letters:
        _print(dead_letter)
    if dead_letters:
        say("This may be personal data: it is encrypted on the broker, and was not redacted.", "yellow")


@app.command()
def replay(
    service: Service,
    limit: Annotated[
        int | None, typer.Option(min=1, help="How many dead letters to send, at most; default: all.")
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Skip, for good, dead letters that no key decrypts.")
    ] = False,
) -> None:
    """Send a service's dead letters to it again, unchanged, oldest first. What fails again is dead-lettered again.

    The gateway's own events go through the spool of this home, where a gateway must run: they are redacted before they
    reach their topics.

    [bold]Examples[/bold]

      ratchet dlq replay prediction_log --limit 1         one first, to see whether the cause is fixed

      ratchet dlq replay prediction_log
    """
    sending = replay_dead_letters(
        Settings.load(), _checked(service), limit, skip_broken=skip_broken, take_unsent=to_spool
    )
    replayed = _run(sending)
    skipped = f"; {replayed.skipped} that no key decrypts skipped for good" if replayed.skipped else ""
    say(f"{replayed.sent} dead letters sent again to {service}{skipped}")


def to_spool(dead_letter: DeadLetter) -> None:
    """Append an event that never reached Kafka to a slot of the gateway's spool; a shipper of this home ships it.

    Raises InvalidMessage in a home without a gateway: nobody would ship it.
    """
    settings = GatewaySettings.load()
    if not list_slots(settings.spool_folder):
        raise InvalidMessage(
            f"no gateway has a spool in {settings.spool_folder}", "Replay its events in its home: set RATCHET_HOME"
        )
    spool = Spool.open(settings.spool_folder, load_cipher(settings.secrets_folder, "spool"), settings.spool_options)
    trace = tuple((name, value.encode()) for name, value in pick_trace_headers(dead_letter.headers).items())
    try:
        spool.append([Record(dead_letter.topic, dead_letter.key or b"", dead_letter.value, trace)])
    finally:
        spool.close()


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run it without what aiokafka logs of each connection that fails: the error says it once, with a way out."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    return asyncio.run(work)


def _checked(service: str) -> str:
    if service not in SERVICES:
        raise typer.BadParameter(f"no such service: {service}. One of: {', '.join(SERVICES)}")
    return service


def _print(dead_letter: DeadLetter) -> None:
    replayed = f" · replayed {dead_letter.replayed} times" if dead_letter.replayed else ""
    position = f"{dead_letter.origin} · dead letter {dead_letter.offset}"
    console.rule(f"{position} · {dead_letter.failed_at[:19]}{replayed}", align="left")
    say(dead_letter.error, "red")
    if dead_letter.broken:
        say(dead_letter.broken.way_out)
    say(dead_letter.value[:MAX_BODY_BYTES].decode(errors="replace"))
    if (more := len(dead_letter.value) - MAX_BODY_BYTES) > 0:
        say(f"… and {more} bytes more", "dim")
