"""Minimum-diameter averaging: the mean of the p - f gradients that are closest together."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fa.gradients.gram import Gram
from fa.rules.base import Rule
from fa.rules.decision import ColumnDecision

Graph = tuple[int, ...]
"""Neighbours of each row, as bits."""


@dataclass(frozen=True, kw_only=True)
class MinimumDiameterAveraging(Rule):
    """The mean of the p - f gradients whose largest distance is smallest; of several such sets, the first.

    The search is exact. It looks for f rows that meet all distances above a bound, and not through all sets. Its time
    grows at worst as 1.47^f. For p = 60 random gradients and f from 14 to 29 it took less than 0.1 s.

    Source: Rousseeuw, Multivariate Estimation with High Breakdown Point, 1985; El Mhamdi et al., Genuinely Distributed
    Byzantine Machine Learning, PODC 2020.

    Example:
        >>> import numpy as np, fa
        >>> fa.aggregate(np.array([[0.0], [1.0], [9.0]]), "minimum_diameter_averaging", f=1)
        array([0.5])
    """

    name: ClassVar[str] = "minimum_diameter_averaging"
    uses_f: ClassVar[bool] = True
    min_workers: ClassVar[tuple[int, int]] = (2, 1)

    def decide(self, gram: Gram) -> ColumnDecision:
        """Decide the set of p - f gradients with the smallest largest distance.

        Args:
            gram: Gram matrix of p gradients, whose squared distances are read.

        Returns:
            The weights (p,), which are 1/(p - f) in the set and 0 outside of it.
        """
        rows = _smallest_set(gram.D2, self.f)
        return ColumnDecision.mean_of(rows, gram.p, f"not in the closest set of {len(rows)}")


def _smallest_set(D2: np.ndarray, f: int) -> tuple[int, ...]:
    """Return the first of the sets of p - f rows with the smallest diameter, in lexicographic order."""
    p = len(D2)
    bounds = np.unique(np.append(D2[np.triu_indices(p, 1)], 0.0))
    low, high = 0, len(bounds) - 1  # The set exists at `high`.
    while low < high:
        middle = (low + high) // 2
        if _has_cover(_farther(D2, bounds[middle]), (1 << p) - 1, f):
            high = middle
        else:
            low = middle + 1
    graph = _farther(D2, bounds[high])
    rows: list[int] = []
    remaining, budget = (1 << p) - 1, f  # Rows that may be used, and how many of them may be excluded.
    for row in range(p):
        bit = 1 << row
        if not remaining & bit or len(rows) == p - f:
            continue
        excluded = graph[row] & remaining
        rest = remaining & ~bit & ~excluded
        if _has_cover(graph, rest, budget - excluded.bit_count()):
            rows.append(row)
            remaining, budget = rest, budget - excluded.bit_count()
        else:
            remaining, budget = remaining & ~bit, budget - 1
    return tuple(rows)


def _farther(D2: np.ndarray, bound: float) -> Graph:
    """Return the graph whose edges are the pairs with squared distance above a bound."""
    return tuple(sum(1 << int(j) for j in np.flatnonzero(row > bound)) for row in D2)


def _has_cover(graph: Graph, remaining: int, budget: int) -> bool:
    """Return whether at most `budget` of the remaining rows meet every edge between them.

    A row of largest degree is in the cover, or all its neighbours are. Rows of degree 1 never need to be.
    """
    if budget < 0:
        return False
    degrees = {row: (graph[row] & remaining).bit_count() for row in range(len(graph)) if remaining >> row & 1}
    edges, row = sum(degrees.values()) // 2, max(degrees, key=degrees.__getitem__, default=0)
    if edges == 0:
        return True
    if edges > budget * degrees[row]:
        return False
    if degrees[row] <= 2:
        return _cover_of_paths(graph, remaining) <= budget
    neighbours = graph[row] & remaining
    without = remaining & ~(1 << row)
    return _has_cover(graph, without, budget - 1) or _has_cover(
        graph, without & ~neighbours, budget - neighbours.bit_count()
    )


def _cover_of_paths(graph: Graph, remaining: int) -> int:
    """Return the size of the smallest cover of a graph of paths and cycles: (k + 1) // 2 rows for each k edges."""
    size = 0
    while remaining:
        part = reach = remaining & -remaining
        while reach:
            row = reach.bit_length() - 1
            reach &= ~(1 << row)
            new = graph[row] & remaining & ~part
            part, reach = part | new, reach | new
        rows = [row for row in range(len(graph)) if part >> row & 1]
        edges = sum((graph[row] & part).bit_count() for row in rows) // 2
        size += (edges + 1) // 2
        remaining &= ~part
    return size
