"""Which published adapters can be merged into one, told by their configurations before anything is loaded.

linear, ties, dare_linear   adapters of one rank, which stays
svd                         the largest rank
cat                         the sum of the ranks
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.task_settings import Combination
from schemas.tasks import TaskSpec
from shared.errors import StepImpossible
from shared.model.adapter_files import CONFIG
from shared.storage.artifacts import ArtifactMissing, ArtifactStore

Configs = Mapping[str, Mapping[str, Any]]
"""PEFT's configuration of each adapter, by its name."""


def fetch_adapters(store: ArtifactStore, spec: TaskSpec, max_rank: int) -> tuple[Path, ...]:
    """The folders of the adapters that `method: fusion` merges.

    Raises StepImpossible where one is not in the store, or where they cannot be merged into one that vLLM serves.
    """
    folders = {name: _fetch(store, name, spec) for name in dict.fromkeys(spec.training.fusion.adapters)}
    configs = {name: json.loads((folder / CONFIG).read_bytes()) for name, folder in folders.items()}
    check_fusible(configs, spec, max_rank)
    return tuple(folders.values())


def check_fusible(configs: Configs, spec: TaskSpec, max_rank: int) -> None:
    """Raise StepImpossible if adapters cannot be merged into one that vLLM serves on the task's base model."""
    for name, config in configs.items():
        if (base := config["base_model_name_or_path"]) != spec.base_model:
            raise StepImpossible(
                f"{name} is an adapter of {base}, and {spec.name} has the base model {spec.base_model}",
                "Name adapters of one base model in training.fusion.adapters, or set base_model to theirs.",
            )
        if others := sorted(set(config["target_modules"]) - set(spec.training.target_modules)):
            raise StepImpossible(
                f"{name} changes {', '.join(others)}, which {spec.name} does not train",
                f"Add them to training.target_modules of {spec.name}.",
            )
    combination, ranks = spec.training.fusion.combination, {name: int(config["r"]) for name, config in configs.items()}
    listed = ", ".join(f"{name} {rank}" for name, rank in ranks.items())
    if combination not in (Combination.CAT, Combination.SVD) and len(set(ranks.values())) > 1:
        raise StepImpossible(
            f"{combination} merges adapters of one rank, and theirs differ: {listed}",
            "Set training.fusion.combination to svd, which keeps the largest rank, or to cat, which adds them up.",
        )
    merged = sum(ranks.values()) if combination is Combination.CAT else max(ranks.values())
    if merged > max_rank:
        raise StepImpossible(
            f"merged by {combination} the adapter's rank is {merged} ({listed}), over the fleet's limit of {max_rank}",
            "Set training.fusion.combination to svd, which keeps the largest rank, name fewer adapters, or raise "
            "vLLM's --max-lora-rank and RATCHET_VLLM_MAX_LORA_RANK together.",
        )


def _fetch(store: ArtifactStore, name: str, spec: TaskSpec) -> Path:
    try:
        return store.fetch_whole(store.address("adapters", name))
    except ArtifactMissing as error:
        if name in store.names("models"):
            raise StepImpossible(
                f"{name} is a model of its own, and adapters alone can be merged",
                f"Name adapters in training.fusion.adapters of {spec.name}: results of lora or qlora, without dora.",
            ) from error
        raise StepImpossible(
            f"the adapter {name} is not in the artifact store",
            f"Correct training.fusion.adapters of {spec.name}: `ratchet` shows the adapters on its page of models.",
        ) from error
