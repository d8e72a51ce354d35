"""Writes when the `expectation` package's test of paired answers is significant, for the table of rivals.

The package needs Python 3.12 and is under the GPL with a clause of its own, so it is not installed beside Ratchet; what
it computes is a file. To compute it anew, with a Python 3.12 that has expectation 0.6.1 and nothing of this project:

    python3.12 tests/benchmarks/promotion/expectation_boundary.py > tests/benchmarks/data/expectation.json

Its test of a proportion (null ½, one-sided) bets on the decisive labels of pairs: a beta-binomial mixture. The e-value
is read from `e_calculator`, since `update` raises a ValueError while all labels are the same.
"""

from __future__ import annotations

import bisect
import json
import warnings
from importlib import import_module
from importlib.metadata import version

LABELS = 600
LEVELS = (0.05, 0.05 / 52)


def e_value(wins: int, labels: int) -> float:
    """Return the package's e-value after so many wins among so many decisive labels."""
    package = import_module("expectation.seqtest.sequential_e_testing")
    test = package.SequentialTesting(test_type="proportion", null_value=0.5, alternative="greater")
    numpy = import_module("numpy")
    return float(test.e_calculator(numpy.arange(labels) < wins))


def main() -> None:
    """Print, by level, the fewest wins among 1, 2, … labels that are significant; labels + 1: none are."""
    warnings.simplefilter("ignore")
    needed = {
        str(level): [
            bisect.bisect_left(range(labels + 1), 1 / level, key=lambda wins, labels=labels: e_value(wins, labels))
            for labels in range(1, LABELS + 1)
        ]
        for level in LEVELS
    }
    print(json.dumps({"version": version("expectation"), "wins_needed": needed}))


if __name__ == "__main__":
    main()
