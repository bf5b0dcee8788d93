"""Weights of workers that differ: in batch size, in noise level, or in number of gradients.

A weight c_i > 0 multiplies the term of worker i in eq. 5, and its share of the mean that Y Y^T projects:

    A(Y) = sum_i c_i (1 - v_i)^(1/a) + lam/(p - 1) sum over i != j of (c_i c_j/c) (1 - v_ij)^(1/a),  c = mean of the c_i
    d = Y Y^T sum_i (c_i/c) g_i/p

A worker with weight 2 counts as two workers with the same gradient. A common factor of all weights changes neither Y
nor d, unless a norm of Y is added (regularizers "l1" and "rows"). With c_i = 1, this is eq. 5.

A gradient of B images is g + e with E||e||^2 = sigma^2/B. Two weights follow:

- For the mean: c_i proportional to B_i, the inverse variance. Of all weighted means this has the least variance.
- For the terms of eq. 5: c_i proportional to B_i^(1/a). A residual (1 - v_i)^(1/a) of noise has the scale
  B_i^(-1/a), and c_i divides by it. IRLS then has the weights c_i w_i, and w_i = (1 - v_i)^(1/a - 1) has the scale
  B_i^(1 - 1/a). Together they are the inverse variance again.

The variance matters for the terms only as far as noise is a small part of the gradient. Where it dominates, 1 - v_i
hardly depends on B_i.

Weights must come from the server's settings or measurements. A Byzantine worker that states its own batch size would
choose its own weight.

Source: the paper, section 2.1, "simply reweigh gradients of worker i according to its noise level".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from fa.gradients import check_finite, read_groups
from fa.utils.validation import check, check_positive, check_real

Weights = tuple[float, ...]


LARGEST = 1e100
"""Largest weight, and the inverse of the smallest: sums of squares remain in the range of float64."""


def mean_weight(weights: Sequence[float] | np.ndarray | None) -> float:
    """Return the mean of the workers' weights, by which tolerances of eq. 5 scale.

    Args:
        weights: The weights; None for 1 each.
    """
    return 1.0 if weights is None else float(np.mean(weights))


def read_weights(weights: Any, p: int | None = None, name: str = "worker_weights") -> Weights:
    """Check weights of workers, and convert them to floats.

    Args:
        weights: A sequence of positive numbers.
        p: Number of workers; None if it is not available yet.
        name: Name of the argument, for messages.

    Returns:
        The weights.

    Raises:
        ValueError: The weights are not p positive numbers within `LARGEST` and its inverse.
    """
    listed = isinstance(weights, Sequence | np.ndarray) and not isinstance(weights, str) and len(weights) > 0
    check(name, weights, listed, "a sequence with one number for each worker")
    for weight in weights:
        check_positive(f"each of {name}", weight)
        check(f"each of {name}", weight, bool(1 / LARGEST <= weight <= LARGEST), f"from {1 / LARGEST:g} to {LARGEST:g}")
    if p is not None:
        check(name, tuple(weights), len(weights) == p, f"{p} numbers, one for each worker")
    return tuple(float(weight) for weight in weights)


def from_batches(batches: Any, power: float = 1.0) -> Weights:
    """Compute weights from the workers' batch sizes.

    Args:
        batches: Number of images in the gradient of each worker.
        power: Weights are proportional to B_i^power. 1 is the inverse variance, and 1/a fits the terms of eq. 5; see
            the module.

    Returns:
        The weights, of mean 1.

    Raises:
        ValueError: A batch size is not positive.

    Example:
        >>> from fa import irls
        >>> irls.weights_from_batches([16, 16, 64])
        (0.5, 0.5, 2.0)
    """
    check_real("power", power, 0)
    with np.errstate(over="ignore", under="ignore"):
        powers = np.asarray(read_weights(batches, name="batches")) ** power
    check("power", power, bool(np.isfinite(powers.sum()) and powers.all()), "smaller for these batch sizes")
    return tuple((powers / powers.mean()).tolist())


def from_noise(variances: Any, power: float = 1.0) -> Weights:
    """Compute weights from the variances E||e_i||^2 of the workers' gradients, as `noise_variances` estimates them.

    Args:
        variances: Variance of each worker's gradient.
        power: Weights are proportional to the inverse variance to this power, as in `from_batches`.

    Returns:
        The weights, of mean 1.

    Raises:
        ValueError: A variance is not positive.

    Example:
        >>> from fa import irls
        >>> irls.weights_from_noise([4.0, 4.0, 1.0])
        (0.5, 0.5, 2.0)
    """
    return from_batches([1 / variance for variance in read_weights(variances, name="variances")], power)


def noise_variances(G: Any) -> Float64[np.ndarray, " p"]:
    """Estimate the variance E||e_i||^2 of the mean of each worker's gradients from their spread.

    Args:
        G: A list of (k_i, n) arrays, k_i >= 2 gradients from worker i.

    Returns:
        sum_j ||g_ij - mean_j g_ij||^2/(k_i (k_i - 1)), (p,).

    Raises:
        ValueError: A worker has a single gradient, or a gradient has NaN or Inf.

    Example:
        >>> import numpy as np
        >>> from fa import irls
        >>> irls.noise_variances([np.array([[1.0, 0.0], [3.0, 0.0]])]).tolist()
        [1.0]
    """
    gradients, counts = read_groups(G)
    check("G", counts, min(counts) > 1, "a list with two gradients of each worker at least")
    check_finite(torch.isfinite(gradients.G).all(dim=1).tolist(), counts)
    groups = gradients.G.double().split(counts)
    spreads = [float((group - group.mean(dim=0)).square().sum()) for group in groups]
    return np.array([spread / (k * (k - 1)) for spread, k in zip(spreads, counts, strict=True)])
