"""The border: whatever a caller holds gradients in becomes one matrix G (p, n), one worker a row, and goes back as it
came.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Gradients:
    """The gradient matrix G (p, n), and `restore`, which gives a direction (n,) the shape, dtype and kind the
    gradients had.
    """

    G: Tensor
    restore: Callable[[Tensor], Any]


def read(G: Any) -> Gradients:
    """The gradients of p workers as a matrix, its rows contiguous; no copy where they are one already.

    G is a (p, n) torch tensor or numpy array, or a sequence with one entry a worker: a vector, a list of per-layer
    tensors, or a state dict. float16, bfloat16, float32 or float64.

    Raises ValueError that names what was wrong: no worker, no coordinate, workers of unequal shape, integer or
    complex numbers.
    """
    if isinstance(G, Tensor):
        return Gradients(_matrix(G), lambda d: d)
    if isinstance(G, np.ndarray):
        return Gradients(_matrix(_tensor(G, "G")), lambda d: d.numpy())
    if isinstance(G, Sequence) and not isinstance(G, str):
        return _read_workers(G)
    raise ValueError(
        f"G must be a (p, n) array or tensor, or a sequence with one entry a worker; it is a {type(G).__name__}"
    )


def _matrix(G: Tensor) -> Tensor:
    _check_dtype(G.dtype, "G")
    if G.layout != torch.strided:
        raise ValueError(f"G must be dense; its layout is {G.layout}: call .to_dense()")
    if G.ndim != 2:
        raise ValueError(f"G must have 2 dimensions, (workers, parameters); its shape is {tuple(G.shape)}")
    if 0 in G.shape:
        raise ValueError(f"G must hold at least one worker and one parameter; its shape is {tuple(G.shape)}")
    return by_rows(G.detach())


def by_rows(G: Tensor) -> Tensor:
    """G, with the numbers of a row one after another and no row within another, as the compiled loops read it."""
    return G if G.stride(1) == 1 and G.stride(0) >= G.shape[1] else G.contiguous()


def _tensor(values: Any, name: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    if array.dtype.kind == "O" and array is not values:
        raise ValueError(f"{name} must be an array or a tensor, got {_described(values)}")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ValueError(
            f"{name} must be of float16, float32 or float64 (or bfloat16, as a tensor); its dtype is {array.dtype}"
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if any(stride < 0 for stride in array.strides):
        array = array.copy()  # np.ascontiguousarray would leave the stride of a dimension of one as it is
    with warnings.catch_warnings():  # a read-only memory map is never written to here
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)


def _described(values: Any) -> str:
    """What is no array, and what to do about it where that is plain."""
    if values is None:
        return "None, as is the gradient of a parameter that has none"
    if isinstance(values, Iterator):
        return f"a {type(values).__name__}: give a list of what comes from it"
    return f"a {type(values).__name__} of objects" if isinstance(values, Sequence) else f"a {type(values).__name__}"


def _check_dtype(dtype: torch.dtype, name: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(
            f"{name} must be of float16, bfloat16, float32 or float64; its dtype is {str(dtype).removeprefix('torch.')}"
        )


def read_groups(G: Any) -> tuple[Gradients, tuple[int, ...]]:
    """As `read`, where a worker may also hold k_i gradients, (k_i, n): all of them as rows, and the k_i.

    Raises ValueError as `read` does.
    """
    if not isinstance(G, Sequence) or not any(is_matrix(entry) for entry in G):
        gradients = read(G)
        return gradients, (1,) * gradients.G.shape[0]
    groups = [_tensor(entry, f"worker {i}") for i, entry in enumerate(G)]
    rows = [_matrix(group[None] if group.ndim == 1 else group) for group in groups]
    for worker, group in enumerate(rows):
        _check_same(worker, "number of parameters,", rows[0].shape[1], group.shape[1])
        _check_same(worker, "dtype,", rows[0].dtype, group.dtype)
    restore = _same if isinstance(G[0], Tensor) else Tensor.numpy
    return Gradients(torch.cat(rows), restore), tuple(len(group) for group in rows)


def check_finite(finite: Sequence[bool], counts: Sequence[int]) -> None:
    """Raises ValueError that names the rows that are not finite; of a worker with several, which of its gradients."""
    places = [(worker, k) for worker, count in enumerate(counts) for k in range(count)]
    bad = [place for place, whole in zip(places, finite, strict=True) if not whole]
    if not bad:
        return
    where = f"row {', '.join(str(worker) for worker, _ in bad)}"
    if len(counts) < len(places):
        where = ", ".join(f"gradient {k} of worker {worker}" for worker, k in bad)
    raise ValueError(f"G must be finite; NaN or Inf is in {where}: leave it out")


def is_matrix(entry: Any) -> bool:
    """Whether a worker's entry holds several gradients, (k_i, n), for `read_groups`."""
    return isinstance(entry, Tensor | np.ndarray) and entry.ndim == 2


def _same(d: Tensor) -> Tensor:
    return d


def _check_same(worker: int, what: str, first: object, other: object) -> None:
    if other != first:
        raise ValueError(f"worker {worker} must have worker 0's {what} {first}, got {other}")


def _read_workers(workers: Sequence[Any]) -> Gradients:
    """One entry a worker, whose layers become one row of a new matrix.

    The whole numbers among a mapping's entries, such as the batch counts of a state dict, are no coordinates: each
    comes back as the median over the workers.
    """
    if not workers:
        raise ValueError("G must hold at least one worker; it is an empty sequence")
    entries = [_tensors(entry, i) for i, entry in enumerate(workers)]
    counts = {name for name, tensor in entries[0].items() if isinstance(workers[0], Mapping) and _is_count(tensor)}
    for worker, entry in enumerate(entries):
        _check_alike(entries[0], entry, worker)
        for name, tensor in entry.items():
            if name not in counts:
                _check_dtype(tensor.dtype, f"worker {worker}, entry {name!r}")
    layers = {name: tensor for name, tensor in entries[0].items() if name not in counts}
    n = sum(layer.numel() for layer in layers.values())
    if n == 0:
        raise ValueError("worker 0 must have a parameter, of float16, bfloat16, float32 or float64; it has none")
    dtype = reduce(torch.promote_types, (layer.dtype for layer in layers.values()))
    G = torch.empty(len(workers), n, dtype=dtype, device=next(iter(layers.values())).device)
    for row, entry in zip(G, entries, strict=True):
        for piece, name in zip(row.split([layer.numel() for layer in layers.values()]), layers, strict=True):
            piece.copy_(entry[name].reshape(-1))
    medians = {name: torch.stack([entry[name] for entry in entries]).median(dim=0).values for name in counts}
    return Gradients(G, lambda d: _like(workers[0], layers, medians, d))


def _entries(entry: Any) -> tuple[dict[Any, Any], Callable[[dict[Any, Any]], Any]]:
    """One worker's tensors by name, or by position, and how to make such an entry of new ones; a plain vector is its
    one tensor.
    """
    if isinstance(entry, Mapping):
        return dict(entry), dict
    if isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) > 0 and not np.isscalar(entry[0]):
        return dict(enumerate(entry)), lambda layers: list(layers.values())
    return {0: entry}, lambda layers: layers[0]


def _tensors(entry: Any, worker: int) -> dict[Any, Tensor]:
    items, _ = _entries(entry)
    return {
        name: value.detach() if isinstance(value, Tensor) else _tensor(value, f"worker {worker}, entry {name!r}")
        for name, value in items.items()
    }


def _is_count(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _check_alike(first: dict[Any, Tensor], other: dict[Any, Tensor], worker: int) -> None:
    _check_same(worker, "entries", list(first), list(other))
    for name, tensor in first.items():
        _check_same(worker, f"entry {name!r} of shape", tuple(tensor.shape), tuple(other[name].shape))
        _check_same(worker, f"entry {name!r} of dtype", tensor.dtype, other[name].dtype)
        _check_same(worker, f"entry {name!r} on device", tensor.device, other[name].device)


def _like(entry: Any, layers: dict[Any, Tensor], medians: dict[Any, Tensor], d: Tensor) -> Any:
    """The direction d (n,) in the shape of one worker's entry, dtype by dtype, arrays where it has arrays."""
    items, pack = _entries(entry)
    pieces = dict(zip(layers, d.split([layer.numel() for layer in layers.values()]), strict=True))
    shaped: dict[Any, Any] = {}
    for name, given in items.items():
        tensor = medians[name] if name in medians else pieces[name].view(layers[name].shape).to(layers[name].dtype)
        shaped[name] = tensor if isinstance(given, Tensor) else tensor.numpy()
    return pack(shaped)
