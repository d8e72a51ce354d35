"""What the command prints: results on standard output, and, in one place for all groups, errors on standard error.

No text is read as markup or emoji: names stay as they are. An error ends with its way out and exit code 1.
"""

from __future__ import annotations

import getpass
import inspect
import os
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from deploy.variables import unknown_variables
from shared.errors import ConfigurationError, DependencyUnavailable, RatchetError, unusable_file
from shared.report.blocks import Block
from shared.report.terminal import print_blocks

console = Console(markup=False, emoji=False, highlight=False)
stderr = Console(markup=False, emoji=False, highlight=False, stderr=True)
EXTRAS = {
    "advise": "services",
    "loop": "services,local",
    "tasks": "scheduler",
    "train": "trainer,scheduler",
    "dataset": "trainer",
    "forget": "prediction-log",
    "golden": "services",
    "import": "services",
    "lake": "prediction-log",
    "shadow": "shadow",
    "rollout": "deployer",
    **dict.fromkeys(("up", "down", "status", "install", "logs"), "local"),
}
"""Command → the extra that it needs. A command that is not listed needs the base installation only."""


def say(text: str, style: str = "") -> None:
    """Print a line of the result; a long one is not wrapped, so that it can be copied and searched."""
    console.print(text, style=style, soft_wrap=True)


def warn(text: str, style: str = "") -> None:
    """Print a line that explains, beside the result."""
    stderr.print(text, style=style, soft_wrap=True)


def show_blocks(*blocks: Block) -> None:
    """Print blocks of a report, such as a table."""
    print_blocks(blocks, console)


def ask(service: str, host: str, port: int, method: str, path: str, **options: Any) -> Any:
    """Send a request to a service's API and return the body of its answer.

    Raises DependencyUnavailable if the service does not answer, RatchetError if it refuses or is another server.
    """
    import httpx

    url = f"http://{host}:{port}"
    try:
        response = httpx.request(method, url + path, timeout=30.0, **options)
    except httpx.HTTPError as error:
        reason = f"the {service} does not answer at {url}: {error}"
        raise DependencyUnavailable(reason, "Is it running? ratchet status") from error
    try:
        body = response.json()
        refusal = body["error"]["message"] if response.is_error else None
    except (ValueError, LookupError, TypeError) as error:
        if response.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
            raise RatchetError(f"the {service} failed at {url} (status 500)", "ratchet logs services") from error
        reason = f"what answers at {url} is not the {service} (status {response.status_code})"
        name = f"RATCHET_{service.upper()}"
        raise RatchetError(reason, f"Set {name}_HOST and {name}_PORT to where it listens.") from error
    if refusal is not None:
        raise RatchetError(refusal)
    return body


def check_had(what: str, task: str, tasks: Iterable[str]) -> None:
    """Raise RatchetError if the task is none of these, which had a candidate, say. Its name may be misspelt."""
    if task not in (known := sorted(set(tasks))):
        way_out = (
            f"Tasks that had: {', '.join(known)}" if known else "No task had. A cycle makes it: ratchet cycle TASK"
        )
        raise RatchetError(f"{task} has had no {what} yet", way_out)


def user_name() -> str:
    """Return the user of this machine, or their number where they have no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


class ErrorPrintingGroup(TyperGroup):
    """A group of commands that ends with a message instead of a traceback when one of its commands raises RatchetError.

    A module that is not installed is such an error too: the message names the extra that has it. So is a file or folder
    that cannot be read or written. A variable that looks like a setting and is none is named first. The help of the
    group and its commands is wrapped where the terminal ends, not where the source does.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        _join_lines(self)

    def invoke(self, ctx: Any) -> Any:
        if ctx.parent is None:
            for problem in unknown_variables(os.environ):
                warn(problem)
        try:
            return super().invoke(ctx)
        except RatchetError as error:
            print_error(error)
            raise typer.Exit(1) from error
        except ModuleNotFoundError as error:
            if error.name is None or ctx.invoked_subcommand not in EXTRAS or not _is_third_party(error.name):
                raise
            print_error(missing_extra(error.name, EXTRAS[ctx.invoked_subcommand]))
            raise typer.Exit(1) from error
        except OSError as error:
            print_error(unusable_file(error))
            raise typer.Exit(1) from error


def print_error(error: RatchetError) -> None:
    """Print what failed and what the person can do about it."""
    warn(error.reason, "red")
    if error.way_out:
        warn(error.way_out)


def missing_extra(module: str, extra: str) -> ConfigurationError:
    """The error of a command whose extra is not installed."""
    reason = f"this command needs the extra {extra}: the module {module} is not installed"
    return ConfigurationError(reason, f"In Ratchet's checkout: pip install '.[{extra}]'")


def _join_lines(command: Any) -> None:
    """Make each paragraph of a command's help, and of its subcommands', one line; indented ones, examples, stay."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    command.help = "\n\n".join(text if text.startswith(" ") else text.replace("\n", " ") for text in paragraphs)
    for subcommand in getattr(command, "commands", {}).values():
        _join_lines(subcommand)


def _is_third_party(module: str) -> bool:
    return module.partition(".")[0] not in ("schemas", "shared", "services", "deploy")
