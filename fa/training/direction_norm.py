"""Norm of the direction of a step, so that runs with different rules take steps of equal length."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fa.gradients.measurement import measure


def scale_to_unit_mean(
    direction: Float[Tensor, " n"], G: Float[Tensor, "p n"], inner_products: Float64[np.ndarray, "p p"] | None = None
) -> Float[Tensor, " n"]:
    """Scale a direction to the norm of the mean of the unit gradients g_i/||g_i||.

    Gradients with NaN or Inf are excluded from the mean. A zero gradient counts as zero.

    Args:
        direction: Direction (n,), which is not changed.
        G: Gradients (p, n), at least one of them finite.
        inner_products: G G^T, if it is already computed.

    Returns:
        The scaled direction (n,), on the same device; zero for a direction of norm 0.

    Example:
        >>> scale_to_unit_mean(torch.tensor([0.0, 9.0]), torch.tensor([[2.0, 0.0], [3.0, 0.0]]))
        tensor([0., 1.])
    """
    gram, finite = measure(G, inner_products)
    unit_mean_norm = math.sqrt(max(0.0, float(gram.select(np.flatnonzero(finite)).cosines.mean())))
    norm = torch.linalg.vector_norm(direction, dtype=torch.float64)
    # A comparison on the device: the host does not wait for the norm.
    factor = torch.where(norm > 0, unit_mean_norm / norm, 0.0)
    return (direction.double() * factor).to(direction.dtype)  # The factor may leave the range of direction.dtype.
