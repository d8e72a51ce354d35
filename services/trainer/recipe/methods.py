"""Loads the base model as a method needs it, and saves what was trained as vLLM serves it.

lora    bf16 weights, frozen, and an adapter          adapter/   adapter_config.json · adapter_model.safetensors
qlora   the same on weights in 4 bits                 adapter/
full    all weights are trained                       model/     config.json · *.safetensors · tokenizer
DoRA    (lora, qlora): vLLM serves no such adapter    model/     the adapter merged into the base model
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from schemas.task_settings import Method, TrainingSettings
from services.trainer.domain import TrainingRequest, check_modules
from services.trainer.plan import SMALL_MODEL, ModelShape, Plan
from services.trainer.recipe.packing import PACKED_ATTENTION
from shared.errors import StepImpossible
from shared.processor import has_bfloat16


def on_gpu() -> bool:
    return bool(torch.cuda.is_available())


def compute_dtype() -> torch.dtype:
    """bfloat16 on a GPU and on processors that have instructions for it; others emulate it, 20 times as slowly."""
    return torch.bfloat16 if on_gpu() or has_bfloat16() else torch.float32


def read_shape(base: str) -> ModelShape:
    """The shape of a base model by its configuration alone. Raises StepImpossible if it cannot be read."""
    return ModelShape.from_config(_reachable(AutoConfig.from_pretrained, base).to_dict())


def load_tokenizer(base: str) -> Any:
    tokenizer = _reachable(AutoTokenizer.from_pretrained, base)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(request: TrainingRequest, shape: ModelShape) -> PreTrainedModel:
    """The base model, in the data type and with the attention that the request's method needs."""
    options: dict[str, Any] = {"dtype": weights_dtype(request.settings.method, shape)}
    options["attn_implementation"] = (
        "flash_attention_2" if has_flash_attention() and request.gpus == 1 else PACKED_ATTENTION
    )
    if on_gpu() and request.gpus == 1:
        options["device_map"] = "auto"
    if request.settings.method is Method.QLORA:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype(),
        )
    return _reachable(AutoModelForCausalLM.from_pretrained, request.base, **options)


def weights_dtype(method: Method, shape: ModelShape) -> torch.dtype:
    """Of the base weights. A small model that is trained as a whole has float32 ones: steps that are smaller than a
    bfloat16 can tell would be lost. A large one would need twice the memory for that."""
    if method is Method.FULL and shape.parameters < SMALL_MODEL:
        return torch.float32
    return compute_dtype()


def has_flash_attention() -> bool:
    return on_gpu() and importlib.util.find_spec("flash_attn") is not None


def prepare(model: PreTrainedModel, request: TrainingRequest, plan: Plan) -> Any:
    """What is trained: the model, or its adapter, new or as `request.start` left it."""
    if on_gpu():
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if request.settings.method is Method.FULL:
        return model
    check_modules(request.spec, [name for name, _ in model.named_modules()])
    torch.manual_seed(request.settings.seed)  # A new adapter begins at random.
    if request.start is not None:
        return PeftModel.from_pretrained(model, request.start, is_trainable=True)
    return get_peft_model(model, lora_config(request.settings, plan.dropout))


def lora_config(settings: TrainingSettings, dropout: float) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=dropout,
        target_modules=sorted(settings.target_modules),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        bias="none",
    )


def load_weights(model: Any, folder: Path) -> None:
    """Load weights that `save_model` of transformers' trainer wrote: of an adapter, or of a whole model."""
    weights = {
        name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, weights)
    else:
        model.load_state_dict(weights, strict=False)  # Tied weights are there once.


def save(model: Any, tokenizer: Any, request: TrainingRequest, folder: Path) -> Path:
    """Save what was trained: `folder/adapter` or `folder/model`. Returns it."""
    if request.settings.is_adapter:
        return save_adapter(model, folder / "adapter", request.spec.base_model)
    target = folder / "model"
    shutil.rmtree(target, ignore_errors=True)
    if isinstance(model, PeftModel):  # Merged into the base model as it is, not into its 4 bits.
        scratch = save_adapter(model, folder / "unmerged", request.spec.base_model)
        base = _reachable(AutoModelForCausalLM.from_pretrained, request.base, dtype=compute_dtype())
        model = PeftModel.from_pretrained(base, scratch).merge_and_unload()
        shutil.rmtree(scratch)
    model.to(compute_dtype()).save_pretrained(str(target))
    tokenizer.save_pretrained(str(target))
    return target


def save_gathered(gathered: Path, tokenizer: Any, request: TrainingRequest, folder: Path) -> None:
    """Save what transformers' trainer gathered from several processes, as `save` does from one."""
    load = AutoPeftModelForCausalLM if request.settings.is_adapter else AutoModelForCausalLM
    save(load.from_pretrained(gathered), tokenizer, request, folder)


def save_adapter(model: Any, folder: Path, base_model: str) -> Path:
    """Save an adapter's weights and its configuration with the base model's served name, which vLLM demands."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # An empty model card template.
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base_model
    config["target_modules"] = sorted(config["target_modules"])  # PEFT uses a set: its order differs by process.
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder


def _reachable(load: Any, base: str, **options: Any) -> Any:
    """Load something of the base model. Raises StepImpossible if it is not there or may not be read."""
    try:
        return load(base, **options)
    except OSError as error:  # transformers raises it for a model that does not exist or may not be read.
        is_gated = any(word in f"{error} {error.__cause__!r}" for word in ("gated", "401", "403"))
        raise StepImpossible(
            f"the base model {base} cannot be loaded: {error}",
            "It is gated: accept its licence on the Hugging Face hub and set HF_TOKEN for the trainer, or put it into "
            "<home>/models under its name." if is_gated else
            "Put it into <home>/models under its name, or check its name and your access on the Hugging Face hub.",
        ) from error  # fmt: skip


def training_arguments(settings: TrainingSettings) -> Mapping[str, Any]:
    """What of `TrainingArguments` follows from the machine."""
    return {
        "bf16": compute_dtype() is torch.bfloat16,
        "use_cpu": not on_gpu(),
        "dataloader_pin_memory": False,
        "use_liger_kernel": settings.liger and on_gpu(),
    }
