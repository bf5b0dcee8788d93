"""Passes over a gradient matrix on a CUDA device, by Triton's kernels.

torch brings Triton for CUDA on Linux. Tests run the kernels in Triton's interpreter, and compile them for the compute
capabilities 8.0 and 9.0; on a GPU they are compared with `torch_fallback`. Tested with Triton 3.8.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from fa.kernels import torch_fallback, triton_kernels
from fa.kernels.sorting_network import sorting_network

Result = TypeVar("Result")

HALF = (torch.float16, torch.bfloat16)
"""Types of half precision."""

MOST_ROWS, MOST_SORTED = 64, 32
"""Numbers of rows of the Gram matrix, and of sorted rows, beyond which `torch_fallback` computes them.

A thread's registers hold no more rows. More sorted rows would also take 20 seconds to compile.
"""

_GRAM_WIDTH, _SUM_WIDTH = 128, 1024  # Numbers of columns that a program processes at a time.
_SORT_WIDTHS = ((16, 512), (MOST_SORTED, 256))  # The same by the greatest number of sorted rows.
_GRAM_PROGRAMS = 1024  # Number of partial Gram matrices, whatever the device, so that K does not depend on it.
_ENTRIES = 1 << 26  # Number of entries of the rows that are mixed at a time.


def _on_its_device(one_pass: Callable[..., Result]) -> Callable[..., Result]:
    """Make G's device the current one during a pass, where kernels are launched."""

    @wraps(one_pass)
    def run(G: Tensor, *arguments: Any) -> Result:
        with torch.cuda.device_of(G):
            return one_pass(G, *arguments)

    return run


@_on_its_device
def gram(G: Tensor) -> Tensor:
    """Compute K = G G^T; products and sums are float64.

    Args:
        G: Matrix (p, n) with contiguous rows.

    Returns:
        K (p, p), float64.
    """
    p, n = G.shape
    if p > MOST_ROWS or G.dtype in HALF:  # Triton 3.8 cannot compile products of halves as float64.
        return torch_fallback.gram(G)
    size = max(16, triton.next_power_of_2(p))  # Both sides of a product on tensor cores have 16 rows or more.
    programs = min(_GRAM_PROGRAMS, triton.cdiv(n, _GRAM_WIDTH))
    parts = torch.empty(programs, size, size, dtype=torch.float64, device=G.device)
    warps = 1 if size == 16 else 4
    triton_kernels.gram[(programs,)](
        G, G.stride(0), p, n, parts, P=size, WIDTH=_GRAM_WIDTH * 16 // size, num_warps=warps
    )
    return parts.sum(dim=0)[:p, :p]


@_on_its_device
def combine(G: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the weighted sum of rows; products and sums are float64.

    Args:
        G: Matrix (p, n) with contiguous rows.
        weights: Weights (p,) float64, on the CPU; rows of weight 0 are not read.

    Returns:
        The sum (n,), in G's dtype, and which rows that were read hold NaN or Inf, (p,) bool.
    """
    n = G.shape[1]
    rows = weights.nonzero().flatten()
    indices, factors = rows.to(G.device), weights[rows].to(G.device)
    d, not_finite = torch.empty(n, dtype=G.dtype, device=G.device), _flag(G)
    narrow = tl.float64 if G.dtype == torch.float64 else tl.float32
    triton_kernels.combine[(triton.cdiv(n, _SUM_WIDTH),)](
        G, G.stride(0), n, indices, factors, len(rows), d, not_finite, NARROW=narrow, WIDTH=_SUM_WIDTH
    )
    return d, _rows_not_finite(G, rows, not_finite)


@_on_its_device
def order_statistic(G: Tensor, R: Tensor, first: int, stop: int, nearest: int) -> tuple[Tensor, Tensor]:
    """Compute a statistic of each coordinate; see `fa.kernels.order_statistic`.

    Args:
        G: Matrix (p, n) with contiguous rows.
        R: Factors (p, q) float64, on the CPU. `torch_fallback` computes more than `MOST_SORTED` columns.
        first: First sorted value of the centre.
        stop: Index after the last one.
        nearest: 0 for the centre, else the number of values nearest the centre.

    Returns:
        The statistic (n,), in G's dtype, and which rows that were read hold NaN or Inf, (p,) bool.
    """
    if R.shape[1] > MOST_SORTED:
        return torch_fallback.order_statistic(G, R, first, stop, nearest)
    d, not_finite = torch.empty(G.shape[1], dtype=G.dtype, device=G.device), _flag(G)
    rows = torch.nonzero(R.any(dim=1)).flatten()
    if torch_fallback.is_selection(R):
        _launch_order(G, R.argmax(dim=0), d, not_finite, first, stop, nearest)
        return d, _rows_not_finite(G, rows, not_finite)
    indices, factors = rows.to(G.device), R[rows].T.to(G.device)
    width = max(1, _ENTRIES // max(1, len(rows)))
    for left in range(0, G.shape[1], width):
        values = factors @ G[indices, left : left + width].double()
        values = values.to(torch.promote_types(G.dtype, torch.float32))
        _launch_order(values, torch.arange(len(values)), d[left : left + width], not_finite, first, stop, nearest)
    return d, _rows_not_finite(G, rows, not_finite)


def _launch_order(G: Tensor, rows: Tensor, d: Tensor, not_finite: Tensor, first: int, stop: int, nearest: int) -> None:
    """Write the statistic of these rows of G to d."""
    q, n = len(rows), G.shape[1]
    width = next(width for most, width in _SORT_WIDTHS if q <= most)
    settings = {
        "NETWORK": tuple(sorting_network(q).ravel().tolist()),
        "WIDE": tl.float64 if G.dtype == torch.float64 else tl.float32,
        "WIDTH": width,
    }
    triton_kernels.order_statistic[(triton.cdiv(n, width),)](
        G, G.stride(0), n, rows.to(G.device), d, not_finite, q=q, first=first, stop=stop, nearest=nearest, **settings
    )


def _flag(G: Tensor) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=G.device)


def _rows_not_finite(G: Tensor, rows: Tensor, found: Tensor) -> Tensor:
    """Return which rows that were read hold NaN or Inf; without a further pass if the kernel has seen none."""
    not_finite = torch.zeros(G.shape[0], dtype=torch.bool, device=G.device)
    if found.item():
        for row in rows.tolist():
            not_finite[row] = ~torch.isfinite(G[row]).all()
    return not_finite
