"""Rows of tokens as passes through the model: many rows in one sequence, without padding, their common prompt once.

    prompt that all rows share | rest of row 1 | rest of row 2 | …

The linear layers, nearly all of the work, see each token once. In attention each row sees the shared prompt and itself:
the rows' rests become a small batch, whose keys are the prompt's and their own. So the gradient is that of the rows one
by one, and the prompt's is the sum over its rows. With short questions behind a system prompt that halves the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from services.trainer.domain import TrainingRow

PACKED_ATTENTION = "ratchet_packed"
_SHORT = 256
"""Tokens of a rest up to which plain products are faster on a CPU; of 800 they take half as long again."""


@dataclass(frozen=True)
class Layout:
    """Where a pass's rows are in its sequence.

    prefix: tokens of the shared prompt. rests: [rows, longest rest], positions of each row's own tokens, filled up with
    the last one. own: [rows, longest rest], which of them are no filling. mask: what a rest sees of prompt and itself.
    """

    prefix: int
    rests: torch.Tensor
    own: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Pass:
    """One forward pass. `sources`: positions whose logits predict `labels`; `weights`, `rows`: of each label.

    layout: None where attention divides the rows by their `positions`. mask: of rows side by side, [rows, tokens], what
    is no filling.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    layout: Layout | None
    mask: torch.Tensor | None
    sources: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    rows: torch.Tensor


def shared_prompt(rows: Sequence[TrainingRow]) -> int:
    """The number of tokens with which the prompts of all rows begin; at least one is left of each prompt."""
    if not rows:
        return 0
    low, high = min(row.tokens for row in rows), max(row.tokens for row in rows)  # All others are between the two.
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False)))
    return min(common, min(row.start for row in rows) - 1)


def divide(rows: Sequence[TrainingRow], prefix: int, max_tokens: int) -> Iterator[list[TrainingRow]]:
    """Divide the rows of a step into passes of at most `max_tokens` tokens, rows of similar length together."""
    chosen: list[TrainingRow] = []
    tokens = prefix
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        rest = len(row.tokens) - prefix
        if chosen and tokens + rest > max_tokens:
            yield chosen
            chosen, tokens = [], prefix
        chosen.append(row)
        tokens += rest
    if chosen:
        yield chosen


def pack(rows: Sequence[TrainingRow], prefix: int, device: torch.device, *, own_attention: bool = True) -> Pass:
    """Pack rows into one pass. `prefix`: tokens that all share; 0 where not `own_attention`."""
    tokens, positions = list(rows[0].tokens[:prefix]), list(range(prefix))
    sources: list[int] = []
    labels: list[int] = []
    weights: list[float] = []
    numbers: list[int] = []
    starts: list[int] = []
    for number, row in enumerate(rows):
        offset = len(tokens) - prefix
        starts.append(len(tokens))
        tokens += row.tokens[prefix:]
        positions += range(prefix, len(row.tokens))
        sources += range(offset + row.start - 1, offset + len(row.tokens) - 1)
        labels += row.tokens[row.start :]
        weights += [row.weight] * row.answer_tokens
        numbers += [number] * row.answer_tokens

    def tensor(values: Sequence[Any], dtype: torch.dtype = torch.long) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return Pass(
        tokens=tensor([tokens]),
        positions=tensor([positions]),
        layout=_layout(starts, len(tokens), prefix, device) if own_attention else None,
        mask=None,
        sources=tensor(sources),
        labels=tensor(labels),
        weights=tensor(weights, torch.float32),
        rows=tensor(numbers),
    )


def _layout(starts: Sequence[int], end: int, prefix: int, device: torch.device) -> Layout:
    begins = torch.tensor(starts, device=device)
    ends = torch.tensor([*starts[1:], end], device=device)
    longest = int((ends - begins).max())
    rests = begins[:, None] + torch.arange(longest, device=device)[None, :]
    own = rests < ends[:, None]
    mask = torch.ones(longest, prefix + longest, dtype=torch.bool, device=device).tril(prefix)
    return Layout(prefix, torch.minimum(rests, ends[:, None] - 1), own, mask[None, None])


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a pass, as transformers calls it: [1, heads, tokens, width] → [1, tokens, heads, width].

    Without a layout it is causal attention over the whole sequence.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if layout is None:
        whole = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return whole.transpose(1, 2).contiguous(), None

    def rests(states: torch.Tensor) -> torch.Tensor:  # [rows, heads, longest rest, width]
        return states[0][:, layout.rests].transpose(0, 1)

    def with_prompt(states: torch.Tensor) -> torch.Tensor:
        prompt = states[:, :, : layout.prefix].expand(len(layout.rests), -1, -1, -1)
        return torch.cat([prompt, rests(states)], dim=2)

    attend = _attend_in_matrices if query.device.type == "cpu" and layout.rests.shape[1] <= _SHORT else _attend
    answered = attend(
        rests(query), with_prompt(key), with_prompt(value), layout.mask, scaling or query.shape[-1] ** -0.5
    )
    parts = [answered.transpose(1, 2)[layout.own]]
    if layout.prefix:
        asked, keys, values = (states[:, :, : layout.prefix] for states in (query, key, value))
        seen = scaled_dot_product_attention(asked, keys, values, is_causal=True, scale=scaling)
        parts.insert(0, seen[0].transpose(0, 1))
    return torch.cat(parts)[None], None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    return scaled_dot_product_attention(query, key, value, mask, scale=scale)


def _attend_in_matrices(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """The same in plain products of matrices: PyTorch's kernel for CPUs takes four times as long for short rows."""
    rows, heads = query.shape[:2]
    unseen = torch.zeros(mask.shape[-2:], dtype=query.dtype).masked_fill_(~mask[0, 0], float("-inf"))
    scores = torch.baddbmm(unseen, (query * scale).flatten(0, 1), key.flatten(0, 1).transpose(1, 2))
    seen = torch.softmax(scores, dim=-1).to(value.dtype)
    return torch.bmm(seen, value.flatten(0, 1)).unflatten(0, (rows, heads))


def pad_rows(rows: Sequence[TrainingRow], device: torch.device) -> Pass:
    """Rows side by side, filled up on the right: for models whose attention does not take rows in one sequence."""
    longest = max(len(row.tokens) for row in rows)
    packed = pack(rows, 0, device, own_attention=False)
    tokens = torch.zeros((len(rows), longest), dtype=torch.long, device=device)
    lengths = torch.tensor([len(row.tokens) for row in rows], device=device)
    mask = torch.arange(longest, device=device)[None, :] < lengths[:, None]
    tokens[mask] = packed.tokens[0]
    place = mask.flatten().nonzero()[:, 0]  # Where each token of the packed sequence is in the padded one.
    return replace(packed, tokens=tokens, mask=mask.long(), sources=place[packed.sources])


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
