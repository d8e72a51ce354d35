"""How sure a label is, computed from the log-probabilities of its own tokens. Pure, takes microseconds.

A label's probability is computed within the task's labels, token by token: of the tokens listed at a position (the most
probable ones, 20 at most), only those that continue towards some label count.

    score = product over positions of  p(towards the answered label) / p(towards any label)

That is the probability with which constrained decoding takes this path. Texts are compared, not tokens, so no
tokenizer is needed, and another tokenization of a label counts for that label. That matters: vLLM reports what its
constraint to the labels allows, and a model that was not trained on them tokenizes them in many ranges (SmolLM2 on
Banking77: the mean product of its token probabilities is 0.03, the mean probability of the label 0.37).

What is not listed is bounded, always to the answer's disadvantage: a label none of whose first tokens is listed may
have up to the probability of the least probable listed token, and all such labels together no more than what the listed
tokens leave. Where nothing is listed for a position, its token counts with its plain probability, which is a lower
bound; so does a whole answer that is not a label (cut off, unconstrained, or with a character split over tokens). Where
labels are prefixes of others, the engine must list the token that ends an answer, as vLLM does.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from shared.answers.measure import ConfidenceMeasure, Tokens

_NEGLIGIBLE = 1e-4
_CERTAIN = -1e-5
# The probabilities listed at a position cannot add up to more than this, rounding included.
_MAX_SUM = 1.01


def label_measure(labels: tuple[str, ...], tokens: Tokens, total: float) -> ConfidenceMeasure:
    """How sure an answer is that should be one of `labels`. `total`: its plain log-probability in nats."""
    return _measure_label(_labels(labels), tokens, total)


def spelled_label(labels: tuple[str, ...], tokens: Tokens) -> str | None:
    """The label that the tokens spell; None: none."""
    known = _labels(labels)
    label, _ = _answer(known, tokens)
    return None if label is None else known.text(label)


LabelRange = tuple[int, int]
"""Labels with a common prefix: first, and one past the last, in sorted order."""


class _Step(NamedTuple):
    """What may follow a text. `ranges`: a token's text to the labels that remain possible after it."""

    ranges: dict[str, LabelRange]
    possible: LabelRange
    label: int | None  # The label that this text is.


class _Labels:
    """A task's labels, sorted; what may follow a text is computed when it is first needed."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._sorted = sorted(labels)
        self._index = {label: index for index, label in enumerate(self._sorted)}
        self._steps: dict[str, _Step] = {}

    def index(self, text: str) -> int | None:
        return self._index.get(text)

    def text(self, index: int) -> str:
        return self._sorted[index]

    def after(self, text: str) -> _Step | None:
        """Return what may follow `text`; None if no label begins with it. Prefixes of labels are cached."""
        step = self._steps.get(text)
        if step is None and (step := self._step(text)) is not None:
            self._steps[text] = step
        return step

    def _step(self, text: str) -> _Step | None:
        low = high = bisect_left(self._sorted, text)
        ranges: dict[str, LabelRange] = {}
        while high < len(self._sorted) and self._sorted[high].startswith(text):
            rest = self._sorted[high][len(text) :]
            for end in range(1, len(rest) + 1):
                ranges[rest[:end]] = (ranges.get(rest[:end], (high, high))[0], high + 1)
            high += 1
        if not text:  # An unconstrained model begins with a space; a constrained one cannot.
            ranges |= {f" {token}": span for token, span in ranges.items()} | {" ": (low, high)}
        return _Step(ranges, (low, high), self._index.get(text)) if high > low else None


@lru_cache(maxsize=256)
def _labels(labels: tuple[str, ...]) -> _Labels:
    return _Labels(labels)


def _measure_label(labels: _Labels, tokens: Tokens, total: float) -> ConfidenceMeasure:
    """`total` is the plain log-probability of the answer in nats."""
    answer, end = _answer(labels, tokens)
    if answer is None:
        return ConfidenceMeasure(min(math.exp(total), 1.0), total, len(tokens))
    text, score = "", 1.0
    for token in tokens:
        step = labels.after(text)
        if step is None or step.possible[1] - step.possible[0] == 1:
            break  # One label remains: what follows is forced.
        if text and token["logprob"] > _CERTAIN:
            pass  # All other listed tokens are negligible.
        elif listed := token.get("top_logprobs"):
            towards, others, hidden = _split(step, token, listed, end, answer)
            if not towards + others <= _MAX_SUM:
                raise ValueError(f"listed tokens have a probability of {towards + others} together")
            possible = towards + others + hidden
            score *= towards / (possible or 1.0)  # Nothing listed: the answer is extremely improbable.
        else:
            score *= math.exp(min(token["logprob"], 0.0))
        text = (text + token["token"]).lstrip()
    return ConfidenceMeasure(min(score, 1.0), total, len(tokens))


def _answer(labels: _Labels, tokens: Tokens) -> tuple[int | None, str | None]:
    """Return the label that the tokens spell (None: no label), and the text of the token that ended it, if listed."""
    texts = [token["token"] for token in tokens]
    label = labels.index("".join(texts).strip())
    if label is not None:
        return label, None
    label = labels.index("".join(texts[:-1]).strip())
    return label, None if label is None else texts[-1]


def _split(
    step: _Step, token: Mapping[str, Any], listed: Tokens, end: str | None, answer: int
) -> tuple[float, float, float]:
    """Return probabilities: of the answer, of other labels that are listed, of those that are not."""
    ranges = step.ranges
    if end is not None and step.label is not None:
        ranges = {**ranges, end: (step.label, step.label + 1)}
    towards, others, own, own_listed = 0.0, dict[LabelRange, float](), token["token"], False
    for candidate in [candidate for candidate in listed if candidate["token"] in ranges]:
        span = ranges[candidate["token"]]
        p = math.exp(min(candidate["logprob"], 0.0))
        if span[0] <= answer < span[1]:
            towards += p
            own_listed = own_listed or candidate["token"] == own
        else:
            others[span] = others.get(span, 0.0) + p
    if not own_listed:
        towards += math.exp(min(token["logprob"], 0.0))
    least = math.exp(min(listed[-1]["logprob"], 0.0))
    hidden = 0.0
    if least * (step.possible[1] - step.possible[0]) > _NEGLIGIBLE:
        hidden = _hidden(step, listed, [*others, (answer, answer + 1)], least)
    return towards, sum(others.values()), hidden


def _hidden(step: _Step, listed: Tokens, ranges: Sequence[LabelRange], least: float) -> float:
    """Return the most probability that labels can have of which nothing is listed."""
    unlisted = set(range(*step.possible)).difference(*(range(*span) for span in ranges))
    rest = 1.0 - math.fsum(math.exp(min(candidate["logprob"], 0.0)) for candidate in listed)
    return max(0.0, min(rest, len(unlisted) * least))
