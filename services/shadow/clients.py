"""Clients of shadow: Unleash (the sample), the artifact store (the training rows) and vLLM (both arms' answers)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from UnleashClient import UnleashClient
from UnleashClient.utils import InstanceAllowType

from schemas.conversation import Answer
from schemas.datasets import Example
from schemas.rollouts import RolloutChanged
from services.shadow.domain import Request
from shared.conversation import comparable_text
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.model.inference import InferenceClient
from shared.model.near_duplicates import NearDuplicates
from shared.storage.artifacts import ArtifactStore

logger = logging.getLogger(__name__)

_PROBE_MESSAGES = ({"role": "user", "content": "."},)


class ShadowSampling(Protocol):
    """Decides which predictions are replayed. Raises DependencyUnavailable until the flags were loaded once."""

    def sampled(self, task: str, prediction_id: str) -> bool: ...


class TrainingIndexes(Protocol):
    """Finds near-duplicates of what a candidate was trained on. Raises DependencyUnavailable."""

    async def for_rollout(self, rollout: RolloutChanged) -> NearDuplicates: ...


@dataclass(frozen=True)
class Replay:
    """An arm's answer and its latency. `answer` None: the arm erred or was too slow."""

    answer: Answer | None
    latency_ms: float


class ReplayEngine(Protocol):
    """Sends a logged request to either arm. Raises DependencyUnavailable if the whole engine is unavailable."""

    async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay: ...
    async def production(self, rollout: RolloutChanged, request: Request) -> Replay: ...


class UnleashSampling:
    """Samples by the flag `ratchet.<task>.shadow` in the SDK's last known state: off pauses, a percentage samples."""

    def __init__(self, url: str, token: str, poll_seconds: int, environment: str, cache: Path) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        # The SDK logs a stack trace at every poll while the server is unavailable.
        logging.getLogger("UnleashClient").setLevel(logging.CRITICAL)
        self._client = UnleashClient(
            url=f"{url.rstrip('/')}/api",
            app_name="ratchet-shadow",
            environment=environment,
            custom_headers={"Authorization": token},
            refresh_interval=poll_seconds,
            request_timeout=2,  # With the SDK's defaults a silent server blocks the start for 150 s.
            request_retries=0,
            disable_metrics=True,
            disable_registration=True,
            cache_directory=str(cache),
            multiple_instance_mode=InstanceAllowType.SILENTLY_ALLOW,
        )
        self._started = False

    async def start(self) -> None:
        """Start to poll. Idempotent."""
        if not self._started:
            self._started = True
            await asyncio.to_thread(self._client.initialize_client)

    async def close(self) -> None:
        await asyncio.to_thread(self._client.destroy)

    def sampled(self, task: str, prediction_id: str) -> bool:
        """Return True if the prediction is in the sample; the same prediction always gets the same result."""
        if not self._client.feature_definitions():  # The SDK reports itself initialised without any flags, too.
            raise DependencyUnavailable("no flags loaded yet", "Is Unleash up, and RATCHET_UNLEASH_CLIENT_TOKEN right?")
        return bool(self._client.is_enabled(f"ratchet.{task}.shadow", {"userId": prediction_id}))


class StoredTrainingIndexes:
    """Builds an index of a dataset's train.jsonl, and caches the last `max_cached` indexes."""

    def __init__(self, artifacts: ArtifactStore, max_cached: int = 8) -> None:
        self._artifacts = artifacts
        self._max_cached = max_cached
        self._indexes: dict[str, NearDuplicates] = {}

    async def for_rollout(self, rollout: RolloutChanged) -> NearDuplicates:
        uri = rollout.dataset_uri
        if uri not in self._indexes:
            similarity = rollout.spec.dataset.near_copy_similarity
            self._indexes[uri] = await asyncio.to_thread(self._read, uri, similarity)
            while len(self._indexes) > self._max_cached:
                del self._indexes[next(iter(self._indexes))]
        return self._indexes[uri]

    def _read(self, uri: str, similarity: float) -> NearDuplicates:
        path = self._artifacts.fetch(uri) / "train.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DependencyUnavailable(f"the training rows at {path} cannot be read: {error}") from error
        examples = [Example.model_validate_json(line) for line in lines if line]
        return NearDuplicates((comparable_text(example.prompt) for example in examples), similarity)


class VllmEngine:
    """Replays on vLLM, a bounded number at a time."""

    def __init__(self, inference: InferenceClient, artifacts: ArtifactStore, concurrency: int) -> None:
        self._inference = inference
        self._artifacts = artifacts
        self._limit = asyncio.Semaphore(concurrency)

    async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay:
        """Return the candidate's answer. A failure counts against it only if the base model still answers."""
        return await self._answer(rollout, rollout.candidate_adapter, rollout.candidate_uri, request)

    async def production(self, rollout: RolloutChanged, request: Request) -> Replay:
        """Return the answer of the primary adapter, or of the base model where there is none."""
        adapter = rollout.primary_adapter
        uri = None if adapter is None else self._artifacts.address("adapters", adapter)
        return await self._answer(rollout, adapter or rollout.spec.base_model, uri, request)

    async def _answer(self, rollout: RolloutChanged, model: str, uri: str | None, request: Request) -> Replay:
        async with self._limit:
            started = time.perf_counter()
            try:
                return await self._ask(rollout, model, request)
            except InvalidMessage as error:  # The replica may have restarted without the adapter.
                failure = await self._load_and_retry(rollout, model, uri, request, error)
            except DependencyUnavailable as error:
                with contextlib.suppress(InvalidMessage):  # A refusal, too, proves that the engine is up.
                    await self._inference.complete(rollout.spec.base_model, _PROBE_MESSAGES, max_tokens=1)
                failure = error
            if isinstance(failure, Replay):
                return failure
            logger.warning("%s: replay on %s failed: %s", rollout.task, model, failure)
            return Replay(None, (time.perf_counter() - started) * 1000)

    async def _load_and_retry(
        self, rollout: RolloutChanged, model: str, uri: str | None, request: Request, error: InvalidMessage
    ) -> Replay | Exception:
        """Serve the adapter again and ask once more. Returns the failure where that does not help."""
        if uri is None:
            return error
        try:
            folder = await asyncio.to_thread(self._artifacts.fetch, uri)
            await self._inference.serve_adapter(model, str(folder))
            return await self._ask(rollout, model, request)
        except InvalidMessage:
            return error
        except DependencyUnavailable:
            if model == rollout.candidate_adapter:
                raise
            return error  # Production's folder may be elsewhere; without its answer there is no pair.

    async def _ask(self, rollout: RolloutChanged, model: str, request: Request) -> Replay:
        started = time.perf_counter()
        answer = await self._inference.answer(model, request.path, request.body)
        return Replay(answer, (time.perf_counter() - started) * 1000)
