"""The solvers of FA's subspace: each decides about the columns, from the options of FA."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fa import flags, irls, likelihood
from fa.gradients import Gradients
from fa.gradients.gram import Gram
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
    rank = int(np.linalg.matrix_rank(gram.cosines, hermitian=True))
    dims = [m for m in dims if m <= rank] or [max(1, rank)]
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
    return ColumnDecision(direction=solution.direction(), values=values(G, solution.Y))


def by_likelihood(options: FlagOptions, prior: Sequence[float], columns: Tensor) -> ColumnDecision:
    """Decide by the most likely basis of the columns (q, n), under a Beta distribution.

    Args:
        options: Options of FA.
        prior: alpha and beta of the distribution.
        columns: The columns (q, n).

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
    direction = (Y @ (Y.T @ rows.mean(dim=0))).to(columns.dtype)
    return ColumnDecision(direction=direction, values=fitted.values)


def largest_coordinates(options: FlagOptions, columns: Tensor) -> Any:
    """Return the hints of `fa.flags.hints` where each worker names its `hint_count` largest coordinates.

    Args:
        options: Options of FA.
        columns: The columns (q, n).

    Returns:
        An orthonormal basis (n, k), a start of the other solvers.
    """
    largest = torch.topk(columns.abs(), min(options.hint_count, columns.shape[1]), dim=1).indices
    return flags.hints(columns, list(largest), options.dims[-1] if options.dims else options.m)


def _decision(options: FlagOptions, solution: irls.Solution) -> ColumnDecision:
    return ColumnDecision(weights=solution.weights(options.formulation), coefficients=solution.coefficients)
