"""Dimensions that workers name as relevant: a start of the solvers, and projections of the gradients.

Source: the paper, section 2.1: workers "may specify dimensions along which gradient information is relevant".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fa import irls
from fa.gradients import read_groups
from fa.gradients.inputs import is_matrix, to_tensor
from fa.gradients.measurement import measure_groups
from fa.utils.validation import check, check_integer

_MIN_SQUARED_LENGTH = 1e-10  # Squared length below which a unit vector's projection is rounding error.
_RANK = 1e-10  # Fraction of the largest singular value below which a direction is rounding error.


def hints(G: Any, relevant: Any, m: int | None = None) -> Any:
    """Compute a start for `fa.irls.solve` and `solve` from the dimensions that workers name as relevant.

    P_i is the projector on the dimensions of worker i. The start spans the k <= m dimensions of span(G) with the
    largest sum_i tr(Y^T P_i Y). The number k is less than m if the workers name fewer dimensions. If k = 0, IRLS starts
    from equal weights. The length of a direction does not matter. Only the columns of named coordinates are copied.

    Args:
        G: Gradients, as for `fa.irls.solve`.
        relevant: One entry per worker: integer indices (k_i,) of coordinates, directions (n, k_i), or None.
        m: Largest number of dimensions; None for ceil((p + 1)/2).

    Returns:
        An orthonormal basis (n, k), an array if G is one, otherwise a tensor; float32 for gradients of 16 bits.

    Raises:
        ValueError: Wrong number of entries, an index out of range, or an entry that is empty or has another shape.

    Source: the paper, section 2.1: workers may specify dimensions, "which may be used for smart initialization also".

    Example:
        >>> import numpy as np
        >>> from fa import flags
        >>> G = np.array([[2.0, 1.0, 0.0], [2.0, -1.0, 0.0], [0.0, 0.0, 5.0]])
        >>> start = flags.hints(G, [[0], [0], None])
        >>> abs(start).round(3).tolist()
        [[1.0], [0.0], [0.0]]
    """
    gradients, counts, gram = measure_groups(G)
    dimensions = _read(relevant, counts, gradients.G)
    rows = gram.divide_by_norms(irls.build_problem(gram, 1, 0.0, 2.0, counts=counts).basis)
    parts = [rows.T @ _inside(gradients.G, part).double().cpu().numpy() for part in dimensions if part is not None]
    lengths, vectors = np.linalg.eigh(sum((part @ part.T for part in parts), np.zeros((rows.shape[1],) * 2)))
    m = irls.default_m(len(counts)) if m is None else m
    check_integer("m", m, 1)
    chosen = rows @ vectors[:, lengths > _MIN_SQUARED_LENGTH][:, ::-1][:, :m]
    return irls.basis_of_span(gradients, chosen)


def restrict(G: Any, relevant: Any) -> Any:
    """Project each gradient on the dimensions that its worker names as relevant: P_i g_i.

    Every function that accepts gradients accepts the result. In IRLS and flags, worker i then has
    v_i = ||Y^T P_i g_i||^2/||P_i g_i||^2. A worker without relevant coordinates has a zero gradient. d is 0 outside the
    dimensions that the workers name together.

    The paper (section 2.1) only says that workers "may specify dimensions along which gradient information is
    relevant". Two other readings are possible:

    - 1 - ||Y^T P_i g_i||^2/||g_i||^2, which weighs a worker by the relevant fraction of its gradient;
    - one restriction for all: Y within the span of all named dimensions.

    Args:
        G: Gradients, as for `fa.irls.solve`.
        relevant: As for `hints`; None leaves the worker's gradient unchanged.

    Returns:
        The projected gradients, in the form of G.

    Raises:
        ValueError: As for `hints`.

    Example:
        >>> import numpy as np
        >>> from fa import flags
        >>> G = np.array([[2.0, 1.0, 0.0], [2.0, -1.0, 0.0], [0.0, 0.0, 5.0]])
        >>> flags.restrict(G, [[0], [0, 1], None]).tolist()
        [[2.0, 0.0, 0.0], [2.0, -1.0, 0.0], [0.0, 0.0, 5.0]]
    """
    gradients, counts = read_groups(G)
    dimensions = _read(relevant, counts, gradients.G)
    parts = [_project(rows, part) for rows, part in zip(gradients.G.split(counts), dimensions, strict=True)]
    if isinstance(G, Tensor | np.ndarray):
        return gradients.restore(torch.cat(parts))
    return [gradients.restore(part if is_matrix(entry) else part[0]) for entry, part in zip(G, parts, strict=True)]


def _read(relevant: Any, counts: tuple[int, ...], G: Float[Tensor, "q n"]) -> list[Tensor | None]:
    """Return for each worker indices (k,), an orthonormal basis (n, k), or None."""
    listed = isinstance(relevant, Sequence) and not isinstance(relevant, str)
    check("relevant", type(relevant).__name__, listed, "a list with one entry a worker")
    check("the length of relevant", len(relevant), len(relevant) == len(counts), f"p = {len(counts)}")
    return [None if entry is None else _dimensions(f"relevant[{i}]", entry, G) for i, entry in enumerate(relevant)]


def _dimensions(name: str, entry: Any, G: Float[Tensor, "q n"]) -> Tensor:
    """Return sorted indices or an orthonormal basis for one entry, after checking it."""
    n = G.shape[1]
    check(name, entry, isinstance(entry, Tensor | np.ndarray | Sequence), "an array or a tensor")
    entries = to_tensor(entry, name).to(G.device)
    described = (tuple(entries.shape), str(entries.dtype).removeprefix("torch."))
    check(name, described, entries.numel() > 0, "not empty; None says that a worker names nothing")
    if entries.ndim == 1 and not (entries.is_floating_point() or entries.is_complex() or entries.dtype == torch.bool):
        entries = entries.long()  # Unsigned integers of torch have no comparisons.
        outside = entries[(entries < 0) | (entries >= n)]
        check(name, outside[:3].tolist(), not len(outside), f"of indices from 0 to n - 1 = {n - 1}")
        indices: Tensor = torch.unique(entries)
        return indices
    directions = entries.ndim == 2 and len(entries) == n and entries.is_floating_point()
    check(name, described, directions, f"indices, (k,) integers, or directions, ({n}, k) floating-point numbers")
    return _orthonormal(name, entries.double()).to(torch.promote_types(G.dtype, torch.float32))


def _orthonormal(name: str, directions: Float64[Tensor, "n k"]) -> Float64[Tensor, "n r"]:
    """Return a basis of the span; directions are scaled by their largest entries, so lengths do not matter."""
    largest = directions.abs().amax(dim=0)
    usable = torch.isfinite(largest) & (largest > 0)
    if not usable.all():
        found = f"NaN, Inf or only zeros in column {int(usable.int().argmin())}"
        raise ValueError(f"{name} must be finite and not 0 in each column, got {found}")
    basis, lengths, _ = torch.linalg.svd(directions / largest, full_matrices=False)
    spanning: Tensor = basis[:, lengths > _RANK * lengths[0]]
    return spanning


def _inside(rows: Float[Tensor, "q n"], dimensions: Tensor) -> Float[Tensor, "q k"]:
    """Return the rows' coordinates in the named dimensions."""
    return (
        torch.mm(rows.to(dimensions.dtype), dimensions)
        if dimensions.is_floating_point()
        else rows.index_select(1, dimensions)
    )


def _project(rows: Float[Tensor, "q n"], dimensions: Tensor | None) -> Float[Tensor, "q n"]:
    """Project the rows on the named dimensions."""
    if dimensions is None:
        return rows
    inside = _inside(rows, dimensions)
    if dimensions.is_floating_point():
        return torch.mm(inside, dimensions.T).to(rows.dtype)
    return torch.index_copy(torch.zeros_like(rows), 1, dimensions, inside)
