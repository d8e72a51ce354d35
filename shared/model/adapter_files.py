"""What is in the folder of a LoRA adapter, or of a whole model, checked before an engine loads it. Pure, but for
reading the folder.

An engine trusts what it reads. It has served the base model for an adapter whose weights have other names, and a pickle
runs whatever is in it. So an adapter has three files and no other, and of the weights only safetensors' header is read:
its length as 8 bytes, little-endian, then JSON with the type, shape and place of each tensor
(https://github.com/huggingface/safetensors#format). The configuration is PEFT's `LoraConfig`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from shared.errors import InvalidMessage

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MOST_BYTES = {CONFIG: 1 << 20, WEIGHTS: 8 << 30, "manifest.json": 64 << 20}
"""The files of a folder, and the most bytes of each. Rank 64 on all modules of a model of 70B takes 3.3 GB in fp32."""
_MOST_HEADER = 16 << 20
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_TENSOR = re.compile(r"base_model\.model\.((?:\w+\.)*\w+)\.lora_([AB])\.weight")
_NOT_PLAIN = (
    "auto_mapping", "auto_map", "trust_remote_code", "modules_to_save", "use_dora", "lora_bias", "rank_pattern",
    "layer_replication", "megatron_config", "target_parameters", "trainable_token_indices",
)  # fmt: skip
"""Fields of the configuration that load code, or more than two matrices of one rank for each module."""
_WAY_OUT = "Serve only what the trainer publishes, and train it again."
_OF_A_MODEL = frozenset((".json", ".jinja", ".txt", ".model", ".safetensors"))
"""The kinds of files of a whole model: weights, configuration and tokenizer. No pickle and no program is among them."""


def check_adapter(folder: Path, base_model: str, max_rank: int, modules: Collection[str] | None = None) -> None:
    """Check that an engine of this base model may load the adapter in `folder`, which must exist.

    `max_rank`: the engine's limit. `modules`: those that the task trains; None: any. Raises InvalidMessage that says
    what is wrong with it.
    """
    _check_files(folder)
    config = _object((folder / CONFIG).read_bytes(), CONFIG)
    _check_config(config, base_model, max_rank, modules)
    _check_weights(folder / WEIGHTS, config["r"], config["target_modules"])


def check_model(folder: Path) -> None:
    """Check that an engine may load the whole model in `folder`, which must exist. Raises InvalidMessage."""
    files = sorted(folder.iterdir())
    for path in files:
        _require(path.is_file() and not path.is_symlink(), f"{path.name[:100]} is no file of its own")
        kinds = ", ".join(sorted(_OF_A_MODEL))
        _require(path.suffix in _OF_A_MODEL, f"its folder has {path.name[:100]}, and may have {kinds} only")
    _require(any(path.suffix == ".safetensors" for path in files), "its folder has no safetensors")
    _require(folder / "config.json" in files, "its folder has no config.json")
    for path in [path for path in files if path.name in ("config.json", "tokenizer_config.json")]:
        config = _object(path.read_bytes(), path.name)
        _require("auto_map" not in config, f"{path.name} has auto_map, which loads code")
        _require(path.name != "config.json" or isinstance(config.get("model_type"), str), "its model_type is missing")


def _check_files(folder: Path) -> None:
    found = {path.name: path for path in folder.iterdir()}
    for name, path in sorted(found.items()):
        _require(name in _MOST_BYTES, f"its folder has {name[:100]}, and may have {', '.join(_MOST_BYTES)} only")
        _require(path.is_file() and not path.is_symlink(), f"{name} is no file of its own")
        _require(path.stat().st_size <= _MOST_BYTES[name], f"{name} is larger than {_MOST_BYTES[name]} bytes")
    for name in (CONFIG, WEIGHTS):
        _require(name in found, f"its folder has no {name}")


def _check_config(config: Mapping[str, Any], base_model: str, max_rank: int, modules: Collection[str] | None) -> None:
    _require(config.get("peft_type") == "LORA", f"its type is {config.get('peft_type')!r:.100}, not 'LORA'")
    base = config.get("base_model_name_or_path")
    _require(base == base_model, f"it was trained on {base!r:.200}, and the task's base model is {base_model!r}")
    rank = config.get("r")
    _require(type(rank) is int and rank >= 1, f"its rank is {rank!r:.100}")
    _require(
        int(rank or 0) <= max_rank,
        f"its rank {rank!r:.100} is over the engine's limit of {max_rank}",
        "Lower training.r of the task, or raise vLLM's --max-lora-rank and RATCHET_VLLM_MAX_LORA_RANK together.",
    )
    targets = config.get("target_modules")
    is_list = isinstance(targets, list) and targets and all(isinstance(target, str) for target in targets)
    _require(bool(is_list), f"its target_modules are {targets!r:.200}, not a list of names")
    others = sorted(set(targets or ()) - set(modules if modules is not None else targets or ()))
    _require(not others, f"it changes {', '.join(others)[:200]}, which the task does not train")
    _require(config.get("bias") in (None, "none"), f"its bias is {config.get('bias')!r:.100}, not 'none'")
    used = [field for field in _NOT_PLAIN if config.get(field)]
    _require(not used, f"it uses {', '.join(used)}, which a plain LoRA adapter does not")


def _check_weights(path: Path, rank: int, modules: Collection[str]) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        _require(length <= _MOST_HEADER, f"{WEIGHTS} is no safetensors file: its header has {length} bytes")
        header = _object(file.read(length), f"the header of {WEIGHTS}")
    header.pop("__metadata__", None)
    _require(bool(header), f"{WEIGHTS} has no weights")
    matrices: dict[str, set[str]] = {}
    for name, tensor in header.items():
        match = _TENSOR.fullmatch(name)
        module = match[1] if match else ""
        _require(
            match is not None and any(f".{module}".endswith(f".{target}") for target in modules),
            f"{WEIGHTS} has {name!r:.200}, which is no LoRA weight of {', '.join(sorted(modules))[:200]}",
        )
        side = match[2] if match else ""
        _check_tensor(name, tensor, 0 if side == "A" else 1, rank)
        matrices.setdefault(module, set()).add(side)
    lonely = sorted(module for module, sides in matrices.items() if len(sides) < 2)
    _require(not lonely, f"{WEIGHTS} has one of two matrices of {', '.join(lonely)[:200]}")
    end = 8 + length + sum(_bytes(tensor) for tensor in header.values())
    _require(path.stat().st_size == end, f"{WEIGHTS} has {path.stat().st_size} bytes, and its header says {end}")


def _check_tensor(name: str, tensor: Any, axis: int, rank: int) -> None:
    """Check a matrix, whose side `axis` is the rank."""
    is_matrix = (
        isinstance(tensor, dict)
        and tensor.get("dtype") in _ITEM_BYTES
        and isinstance(shape := tensor.get("shape"), list)
        and len(shape) == 2
        and all(type(side) is int and side >= 1 for side in shape)
    )
    _require(is_matrix, f"{WEIGHTS}: {name:.200} is no matrix of {', '.join(_ITEM_BYTES)}")
    _require(tensor["shape"][axis] == rank, f"{WEIGHTS}: {name:.200} has the shape {tensor['shape']}, not rank {rank}")


def _bytes(tensor: Mapping[str, Any]) -> int:
    return int(math.prod(tensor["shape"])) * _ITEM_BYTES[tensor["dtype"]]


def _object(text: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"{name} is not JSON: {str(error)[:200]}", _WAY_OUT) from error
    _require(isinstance(value, dict), f"{name} is no object")
    return dict(value)


def _require(holds: bool, reason: str, way_out: str = _WAY_OUT) -> None:
    if not holds:
        raise InvalidMessage(reason, way_out)
