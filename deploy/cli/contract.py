"""`ratchet contract`: writes the generated part of the contract, and checks that it is up to date."""

from __future__ import annotations

import typer

from deploy.contract import drift, generate
from shared.errors import ConfigurationError

app = typer.Typer(no_args_is_help=True, help="The generated part of the contract: JSON Schema and AsyncAPI.")


@app.command("generate")
def generate_files() -> None:
    """Write schemas/json and schemas/asyncapi anew. Commit the result."""
    typer.echo("\n".join(map(str, generate())) or "nothing changed")


@app.command()
def check() -> None:
    """Fail if the committed files differ from what the code generates."""
    if stale := drift():
        raise ConfigurationError(f"out of date: {', '.join(map(str, stale))}", "Run: ratchet contract generate")
    typer.echo("the generated contract is up to date")
