"""Norms of a basis Y as the regularizer R(Y) of eq. 5, each with a subgradient.

- "l1": sum of the absolute values of the entries.
- "group": sum of the columns' lengths, as in section 2.2 of the paper. Each length is 1 where Y^T Y = I. This norm is
  therefore constant on the feasible set and does not change the solution.
- "rows": sum of the rows' lengths, one row per parameter. This is the group lasso, which does change the solution.

The pairwise term depends on the Gram matrix only, so it is in `fa.irls` and `fa.objective`. The proximal maps of "l1"
and "rows" are in `fa.kernels.stiefel`.
"""

from jaxtyping import Float64
from torch import Tensor
from torch.linalg import vector_norm

from fa.utils.validation import check_one_of

NAMES = ("l1", "group", "rows")
"""Names of the norms."""


def value(name: str, Y: Float64[Tensor, "n m"]) -> float:
    """Evaluate R(Y).

    Args:
        name: One of `NAMES`.
        Y: Basis (n, m).

    Returns:
        The value, at least 0.

    Raises:
        ValueError: Unknown name.
    """
    check_one_of("regularizer", name, NAMES)
    return float(Y.abs().sum() if name == "l1" else vector_norm(Y, dim=_across(name)).sum())


def gradient(name: str, Y: Float64[Tensor, "n m"]) -> Float64[Tensor, "n m"]:
    """Compute a subgradient of R at Y; it is 0 where an entry, column or row is 0.

    Args:
        name: One of `NAMES`.
        Y: Basis (n, m).

    Returns:
        The subgradient (n, m).

    Raises:
        ValueError: Unknown name.
    """
    check_one_of("regularizer", name, NAMES)
    if name == "l1":
        return Y.sign()
    lengths = vector_norm(Y, dim=_across(name), keepdim=True)
    directions: Tensor = Y / lengths.where(lengths > 0, 1.0)
    return directions


def _across(name: str) -> int:
    """Return the dimension of Y along which lengths are taken."""
    return 0 if name == "group" else 1
