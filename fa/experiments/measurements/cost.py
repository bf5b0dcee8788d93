"""Cost of FA as n, p, k and the steps N grow, measured and by two models, and cost of a certificate.

Section 4 of the paper has O(n N (sum k_i)^2): an SVD of the n x sum k_i matrix at each of the N steps. In Gram space
the n coordinates are read only for K and for d, and a step is an eigenproblem: n (sum k_i)^2 + N (sum k_i)^3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fa import irls
from fa.gradients.measurement import measure
from fa.sdp.certificate import relax
from fa.utils.timing import call_seconds


@dataclass(frozen=True)
class Workload:
    """A size of the problem.

    Attributes:
        n: Number of coordinates.
        p: Number of workers.
        k: Number of gradients per worker.
        N: Number of steps of IRLS.
    """

    n: int = 20_000
    p: int = 12
    k: int = 1
    N: int = 5

    @property
    def per_step(self) -> int:
        """Number of multiplications in the paper's model, up to a constant."""
        return self.n * self.N * (self.p * self.k) ** 2

    @property
    def in_gram_space(self) -> int:
        """Number of multiplications in this package's model, up to a constant."""
        return self.n * (self.p * self.k) ** 2 + self.N * (self.p * self.k) ** 3


@dataclass(frozen=True)
class CostTiming(Workload):
    """The measured time of a method.

    Attributes:
        varied: Name of the size that is varied.
        method: Name in `METHODS`.
        seconds: The least time, in seconds.
    """

    varied: str = "n"
    method: str = ""
    seconds: float = 0.0


def svd_steps(
    workers: Sequence[Float[Tensor, "k n"]], m: int | None = None, steps: int = 5
) -> tuple[Float64[np.ndarray, " p"], Float[Tensor, " n"]]:
    """Run FlagIRLS as in the paper's cost model, with an SVD of the n x sum k_i matrix at each step.

    Args:
        workers: The gradients (k, n) of each worker.
        m: Columns of Y; default: that of `irls.solve`.
        steps: Number of steps.

    Returns:
        The explained variances (p,) and d (n,), for lam = 0. In d a worker counts by the mean of its gradients.
    """
    columns = [worker.T / worker.norm() for worker in workers]
    weights = [1.0] * len(columns)
    for _ in range(steps):
        weighted = torch.cat([weight**0.5 * X for weight, X in zip(weights, columns, strict=True)], dim=1)
        Y = torch.linalg.svd(weighted, full_matrices=False)[0][:, : m or irls.default_m(len(columns))]
        residuals = [float((X - Y @ (Y.T @ X)).square().sum()) for X in columns]
        weights = [max(residual, irls.FLOOR) ** -0.5 for residual in residuals]
    mean = torch.stack([worker.mean(dim=0) for worker in workers]).mean(dim=0)
    return 1 - np.array(residuals), Y @ (Y.T @ mean)


def in_gram_space(
    workers: Sequence[Float[Tensor, "k n"]], m: int | None = None, steps: int = 5
) -> tuple[Float64[np.ndarray, " p"], Float[Tensor, " n"]]:
    """Compute the result of `svd_steps` from the Gram matrix, with all steps, even after convergence.

    Args:
        workers: The gradients (k, n) of each worker.
        m: Columns of Y; default: that of `irls.solve`.
        steps: Number of steps.

    Returns:
        The explained variances (p,) and d (n,).
    """
    solution = irls.solve(workers, m=m, tol=0.0, max_iter=steps)
    return solution.values, solution.direction()


METHODS: Mapping[str, Callable[..., object]] = {"SVD at each step": svd_steps, "Gram matrix once": in_gram_space}


def measure_costs(
    grid: Mapping[str, Sequence[int]], base: Workload, repeats: int = 3, seed: int = 0
) -> list[CostTiming]:
    """Time both methods on random float32 gradients.

    Args:
        grid: Values of n, p, k and N, which are varied one at a time.
        base: The other sizes.
        repeats: Number of timed calls.
        seed: Seed of the gradients.

    Returns:
        One timing for each size and method.
    """
    timings = []
    for varied, sizes in grid.items():
        for size in sizes:
            case = replace(base, **{varied: size})
            generator = torch.Generator().manual_seed(seed)
            workers = list(torch.randn(case.p, case.k, case.n, generator=generator))
            for method, work in METHODS.items():
                seconds = min(call_seconds(partial(work, workers, steps=case.N), repeats))
                timings.append(CostTiming(**asdict(case), varied=varied, method=method, seconds=seconds))
    return timings


def exponents(timings: Sequence[CostTiming]) -> list[dict[str, float | str]]:
    """Fit exponents of cost by least squares of logarithms.

    Args:
        timings: Results of `measure_costs`.

    Returns:
        One row per method and varied size, with the exponents of the measured seconds and of both models' counts.
    """
    rows: list[dict[str, float | str]] = []
    for method, varied in dict.fromkeys((timing.method, timing.varied) for timing in timings):
        chosen = [timing for timing in timings if (timing.method, timing.varied) == (method, varied)]
        sizes = [getattr(timing, varied) for timing in chosen]
        rows.append(
            {
                "method": method,
                "varied": varied,
                "measured": _slope(sizes, [timing.seconds for timing in chosen]),
                "paper": _slope(sizes, [timing.per_step for timing in chosen]),
                "Gram space": _slope(sizes, [timing.in_gram_space for timing in chosen]),
            }
        )
    return rows


def certificate_seconds(G: Float[Tensor, "p n"], lam: float, m: int | None = None, repeats: int = 3) -> float:
    """Time `fa.sdp.certify` for a = 2, without the computation of the Gram matrix.

    Args:
        G: Gradients (p, n).
        lam: Weight of the pairwise term.
        m: Columns of Y; default: that of `irls.solve`.
        repeats: Number of timed calls.

    Returns:
        The least time, in seconds.
    """
    gram, _ = measure(G)
    columns = m or irls.default_m(gram.p)
    return min(call_seconds(lambda: relax(irls.build_problem(gram, columns, lam, 2.0)), repeats))


def _slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])
