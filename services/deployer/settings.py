"""What an operator can set of the deployer."""

from __future__ import annotations

from pydantic import Field

from shared.settings import Settings


class DeployerSettings(Settings):
    deployer_host: str = Field(default="127.0.0.1", description="Address to listen on.")
    deployer_port: int = Field(default=28092, ge=1, le=65_535, description="Port to listen on.")
    deployer_max_body_bytes: int = Field(default=64 * 1024, ge=1_024, description="A longer body is refused: 413.")
    deployer_tick_seconds: float = Field(
        default=2.0,
        gt=0.0,
        description="Least time between two checks of a task's rollout; what cannot wait is looked at sooner.",
    )
    deployer_idle_seconds: float = Field(
        default=30.0, gt=0.0, description="Time between two checks of a task's rollout of which nothing is new."
    )
    deployer_flags_seconds: float = Field(
        default=0.5, gt=0.0, description="Time between two looks into Unleash's log for flags that were turned by hand."
    )
    deployer_pairs_batch: int = Field(default=200, ge=1, description="Maximum number of shadow pairs per batch.")
    deployer_corrections_batch: int = Field(default=100, ge=1, description="Maximum number of corrections per batch.")
    deployer_open_tickets: int = Field(default=40, ge=1, description="Maximum number of open questions per candidate.")
    deployer_observations_batch: int = Field(
        default=500, ge=1, description="Maximum number of observed requests per batch."
    )
    deployer_prove_seconds: float = Field(
        default=600.0, gt=0.0, description="Time after which a replica proves again that it serves an adapter."
    )
    deployer_unload_hours: float = Field(
        default=24.0, ge=0.0, description="How long a replica keeps an adapter of an ended rollout that nobody needs."
    )
    deployer_webhook: str = Field(
        default="", description="Where every move of a rollout is posted, as Slack takes it; unset: nowhere."
    )
    deployer_console: str = Field(
        default="http://127.0.0.1:28090", description="The console's address in what is posted there."
    )
    deployer_unleash_project: str = Field(default="default", description="Unleash project of the flags.")
    deployer_unleash_environment: str = Field(default="development", description="Unleash environment of the flags.")
