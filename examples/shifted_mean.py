"""A custom attack in one file: the honest mean, shifted along a random direction.

fa train --attack examples/shifted_mean.py:SHIFTED --rule multi_krum --iterations 60 --batch 32 --lr 0.05
"""

from collections.abc import Sequence

from torch import Tensor

from fa.attacks import Attack, Streams


def write(G: Tensor, byzantine: Sequence[int], streams: Streams) -> None:
    """Write the Byzantine workers' gradients into G.

    Args:
        G: Gradients (p, n). The rows `byzantine` are overwritten.
        byzantine: Indices of the Byzantine workers.
        streams: Function that returns a worker's generator. Other sources of randomness would break reproducibility.
    """
    honest = [worker for worker in range(len(G)) if worker not in byzantine]
    mean = G[honest].mean(dim=0)
    for worker in byzantine:
        G[worker].normal_(generator=streams(worker))
        G[worker].mul_(mean.norm() / G[worker].norm()).add_(mean)


SHIFTED = Attack("shifted", uses_own_gradient=False, write=write)
