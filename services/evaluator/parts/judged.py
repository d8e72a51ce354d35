"""Which parts of the evaluation set have rows enough to be judged, and in which the candidate is worse. Pure.

Small parts are judged together, too: of 77 intents with five rows each none could ever be shown to be worse by itself,
four that are forgotten can. With twelve rows each one could, but only if every row were lost: production is wrong on
some, so that alone four that are forgotten would pass. That test is one more of those that share the level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.evaluator.comparison import ComparedPart
from services.evaluator.statistics.intervals import Groups
from services.evaluator.statistics.paired import holm, p_worse, p_worse_together, rows_to_show

_SURE_ALONE = 3
"""From so many times the rows on that a loss of all of them takes, a part speaks for itself: a third of them lost
shows. Chance moves more rows of such parts than a small one has."""


@dataclass(frozen=True)
class Judged:
    """`level`: of all parts together, a candidate that is as good as production is stopped so often, at most.

    `p_values`: part → one-sided p-value of "not worse", adjusted for all of them (Holm), the largest part first.

    `too_small`: part → groups of rows, of those that no loss could be shown in. `needed`: the groups that those need.
    `pooled`: the parts that are judged together: those that are too small, and those that are hardly large enough.
    `p_together`: of "worse in none of those", adjusted, too. None: no loss could be shown in all of them together, or
    there is but one, which is judged alone.
    """

    level: float
    p_values: Mapping[str, float]
    too_small: Mapping[str, int]
    needed: int
    pooled: tuple[str, ...] = ()
    p_together: float | None = None

    @property
    def together_worse(self) -> bool:
        """True if the candidate is shown to be worse in some of the small parts, though not in which."""
        return self.p_together is not None and self.p_together < self.level

    @property
    def worse(self) -> list[str]:
        """The parts in which the candidate is shown to be worse, the surest first."""
        return [part for part, p in sorted(self.p_values.items(), key=lambda pair: pair[1]) if p < self.level]


def judge_parts(groups: Groups, parts: Mapping[str, ComparedPart], level: float) -> Judged:
    """Test every part that has enough rows, all together at this level. `groups`: the number of each row's group."""
    sizes = {name: len(set(groups[part.rows].tolist())) for name, part in parts.items()}
    by_size = sorted(parts, key=lambda part: (-sizes[part], part))
    count, needed = _judged([sizes[part] for part in by_size], level)
    alone, small = by_size[:count], by_size[count:]
    pooled = tuple(part for part in by_size if sizes[part] < _SURE_ALONE * needed)
    least = level / (count + 1)
    p_values = [p_worse(parts[part].apart, groups[parts[part].rows], level=least) for part in alone]
    in_pool = {group for part in pooled for group in groups[parts[part].rows].tolist()}
    has_pool = bool(small or len(pooled) > 1) and len(in_pool) >= rows_to_show(least)
    if has_pool:
        p_values.append(p_worse_together([(parts[part].apart, groups[parts[part].rows]) for part in pooled], least))
    adjusted = holm(p_values)
    return Judged(
        level,
        dict(zip(alone, adjusted, strict=False)),
        {part: sizes[part] for part in small},
        needed,
        pooled if has_pool else (),
        adjusted[count] if has_pool else None,
    )


def _judged(sizes: Sequence[int], level: float) -> tuple[int, int]:
    """Return how many parts are judged alone, whose sizes come largest first, and how many rows the next ones would
    need.

    As many as possible, so that each would be shown to be worse among so many, and all others together, if all of its
    rows were lost. Of parts of one size all are judged or none.
    """
    count = 0
    for size in sorted(set(sizes)):
        as_large = sum(other >= size for other in sizes)
        if size >= _rows_needed(as_large, len(sizes), level):
            count = as_large
            break
    more = sum(size >= sizes[count] for size in sizes) if count < len(sizes) else count
    return count, _rows_needed(more, len(sizes), level)


def _rows_needed(judged: int, parts: int, level: float) -> int:
    """Return the rows in which a loss can be shown if so many of the parts are judged alone, and small ones as one
    more."""
    return rows_to_show(level / (judged + (parts > 1)))
