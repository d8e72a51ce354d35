"""Tells a chat about every move of a rollout: a POST of `{"text": …}`, as Slack, Mattermost and others take it."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import httpx

from schemas.base import utc_now
from services.deployer.rollout import Move
from services.deployer.settings import DeployerSettings
from services.deployer.storage.rollouts import RolloutStore
from shared.addresses import without_credentials
from shared.errors import DependencyUnavailable

MAX_AGE = timedelta(days=1)
"""Older moves are no news: whoever sets the address does not get the whole history."""
_AT_ONCE = 20
_SHOWN_CHARS = 600
_LONGEST_PAUSE = 300.0

logger = logging.getLogger(__name__)


class Webhook:
    """Posts the moves in their order, each at least once. What the receiver refuses (4xx) is logged and left out."""

    def __init__(self, settings: DeployerSettings, rollouts: RolloutStore) -> None:
        self._url = settings.deployer_webhook
        self._console = settings.deployer_console.rstrip("/")
        self._seconds = settings.deployer_tick_seconds
        self._rollouts = rollouts
        self._client = httpx.AsyncClient(timeout=10.0)

    async def close(self) -> None:
        await self._client.aclose()

    async def notify_forever(self) -> None:
        """Background: post what was not posted yet, with a growing pause while the receiver is away."""
        pause = self._seconds
        while self._url:
            try:
                await self.notify()
                pause = self._seconds
            except DependencyUnavailable as error:
                pause = min(2 * pause, _LONGEST_PAUSE)
                logger.warning("moves are not posted, retrying in %g s: %s", pause, error.reason)
            await asyncio.sleep(pause)

    async def notify(self) -> None:
        """Post the moves that were not posted yet. Raises DependencyUnavailable while the receiver is away."""
        while moves := await self._rollouts.unposted(utc_now() - MAX_AGE, _AT_ONCE):
            for move in moves:
                await self._post(move)
                await self._rollouts.set_posted(move)

    async def _post(self, move: Move) -> None:
        try:
            response = await self._client.post(self._url, json={"text": self._text(move)})
        except httpx.HTTPError as error:
            raise DependencyUnavailable(f"{without_credentials(self._url)} does not answer: {error!r}") from error
        if response.status_code == 429 or response.status_code >= 500:
            raise DependencyUnavailable(f"{without_credentials(self._url)} answered {response.status_code}")
        if response.status_code >= 300:
            logger.error("a move of %s was refused by the webhook: %d", move.task, response.status_code)

    def _text(self, move: Move) -> str:
        stage = f"{move.stage_shown}, paused" if move.paused else move.stage_shown
        reason = move.reason if len(move.reason) <= _SHOWN_CHARS else f"{move.reason[:_SHOWN_CHARS]}…"
        link = f"\n{self._console}/cycles/{move.cycle_id}" if move.cycle_id else ""
        return f"{move.task}: {move.candidate} is {stage} (by {move.moved_by}): {reason}{link}"
