"""A language model cut to its first layers: vLLM serves it as the whole one, and answers several times as fast.

What a run tests is the engine and who asks it. How well a model answers is no matter: adapters are random weights.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

LAYERS = 2
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def cut_model(model: Path, folder: Path) -> None:
    """Write the first `LAYERS` layers of a Llama of safetensors, with its tokenizer, to a new folder."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(model / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if _layer(name) < LAYERS}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": LAYERS}))


def _layer(name: str) -> int:
    """Return the number of the layer that has these weights; -1 for those outside of the layers."""
    found = _LAYER.match(name)
    return int(found[1]) if found else -1
