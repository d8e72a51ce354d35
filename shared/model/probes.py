"""Proof by inference that a replica serves an adapter: it answers the probes as the evaluated adapter and base did.

A model's answer to a probe is the log-probabilities of its 20 likeliest first tokens. An engine that lists an adapter
may still serve the base under its name, an older cache, or nothing; and its base may answer with an adapter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from schemas.adapters import Probe, Probes
from schemas.conversation import Messages
from shared.addresses import without_credentials
from shared.answers.measure import TOP_LOGPROBS
from shared.conversation import chat_messages
from shared.errors import InvalidMessage
from shared.model.inference import InferenceClient

TOLERANCE = 0.3
"""Nats, what an answer to a probe may differ from the stored one (`distance`) where the engine rounds little.

Measured with SmolLM2-135M-Instruct: up to 0.20 between an engine in bfloat16 and one in float32; the base is 0.5 to 8
from trained adapters. A fleet of mixed hardware has room, then. What two batches of one engine differ by is measured
with each adapter (`measure_probes`): on processors with AMX 0.05 for the base and weak adapters, 0.33 for an
adapter of large random weights, on others often 0.
"""

Tokens = Mapping[str, float]
"""Tokens and their log-probabilities."""


async def first_tokens(
    client: InferenceClient, url: str, model: str, prompts: Sequence[Messages]
) -> list[dict[str, float]]:
    """Return the likeliest first tokens of a model's answers, all asked at once.

    Raises InvalidMessage if the replica refuses the model or reports no log-probabilities, DependencyUnavailable if it
    does not answer.
    """
    fields = {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    answers = await asyncio.gather(
        *(client.complete(model, chat_messages(prompt), max_tokens=1, fields=fields, url=url) for prompt in prompts)
    )
    found = []
    for answer in answers:
        listed = answer.tokens_logprobs[0].get("top_logprobs") if answer.tokens_logprobs else None
        if not listed:
            raise InvalidMessage(f"{without_credentials(url)} reports no log-probabilities for {model}")
        found.append({token["token"]: float(token["logprob"]) for token in reversed(listed)})
    return found


async def measure_probes(
    client: InferenceClient, url: str, adapter: str, base_model: str, prompts: Sequence[Messages]
) -> Probes:
    """Ask one replica an adapter and then its base, so that no batch has both. Raises as `first_tokens` does."""
    of_adapter, rounding = await _rounded_first_tokens(client, url, adapter, prompts)
    of_base, rounding_of_base = await _rounded_first_tokens(client, url, base_model, prompts)
    probes = [Probe(messages=p, adapter=a, base=b) for p, a, b in zip(prompts, of_adapter, of_base, strict=True)]
    return Probes(
        adapter=adapter, base_model=base_model, probes=tuple(probes), rounding=max(rounding, rounding_of_base)
    )


async def _rounded_first_tokens(
    client: InferenceClient, url: str, model: str, prompts: Sequence[Messages]
) -> tuple[list[dict[str, float]], float]:
    """Return `first_tokens`, and the nats by which the model answers a prompt alone differently from beside others.

    Batches of another size may round differently.
    """
    together = await first_tokens(client, url, model, prompts)
    alone = [(await first_tokens(client, url, model, [prompt]))[0] for prompt in prompts]
    return together, _furthest(together, alone)


def distance(first: Tokens, second: Tokens) -> float:
    """Return the mean difference in nats. A token that one side does not list counts as that side's least likely."""
    tokens = first.keys() | second.keys()
    least_first, least_second = min(first.values()), min(second.values())
    return sum(abs(first.get(t, least_first) - second.get(t, least_second)) for t in tokens) / len(tokens)


def tolerance(probes: Probes) -> float:
    """Return what answers may differ by, in nats: at most half of what is between the adapter and its base."""
    apart = max(distance(probe.adapter, probe.base) for probe in probes.probes)
    return min(max(TOLERANCE, _rounding(probes)), apart / 2)


def _rounding(probes: Probes) -> float:
    """Return what two batches of the evaluated models may differ by: one was seen, another may round the other way."""
    return 2 * probes.rounding


def disproof(probes: Probes, adapter: Sequence[Tokens], base: Sequence[Tokens]) -> str:
    """Return how a replica's answers differ from the stored ones, "" if they are the same within the tolerance.

    `adapter`, `base`: what it answered under the adapter's and under the base model's name, in the probes' order.
    """
    allowed = tolerance(probes)
    stored = probes.probes
    of_base = _furthest([probe.base for probe in stored], base)
    apart = _furthest([probe.adapter for probe in stored], adapter)
    if max(of_base, apart) <= allowed:
        return ""
    if max(of_base, apart) <= _rounding(probes):
        return f"the adapter answers nearly as its base does, {2 * allowed:.2f} nats apart: they cannot be told apart"
    if of_base > allowed:
        return f"its base model is not the one that was evaluated: {of_base:.2f} nats apart, {allowed:.2f} allowed"
    is_base = _furthest([probe.base for probe in stored], adapter) <= allowed
    served = "the base model" if is_base else "neither the evaluated adapter nor the base model"
    return f"it serves {served} under the adapter's name: {apart:.2f} nats apart, {allowed:.2f} allowed"


def _furthest(stored: Sequence[Tokens], found: Sequence[Tokens]) -> float:
    """Return the distance at the probe where it is greatest."""
    return max(distance(first, second) for first, second in zip(stored, found, strict=True))
