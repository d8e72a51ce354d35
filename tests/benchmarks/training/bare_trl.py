"""A training as TRL's documentation shows it, with the settings that are fastest here: the peer of the trainer.

    python bare_trl.py JOB.json

JOB.json: base, trl_rows (a file of JSON lines, `prompt` and `completion` as messages), output, learning_rate, epochs,
batch_size, max_length, r, alpha, packing. Prints seconds, CPU seconds and steps of `trainer.train()` as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(job: dict[str, object]) -> None:
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.bfloat16, attn_implementation="sdpa")
    packed = bool(job["packing"])
    config = SFTConfig(
        output_dir=str(job["output"]),
        num_train_epochs=job["epochs"],
        per_device_train_batch_size=1 if packed else job["batch_size"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        weight_decay=0.01,
        packing=packed,  # A sequence has as many tokens as a batch has on the average: the same steps.
        max_length=job["packed_length"] if packed else job["max_length"],
        completion_only_loss=True,
        train_sampling_strategy="random" if packed else "group_by_length",
        gradient_checkpointing=False,
        bf16=True,
        use_cpu=True,
        seed=20,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=job["r"], lora_alpha=job["alpha"], lora_dropout=0.0, target_modules=MODULES
    )
    rows = load_dataset("json", data_files=str(job["trl_rows"]), split="train")
    trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    trainer.save_model(str(job["output"]))
    print(json.dumps({"seconds": wall, "cpu_seconds": cpu, "steps": trainer.state.global_step}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
