"""The commands of `ratchet shadow`."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.output import check_had, say, show_blocks
from schemas.base import utc_now
from shared.report.blocks import Table
from shared.settings import Settings

if TYPE_CHECKING:
    from deploy.cli.shadow.replay import Diagnosis
    from services.shadow.storage import Summary

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Replays on a candidate: what became of them.")

_SHOWN, _SHOWN_CHARACTERS = 20, 300
MEANINGS = {
    "pair": "production's and the candidate's answers were compared",
    "waiting": "to be replayed: at its turn, or when the engine is not busy",
    "backlog": "records to read again, of all tasks: logged while the flag was off",
    "void": "production's model did not answer the replay either",
    "rate": "over shadow_requests_per_second, or more than RATCHET_SHADOW_CONCURRENCY replays at once can work off",
    "tokens": "over shadow_tokens_per_day",
    "busy": "the engine was busy or away until the request was too old",
    "late": "more than a day old when it was read",
    "not_sampled": "not in the sample of the flag (shadow_percent)",
    "trained_on": "a near-copy of a training row of the candidate",
    "before_cutoff": "logged before the candidate's data was fixed",
    "other_revision": "of another revision of the task",
    "other_arm": "not answered by the primary that the candidate is compared with",
    "not_whole": "the call or its answer was cut or refused",
    "media": "with pictures, sound or documents",
    "slow": "it took production longer than RATCHET_SHADOW_TIMEOUT_SECONDS",
    "forgotten": "of users who have been forgotten since",
}
"""What became of requests → what that means."""


@app.command()
def status(
    task: Annotated[str | None, typer.Argument(help="Only this task.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show, for each rollout, how many requests became pairs, and why the others did not. Each is counted once.

    Exits with 1 for a task of which there is none.

    [bold]Examples[/bold]

      ratchet shadow status

      ratchet shadow status support-desk --json
    """
    found = asyncio.run(_summaries(Settings.load()))
    if task is not None:
        check_had("candidate whose requests shadow looked at", task, (summary.task for summary in found))
        found = [summary for summary in found if summary.task == task]
    if as_json:
        return typer.echo(json.dumps([asdict(summary) for summary in found], indent=2))
    if not found:
        return say("No request was looked at yet: shadow begins when a candidate passes its offline gates.")
    for summary in found:
        _show(summary)


@app.command()
def replay(
    task: Annotated[str, typer.Argument(help="The task's name.")],
    days: Annotated[float, typer.Option(min=0.01, max=92.0, help="How many days back.")] = 7.0,
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="How many requests to ask, at most, drawn at random.")
    ] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print all answers as JSON.")] = False,
) -> None:
    """Ask the task's last candidate what production was asked in the last days, and show where the answers differ.

    For a diagnosis only: it publishes nothing and bets nothing, since the candidate may have been trained on what is
    this old, and spends nothing of the task's budget. It waits while the engine is busy.

    [bold]Examples[/bold]

      ratchet shadow replay support-desk --days 7

      ratchet shadow replay support-desk --limit 1000 --json > answers.json
    """
    from deploy.cli.shadow.replay import replay_logged
    from services.shadow.settings import ShadowSettings

    found = asyncio.run(replay_logged(ShadowSettings.load(), task, days, limit))
    if as_json:
        return typer.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False))
    _show_diagnosis(found)


async def _summaries(settings: Settings) -> list[Summary]:
    from services.shadow.main import MIGRATIONS, NAME
    from services.shadow.storage import PostgresDecisions
    from shared.storage.database import build_engine
    from shared.storage.migration import migrate

    await migrate(settings, NAME, MIGRATIONS)
    engine = build_engine(settings, NAME)
    try:
        return await PostgresDecisions(engine, 1).summaries(utc_now())  # It decides nothing here.
    finally:
        await engine.dispose()


def _show(summary: Summary) -> None:
    say(f"{summary.task}: {summary.rollout_id}; {summary.tokens_today:,} tokens of replays today (UTC)")
    ordered = sorted(summary.requests.items(), key=lambda item: list(MEANINGS).index(item[0]))
    rows = [(requests, name, MEANINGS[name]) for name, requests in ordered]
    show_blocks(Table(("requests", "", "what that means"), rows))


def _show_diagnosis(found: Diagnosis) -> None:
    differing = [comparison for comparison in found.comparisons if not comparison.agree]
    rows = [
        tuple(map(_cut, (x.asked, x.production, "(no answer)" if x.candidate is None else x.candidate)))
        for x in differing[:_SHOWN]
    ]
    if rows:
        show_blocks(Table(("asked", found.production or "the base model", found.candidate), rows))
    erred = sum(comparison.candidate is None for comparison in differing)
    older = sum(comparison.before_cutoff for comparison in found.comparisons)
    say(
        f"{found.task}: {len(found.comparisons)} requests replayed on {found.candidate}, {len(differing)} answers "
        f"differ ({erred} of them errors), {found.void} void. {older} are from before its data was fixed. "
        "Nothing here bets."
    )


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
