"""Clients of shadow: Unleash (the sample), the artifact store (the training rows) and vLLM (both arms' answers)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from UnleashClient import UnleashClient
from UnleashClient.cache import FileCache
from UnleashClient.constants import FEATURES_URL
from UnleashClient.utils import InstanceAllowType

from schemas.conversation import Answer
from schemas.datasets import PREFERENCES, Example, PreferredAnswer
from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskSpec
from services.shadow.domain import Request
from shared.addresses import without_credentials
from shared.errors import DependencyUnavailable, InvalidMessage, describe_validation_error
from shared.model.inference import CHAT, InferenceClient, NotServed
from shared.model.near_copies import AskedQuestions
from shared.storage.artifacts import ArtifactStore

logger = logging.getLogger(__name__)

POLL_SECONDS = 1
"""Between two polls of the flags."""
_TURNING_ON_SECONDS = 1.0
_PROBE = {"messages": [{"role": "user", "content": "."}], "max_tokens": 1}


@dataclass(frozen=True)
class Replay:
    """An arm's answer and its latency. `answer` None: the arm erred or was too slow."""

    answer: Answer | None
    latency_ms: float


class _FlagCache(FileCache):  # type: ignore[misc]  # the SDK is untyped
    """The SDK's cache, which also knows if there are flags, and which are on: the SDK says it of one and a certain id.

    A flag is off here before the SDK takes it for off, and on only a second after the SDK took it for on, so that what
    was not sampled since its flag was off is never taken for a part of the sample that was left out.
    """

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, directory=str(folder))
        self._on_since: dict[str, float] = {}
        self.is_loaded = False
        self._note(self.get(FEATURES_URL))

    def set(self, key: str, value: Any) -> None:
        if key == FEATURES_URL:
            self._note(value)
        super().set(key, value)

    def is_off(self, flag: str) -> bool:
        return time.monotonic() - self._on_since.get(flag, math.inf) < _TURNING_ON_SECONDS

    def _note(self, features: str | None) -> None:
        flags = json.loads(features)["features"] if features else []
        self.is_loaded = bool(flags)
        now = time.monotonic()
        on = [flag["name"] for flag in flags if flag.get("enabled")]
        self._on_since = {name: self._on_since.get(name, now) for name in on}


class UnleashSampling:
    """Samples by the flag `ratchet.<task>.shadow` in the SDK's last known state: off pauses, a percentage samples."""

    def __init__(self, url: str, token: str, environment: str, cache: Path) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        self._cache = _FlagCache("ratchet-shadow", cache)
        # The SDK logs a stack trace at every poll while the server is unavailable.
        logging.getLogger("UnleashClient").setLevel(logging.CRITICAL)
        self._client = UnleashClient(
            url=f"{url.rstrip('/')}/api",
            app_name="ratchet-shadow",
            environment=environment,
            custom_headers={"Authorization": token},
            refresh_interval=POLL_SECONDS,
            request_timeout=2,  # With the SDK's defaults a silent server blocks the start for 150 s.
            request_retries=0,
            disable_metrics=True,
            disable_registration=True,
            cache=self._cache,
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
        self._raise_unless_loaded()
        return bool(self._client.is_enabled(_flag(task), {"userId": prediction_id}))

    def is_off(self, task: str) -> bool:
        """Return True while nothing of the task is sampled. Ask it after `sampled` said no."""
        self._raise_unless_loaded()
        return self._cache.is_off(_flag(task))

    def _raise_unless_loaded(self) -> None:
        # The SDK reports itself initialised without any flags, too, and lists them in a time that grows with them.
        if not self._cache.is_loaded:
            raise DependencyUnavailable("no flags are loaded", "Is Unleash up, and RATCHET_UNLEASH_CLIENT_TOKEN right?")


def _flag(task: str) -> str:
    return f"ratchet.{task}.shadow"


class CandidateMissing(DependencyUnavailable):
    """A replica has restarted without a candidate, whose folder cannot be read; `uris`: of all that are."""

    def __init__(self, reason: str, *uris: str) -> None:
        super().__init__(reason)
        self.uris = uris


class StoredTrainingIndexes:
    """Builds an index of the questions that a dataset trains on, and keeps those that were used last, of so many rows
    together: each that is missed reads all of its rows. A row takes 1 to 3 KB."""

    def __init__(self, artifacts: ArtifactStore, max_rows: int = 400_000) -> None:
        self._artifacts = artifacts
        self._max_rows = max_rows
        self._indexes: dict[str, AskedQuestions] = {}

    async def for_rollout(self, rollout: RolloutChanged) -> AskedQuestions:
        uri = rollout.dataset_uri
        index = self._indexes.pop(uri, None)
        if index is None:
            index = await asyncio.to_thread(self._read, uri, rollout.spec)
        self._indexes[uri] = index  # The last one.
        while len(self._indexes) > 1 and sum(map(len, self._indexes.values())) > self._max_rows:
            del self._indexes[next(iter(self._indexes))]
        return index

    def _read(self, uri: str, spec: TaskSpec) -> AskedQuestions:
        path = self._artifacts.fetch(uri) / "train.jsonl"
        pairs = path.with_name(PREFERENCES)
        try:  # Not `splitlines`: a text may have other line separators in it.
            prompts = [Example.model_validate_json(line).prompt for line in path.read_bytes().split(b"\n") if line]
            if spec.training.preferences.method != "none" and pairs.exists():
                lines = filter(None, pairs.read_bytes().split(b"\n"))
                prompts += [PreferredAnswer.model_validate_json(line).prompt for line in lines]
        except OSError as error:
            raise DependencyUnavailable(f"the training rows at {path} cannot be read: {error}") from error
        except ValidationError as error:
            problem = describe_validation_error(error)
            raise DependencyUnavailable(f"the training rows at {path} cannot be read: {problem}") from error
        return AskedQuestions(prompts, spec)


class VllmEngine:
    """Replays on vLLM.

    A replay that fails is tried on the next replica, as production's requests are. What fails on all of them is the
    candidate's failure only if production's model answers the same request on one of these replicas.
    """

    def __init__(self, inference: InferenceClient, artifacts: ArtifactStore) -> None:
        self._inference = inference
        self._artifacts = artifacts

    async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay | None:
        """Return the answer of the candidate, after a promotion of the adapter before it, or its failure.

        None where production's model fails, too: the pair is void. Raises DependencyUnavailable if no replica answers.
        """
        model = self._challenger(rollout)
        started = time.perf_counter()
        replay, failed_at = await self._try(model, request)
        if replay is not None:
            return replay
        failed = Replay(None, (time.perf_counter() - started) * 1000)
        for url in failed_at:
            with contextlib.suppress(InvalidMessage, DependencyUnavailable):
                await self._ask(self._production(rollout), request, url)
                logger.warning("%s: the replay on %s failed, and production answers", rollout.task, model.name)
                return failed
        await self._raise_if_away(rollout)
        logger.warning("%s: a replay on %s failed, and on production, too: void", rollout.task, model.name)
        return None

    async def production(self, rollout: RolloutChanged, request: Request) -> Replay:
        """Return the answer of the primary adapter, or of the base model where there is none."""
        replay, _ = await self._try(self._production(rollout), request)
        if replay is None:
            await self._raise_if_away(rollout)
        return replay or Replay(None, 0.0)

    def _challenger(self, rollout: RolloutChanged) -> _Model:
        if rollout.control:
            return self._known(rollout.previous_adapter, rollout)
        return _Model(rollout.candidate_adapter, rollout.candidate_uri, is_candidate=True)

    def _production(self, rollout: RolloutChanged) -> _Model:
        return self._known(rollout.primary_adapter, rollout)

    def _known(self, adapter: str | None, rollout: RolloutChanged) -> _Model:
        if adapter is None:
            return _Model(rollout.spec.base_model, None)
        return _Model(adapter, self._artifacts.address("adapters", adapter))

    async def _try(self, model: _Model, request: Request) -> tuple[Replay | None, list[str]]:
        """Return the answer of the first replica that gives one, or None and the replicas that failed.

        A refusal (4xx) is final, since no other replica would answer, but for that of a model which this replica does
        not serve. Raises CandidateMissing while the candidate's folder cannot be read.
        """
        failed_at = []
        for url in self._inference.in_turn():
            failed_at.append(url)
            for served_again in (False, True):
                try:
                    return await self._ask(model, request, url), []
                except DependencyUnavailable as error:
                    logger.info("a replay on %s failed: %s", model.name, error)
                    break
                except InvalidMessage as error:
                    if not served_again and await self._serve_again(model, url):
                        continue
                    logger.info("%s refuses a replay on %s: %s", without_credentials(url), model.name, error)
                    if isinstance(error, NotServed):
                        break
                    return None, failed_at
        return None, failed_at

    async def _serve_again(self, model: _Model, url: str) -> bool:
        """Have a replica that refuses serve an adapter, since it may have restarted without it.

        Returns False where that cannot help. Raises CandidateMissing if the candidate cannot be fetched; without
        production's adapter, whose folder may be elsewhere, there is only no pair.
        """
        if model.uri is None:
            return False
        try:
            folder = await asyncio.to_thread(self._artifacts.fetch, model.uri)
        except DependencyUnavailable as error:
            if model.is_candidate:
                raise CandidateMissing(f"{model.name}: {error.reason}", model.uri) from error
            return False
        try:
            if model.name not in await self._inference.models(url):
                await self._inference.load_adapter(url, model.name, str(folder))
        except (InvalidMessage, DependencyUnavailable) as error:
            logger.info("%s is not served by %s: %s", model.name, without_credentials(url), error)
        return True

    async def _ask(self, model: _Model, request: Request, url: str) -> Replay:
        started = time.perf_counter()
        answer = await self._inference.answer(model.name, request.path, request.body, url)
        return Replay(answer, (time.perf_counter() - started) * 1000)

    async def _raise_if_away(self, rollout: RolloutChanged) -> None:
        """Raise DependencyUnavailable if no replica answers anything: then the request is replayed again later."""
        for url in self._inference.in_turn():
            with contextlib.suppress(DependencyUnavailable):
                with contextlib.suppress(InvalidMessage):  # A refusal, too, proves that the replica is up.
                    await self._inference.answer(rollout.spec.base_model, CHAT, _PROBE, url)
                return
        raise DependencyUnavailable("no replica of vLLM answers", "Check it: ratchet status")


@dataclass(frozen=True)
class _Model:
    """A model's name in vLLM, and where the adapter is; None: the base model."""

    name: str
    uri: str | None
    is_candidate: bool = False
