"""Which parts of the evaluation set have rows enough to be judged, and in which the candidate is worse. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.evaluator.comparison import Part
from services.evaluator.statistics.intervals import Groups
from services.evaluator.statistics.paired import holm, p_worse, rows_to_show


@dataclass(frozen=True)
class Judged:
    """`level`: of all parts together, a candidate that is as good as production is stopped so often, at most.

    `p_values`: part → one-sided p-value of "not worse", adjusted for all of them (Holm), the largest part first.

    `too_small`: part → groups of rows, of those that no loss could be shown in. `needed`: the groups that those need.
    """

    level: float
    p_values: Mapping[str, float]
    too_small: Mapping[str, int]
    needed: int

    @property
    def worse(self) -> list[str]:
        """The parts in which the candidate is shown to be worse, the surest first."""
        return [part for part, p in sorted(self.p_values.items(), key=lambda pair: pair[1]) if p < self.level]


def judge_parts(groups: Groups, parts: Mapping[str, Part], level: float) -> Judged:
    """Test every part that has enough rows, all together at this level. `groups`: the number of each row's group."""
    sizes = {name: len(set(groups[part.rows].tolist())) for name, part in parts.items()}
    by_size = sorted(parts, key=lambda part: (-sizes[part], part))
    count, needed = _judged([sizes[part] for part in by_size], level)
    adjusted = holm([p_worse(parts[part].apart, groups[parts[part].rows]) for part in by_size[:count]])
    p_values = dict(zip(by_size[:count], adjusted, strict=True))
    return Judged(level, p_values, {part: sizes[part] for part in by_size[count:]}, needed)


def _judged(sizes: Sequence[int], level: float) -> tuple[int, int]:
    """Return how many parts are judged, whose sizes come largest first, and how many rows the next ones would need.

    As many as possible, so that each would be shown to be worse among so many if all of its rows were lost. Of parts of
    one size all are judged or none.
    """
    count = 0
    for size in sorted(set(sizes)):
        as_large = sum(other >= size for other in sizes)
        if size >= rows_to_show(level / as_large):
            count = as_large
            break
    more = sum(size >= sizes[count] for size in sizes) if count < len(sizes) else count
    return count, rows_to_show(level / more)
