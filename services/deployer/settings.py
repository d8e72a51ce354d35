"""What an operator can set of the deployer."""

from __future__ import annotations

from pydantic import Field

from shared.settings import Settings


class DeployerSettings(Settings):
    deployer_host: str = Field(default="127.0.0.1", description="Address to listen on.")
    deployer_port: int = Field(default=28092, ge=1, le=65_535, description="Port to listen on.")
    deployer_tick_seconds: float = Field(
        default=2.0,
        gt=0.0,
        description="Least time between two checks of a task's rollout; what cannot wait is looked at sooner, one "
        "of which nothing is new after 15 times as long.",
    )
    deployer_webhook: str = Field(
        default="", description="Where every move of a rollout is posted, as Slack takes it; unset: nowhere."
    )
    deployer_console: str = Field(
        default="http://127.0.0.1:28090", description="The console's address in what is posted there."
    )
