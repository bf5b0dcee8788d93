"""What FA costs as n, p, k and the steps N grow, measured and as two models count it, and what a certificate costs.

The paper's section 4 has O(n N (sum k_i)^2): an SVD of the n x sum k_i matrix at each of the N steps. In Gram space
the n coordinates are read for K and for d, and a step is an eigenproblem: n (sum k_i)^2 + N (sum k_i)^3.
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
from fa.gradients.gram import measure as gram_of
from fa.sdp.certificate import relax
from fa.utils.timing import elapsed


@dataclass(frozen=True)
class Workload:
    """p workers with k gradients each, of n parameters, and N steps of IRLS."""

    n: int = 20_000
    p: int = 12
    k: int = 1
    N: int = 5

    @property
    def per_step(self) -> int:
        """The paper's model, in multiplications up to a constant."""
        return self.n * self.N * (self.p * self.k) ** 2

    @property
    def in_gram_space(self) -> int:
        """This package's."""
        return self.n * (self.p * self.k) ** 2 + self.N * (self.p * self.k) ** 3


@dataclass(frozen=True)
class CostTiming(Workload):
    """The least `seconds` of a method for a case, in which `varied` was varied."""

    varied: str = "n"
    method: str = ""
    seconds: float = 0.0


def svd_steps(
    workers: Sequence[Float[Tensor, "k n"]], m: int | None = None, steps: int = 5
) -> tuple[Float64[np.ndarray, " p"], Float[Tensor, " n"]]:
    """FlagIRLS as the paper costs it, by an SVD of the n x sum k_i matrix at each step: the values v_i and d.

    The steps and the columns are those of `irls.solve` at lam = 0; a worker's gradients count by their mean in d.
    """
    columns = [worker.T / worker.norm() for worker in workers]
    weights = [1.0] * len(columns)
    for _ in range(steps):
        weighted = torch.cat([weight**0.5 * X for weight, X in zip(weights, columns, strict=True)], dim=1)
        Y = torch.linalg.svd(weighted, full_matrices=False)[0][:, : m or irls.default_m(len(columns))]
        left = [float((X - Y @ (Y.T @ X)).square().sum()) for X in columns]
        weights = [max(residual, irls.FLOOR) ** -0.5 for residual in left]
    mean = torch.stack([worker.mean(dim=0) for worker in workers]).mean(dim=0)
    return 1 - np.array(left), Y @ (Y.T @ mean)


def in_gram_space(
    workers: Sequence[Float[Tensor, "k n"]], m: int | None = None, steps: int = 5
) -> tuple[Float64[np.ndarray, " p"], Float[Tensor, " n"]]:
    """The same from the Gram matrix: all the steps, whether they change anything or not."""
    solution = irls.solve(workers, m=m, tol=0.0, max_iter=steps)
    return solution.values, solution.direction()


METHODS: Mapping[str, Callable[..., object]] = {"SVD at each step": svd_steps, "Gram matrix once": in_gram_space}


def measure(grid: Mapping[str, Sequence[int]], base: Workload, repeats: int = 3, seed: int = 0) -> list[CostTiming]:
    """Both methods on random float32 gradients, with each of the grid's n, p, k and N varied from the base, in turn."""
    timings = []
    for varied, sizes in grid.items():
        for size in sizes:
            case = replace(base, **{varied: size})
            generator = torch.Generator().manual_seed(seed)
            workers = list(torch.randn(case.p, case.k, case.n, generator=generator))
            for method, work in METHODS.items():
                seconds = least_seconds(partial(work, workers, steps=case.N), repeats)
                timings.append(CostTiming(**asdict(case), varied=varied, method=method, seconds=seconds))
    return timings


def exponents(timings: Sequence[CostTiming]) -> list[dict[str, float | str]]:
    """A row a method and size: the exponent of the `measured` seconds, by least squares of the logarithms, and of both
    models' counts on the same cases.
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
    """What `fa.sdp.certify` takes once the Gram matrix is known, for a = 2 and lam times the pairs."""
    gram, _ = gram_of(G)
    columns = m or irls.default_m(gram.p)
    return least_seconds(lambda: relax(irls.build_problem(gram, columns, lam, 2.0)), repeats)


def least_seconds(work: Callable[[], object], repeats: int) -> float:
    """The least seconds of several calls."""
    return min(elapsed(work) for _ in range(repeats))


def _slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])
