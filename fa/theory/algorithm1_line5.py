"""Line 5 of Algorithm 1 as the paper prints it, G + lam grad R(Y) 1^T, for comparison with `fa.irls.proximal`.

It is read so: s (n,), the sum of the columns of a subgradient of R at Y, times lam is added to every gradient, and the
IRLS step that follows sees those. s and -s span one line, which Y is drawn towards with either sign. Neither is a
descent on eq. 5.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from fa import irls, objective
from fa.gradients import read
from fa.irls import regularizers


@dataclass(frozen=True)
class Path:
    """The last Y (n, m), and, at the start and after each step, eq. 5's value and R(Y)."""

    Y: Float64[np.ndarray, "n m"]
    objectives: tuple[float, ...]
    norms: tuple[float, ...]

    @property
    def rises(self) -> int:
        """The steps in which eq. 5 rose, by more than rounding."""
        return int((np.diff(self.objectives) > 1e-9 * np.abs(self.objectives[1:])).sum())


def path(G: Any, name: str, lam: float, m: int | None = None, a: float = 2.0, steps: int = 20, sign: int = 1) -> Path:
    """`steps` steps of line 5 from the plain solution of `irls.solve`, lam s added or, with sign = -1, taken away.

    G (p, n) of rank m at least; name "l1" or "rows". Raises ValueError as `irls.solve` does.
    """
    rows = read(G).G.double()
    Y = _basis(rows, irls.solve(rows, m=m, a=a))
    objectives, norms = [], []
    for step in range(steps + 1):
        objectives.append(objective.value(rows, Y, lam, name, a))
        norms.append(regularizers.value(name, Y))
        if step < steps:
            shifted = rows + sign * lam * regularizers.gradient(name, Y).sum(dim=1)
            Y = _basis(shifted, irls.solve(shifted, m=m, a=a, max_iter=1, start=Y))
    return Path(Y.numpy(), tuple(objectives), tuple(norms))


def _basis(rows: torch.Tensor, solution: irls.Solution) -> torch.Tensor:
    assert solution.coefficients is not None  # with lam = 0 it is in the span
    Y: torch.Tensor = torch.linalg.qr(rows.T @ torch.from_numpy(solution.coefficients)).Q
    return Y
