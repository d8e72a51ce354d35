"""What an operator can set of shadow."""

from __future__ import annotations

from pydantic import Field

from shared.settings import Settings


class ShadowSettings(Settings):
    shadow_concurrency: int = Field(
        default=4,
        ge=1,
        description="Maximum number of concurrent replays of each task; of all together, four times as many.",
    )
    shadow_batch: int = Field(default=32, ge=1, le=64, description="Maximum number of predictions per batch.")
    shadow_timeout_seconds: float = Field(
        default=20.0,
        gt=0.0,
        le=900.0,
        description="A slower answer counts as an error; requests that took production longer are not replayed. "
        "Higher for slow models; shadow does not start where a batch could then take over an hour.",
    )
    shadow_max_cache_usage: float = Field(
        default=0.8,
        gt=0.0,
        le=1.0,
        description="Share of a replica's KV cache in use above which no replay starts, by vLLM's metrics; none starts "
        "either while requests wait in a replica.",
    )
    shadow_max_age_hours: float = Field(
        default=24.0,
        gt=0.0,
        le=168.0,
        description="Requests that production answered longer ago are not replayed, for whatever they have waited.",
    )
    shadow_poll_seconds: int = Field(default=1, ge=1, description="Time between two polls of the flags.")
    shadow_unleash_environment: str = Field(default="development", description="Unleash environment of the flags.")
