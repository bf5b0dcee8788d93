"""Line 5 of Algorithm 1 as printed in the paper, G + lam grad R(Y) 1^T, for comparison with `fa.irls.proximal`.

We read the line as follows. Let s (n,) be the sum of the columns of a subgradient of R at Y. lam s is added to every
gradient, and the next IRLS step uses the shifted gradients. s and -s span the same line, so Y is drawn towards it with
either sign. Neither sign is a descent direction of eq. 5.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from fa import irls, objective
from fa.gradients import read
from fa.irls import regularizers


@dataclass(frozen=True)
class Path:
    """A sequence of line-5 steps.

    Attributes:
        Y: Basis after the last step, float64 (n, m).
        objectives: Value of eq. 5 at the start and after each step.
        norms: Value of R(Y) at the start and after each step.
    """

    Y: Float64[np.ndarray, "n m"]
    objectives: tuple[float, ...]
    norms: tuple[float, ...]

    @property
    def rises(self) -> int:
        """Number of steps in which eq. 5 rose by more than rounding."""
        return int((np.diff(self.objectives) > 1e-9 * np.abs(self.objectives[1:])).sum())


def path(G: Any, name: str, lam: float, m: int | None = None, a: float = 2.0, steps: int = 20, sign: int = 1) -> Path:
    """Take steps of line 5 from the plain solution of `fa.irls.solve`.

    Args:
        G: Gradients (p, n) of rank at least m.
        name: Regularizer R: "l1" or "rows".
        lam: Weight of the regularizer.
        m: Number of columns of Y; default None, as in `fa.irls.solve`.
        a: Inverse of the power; default 2.
        steps: Number of steps; default 20.
        sign: 1 (default) to add lam s, -1 to subtract it.

    Returns:
        The last basis, and objective and norm along the way.

    Raises:
        ValueError: An argument is out of range, as in `fa.irls.solve`.
    """
    rows = read(G).G.double()
    Y = irls.solve(rows, m=m, a=a).basis(rows)
    objectives, norms = [], []
    for step in range(steps + 1):
        objectives.append(objective.value(rows, Y, lam, name, a))
        norms.append(regularizers.value(name, Y))
        if step < steps:
            shifted = rows + sign * lam * regularizers.gradient(name, Y).sum(dim=1)
            Y = irls.solve(shifted, m=m, a=a, max_iter=1, start=Y).basis(shifted)
    return Path(Y.numpy(), tuple(objectives), tuple(norms))
