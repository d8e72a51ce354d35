"""`ratchet rollout`: where each candidate is and why, and what a person tells it."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

import typer

from deploy.cli.output import ask, build_table, check_had, print_table, say, user_name, warn
from services.deployer.settings import DeployerSettings

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
    _show_moves(history)


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
    say(f"{task}: {move['candidate']} is {_stage(move)}{', paused' if move['paused'] else ''}: {move['reason']}")


def _ask(method: str, path: str, **options: Any) -> Any:
    settings = DeployerSettings.load()
    return ask("deployer", settings.deployer_host, settings.deployer_port, method, path, **options)


def _show_rollouts(rollouts: list[dict[str, Any]]) -> None:
    columns = ("task", "candidate", "stage", "since", "wealth", "to canary / to all", "labels", "serves")
    table = build_table(*columns, whole=("candidate", "since"))
    for rollout in rollouts:
        evidence = rollout["evidence"]
        table.add_row(
            rollout["task"],
            rollout["candidate"],
            f"{_stage(rollout)}{' (paused)' if rollout['paused'] else ''}",
            _time(rollout["stage_since"]),
            f"{evidence['wealth']:.1f}",
            f"{rollout['canary_wealth']:.0f} / {1 / evidence['alpha']:.0f}",
            f"{evidence['wins']} wins, {evidence['losses']} losses, {evidence['pending']} pending",
            rollout["primary"] or "the base model",
        )
    print_table(table)
    for rollout in rollouts:
        say(f"{rollout['task']}: {rollout['reason']}")
        if rollout["evidence"].get("warning"):
            warn(f"{rollout['task']}: {rollout['evidence']['warning']}", "yellow")
        if rollout["evidence"].get("margin_left") is not None:
            say(f"{rollout['task']}: {_margin(rollout['evidence'])}")
        if rollout["control_percent"]:
            say(f"{rollout['task']}: {_control(rollout)}")
        if rollout["trouble"]:
            warn(f"{rollout['task']} waits: {rollout['trouble']}", "yellow")
        for adapter, trouble in rollout["adapters"].items():
            warn(f"{rollout['task']}: not every replica is proved to serve {adapter}: {trouble}", "yellow")


def _margin(evidence: dict[str, Any]) -> str:
    left = f"{100 * evidence['margin_left']:.3g} points are left for candidates that are merely not worse"
    if evidence["margin_debited"]:
        return f"promoted as not worse by more than {100 * evidence['margin_debited']:.3g} points; {left}"
    wealth = f"wealth against being worse by more {evidence['non_inferiority_wealth']:.1f}"
    return f"{left}; {wealth} of {1 / evidence['alpha']:.0f}"


def _control(rollout: dict[str, Any]) -> str:
    evidence = rollout["evidence"]
    low, high = (f"{100 * evidence[end]:+.1f}" for end in ("control_gain_low", "control_gain_high"))
    return (
        f"{rollout['control_percent']} % of users stay on {rollout['previous'] or 'the base model'} as control until "
        f"{_time(rollout['control_until'])}; evidence of the guards {evidence['guards']:.1f} of 20; gain since the "
        f"promotion {low} to {high} points by {evidence['control_labels']} labels"
    )


def _show_moves(moves: list[dict[str, Any]]) -> None:
    table = build_table("when", "candidate", "to", "by", "wealth", "why", whole=("when", "candidate"))
    for move in moves:
        table.add_row(
            _time(move["at"]),
            move["candidate"],
            f"{_stage(move)}{' (paused)' if move['paused'] else ''}",
            move["moved_by"],
            f"{move['evidence']['wealth']:.1f}",
            move["reason"],
        )
    print_table(table)


def _stage(move: dict[str, Any]) -> str:
    return f"canary, {move['canary_percent']} %" if move["stage"] == "canary" else str(move["stage"])


def _time(value: str) -> str:
    return datetime.fromisoformat(value).astimezone().strftime("%Y-%m-%d %H:%M:%S")
