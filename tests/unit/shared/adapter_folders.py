"""Folders of LoRA adapters as the trainer publishes them, with small matrices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.adapters import PROBES_FILE, Probe, Probes
from schemas.conversation import Message, Role

WIDTH = 8
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def write_adapter(folder: Path, base_model: str, **config: Any) -> Path:
    """Write an adapter of rank 4 that changes q_proj; `config`: other fields of its configuration."""
    folder.mkdir(parents=True)
    plain = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model, "r": 4, "lora_alpha": 8,
        "lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj"], "rank_pattern": {}, "modules_to_save": None,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}))
    write_weights(folder, {f"{LAYER}.lora_A.weight": (4, WIDTH), f"{LAYER}.lora_B.weight": (WIDTH, 4)})
    (folder / "manifest.json").write_text("{}")
    return folder


def write_weights(folder: Path, shapes: Mapping[str, Sequence[int]], dtype: str = "F32", missing: int = 0) -> None:
    """Write zeros of these shapes in the format of safetensors, `missing` bytes too few."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * shape[0] * shape[-1]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    content = len(encoded).to_bytes(8, "little") + encoded + bytes(end - missing)
    (folder / "adapter_model.safetensors").write_bytes(content)


def first_tokens(model: str) -> dict[str, float]:
    """The likeliest first tokens of a model's answer, as fake engines give them: each model has its own."""
    return {f"{model} {number}": -0.1 - number for number in range(5)}


def write_probes(folder: Path, adapter: str, base: str, like: str = "") -> None:
    """Write an adapter's probes. `like`: the model whose answers they have; default: its own."""
    messages = (Message(role=Role.USER, content="refund"),)
    probe = Probe(messages=messages, adapter=first_tokens(like or adapter), base=first_tokens(base))
    folder.mkdir(parents=True)
    probes = Probes(adapter=adapter, base_model=base, probes=(probe,) * 5, rounding=0.0)
    (folder / PROBES_FILE).write_text(probes.model_dump_json())
    (folder / "manifest.json").write_text("{}")
