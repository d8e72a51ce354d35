"""`ratchet rollout`: where each candidate is and why, and what a person tells it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

import typer

from deploy.cli.output import ask, check_had, say, show_blocks, user_name, warn
from services.deployer.settings import DeployerSettings
from shared.report.blocks import Table, Text
from shared.report.rollout import evidence_texts, moves_table, stage

app = typer.Typer(
    no_args_is_help=True,
    help="A candidate's rollout: see its evidence and its history; pause it, let it go on, end it.",
)
Task = Annotated[str, typer.Argument(help="The task's name, as in its YAML.")]
Reason = Annotated[
    str, typer.Option(prompt="Why", help="Why: it stays in the rollout's history. Asked for if not given.")
]
By = Annotated[str, typer.Option(help="Who says so; default: the user of this machine.", show_default=False)]


@app.command()
def status(
    task: Annotated[str | None, typer.Argument(help="Only this task, with its history.", show_default=False)] = None,
    moves: Annotated[
        int, typer.Option("--moves", min=1, max=1_000, help="How many of the last moves to show of the history.")
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show where each task's candidate is, what it has proved, and what holds it back.

    Times are of this machine's time zone. Exits with 1 for a task that has had no candidate.

    [bold]Examples[/bold]

      ratchet rollout status

      ratchet rollout status support-desk --moves 100
    """
    found = _ask("GET", "/api/rollouts")["rollouts"]
    if task is None:
        if as_json:
            return typer.echo(json.dumps(found, indent=2))
        return _show_rollouts(found)
    check_had("candidate", task, (rollout["task"] for rollout in found))
    history = _ask("GET", f"/api/rollouts/{task}/moves", params={"limit": moves})["moves"]
    chosen = next(rollout for rollout in found if rollout["task"] == task)
    if as_json:
        return typer.echo(json.dumps({"rollout": chosen, "moves": history}, indent=2))
    _show_rollouts([chosen])
    show_blocks(moves_table(history))


@app.command()
def pause(task: Task, reason: Reason, by: By = "") -> None:
    """Hold a candidate where it is: no move to more users until `resume`.

    Its comparison goes on, and it still ends by harm, by its canary's guards, or when its time is up
    (`rollout.max_days`).

    [bold]Example[/bold]

      ratchet rollout pause support-desk --reason "release freeze until Monday"
    """
    _tell(task, "pause", reason, by)


@app.command()
def resume(task: Task, reason: Reason, by: By = "") -> None:
    """Let a paused candidate go on. Its shadow and canary flags are set again as its stage wants them.

    [bold]Example[/bold]

      ratchet rollout resume support-desk --reason "the freeze is over"
    """
    _tell(task, "resume", reason, by)


@app.command()
def promote(task: Task, reason: Reason, by: By = "") -> None:
    """Approve the last step of a proven candidate, where the task asks for it (`rollout.approval: true`).

    A candidate that is not proven is not promoted: the answer says what is missing.

    [bold]Example[/bold]

      ratchet rollout promote support-desk --reason "read fifty of its answers"
    """
    _tell(task, "promote", reason, by)


@app.command()
def rollback(task: Task, reason: Reason, by: By = "") -> None:
    """End the candidate that is compared; without one, serve the adapter from before the last promotion again.

    The gateway follows within two seconds. The next candidate is compared with whatever serves then.

    [bold]Example[/bold]

      ratchet rollout rollback support-desk --reason "wrong refunds since noon" --by ana
    """
    _tell(task, "rollback", reason, by)


def _tell(task: str, command: str, reason: str, by: str) -> None:
    body = {"by": by or user_name(), "reason": reason}
    move = _ask("POST", f"/api/rollouts/{task}/{command}", json=body)
    say(f"{task}: {move['candidate']} is {stage(move)}: {move['reason']}")


def _ask(method: str, path: str, **options: Any) -> Any:
    settings = DeployerSettings.load()
    return ask("deployer", settings.deployer_host, settings.deployer_port, method, path, **options)


def _show_rollouts(rollouts: list[dict[str, Any]]) -> None:
    columns = ("task", "candidate", "stage", "since", "wealth", "to canary / to all", "labels", "serves")
    rows = [
        (
            rollout["task"],
            rollout["candidate"],
            stage(rollout),
            datetime.fromisoformat(rollout["stage_since"]),
            f"{evidence['wealth']:.1f}",
            f"{rollout['canary_wealth']:.0f} / {1 / evidence['alpha']:.0f}",
            f"{evidence['wins']} wins, {evidence['losses']} losses, {evidence['pending']} pending",
            rollout["primary"] or "the base model",
        )
        for rollout in rollouts
        for evidence in (rollout["evidence"],)
    ]
    show_blocks(Table(columns, rows, whole=("candidate", "since")))
    for rollout in rollouts:
        task = rollout["task"]
        until = f" Until {rollout['control_until']}." if rollout["control_until"] else ""
        shown = evidence_texts(rollout["evidence"], rollout["control_percent"], rollout["previous"])
        show_blocks(Text(f"{rollout['reason']}.{until}", tag=task), *(replace(text, tag=task) for text in shown))
        if rollout["trouble"]:
            warn(f"{task} waits: {rollout['trouble']}", "yellow")
        for adapter, trouble in rollout["adapters"].items():
            warn(f"{task}: not every replica is proved to serve {adapter}: {trouble}", "yellow")
