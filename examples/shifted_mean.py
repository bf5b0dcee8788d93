"""An attack of one's own, in one file: the honest mean, pushed along a random direction.

fa train --attack examples/shifted_mean.py:SHIFTED --rule multi_krum --iterations 60 --batch 32 --lr 0.05
"""

from collections.abc import Sequence

from torch import Tensor

from fa.attacks import Attack, Streams


def write(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Fill the rows `byzantine` of G (p, n); draw from `streams(worker)` alone, so that a seed gives the same run."""
    honest = [worker for worker in range(len(G)) if worker not in byzantine]
    mean = G[honest].mean(dim=0)
    for worker in byzantine:
        G[worker].normal_(generator=streams(worker))
        G[worker].mul_(mean.norm() / G[worker].norm()).add_(mean)


SHIFTED = Attack("shifted", uses_own_gradient=False, write=write)
