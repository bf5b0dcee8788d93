"""The norms of a basis Y that may stand for R(Y) in eq. 5: each with a subgradient.

"l1" sums the entries' absolute values. "group" sums the columns' lengths, as the paper's section 2.2 names them: each
is 1 where Y^T Y = I, so that it is constant on the feasible set and changes nothing. "rows" sums the rows' lengths, one
row a parameter: the group lasso, which does change something. The pairwise term is a function of the Gram matrix and
belongs to `fa.irls` and `fa.objective`. The proximal maps, of "l1" and "rows", are in `fa.kernels.stiefel`.
"""

from jaxtyping import Float64
from torch import Tensor
from torch.linalg import vector_norm

from fa.utils.validation import check_one_of

NAMES = ("l1", "group", "rows")


def value(name: str, Y: Float64[Tensor, "n m"]) -> float:
    """R(Y); raises ValueError for a name that is none of `NAMES`."""
    check_one_of("regularizer", name, NAMES)
    return float(Y.abs().sum() if name == "l1" else vector_norm(Y, dim=_across(name)).sum())


def gradient(name: str, Y: Float64[Tensor, "n m"]) -> Float64[Tensor, "n m"]:
    """A subgradient of R at Y, which is 0 where an entry, column or row is 0."""
    check_one_of("regularizer", name, NAMES)
    if name == "l1":
        return Y.sign()
    lengths = vector_norm(Y, dim=_across(name), keepdim=True)
    directions: Tensor = Y / lengths.where(lengths > 0, 1.0)
    return directions


def _across(name: str) -> int:
    return 0 if name == "group" else 1
