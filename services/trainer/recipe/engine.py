"""The training loop: transformers' `Trainer` on passes of packed rows, each step a function of seed and number.

Which rows a step reads and all chance in it follow from the seed and the step's number alone, so a killed training that
goes on from any checkpoint ends with the same weights. A row's weight is that of its tokens in the loss. The
language-model head computes the tokens of answers alone: with short answers most of a small model's work is saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader  # type: ignore[import-untyped]
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from services.trainer.domain import TrainingRow, check_finite, time_left
from services.trainer.recipe.checkpoints import keep_best
from services.trainer.recipe.packing import Pass, divide, pack, pad_rows, shared_prompt

Report = Callable[..., None]
"""report(done, total, message, loss=…, validation_loss=…)"""


class Packing:
    """How rows become passes, by the model's attention.

    shared: their common prompt once, in our attention. positions: without padding, as flash attention divides them.
    padded: side by side, for models that take neither.
    """

    def __init__(self, rows: Sequence[TrainingRow], max_tokens: int, attention: str) -> None:
        self.attention = attention
        self.max_tokens = max_tokens
        self.prefix = shared_prompt(rows) if attention == "shared" else 0

    def passes(
        self, rows: Sequence[TrainingRow], device: torch.device, process: int = 0, processes: int = 1
    ) -> Iterator[Pass]:
        """The passes of one process. All have the same number, since they gather the model's weights together: one with
        fewer repeats a row that counts for nothing."""
        ordered = sorted(rows, key=lambda row: len(row.tokens))
        shares = [list(divide(ordered[number::processes], self.prefix, self.max_tokens)) for number in range(processes)]
        empty = [replace(ordered[0], weight=0.0)]
        for chosen in shares[process] + [empty] * (max(map(len, shares)) - len(shares[process])):
            if self.attention == "padded":
                yield pad_rows(chosen, device)
            else:
                yield pack(chosen, self.prefix, device, own_attention=self.attention == "shared")


class StepSampler:
    """The rows of each step: an epoch reads all once, in an order of its own, rows of similar length together."""

    def __init__(self, rows: Sequence[TrainingRow], step_rows: int, seed: int) -> None:
        self._lengths = [len(row.tokens) for row in rows]
        self._step_rows, self._seed, self._epoch = step_rows, seed, 0
        self.batch_size = step_rows

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._step_rows)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = get_length_grouped_indices(self._lengths, self._step_rows, generator=generator)
        steps = [order[start : start + self._step_rows] for start in range(0, len(order), self._step_rows)]
        return iter([steps[number] for number in torch.randperm(len(steps), generator=generator).tolist()])


class SftTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """Trains on the answers of rows. `packing` says how rows become passes."""

    def __init__(
        self, rows: Sequence[TrainingRow], validation: Sequence[TrainingRow], packing: Packing, step_rows: int,
        **options: Any,
    ) -> None:  # fmt: skip
        self.control: Any
        self._packing = packing
        self._step_rows = step_rows
        tokens = sum(row.answer_tokens for row in rows)
        self._mean_weight = sum(row.weight * row.answer_tokens for row in rows) / tokens
        super().__init__(train_dataset=list(rows), eval_dataset=list(validation) or None, **options)

    def get_train_dataloader(self) -> Any:
        sampler = StepSampler(self.train_dataset, self._step_rows, self.args.seed)
        loader = DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=list)
        return prepare_data_loader(loader, num_processes=1, process_index=0)  # `passes` divides a step.

    def training_step(self, model: Any, inputs: list[TrainingRow], num_items_in_batch: Any = None) -> torch.Tensor:
        """One step: the loss is the mean over the answer tokens of all its rows, weighted; each pass adds its share."""
        model.train()
        process, processes = self.args.process_index, self.args.world_size
        scale = self._mean_weight * sum(row.answer_tokens for row in inputs) / processes  # Gradients are averaged.
        total = torch.zeros((), device=self.args.device)
        for rows in self._packing.passes(inputs, self.args.device, process, processes):
            loss = (answer_losses(model, rows)[0] * rows.weights).sum() / scale
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The mean loss per answer token of the rows set aside, and the share that greedy decoding answers right."""
        losses, right = score_rows(self.model_wrapped, self.eval_dataset, self._packing, self.args.device)
        tokens = sum(row.answer_tokens for row in self.eval_dataset)
        metrics = {"eval_loss": sum(losses) / tokens, "eval_accuracy": sum(right) / len(right)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: Any) -> int:
        return 0


def answer_losses(model: Any, rows: Pass) -> tuple[torch.Tensor, torch.Tensor]:
    """For each answer token of a pass: its loss in nats, and whether it is the model's likeliest."""
    options: dict[str, Any] = {} if rows.layout is None else {"layout": rows.layout}
    if rows.mask is None:
        options |= {"position_ids": rows.positions, "logits_to_keep": rows.sources}
    logits = model(input_ids=rows.tokens, attention_mask=rows.mask, use_cache=False, **options).logits
    logits = logits.reshape(-1, logits.shape[-1])
    answers = (logits if rows.mask is None else logits[rows.sources]).float()
    return cross_entropy(answers, rows.labels, reduction="none"), answers.detach().argmax(-1) == rows.labels


def score_rows(
    model: Any, rows: Sequence[TrainingRow], packing: Packing, device: torch.device
) -> tuple[list[float], list[bool]]:
    """The summed loss of each row's answer, and whether every token of it is the likeliest, in the order of `rows`."""
    set_deterministic(model)
    losses, right = [0.0] * len(rows), [False] * len(rows)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].tokens))
    places = iter(order)  # `divide` sorts the same way, and sorting is stable.
    for packed in packing.passes([rows[number] for number in order], device):
        with torch.no_grad():
            loss, likeliest = answer_losses(model, packed)
        for number in range(int(packed.rows.max()) + 1):
            place, own = next(places), packed.rows == number
            losses[place], right[place] = float(loss[own].sum()), bool(likeliest[own].all())
    return losses, right


def set_deterministic(model: Any) -> None:
    """Switch dropout off. `eval` does more: bitsandbytes packs 4-bit weights for it as no training can use them."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()


class Chance(TrainerCallback):  # type: ignore[misc]
    """Seeds each step by its number: dropout is the same however often the training was killed before."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.manual_seed(self._seed * 1_000_003 + state.global_step)


class Follow(TrainerCallback):  # type: ignore[misc]
    """Reports steps, losses and the time left, and keeps the best weights of `trainer`.

    The pace of a resumed training counts from the step at which it went on.
    """

    def __init__(self, report: Report, folder: Path, on_step: Callable[[], object] = lambda: None) -> None:
        self._report, self._folder, self._on_step = report, folder, on_step
        self.trainer: Any = None
        self._started, self.first_step = 0.0, 0

    @property
    def seconds(self) -> float:
        """Since the training began, or went on."""
        return time.monotonic() - self._started

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started, self.first_step = time.monotonic(), state.global_step

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        keep_best(self.trainer, self._folder, state.global_step, metrics["eval_loss"])
        self._report(
            state.global_step, state.max_steps, f"validation loss {metrics['eval_loss']:.3f}",
            validation_loss=metrics["eval_loss"],
        )  # fmt: skip

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        # Of a gradient that is no number the next loss is none; after the last step there is no next one.
        for name, value in (("loss", logs["loss"]), ("gradient", logs.get("grad_norm", 0.0))):
            check_finite(name, float(value), state.global_step, state.max_steps)
        self._on_step()
        left = time_left(state.global_step - self.first_step, state.max_steps - self.first_step, self.seconds)
        loss = float(logs["loss"])
        message = f"step {state.global_step} of {state.max_steps}, loss {loss:.3f}, {left}"
        self._report(state.global_step, state.max_steps, message, loss=loss)
