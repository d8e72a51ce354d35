"""What an operator can set of the deployer."""

from __future__ import annotations

from pydantic import Field

from shared.settings import Settings


class DeployerSettings(Settings):
    deployer_tick_seconds: float = Field(
        default=2.0, gt=0.0, description="Time between two checks of flags and canaries."
    )
    deployer_pairs_batch: int = Field(default=200, ge=1, description="Maximum number of shadow pairs per batch.")
    deployer_open_tickets: int = Field(default=40, ge=1, description="Maximum number of open questions per candidate.")
    deployer_observations_batch: int = Field(
        default=500, ge=1, description="Maximum number of observed requests per batch."
    )
    deployer_unleash_project: str = Field(default="default", description="Unleash project of the flags.")
    deployer_unleash_environment: str = Field(default="development", description="Unleash environment of the flags.")
