"""A GGUF file to a bf16 safetensors folder: `python -m deploy.devstack.install.convert_gguf FILE.gguf FOLDER`.

A process of its own, so that the command line does not carry torch and the memory is given back.
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(source: Path, folder: Path) -> None:
    """Dequantise, copy into a model whose config no longer speaks of quantisation, save with tokenizer and template."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    quantised = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    described = quantised.config.to_dict()
    described.pop("quantization_config", None)
    described["_name_or_path"] = folder.name
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**described))
    plain.load_state_dict(quantised.state_dict())
    plain.tie_weights()
    plain.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    if not tokenizer.chat_template:
        raise SystemExit(f"{source} carries no chat template")
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
