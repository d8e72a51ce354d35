"""The stand-in engine: answers questions of the corpus by tables, with log-probabilities as an engine reports them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from schemas.conversation import Answer, FinishReason
from schemas.rollouts import RolloutChanged
from services.shadow.clients import Replay
from services.shadow.domain import Request
from shared.answers.measure import TOP_LOGPROBS
from shared.model.inference import Completion
from tests.benchmarks.twelve_weeks.world.models import LogProbabilities
from tests.benchmarks.twelve_weeks.world.stream import Corpus

BASE = "base"
_LATENCY_MS = 40.0


class Engine:
    """Serves the base and every adapter that was trained, as the evaluator, shadow and the gateway ask it."""

    def __init__(self, corpus: Corpus, base: LogProbabilities) -> None:
        self.models = {BASE: base}
        self._corpus = corpus
        self._index = corpus.index

    def question(self, text: str) -> int:
        return self._index[text]

    def answer(self, model: str, question: int) -> tuple[str, list[dict[str, Any]]]:
        """Return the label, and its one token with the most probable labels beside it."""
        row = self.models[model][question]
        top = np.argsort(-row, kind="stable")[:TOP_LOGPROBS]
        listed = [{"token": self._corpus.names[label], "logprob": float(row[label])} for label in top]
        return listed[0]["token"], [{**listed[0], "top_logprobs": listed}]

    async def complete(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: object,
        choices: object,
        max_tokens: int,
        fields: object,
    ) -> Completion:
        """See `services.evaluator.recipe.CompletionClient`."""
        text, tokens = self.answer(model, self._index[messages[-1]["content"]])
        return Completion(text, math.fsum(t["logprob"] for t in tokens), 1, 30, "stop", _LATENCY_MS, tuple(tokens))

    async def candidate(self, rollout: RolloutChanged, request: Request) -> Replay:
        """See `services.shadow.clients.ReplayEngine`."""
        return self._replay(rollout.candidate_adapter, request)

    async def production(self, rollout: RolloutChanged, request: Request) -> Replay:
        return self._replay(rollout.primary_adapter or BASE, request)

    async def is_busy(self) -> bool:
        return False

    def _replay(self, model: str, request: Request) -> Replay:
        text, _ = self.answer(model, self._index[request.body["messages"][-1]["content"]])
        return Replay(Answer(text=text, finish_reason=FinishReason.STOP), _LATENCY_MS)
