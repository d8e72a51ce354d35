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
    shadow_timeout_seconds: float = Field(
        default=20.0,
        gt=0.0,
        le=900.0,
        description="A slower answer counts as an error; requests that took production longer are not replayed. "
        "Higher for slow models; shadow does not start where a batch could then take over an hour.",
    )
