"""Fills in what a task's `training` leaves open, from the base model and the number of rows. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from schemas.task_settings import Method, TrainingSettings
from shared.errors import StepImpossible

SMALL_MODEL = 1_000_000_000
"""Parameters below which a model learns with five times the rate and needs no dropout."""
SMALL_SET = 2_000
"""Rows below which a step of 32 rows would leave too few steps."""


@dataclass(frozen=True)
class ModelShape:
    """What of a base model decides on memory and time. Sizes in numbers, not bytes."""

    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    is_tied: bool
    is_quantised: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read the `config.json` of a decoder; one that also sees pictures has it as `text_config`."""
        text: Mapping[str, Any] = config.get("text_config") or config
        hidden, heads = int(text["hidden_size"]), int(text["num_attention_heads"])
        return cls(
            model_type=str(text.get("model_type") or config.get("model_type")),
            layers=int(text["num_hidden_layers"]),
            hidden=hidden,
            intermediate=int(text.get("intermediate_size") or 4 * hidden),
            heads=heads,
            kv_heads=int(text.get("num_key_value_heads") or heads),
            head_width=int(text.get("head_dim") or hidden // heads),
            vocabulary=int(text["vocab_size"]),
            is_tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", True))),
            is_quantised=bool(config.get("quantization_config")),
        )

    @property
    def layer_parameters(self) -> int:
        """Parameters of the linear layers of one block, its norms aside."""
        attention = self.hidden * self.head_width * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.is_tied else 2)

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + self.embedding_parameters


@dataclass(frozen=True)
class Plan:
    """The numbers of a training that the task leaves open, filled in, and the sentence that says by which rule.

    A step has `batch_size * accumulation` rows. A pass has at most as many tokens as `batch_size` longest rows.
    """

    learning_rate: float
    epochs: float
    batch_size: int
    accumulation: int
    dropout: float
    reason: str

    @property
    def step_rows(self) -> int:
        return self.batch_size * self.accumulation


def preference_rate(settings: TrainingSettings, parameters: int) -> float:
    """The learning rate of the second stage, on pairs of answers, for a base model with so many parameters."""
    return settings.preferences.learning_rate or (1e-4 if parameters < SMALL_MODEL else 5e-6)


def resolve(settings: TrainingSettings, shape: ModelShape, rows: int) -> Plan:
    """The plan for so many training rows. What the task sets holds; the rest follows from model and rows.

    Raises StepImpossible for QLoRA of a base model that is quantised already.
    """
    if settings.method is Method.QLORA and shape.is_quantised:
        raise StepImpossible(
            "the base model is quantised already, and QLoRA quantises it itself",
            "Set training.method: lora, which trains on the weights as they are, or name the model as it was before.",
        )
    is_small, is_few = shape.parameters < SMALL_MODEL, rows < SMALL_SET
    is_full = settings.method is Method.FULL
    usual_rate = (1e-4 if is_full else 1e-3) if is_small else (2e-5 if is_full else 2e-4)
    usual_batch, usual_accumulation = (8, 1) if is_few else (4, 8)

    def chosen(value: float | None, usual: float) -> float:
        return usual if value is None else value

    plan = Plan(
        learning_rate=chosen(settings.learning_rate, usual_rate),
        epochs=chosen(settings.epochs, 3.0),
        batch_size=settings.batch_size or usual_batch,
        accumulation=settings.accumulation or (1 if settings.batch_size else usual_accumulation),
        dropout=chosen(settings.dropout, 0.0 if is_small else 0.05),
        reason="",
    )
    model = f"a {'small' if is_small else 'large'} model ({shape.parameters / 1e6:,.0f} million parameters)"
    reason = (
        f"{model}, a {'small' if is_few else 'large'} set ({rows:,} rows): learning rate {plan.learning_rate:g}, "
        f"{plan.epochs:g} epochs, steps of {plan.batch_size} × {plan.accumulation} rows, dropout {plan.dropout:g}"
    )
    return Plan(**{**vars(plan), "reason": reason})
