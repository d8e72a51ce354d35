"""Pairs the items of two lists so that all pairs together have most in common: the assignment problem. Pure."""

from __future__ import annotations

from collections.abc import Mapping

Pair = tuple[int, int]


def best_pairs(common: Mapping[Pair, int]) -> list[Pair]:
    """Return the pairs (i, j) whose sum is greatest, each i and each j in one at most, in the order of i.

    `common`: what i and j have in common, above 0, of all that have anything.
    """
    if not common:
        return []
    import numpy as np  # Here, since most of who grades compares labels and texts, and need not have SciPy.
    from scipy.optimize import linear_sum_assignment

    rows, columns = (sorted(set(side)) for side in zip(*common, strict=True))
    places = {row: place for place, row in enumerate(rows)}, {column: place for place, column in enumerate(columns)}
    values = np.zeros((len(rows), len(columns)))
    for (i, j), value in common.items():
        values[places[0][i], places[1][j]] = value
    paired = zip(*(found.tolist() for found in linear_sum_assignment(values, maximize=True)), strict=True)
    pairs = [(rows[row], columns[column]) for row, column in paired]
    return [pair for pair in pairs if pair in common]
