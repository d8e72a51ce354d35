"""How much memory a training takes, by its parts, and whether there is so much. Pure.

    weights · adapter · gradients · optimizer    follow from the model's shape and the method
    activations · logits                         follow from the longest pass

Activations are what autograd keeps of a pass until its backward. On a GPU that is the input of each block, and one
block that is computed again; on a CPU it is all blocks. The formula adds up the tensors by their widths.
`tests/benchmarks/training/memory.py` compares it with real trainings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from schemas.task_settings import Combination, Method, TrainingSettings
from schemas.tasks import TaskSpec
from services.trainer.domain import TrainingRow
from services.trainer.plan import SMALL_MODEL, ModelShape
from shared.errors import StepImpossible

GIB = 2**30
MODULES = TrainingSettings().target_modules  # The linear layers of a block.
_LIBRARIES, _CUDA = 580 * 2**20, 600 * 2**20  # The interpreter with torch and PEFT; CUDA's context, cuBLAS's workspace.
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # Bytes of a parameter: 4 bits, a byte for 64, a float32 for 256 of those bytes.
_LOGIT = 12  # Bytes of a word at an answer token: logit, logarithmic probability, gradient, each in float32.
_ANSWERS = 0.125  # The share of the tokens that answers are assumed to have, where the rows are not known.
_HOLES = 1.2  # On a CPU: glibc leaves holes between what a pass keeps. Gradients of a whole model fill them.
_SHORT = 256  # Tokens of a row up to which `packing.py` has its attention on a CPU in plain products.


@dataclass(frozen=True)
class Device:
    """What computes."""

    is_gpu: bool
    has_bfloat16: bool = True


@dataclass(frozen=True)
class PassSize:
    """Tokens of a pass and of its answers, and of its longest row. `prefix`: of the prompt that all rows share."""

    tokens: int
    answers: int
    row: int
    prefix: int = 0

    @classmethod
    def of_rows(cls, rows: Sequence[TrainingRow], prefix: int) -> Self:
        lengths = [len(row.tokens) for row in rows]
        tokens = prefix + sum(length - prefix for length in lengths)
        return cls(tokens, sum(row.answer_tokens for row in rows), max(lengths), prefix)

    @classmethod
    def at_most(cls, rows: int, row: int) -> Self:
        """The size of a pass of rows that are not known, each with `row` tokens."""
        return cls(rows * row, round(rows * row * _ANSWERS), row)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a step, by what they are for: added up as if all were there at once, and nearly are.

    adapter: of LoRA, or those that are merged. activations: with autocast's copies of float32 weights. libraries: the
    process itself. `loading`: of the file from which weights are copied; the steps begin without it.
    """

    parts: Mapping[str, float]
    loading: float = 0.0

    @property
    def total(self) -> float:
        """The peak: of the steps, or of loading."""
        return max(sum(self.parts.values()), self.parts["libraries"] + self.parts["weights"] + self.loading)


def estimate(
    shape: ModelShape, settings: TrainingSettings, dropout: float, size: PassSize, device: Device
) -> MemoryEstimate:
    """The memory of a training whose longest pass has the given size: of the GPU, or without one of the process."""
    is_full, is_fusion = settings.method is Method.FULL, settings.method is Method.FUSION
    compute = 2 if device.is_gpu or device.has_bfloat16 else 4
    width = 4 if is_full and shape.parameters < SMALL_MODEL else compute
    weights = _weights(shape, settings, width, device)
    adapter = 0 if is_full else 4 * _adapter_parameters(shape, settings)
    trained = weights if is_full else 0.0 if is_fusion else adapter
    activations = _block_bytes(shape, settings, dropout, size, device, compute)
    if device.is_gpu and not is_fusion:
        activations += shape.layers * size.tokens * shape.hidden * width
    elif not is_fusion:
        activations *= shape.layers * (1 if is_full else _HOLES)
    if compute == 2 and (width == 4 or not is_full):  # Autocast's copies.
        activations += trained / 2
    if settings.method in (Method.QLORA, Method.FUSION):  # One layer's weights as they were; three to merge them.
        activations += shape.hidden * shape.intermediate * (12 if is_fusion else compute)
    parts = {
        "weights": weights,
        "adapter": adapter,
        "gradients": trained,
        "optimizer": 2 * trained,
        "activations": activations,
        "logits": size.answers * shape.vocabulary * _LOGIT,
        "libraries": _CUDA if device.is_gpu else _LIBRARIES,
    }
    return MemoryEstimate(parts, loading=2.0 * shape.parameters if width == 4 and not device.is_gpu else 0.0)


def _weights(shape: ModelShape, settings: TrainingSettings, width: int, device: Device) -> float:
    """Bytes of the base model's weights.

    On a CPU bfloat16 weights are the file itself, mapped; QLoRA keeps it beside its 4 bits, for the embeddings.
    """
    if settings.method is not Method.QLORA and not shape.is_quantised:
        return float(shape.parameters * width)
    is_mapped = width == 2 and not device.is_gpu
    unquantised = shape.parameters if is_mapped else shape.embedding_parameters
    return shape.layers * shape.layer_parameters * _NF4 + unquantised * width


def _widths(shape: ModelShape, names: Sequence[str] = MODULES) -> list[tuple[int, int]]:
    """Inputs and outputs of linear layers of a block. One that has another name is taken for the widest."""
    attention, keys, wide = shape.heads * shape.head_width, shape.kv_heads * shape.head_width, shape.intermediate
    known = {
        "q_proj": (shape.hidden, attention),
        "k_proj": (shape.hidden, keys),
        "v_proj": (shape.hidden, keys),
        "o_proj": (attention, shape.hidden),
        "down_proj": (wide, shape.hidden),
    }
    return [known.get(name, (shape.hidden, wide)) for name in names]


def _adapter_parameters(shape: ModelShape, settings: TrainingSettings) -> int:
    """Of all adapters in memory: fusion has the merged ones beside its result, which `cat` makes as large as all."""
    merged = len(settings.fusion.adapters) if settings.method is Method.FUSION else 0
    count = merged + (merged if settings.fusion.combination is Combination.CAT else 1) if merged else 1
    return count * settings.r * shape.layers * sum(map(sum, _widths(shape, settings.target_modules)))


def _block_bytes(
    shape: ModelShape, settings: TrainingSettings, dropout: float, size: PassSize, device: Device, compute: int
) -> float:
    """Bytes of a pass that autograd keeps of one block.

    norms       their input in float32, twice; where they are trained, too, what they multiply
    linear      the input of each layer that is trained, or has an adapter; with LoRA's dropout which of it is kept
    gate        its input, its result, and what it multiplies
    attention   of each row its queries, and keys and values with those of the prompt; scores of short rows on a CPU,
                else the result; where rows share a prompt, all queries, keys and values as they were before
    """
    is_full, heads = settings.method is Method.FULL, shape.heads * shape.head_width
    norms = 2 * shape.hidden * 4 * (2 if is_full else 1)
    inputs = sum(width for width, _ in _widths(shape, MODULES if is_full else settings.target_modules))
    mask = 0 if is_full or not dropout else 1 if device.is_gpu else 4
    shared = 3 * heads if size.prefix else 0
    token = norms + inputs * (compute + mask) + (3 * shape.intermediate + shared) * compute
    rest = size.row - size.prefix
    scores = shape.heads * size.row if rest <= _SHORT and not device.is_gpu else heads
    attention = (heads * (1 + 2 * size.row / rest) + scores) * compute
    return size.tokens * token + (size.tokens - size.prefix) * attention


def check_memory(needed: MemoryEstimate, available: float, spec: TaskSpec) -> None:
    """Raise StepImpossible, before anything is loaded, for a training that takes more than the `available` bytes."""
    if needed.total <= available:
        return
    parts = ", ".join(f"{name} {value / GIB:.1f}" for name, value in needed.parts.items() if value >= GIB / 20)
    way_out = (
        f"Lower training.batch_size of {spec.name} (raise training.accumulation as much), then training.max_length"
    )
    if needed.total - needed.parts["activations"] - needed.parts["logits"] > available:
        way_out = "No batch is small enough: train on a machine with more memory, or name a smaller base model"
    if spec.training.method in (Method.LORA, Method.FULL):
        way_out += "; or, on a GPU, set training.method: qlora"  # Without one it saves nothing: see `_weights`.
    raise StepImpossible(
        f"training {spec.base_model} would take {needed.total / GIB:.1f} GiB of memory, of which "
        f"{available / GIB:.1f} GiB are free ({parts})",
        f"{way_out}. `ratchet train {spec.name} --estimate` says what each method takes.",
    )
