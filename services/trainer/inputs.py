"""What a training reads beside its rows, without PyTorch: adapters that it merges, and pairs of answers.

Which adapters can be merged into one is told by their configurations, before anything is loaded:

    linear, ties, dare_linear   adapters of one rank, which stays
    svd                         the largest rank
    cat                         the sum of the ranks
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.datasets import PREFERENCES, PreferredAnswer
from schemas.task_settings import Combination
from schemas.tasks import TaskSpec
from shared.errors import StepImpossible
from shared.model.adapter_files import CONFIG
from shared.storage.artifacts import ArtifactNotFound, ArtifactStore


def read_pairs(dataset: Path) -> list[PreferredAnswer]:
    """The pairs of a version that may be trained on: none of one without such a file."""
    path = dataset / PREFERENCES
    lines = path.read_bytes().splitlines() if path.exists() else []
    pairs = [PreferredAnswer.model_validate_json(line) for line in lines]
    return [pair for pair in pairs if not pair.held_out and pair.preferred != "cannot_tell"]


def fetch_adapters(store: ArtifactStore, spec: TaskSpec, max_rank: int) -> tuple[Path, ...]:
    """The folders of the adapters that `method: fusion` merges.

    Raises StepImpossible where one is not in the store, or where they cannot be merged into one that vLLM serves.
    """
    names = tuple(dict.fromkeys(spec.training.fusion.adapters))
    try:
        folders = tuple(store.fetch_whole(store.address("adapters", name)) for name in names)
    except ArtifactNotFound as error:
        raise StepImpossible(
            f"an adapter that is to be merged is not in the artifact store: {error.reason}",
            f"Correct training.fusion.adapters of {spec.name}: `ratchet` shows the adapters on its page of models. "
            "Models of their own, of full or dora, cannot be merged.",
        ) from error
    configs = [json.loads((folder / CONFIG).read_bytes()) for folder in folders]
    check_fusible(dict(zip(names, configs, strict=True)), spec, max_rank)
    return folders


def check_fusible(configs: Mapping[str, Mapping[str, Any]], spec: TaskSpec, max_rank: int) -> None:
    """Raise StepImpossible if adapters cannot be merged into one that vLLM serves on the task's base model.

    configs: PEFT's configuration of each adapter, by its name.
    """
    for name, config in configs.items():
        base, modules = config["base_model_name_or_path"], sorted(config["target_modules"])
        if base != spec.base_model or not set(modules) <= set(spec.training.target_modules):
            raise StepImpossible(
                f"{name} changes {', '.join(modules)} of {base}, and {spec.name} trains "
                f"{', '.join(spec.training.target_modules)} of {spec.base_model}",
                "Name adapters of one base model in training.fusion.adapters, set base_model to theirs, and "
                "training.target_modules to all that they change.",
            )
    combination, ranks = spec.training.fusion.combination, [int(config["r"]) for config in configs.values()]
    listed = ", ".join(f"{name} {rank}" for name, rank in zip(configs, ranks, strict=True))
    if combination not in (Combination.CAT, Combination.SVD) and len(set(ranks)) > 1:
        raise StepImpossible(
            f"{combination} merges adapters of one rank, and theirs differ: {listed}",
            "Set training.fusion.combination to svd, which keeps the largest rank, or to cat, which adds them up.",
        )
    merged = sum(ranks) if combination is Combination.CAT else max(ranks)
    if merged > max_rank:
        raise StepImpossible(
            f"merged by {combination} the adapter's rank is {merged} ({listed}), over the fleet's limit of {max_rank}",
            "Set training.fusion.combination to svd, which keeps the largest rank, name fewer adapters, or raise "
            "vLLM's --max-lora-rank and RATCHET_VLLM_MAX_LORA_RANK together.",
        )
