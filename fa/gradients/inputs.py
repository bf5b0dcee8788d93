"""Convert callers' gradients to one matrix G (p, n), one worker per row, and directions back to the callers' format."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fa.utils.validation import check

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Data types of gradients."""

Infinities = list[tuple[Tensor, float]]
"""Coordinates at which most workers have the same infinity, and that infinity."""


@dataclass(frozen=True)
class Gradients:
    """The gradient matrix, and the way back to the caller's format.

    Attributes:
        G: Gradients (p, n), with contiguous rows.
        restore: Function that gives a direction (n,) the shape, dtype and kind of the caller's gradients.
        is_array: True if the caller's gradients are numpy's.
    """

    G: Tensor
    restore: Callable[[Tensor], Any]
    is_array: bool = False


def read(G: Any) -> Gradients:
    """Read the gradients of p workers as a matrix with contiguous rows, without a copy if they already are one.

    Args:
        G: Torch tensor or numpy array (p, n), or a sequence with one entry per worker. An entry is a vector, a list of
            per-layer tensors, or a state dict. The dtype is float16, bfloat16, float32 or float64.

    Returns:
        The matrix, and the function that restores the caller's format.

    Raises:
        ValueError: No worker, no coordinate, workers of unequal shape, or integer or complex entries.
    """
    if isinstance(G, Tensor):
        return Gradients(_matrix(G), _same)
    if isinstance(G, np.ndarray):
        return Gradients(_matrix(_tensor(G, "G")), Tensor.numpy, is_array=True)
    if isinstance(G, Sequence) and not isinstance(G, str):
        return _read_workers(G)
    requirement = "a (p, n) array or tensor, or a sequence with one entry a worker"
    raise ValueError(f"G must be {requirement}, got a {type(G).__name__}")


def _matrix(G: Tensor, name: str = "G", rows: str = "worker") -> Tensor:
    """Check a matrix (p, n), and return it with contiguous rows."""
    _check_dtype(G.dtype, name)
    _check_dense(G, name)
    check(name, tuple(G.shape), G.ndim == 2, f"of 2 dimensions, ({rows}s, parameters)")
    check(name, tuple(G.shape), 0 not in G.shape, f"of at least one {rows} and one parameter")
    return by_rows(G.detach())


def _check_dense(tensor: Tensor, name: str) -> None:
    """Raise ValueError for a sparse tensor, such as an embedding's gradient with sparse=True, or one without values."""
    check(name, tensor.layout, tensor.layout == torch.strided, "dense", "Call .to_dense().")
    check(name, "a nested tensor", not tensor.is_nested, "a tensor or a list of tensors", "Call .unbind().")
    check(name, "a meta tensor", not tensor.is_meta, "a tensor with values")


def by_rows(G: Tensor) -> Tensor:
    """Return G in a layout that the compiled loops read: contiguous rows that do not overlap.

    Args:
        G: Matrix (p, n); it is copied only if its layout differs.

    Returns:
        G itself or a copy.
    """
    return G if G.stride(1) == 1 and G.stride(0) >= G.shape[1] else G.contiguous()


def _tensor(values: Any, name: str) -> Tensor:
    """Convert gradients to a tensor, as `to_tensor` does."""
    if not isinstance(values, Tensor):
        values = _array(values, name)
        if values.dtype.kind != "f" or values.dtype.itemsize > 8:
            requirement = "of float16, float32 or float64 (or bfloat16, as a tensor)"
            raise ValueError(f"{name} must be {requirement}; its dtype is {values.dtype}")
    return to_tensor(values, name)


def _array(values: Any, name: str) -> np.ndarray:
    """Convert values to an array, without a copy if they are one."""
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name} must have no mask, which would be lost. Call .filled() with the values to use")
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):  # such as tensors of several shapes, or with a graph
        raise ValueError(f"{name} must be an array or a tensor, got {_described(values)}") from None
    if array.dtype.kind == "O" and array is not values:
        raise ValueError(f"{name} must be an array or a tensor, got {_described(values)}")
    return array


def to_tensor(values: Any, name: str) -> Tensor:
    """Convert numbers to a tensor, without a copy if torch supports their strides and byte order.

    Args:
        values: A tensor, which loses its graph, an array, or a list of numbers.
        name: Name of the argument, for messages.

    Returns:
        The tensor, which may share memory with `values`.

    Raises:
        ValueError: They are not numbers, have a mask, or are of a dtype that torch lacks.
    """
    if isinstance(values, Tensor):
        return values.detach()
    array = _array(values, name)
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > (16 if array.dtype.kind == "c" else 8):
        raise ValueError(f"{name} must be an array of numbers that torch has a dtype for, got {values!r}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if any(stride < 0 for stride in array.strides):
        array = array.copy()  # np.ascontiguousarray keeps the negative stride of a dimension of size 1.
    with warnings.catch_warnings():  # Read-only memory maps are allowed: nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)


def to_real_tensor(values: Any, name: str) -> Tensor:
    """Convert real numbers to a dense tensor, as `to_tensor` does.

    Args:
        values: As for `to_tensor`.
        name: Name of the argument, for messages.

    Returns:
        The tensor, which may share memory with `values`.

    Raises:
        ValueError: As for `to_tensor`, or they are complex or a sparse tensor.
    """
    tensor = to_tensor(values, name)
    check(name, tensor.dtype, not tensor.is_complex(), "of real numbers")
    _check_dense(tensor, name)
    return tensor


def _described(values: Any) -> str:
    """Describe a value that is not an array, with a cure if one is obvious."""
    if values is None:
        return "None, as is the gradient of a parameter that has none"
    if isinstance(values, Iterator):
        return f"a {type(values).__name__}: give a list of what comes from it"
    return f"a {type(values).__name__} of objects" if isinstance(values, Sequence) else f"a {type(values).__name__}"


def _check_dtype(dtype: torch.dtype, name: str) -> None:
    """Raise ValueError unless the dtype is one of `DTYPES`."""
    check(name, dtype, dtype in DTYPES, "of float16, bfloat16, float32 or float64")


def read_groups(G: Any) -> tuple[Gradients, tuple[int, ...]]:
    """Read gradients as `read` does, where a worker may also hold several.

    Args:
        G: Gradients as for `read`, or a sequence with vectors (n,) and matrices (k_i, n).

    Returns:
        All gradients as rows, and the number k_i of gradients of each worker.

    Raises:
        ValueError: As for `read`.
    """
    if not isinstance(G, Sequence) or not any(is_matrix(entry) for entry in G):
        gradients = read(G)
        return gradients, (1,) * gradients.G.shape[0]
    groups = [_tensor(entry, f"worker {i}") for i, entry in enumerate(G)]
    matrices = [group[None] if group.ndim == 1 else group for group in groups]
    rows = [_matrix(matrix, f"worker {i}", "gradient") for i, matrix in enumerate(matrices)]
    for worker, group in enumerate(rows):
        _check_same(worker, "the number of parameters", rows[0].shape[1], group.shape[1])
        _check_same(worker, "the dtype", rows[0].dtype, group.dtype)
    is_array = not isinstance(G[0], Tensor)
    gradients = Gradients(torch.cat(rows), Tensor.numpy if is_array else _same, is_array)
    return gradients, tuple(len(group) for group in rows)


def check_finite(finite: Sequence[bool], counts: Sequence[int]) -> None:
    """Check that all rows are finite.

    Args:
        finite: Whether each row is finite, in the order of the rows.
        counts: Number of rows of each worker.

    Raises:
        ValueError: Rows are not finite; the message names them, and for a worker with several rows the gradient.
    """
    places = [(worker, k) for worker, count in enumerate(counts) for k in range(count)]
    bad = [place for place, is_finite in zip(places, finite, strict=True) if not is_finite]
    if not bad:
        return
    where = f"row {', '.join(str(worker) for worker, _ in bad)}"
    if len(counts) < len(places):
        where = ", ".join(f"gradient {k} of worker {worker}" for worker, k in bad)
    beyond = "a norm above 2^1004 or 2^1000 times the median norm"
    raise ValueError(f"G must be finite, got NaN, Inf or {beyond} in {where}. Remove these gradients.")


def is_matrix(entry: Any) -> bool:
    """Return True if a worker's entry for `read_groups` holds several gradients, (k_i, n).

    Args:
        entry: Entry of one worker.

    Returns:
        True for a tensor or array with two dimensions.
    """
    return isinstance(entry, Tensor | np.ndarray) and entry.ndim == 2


def _same(d: Tensor) -> Tensor:
    """Return the argument."""
    return d


def _check_same(worker: int, what: str, first: object, other: object) -> None:
    """Raise ValueError unless a worker has the same property as worker 0."""
    check(f"worker {worker}", other, other == first, f"like worker 0, with {what} {first}")


def _read_workers(workers: Sequence[Any]) -> Gradients:
    """Read one entry per worker, with its layers as one row of a new matrix.

    In a mapping, integers, masks and batch norm's running statistics are not coordinates. `restore` returns their
    median over the workers. Infinities that more than half of the workers share, as in an attention mask, stay.
    """
    check("G", workers, len(workers) > 0, "a sequence that is not empty")
    entries = [_tensors(entry, i) for i, entry in enumerate(workers)]
    state_dict = isinstance(workers[0], Mapping)
    states = {name for name, tensor in entries[0].items() if state_dict and _is_state(name, tensor)}
    for worker, entry in enumerate(entries):
        for name, tensor in entry.items():
            _check_dense(tensor, f"worker {worker}, entry {name!r}")
        _check_alike(entries[0], entry, worker)
        for name, tensor in entry.items():
            if name not in states:
                _check_dtype(tensor.dtype, f"worker {worker}, entry {name!r}")
    layers = {name: tensor for name, tensor in entries[0].items() if name not in states}
    n = sum(layer.numel() for layer in layers.values())
    if n == 0:
        raise ValueError("worker 0 must have a parameter, of float16, bfloat16, float32 or float64; it has none")
    dtype = reduce(torch.promote_types, (layer.dtype for layer in layers.values()))
    G = torch.empty(len(workers), n, dtype=dtype, device=next(iter(layers.values())).device)
    for row, entry in zip(G, entries, strict=True):
        for piece, name in zip(row.split([layer.numel() for layer in layers.values()]), layers, strict=True):
            piece.copy_(entry[name].reshape(-1))
    medians = {name: lower_median([entry[name] for entry in entries]) for name in states}
    shared = _remove_shared_infinities(G) if state_dict else []
    if state_dict:
        _check_one_finite(G, layers)
    is_array = not isinstance(_entries(workers[0])[0][next(iter(layers))], Tensor)
    return Gradients(G, partial(_like, workers[0], layers, medians, shared), is_array)


def _entries(entry: Any) -> tuple[dict[Any, Any], Callable[[dict[Any, Any]], Any]]:
    """Return one worker's tensors by name or position, and a function that builds such an entry from new tensors.

    A plain vector is the only tensor of its entry.
    """
    if isinstance(entry, Mapping):
        return dict(entry), dict
    if isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) > 0 and not np.isscalar(entry[0]):
        return dict(enumerate(entry)), lambda layers: list(layers.values())
    return {0: entry}, lambda layers: layers[0]


def _tensors(entry: Any, worker: int) -> dict[Any, Tensor]:
    """Return one worker's tensors by name or position. A state dict also has integers and masks."""
    items, _ = _entries(entry)
    convert = to_tensor if isinstance(entry, Mapping) else _tensor
    return {name: convert(value, f"worker {worker}, entry {name!r}") for name, value in items.items()}


def _is_state(name: Any, tensor: Tensor) -> bool:
    """Return True for integers and masks, and for batch norm's running statistics.

    A rule may extrapolate, and a variance must not become negative.
    """
    statistics = str(name).rpartition(".")[2] in ("running_mean", "running_var")
    return statistics or not (tensor.is_floating_point() or tensor.is_complex())


def lower_median(tensors: Sequence[Tensor]) -> Tensor:
    """Compute the lower median of each entry.

    Args:
        tensors: Tensors of one shape, dtype and device, at least one. NaN counts as the largest number.

    Returns:
        A new tensor of this shape, dtype and device.

    Example:
        >>> lower_median([torch.tensor([1, 5]), torch.tensor([2, 4])])
        tensor([1, 4])
    """
    first = tensors[0]
    # numpy sorts every dtype except bfloat16, and NaN last.
    wide = [(tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy() for tensor in tensors]
    middle = np.array(np.sort(np.stack(wide), axis=0)[(len(tensors) - 1) // 2])  # A copy, without the other tensors.
    return torch.from_numpy(middle).to(first.device, first.dtype)


def _remove_shared_infinities(G: Tensor) -> Infinities:
    """Set the coordinates of G at which most workers have the same infinity to 0.

    Returns:
        The coordinates, and the infinity at them.
    """
    infinite = reduce(torch.logical_or, (torch.isinf(row) for row in G))
    places = torch.nonzero(infinite).flatten()
    columns = G[:, places]
    shared = [(places[2 * (columns == value).sum(dim=0) > len(G)], value) for value in (-torch.inf, torch.inf)]
    for indices, _ in shared:
        G[:, indices] = 0.0
    return shared


def _check_one_finite(G: Tensor, layers: dict[Any, Tensor]) -> None:
    """Raise ValueError, with the entry's name, if the same entry is not finite for all workers."""
    for name, piece in zip(layers, G.split([layer.numel() for layer in layers.values()], dim=1), strict=True):
        finite = any(bool(torch.isfinite(row).all()) for row in piece)
        if not finite:
            raise ValueError(f"entry {name!r} must be finite for at least one worker; all have NaN or Inf there")


def _check_alike(first: dict[Any, Tensor], other: dict[Any, Tensor], worker: int) -> None:
    """Raise ValueError unless two entries have tensors of the same names, shapes, dtypes and devices."""
    _check_same(worker, "the entries", list(first), list(other))
    for name, tensor in first.items():
        _check_same(worker, f"the shape of entry {name!r}", tuple(tensor.shape), tuple(other[name].shape))
        _check_same(worker, f"the dtype of entry {name!r}", tensor.dtype, other[name].dtype)
        _check_same(worker, f"the device of entry {name!r}", tensor.device, other[name].device)


def _like(entry: Any, layers: dict[Any, Tensor], medians: dict[Any, Tensor], shared: Infinities, d: Tensor) -> Any:
    """Give the direction d (n,) the form of one worker's entry, with its dtypes, arrays and shared infinities."""
    if shared:
        d = d.clone()
    for indices, value in shared:
        d[indices] = value
    items, pack = _entries(entry)
    pieces = dict(zip(layers, d.split([layer.numel() for layer in layers.values()]), strict=True))
    shaped: dict[Any, Any] = {}
    for name, given in items.items():
        layer = layers.get(name)
        tensor = medians[name] if layer is None else pieces[name].view(layer.shape).to(layer.device, layer.dtype)
        shaped[name] = tensor if isinstance(given, Tensor) else tensor.numpy()
    return pack(shaped)
