"""Sorting networks: fixed sequences of comparisons that sort any q values."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=128)
def sorting_network(q: int) -> np.ndarray:
    """Build Batcher's odd-even merge sort for q values.

    Args:
        q: Number of values.

    Returns:
        Compare-exchanges (i, j), i < j, as an (N, 2) int64 array.

    Source: K. E. Batcher, Sorting networks and their applications (1968); Knuth, TAOCP 3, 5.2.2, algorithm M.
    """
    pairs: list[tuple[int, int]] = []
    top = 1 << max(q - 1, 0).bit_length() >> 1
    step = top
    while step > 0:
        partner, offset, distance = top, 0, step
        while True:
            pairs += [(i, i + distance) for i in range(q - distance) if i & step == offset]
            if partner == step:
                break
            partner, offset, distance = partner >> 1, step, partner - step
        step >>= 1
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
