"""vLLM as `ratchet up` runs it: it finds adapters itself, returns 404 for unknown ones, and the base is unaffected."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.settings import Settings
from tests.waiting import PATIENCE_SECONDS

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.stack
QUESTION = {"role": "user", "content": "Why was I charged a fee for paying with my card?"}


def write_adapter(folder: Path, base: Path, base_name: str, seed: int) -> None:
    """A random LoRA of rank 8, in PEFT's format, strong enough to change answers.

    It changes the last layer alone: what the engine rounds otherwise grows from layer to layer, until batches of an
    adapter differ by as much as two adapters do.
    """
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    base_config = json.loads((base / "config.json").read_text())
    stem = f"base_model.model.model.layers.{base_config['num_hidden_layers'] - 1}.mlp.down_proj"
    weights = {
        f"{stem}.lora_A.weight": torch.randn(8, base_config["intermediate_size"]) * 0.2,
        f"{stem}.lora_B.weight": torch.randn(base_config["hidden_size"], 8) * 0.2,
    }
    partial = folder.with_name(f".{folder.name}")
    partial.mkdir(parents=True)
    save_file(weights, partial / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": base_name, "r": 8, "lora_alpha": 16}
    config |= {"target_modules": ["down_proj"], "task_type": "CAUSAL_LM", "bias": "none"}
    (partial / "adapter_config.json").write_text(json.dumps(config))
    partial.rename(folder)


@pytest.fixture
def adapters(vllm: str, stack_settings: Settings) -> Iterator[dict[str, str]]:
    """The names of the served base, two adapters of it, and one of another base (`foreign`)."""
    models = httpx.get(f"{vllm}/v1/models", timeout=PATIENCE_SECONDS).json()["data"]
    base = next(model["id"] for model in models if model["parent"] is None)
    folder, suffix = stack_settings.home / "artifacts" / "adapters", uuid.uuid4().hex[:8]
    names = {"base": base, **{kind: f"{kind}-{suffix}" for kind in ("first", "second", "foreign")}}
    for seed, kind in enumerate(("first", "second", "foreign")):
        base_name = "another/base-model" if kind == "foreign" else base
        write_adapter(folder / names[kind], stack_settings.models_folder / base, base_name, seed)
    yield names
    for kind in ("first", "second", "foreign"):
        httpx.post(f"{vllm}/v1/unload_lora_adapter", json={"lora_name": names[kind]}, timeout=PATIENCE_SECONDS)
        shutil.rmtree(folder / names[kind])


def ask(url: str, model: str) -> httpx.Response:
    body = {"model": model, "messages": [QUESTION], "temperature": 0, "max_tokens": 1}
    return httpx.post(
        f"{url}/v1/chat/completions", json={**body, "logprobs": True, "top_logprobs": 20}, timeout=PATIENCE_SECONDS
    )


def first_token(answer: httpx.Response) -> dict[str, float]:
    """Return the likeliest first tokens and their log-probabilities: a model's fingerprint."""
    choice: dict[str, Any] = answer.raise_for_status().json()["choices"][0]
    return {token["token"]: token["logprob"] for token in choice["logprobs"]["content"][0]["top_logprobs"]}


def distance(first: dict[str, float], second: dict[str, float]) -> float:
    """Return the mean difference in nats. A token that one side lacks counts as its least likely one."""
    tokens = first.keys() | second.keys()
    floors = min(first.values()), min(second.values())
    return sum(abs(first.get(token, floors[0]) - second.get(token, floors[1])) for token in tokens) / len(tokens)


def test_an_adapter_in_the_folder_is_served_under_its_name(vllm: str, adapters: dict[str, str]) -> None:
    assert distance(first_token(ask(vllm, adapters["first"])), first_token(ask(vllm, adapters["base"]))) > 0.5
    listed = {model["id"] for model in httpx.get(f"{vllm}/v1/models", timeout=PATIENCE_SECONDS).json()["data"]}
    assert adapters["first"] in listed


@pytest.mark.parametrize("kind", ["foreign", "no such adapter"])
def test_an_unknown_adapter_and_one_of_another_base_return_404(vllm: str, adapters: dict[str, str], kind: str) -> None:
    answer = ask(vllm, adapters.get(kind, kind))
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "NotFoundError"


def test_in_a_mixed_batch_each_request_gets_its_own_model(vllm: str, adapters: dict[str, str]) -> None:
    kinds = ["base", "first", "second"]
    alone = {kind: first_token(ask(vllm, adapters[kind])) for kind in kinds}
    with ThreadPoolExecutor(12) as pool:
        mixed = list(pool.map(lambda kind: (kind, first_token(ask(vllm, adapters[kind]))), kinds * 4))
    for kind, fingerprint in mixed:
        distances = {other: distance(fingerprint, alone[other]) for other in kinds}
        # Batches round differently (bf16), and these adapters are strong; still each is far nearer to itself.
        assert all(distances[kind] < 0.5 * distances[other] for other in kinds if other != kind), (kind, distances)
