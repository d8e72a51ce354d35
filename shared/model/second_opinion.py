"""A second opinion on an answer that is a label: how much more probable a linear classifier finds it than any other.

A model's own log-probabilities say what it doubts itself, and a small one is often sure of a mistake. A classifier of
parts of words, fitted on the rows that the adapter was trained on, errs elsewhere: together they find more of the
errors (docs/benchmarks.md, Confidence). It costs a request a tenth of a millisecond and no other model.

Its features are n-grams of 2 to 5 characters of what was asked, hashed into `BUCKETS` and weighted by TF-IDF with
sublinear counts, the kind that does best among the cheap rivals. (Those of scikit-learn need it, and its vocabulary,
wherever an answer is measured.)
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

_BITS = 13
BUCKETS = 1 << _BITS
_LENGTHS = (2, 3, 4, 5)
_SHIFT = np.uint64(64 - _BITS)
_FACTORS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))
_MAX_LOG_ODDS = 13.8
"""A million to one: more is nothing that so simple a classifier could know."""


@dataclass(frozen=True, eq=False)
class SecondOpinion:
    """A fitted classifier.

    `weights`: float16 [labels, BUCKETS]. `intercepts`: float32 [labels]. `rarity`: float32 [BUCKETS], the inverse
    document frequencies.
    """

    labels: tuple[str, ...]
    weights: npt.NDArray[np.float16]
    intercepts: npt.NDArray[np.float32]
    rarity: npt.NDArray[np.float32]

    def log_odds(self, text: str, label: str) -> float | None:
        """Return ln(p / q) of the label as the answer to a text, q being the likeliest other label's; None for a label
        that it does not know.

        Against all others together, a label among many would seem improbable wherever nothing speaks for another one.
        """
        if label not in self.labels:
            return None
        buckets, counts = features(text)
        values = unit(counts * self.rarity[buckets])
        logits = self.weights[:, buckets].astype(np.float64) @ values + self.intercepts
        at = self.labels.index(label)
        odds = float(logits[at] - max(logits[:at].max(initial=-np.inf), logits[at + 1 :].max(initial=-np.inf)))
        return max(-_MAX_LOG_ODDS, min(_MAX_LOG_ODDS, odds))

    def to_bytes(self) -> bytes:
        """Return it as an .npz file."""
        file = io.BytesIO()
        np.savez(
            file, labels=np.array(self.labels), weights=self.weights, intercepts=self.intercepts, rarity=self.rarity
        )
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> SecondOpinion:
        """Return what `to_bytes` stored. Raises ValueError."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as found:
                labels = tuple(str(label) for label in found["labels"])
                opinion = cls(labels, found["weights"], found["intercepts"], found["rarity"])
        except (BadZipFile, KeyError, EOFError, OSError, ValueError) as error:
            raise ValueError(f"no second opinion can be read: {error}") from error
        if opinion.weights.shape != (len(labels), BUCKETS) or opinion.rarity.shape != (BUCKETS,):
            raise ValueError(f"a second opinion of {opinion.weights.shape}, not of {(len(labels), BUCKETS)}")
        return opinion


def features(text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the buckets of a text, ascending, and 1 + ln(count) of each."""
    folded = f" {' '.join(text.lower().split())} "
    codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    hashed = []
    for length in _LENGTHS:
        if (count := len(codes) - length + 1) < 1:
            break
        value = np.full(count, np.uint64(length))
        for offset in range(length):
            value = (value ^ codes[offset : offset + count]) * _FACTORS[0]
            value ^= value >> np.uint64(29)
        hashed.append((value * _FACTORS[1]) >> _SHIFT)
    buckets, counts = np.unique(np.concatenate(hashed), return_counts=True)
    return buckets.astype(np.int64), 1.0 + np.log(counts)


def unit(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return a vector of length 1."""
    scaled: npt.NDArray[np.float64] = values / (float(np.sqrt(values @ values)) or 1.0)
    return scaled
