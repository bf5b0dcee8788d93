"""The solvers of FA's subspace: each decides about the columns, from the options of FA."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from fa import flags, irls, likelihood
from fa.gradients import Gradients
from fa.gradients.gram import Gram
from fa.irls.problem import nonzero_eigenpairs
from fa.objective import values
from fa.rules.decision import ColumnDecision
from fa.rules.flag_options import FlagOptions


def by_irls(options: FlagOptions, gram: Gram, start: Any, gradients: Gradients | None = None) -> ColumnDecision:
    """Decide by IRLS in the Gram matrix.

    Args:
        options: Options of FA.
        gram: Gram matrix of the columns.
        start: Start of the iteration, as for `fa.irls.solve_gram`.
        gradients: The columns; required for a start (n, k).

    Returns:
        The decision, with weights of the columns and the coefficients of the basis.
    """
    counts = options.counts(gram.p)
    solution = irls.solve_gram(gram, options.irls_options, gradients, options.formulation, start, counts)
    return _decision(options, solution)


def by_nested_subspaces(
    options: FlagOptions, dims: Sequence[int], gram: Gram, start: Any, gradients: Gradients | None = None
) -> ColumnDecision:
    """Decide by the outermost of nested subspaces; the arguments are those of `by_irls`, with the dimensions.

    Args:
        options: Options of FA.
        dims: Dimensions of the subspaces, from the innermost.
        gram: As for `by_irls`.
        start: As for `by_irls`.
        gradients: As for `by_irls`.

    Returns:
        The decision, with weights of the columns and the coefficients of the basis.
    """
    # Excluded workers, and gradients that agree, may leave fewer dimensions.
    rank = nonzero_eigenpairs(gram.cosines, 1.0)[0].size
    if rank == 0:  # All gradients are 0.
        return by_irls(options, gram, start, gradients)
    dims = sorted({min(m, rank) for m in dims})
    flag = flags.solve_gram(gram, dims, options.irls_options, gradients, start, options.counts(gram.p))
    return _decision(options, flag.levels[-1])


def by_proximal_steps(options: FlagOptions, G: Tensor, columns: Tensor) -> ColumnDecision:
    """Decide by `fa.irls.proximal`, for regularizers whose Y leaves the span of the columns.

    Args:
        options: Options of FA.
        G: Gradients (k, n), whose explained variances the decision has.
        columns: What the pre-aggregators make of them, (q, n).

    Returns:
        The decision, with the direction itself, since it may lie outside the span of the columns.
    """
    counts = options.counts(len(columns))
    groups = columns if len(counts) == len(columns) else list(columns.split(counts))
    solution = irls.solve(groups, start=options.start, **vars(options.irls_options))
    return ColumnDecision(
        direction=solution.direction().to(G.dtype), values=_values(G, torch.as_tensor(solution.Y, device=G.device))
    )


def by_likelihood(options: FlagOptions, prior: Sequence[float], G: Tensor, columns: Tensor) -> ColumnDecision:
    """Decide by the most likely basis of the columns, under a Beta distribution.

    Args:
        options: Options of FA.
        prior: alpha and beta of the distribution.
        G: As for `by_proximal_steps`.
        columns: As for `by_proximal_steps`.

    Returns:
        The decision, with the direction itself, since it may lie outside the span of the columns.
    """
    alpha, beta = prior
    beta_prior, rows = likelihood.Beta(alpha, beta, options.a), columns.double()
    max_iter = options.irls_options.max_iter
    fitted = likelihood.fit(
        rows, beta_prior, options.m, options.lam, options.tol, max_iter, restarts=0, seed=options.seed
    )
    Y = torch.from_numpy(fitted.Y).to(rows)
    return ColumnDecision(direction=(Y @ (Y.T @ rows.mean(dim=0))).to(G.dtype), values=_values(G, Y))


def _values(G: Tensor, Y: Tensor) -> Float64[np.ndarray, " k"]:
    """Compute the explained variances of the gradients (k, n) under Y (n, m); m may be 0. 1 for a zero gradient."""
    return values(G, Y) if Y.shape[1] else 1.0 - G.any(dim=1).cpu().numpy()


def largest_coordinates(options: FlagOptions, columns: Tensor) -> Any:
    """Return the hints of `fa.flags.hints` where each worker names its `hint_count` largest coordinates.

    Args:
        options: Options of FA.
        columns: The columns (q, n).

    Returns:
        An orthonormal basis (n, k), a start of the other solvers.
    """
    largest = torch.topk(columns.abs(), min(options.hint_count, columns.shape[1]), dim=1).indices
    m = options.dims[-1] if options.dims else options.m or irls.default_m(len(options.counts(len(columns))))
    return flags.hints(columns, list(largest), m)


def _decision(options: FlagOptions, solution: irls.Solution) -> ColumnDecision:
    return ColumnDecision(weights=solution.weights(options.formulation), coefficients=solution.coefficients)
