"""How sure an answer is, computed from the log-probabilities of its own tokens. Pure, takes microseconds, never raises.

A label's probability is computed within the task's labels, token by token: of the tokens listed at a position (the most
probable ones, 20 at most), only those that continue towards some label count.

    score    = product over positions of  p(towards the answered label) / p(towards any label)
    outside  = 1 - p(towards any label), at the first position
    branches = where other labels diverge from the answered one, each with its probability

That is the probability with which constrained decoding takes this path. Texts are compared, not tokens, so no
tokenizer is needed, and another tokenization of a label counts for that label. That matters: vLLM reports what its
constraint to the labels allows, and a model that was not trained on them tokenizes them in many ranges (SmolLM2 on
Banking77: the mean product of its token probabilities is 0.03, the mean probability of the label 0.37). For the same
reason `outside` is informative only where the engine reports the whole vocabulary; from vLLM's constrained answers it
is close to 0.

What is not listed is bounded, always to the answer's disadvantage: a label none of whose first tokens is listed may
have up to the probability of the least probable listed token, and all such labels together no more than what the listed
tokens leave. Where nothing is listed for a position, its token counts with its plain probability, which is a lower
bound; so does a whole answer that is not a label (cut off, unconstrained, or with a character split over tokens). Where
labels are prefixes of others, the engine must list the token that ends an answer, as vLLM does.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from schemas.adapters import Calibration, OpinionShare
from schemas.tasks import TaskKind, TaskSpec
from shared.model.field_confidence import call_probabilities, field_probabilities, label_probabilities

TOP_LOGPROBS = 20
"""The most that vLLM lists by default (`--max-logprobs`)."""
MAX_LOG_ODDS = 20.0
"""Log-odds are cut at +- this: two in a billion."""
_EXPONENT = 700.0
# A log-probability up to this much above zero is that of a certain token, rounded upstream.
_ROUNDING = 1e-3
_NEGLIGIBLE = 1e-4
_CERTAIN = -1e-5
# The probabilities listed at a position cannot add up to more than this, rounding included.
_MAX_SUM = 1.01
_HALF = math.log(0.5)

Tokens = Sequence[Mapping[str, Any]]
"""OpenAI's `choices[0].logprobs.content`: token, logprob, top_logprobs."""


class Measure(NamedTuple):
    """The fields of `schemas.predictions.Confidence`, for code that makes events without that class."""

    score: float | None = None
    logprob: float | None = None
    tokens: int = 0
    raw: float | None = None
    margin: float | None = None
    entropy: float | None = None
    outside: float | None = None
    uncertain_share: float | None = None
    calibration: str | None = None
    fields: dict[str, float] | None = None
    threshold: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the event's field `confidence`, without the fields that are None."""
        return {name: value for name, value in zip(self._fields, self, strict=True) if value is not None}


UNKNOWN = Measure()


def request_fields(spec: TaskSpec) -> dict[str, Any]:
    """Return the fields of a chat request that make the engine report what `measure` needs."""
    if spec.kind is TaskKind.CLASSIFICATION:
        return {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    return {"logprobs": True}


Opinion = Callable[[str], float | None]
"""Returns a second opinion's log-odds of a label as the answer; None: it has none."""


def measure(
    spec: TaskSpec, tokens: Tokens | None, calibration: Calibration | None = None, opinion: Opinion | None = None
) -> Measure:
    """Return how sure the answer made of `tokens` is; `UNKNOWN` where the upstream reported nothing valid.

    `opinion`: the one that the calibration was fitted with.
    """
    if not tokens:
        return UNKNOWN
    try:
        logprobs = [token["logprob"] for token in tokens]
        total = min(math.fsum(logprobs), 0.0)
        if not (max(logprobs) <= _ROUNDING and total > -math.inf):
            return UNKNOWN
        if spec.kind is TaskKind.CLASSIFICATION:
            measured = _measure_label(_labels(spec.labels), tokens, total)
        elif spec.kind is TaskKind.MULTI_LABEL:
            measured = _measure_set(tokens, logprobs, total, spec.labels)
        elif spec.kind is TaskKind.EXTRACTION:
            measured = _measure_fields(tokens, logprobs, total, spec.output_fields)
        elif spec.kind is TaskKind.TOOLS:
            measured = _measure_calls(tokens, logprobs, total, spec.output_fields)
        else:
            measured = _measure_text(logprobs, total)
        if measured.score is None or not 0.0 <= measured.score <= 1.0:
            return UNKNOWN
        if calibration is None or spec.kind is TaskKind.GENERATION:  # Texts are not right or wrong.
            return measured
        score = measured.score
        share = calibration.opinion
        if opinion is not None and share is not None and spec.kind is TaskKind.CLASSIFICATION:
            label, _ = _answer(_labels(spec.labels), tokens)
            other = None if label is None else opinion(_labels(spec.labels).text(label))
            score = joint_score(score, other, share)
        return _calibrated(measured, score, calibration)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError):
        return UNKNOWN


def joint_score(score: float, other: float | None, share: OpinionShare) -> float:
    """Return the score of an answer with a second opinion, of these log-odds.

    None: it has none, say on a label that no training row has. Then the model's counts whole, at its own temperature.
    """
    own = log_odds(score)
    x = own * share.own / share.other if other is None else share.own * own + share.other * other
    return 1.0 / (1.0 + math.exp(min(-x, _EXPONENT)))


def log_odds(score: float) -> float:
    """Return ln(p / (1 - p)), cut at +-MAX_LOG_ODDS."""
    if score <= 0.0:
        return -MAX_LOG_ODDS
    if score >= 1.0:
        return MAX_LOG_ODDS
    return max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, math.log(score) - math.log1p(-score)))


def calibrated(calibration: Calibration, score: float) -> float:
    """Return a score in [0, 1], calibrated. Preserves the order of scores."""
    x = log_odds(score)
    if calibration.kind == "temperature":
        return 1.0 / (1.0 + math.exp(min(-x / calibration.temperature, _EXPONENT)))
    knots = calibration.knots
    index = bisect_right(knots, (x, math.inf))
    if index in (0, len(knots)):
        return knots[min(index, len(knots) - 1)][1]
    (left, low), (right, high) = knots[index - 1], knots[index]
    return low + (high - low) * (x - left) / (right - left)


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

    def __len__(self) -> int:
        return len(self._sorted)

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


def _measure_text(logprobs: Sequence[float], total: float) -> Measure:
    count = len(logprobs)
    uncertain = sum([logprob < _HALF for logprob in logprobs])
    return Measure(math.exp(total / count), total, count, uncertain_share=uncertain / count)


def _measure_fields(tokens: Tokens, logprobs: Sequence[float], total: float, fields: Collection[str]) -> Measure:
    """An answer is as sure as its least sure field; one that is no JSON, as all its tokens together."""
    probabilities = field_probabilities(tokens, fields)
    score = min(probabilities.values()) if probabilities else math.exp(total)
    return _measure_text(logprobs, total)._replace(score=score, fields=probabilities)


def _measure_set(tokens: Tokens, logprobs: Sequence[float], total: float, labels: Collection[str]) -> Measure:
    """Several labels are as sure as all tokens together: which labels, in which order, and that no other follows."""
    score, fields = math.exp(total), label_probabilities(tokens, labels)
    return _measure_text(logprobs, total)._replace(score=score, fields=fields)


def _measure_calls(tokens: Tokens, logprobs: Sequence[float], total: float, fields: Collection[str]) -> Measure:
    """Calls are as sure as their least sure function or argument; a text instead, as any text."""
    measured = _measure_text(logprobs, total)
    probabilities = call_probabilities(tokens, fields)
    return measured._replace(score=min(probabilities.values()), fields=probabilities) if probabilities else measured


def _measure_label(labels: _Labels, tokens: Tokens, total: float) -> Measure:
    """`total` is the plain log-probability of the answer in nats."""
    answer, end = _answer(labels, tokens)
    label = -1 if answer is None else answer
    text, score, outside, all_listed = "", 1.0, None, answer is not None
    branches: list[float] = []
    rival = 0.0
    for token in tokens:
        step = labels.after(text)
        if step is None or step.possible[1] - step.possible[0] == 1:
            break  # One label remains: what follows is forced.
        if text and token["logprob"] > _CERTAIN:
            pass  # All other listed tokens are negligible.
        elif listed := token.get("top_logprobs"):
            towards, others, hidden, least = _split(step, token, listed, end, label)
            any_label = towards + sum(others)
            if not any_label <= _MAX_SUM:
                raise ValueError(f"listed tokens have a probability of {any_label} together")
            if not text and outside is None:
                outside = 1.0 - any_label if any_label < 1.0 else 0.0
            if label < 0:
                break
            allowed = (any_label + hidden) or 1.0  # Nothing listed: the answer is extremely improbable.
            if hidden:
                rival = max(rival, score * (min(hidden, least) / allowed))
                branches.append(score * (hidden / allowed))
            if others:
                rival = max(rival, score * (max(others) / allowed))
                branches += [score * (p / allowed) for p in others]
            score *= towards / allowed
        else:
            all_listed = False
            score *= math.exp(min(token["logprob"], 0.0))
        text = (text + token["token"]).lstrip()
    if answer is None:
        score = math.exp(total)
    score = min(score, 1.0)
    margin, entropy = (score - rival, _entropy(score, branches, len(labels))) if all_listed else (None, None)
    return Measure(score, total, len(tokens), None, margin, entropy, outside)


def _calibrated(measured: Measure, score: float, calibration: Calibration) -> Measure:
    """Return what was measured with its calibrated score, and the threshold of low confidence of the map."""
    low = calibration.low_confidence
    return measured._replace(
        score=calibrated(calibration, score), raw=score, calibration=calibration.name,
        threshold=None if low is None else low.calibrated,
    )  # fmt: skip


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
) -> tuple[float, list[float], float, float]:
    """Return probabilities: of the answer, of each branch to other labels, of unlisted labels, of the last token."""
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
    if not own_listed and answer >= 0:
        towards += math.exp(min(token["logprob"], 0.0))
    least = math.exp(min(listed[-1]["logprob"], 0.0))
    hidden = 0.0
    if least * (step.possible[1] - step.possible[0]) > _NEGLIGIBLE:
        hidden = _hidden(step, listed, [*others, (answer, answer + 1)], least)
    return towards, list(others.values()), hidden, least


def _hidden(step: _Step, listed: Tokens, ranges: Sequence[LabelRange], least: float) -> float:
    """Return the most probability that labels can have of which nothing is listed."""
    unlisted = set(range(*step.possible)).difference(*(range(*span) for span in ranges))
    rest = 1.0 - math.fsum(math.exp(min(candidate["logprob"], 0.0)) for candidate in listed)
    return max(0.0, min(rest, len(unlisted) * least))


def _entropy(score: float, branches: list[float], labels: int) -> float:
    """Return the entropy of the answer and the branches, divided by that of equally probable labels."""
    nats = -sum([p * math.log(p) for p in (score, *branches) if p > 0.0])
    return max(0.0, min(nats / math.log(labels), 1.0))
