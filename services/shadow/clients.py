"""What shadow asks of others: Unleash (how much), the artifact store (what was trained on), the engine (an answer)."""

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

from schemas.base import Messages, input_text
from schemas.datasets import Example
from schemas.rollouts import RolloutChanged
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.model.inference import InferenceClient
from shared.model.near_duplicates import NearDuplicates
from shared.storage.artifacts import ArtifactStore

logger = logging.getLogger(__name__)


class Flags(Protocol):
    """How much is sampled. Raises DependencyUnavailable while the flags were never seen."""

    def sampled(self, task: str, prediction_id: str) -> bool: ...


class TrainingRows(Protocol):
    """What a candidate was trained on. Raises DependencyUnavailable."""

    async def near_duplicates(self, rollout: RolloutChanged) -> NearDuplicates: ...


@dataclass(frozen=True)
class Replay:
    """An arm's answer; None: it erred or was too slow."""

    answer: str | None
    latency_ms: float


class Engine(Protocol):
    """Answers as either arm does. Raises DependencyUnavailable if the whole engine is away."""

    async def candidate(self, rollout: RolloutChanged, messages: Messages) -> Replay: ...
    async def production(self, rollout: RolloutChanged, messages: Messages) -> Replay: ...


class UnleashFlags:
    """The flag `ratchet.<task>.shadow`, from the SDK's last known state: off pauses, its percentage samples."""

    def __init__(self, url: str, token: str, poll_seconds: int, environment: str, cache: Path) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        # The SDK logs a stack trace at every poll while the server is away.
        logging.getLogger("UnleashClient").setLevel(logging.CRITICAL)
        self._client = UnleashClient(
            url=f"{url.rstrip('/')}/api",
            app_name="ratchet-shadow",
            environment=environment,
            custom_headers={"Authorization": token},
            refresh_interval=poll_seconds,
            request_timeout=2,  # A silent server would hold the start for 150 s with the SDK's defaults.
            request_retries=0,
            disable_metrics=True,
            disable_registration=True,
            cache_directory=str(cache),
            multiple_instance_mode=InstanceAllowType.SILENTLY_ALLOW,
        )
        self._started = False

    async def start(self) -> None:
        """Begin to poll. Idempotent."""
        if not self._started:
            self._started = True
            await asyncio.to_thread(self._client.initialize_client)

    async def close(self) -> None:
        await asyncio.to_thread(self._client.destroy)

    def sampled(self, task: str, prediction_id: str) -> bool:
        """Whether this prediction is in the sample. The same prediction always is or is not."""
        if not self._client.feature_definitions():  # The SDK calls itself initialised without ever having seen one.
            raise DependencyUnavailable("no flags seen yet", "Is Unleash up, and RATCHET_UNLEASH_CLIENT_TOKEN right?")
        return bool(self._client.is_enabled(f"ratchet.{task}.shadow", {"userId": prediction_id}))


class StoredTrainingRows:
    """An index of a dataset's train.jsonl, kept for the rollouts in use."""

    def __init__(self, artifacts: ArtifactStore, keep: int = 8) -> None:
        self._artifacts = artifacts
        self._keep = keep
        self._indexes: dict[str, NearDuplicates] = {}

    async def near_duplicates(self, rollout: RolloutChanged) -> NearDuplicates:
        uri = rollout.dataset_uri
        if uri not in self._indexes:
            similarity = rollout.spec.dataset.near_copy_similarity
            self._indexes[uri] = await asyncio.to_thread(self._read, uri, similarity)
            while len(self._indexes) > self._keep:
                del self._indexes[next(iter(self._indexes))]
        return self._indexes[uri]

    def _read(self, uri: str, similarity: float) -> NearDuplicates:
        path = self._artifacts.fetch(uri) / "train.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DependencyUnavailable(f"the training rows at {path} cannot be read: {error}") from error
        examples = [Example.model_validate_json(line) for line in lines if line]
        return NearDuplicates((input_text(example.prompt) for example in examples), similarity)


class VllmEngine:
    """Both arms on vLLM, a bounded number of replays at a time. Greedy, constrained to the task's labels."""

    def __init__(self, inference: InferenceClient, artifacts: ArtifactStore, concurrency: int) -> None:
        self._inference = inference
        self._artifacts = artifacts
        self._slots = asyncio.Semaphore(concurrency)

    async def candidate(self, rollout: RolloutChanged, messages: Messages) -> Replay:
        """The candidate's answer. A failure is its own only if the base still answers."""
        return await self._answer(rollout, rollout.candidate_adapter, rollout.candidate_uri, messages)

    async def production(self, rollout: RolloutChanged, messages: Messages) -> Replay:
        """The answer of who serves everyone: the primary adapter, or the base model."""
        adapter = rollout.primary_adapter
        uri = None if adapter is None else self._artifacts.address("adapters", adapter)
        return await self._answer(rollout, adapter or rollout.spec.base_model, uri, messages)

    async def _answer(self, rollout: RolloutChanged, model: str, uri: str | None, messages: Messages) -> Replay:
        async with self._slots:
            started = time.perf_counter()
            try:
                return await self._ask(rollout, model, messages)
            except InvalidMessage as error:  # It may be a replica that was restarted without the adapter.
                failure = await self._again(rollout, model, uri, messages, error)
            except DependencyUnavailable as error:
                with contextlib.suppress(InvalidMessage):  # Even a refusal says that the engine is there.
                    await self._inference.complete(rollout.spec.base_model, _PROBE, max_tokens=1)
                failure = error
            if isinstance(failure, Replay):
                return failure
            logger.warning("%s: %s erred: %s", rollout.task, model, failure)
            return Replay(None, (time.perf_counter() - started) * 1000)

    async def _again(
        self, rollout: RolloutChanged, model: str, uri: str | None, messages: Messages, error: InvalidMessage
    ) -> Replay | Exception:
        if uri is None:
            return error
        try:
            folder = await asyncio.to_thread(self._artifacts.fetch, uri)
            await self._inference.serve_adapter(model, str(folder))
            return await self._ask(rollout, model, messages)
        except InvalidMessage:
            return error
        except DependencyUnavailable:
            if model == rollout.candidate_adapter:
                raise
            return error  # Production's folder may be elsewhere: without its answer there is just no pair.

    async def _ask(self, rollout: RolloutChanged, model: str, messages: Messages) -> Replay:
        completion = await self._inference.complete(
            model,
            [message.model_dump(mode="json") for message in messages],
            choices=rollout.spec.labels,
            max_tokens=rollout.spec.max_answer_tokens,
        )
        return Replay(completion.text, completion.latency_ms)


_PROBE = ({"role": "user", "content": "."},)
