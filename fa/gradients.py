"""The border: whatever a caller holds gradients in becomes one matrix G (p, n), one worker a row, and goes back as it
came.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    G = G.detach()
    return G if G.stride(1) == 1 and G.stride(0) >= G.shape[1] else G.contiguous()


def _tensor(values: Any, name: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ValueError(
            f"{name} must be of float16, float32 or float64 (or bfloat16, as a tensor); its dtype is {array.dtype}"
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():  # a read-only memory map is never written to here
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)


def _check_dtype(dtype: torch.dtype, name: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(
            f"{name} must be of float16, bfloat16, float32 or float64; its dtype is {str(dtype).removeprefix('torch.')}"
        )


def _read_workers(workers: Sequence[Any]) -> Gradients:
    """One entry a worker: its layers are flattened into one row of a new matrix."""
    if not workers:
        raise ValueError("G must hold at least one worker; it is an empty sequence")
    first = _layers(workers[0], 0)
    for worker, entry in enumerate(workers[1:], start=1):
        _check_alike(first, _layers(entry, worker), worker)
    rows = [torch.cat([layer.reshape(-1) for layer in _layers(entry, i).values()]) for i, entry in enumerate(workers)]
    return Gradients(_matrix(torch.stack(rows)), lambda d: _like(workers[0], first, d))


def _entries(entry: Any) -> tuple[dict[Any, Any], Callable[[dict[Any, Any]], Any]]:
    """One worker's tensors by name, or by position, and how to make such an entry of new ones; a plain vector is its
    one tensor.
    """
    if isinstance(entry, Mapping):
        return dict(entry), dict
    if isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) > 0 and not np.isscalar(entry[0]):
        return dict(enumerate(entry)), lambda layers: list(layers.values())
    return {0: entry}, lambda layers: layers[0]


def _layers(entry: Any, worker: int) -> dict[Any, Tensor]:
    items, _ = _entries(entry)
    layers = {name: _tensor(value, f"worker {worker}, entry {name!r}") for name, value in items.items()}
    for name, layer in layers.items():
        _check_dtype(layer.dtype, f"worker {worker}, entry {name!r}")
    if sum(layer.numel() for layer in layers.values()) == 0:
        raise ValueError(f"worker {worker} holds no parameter: an entry of G must have at least one")
    return layers


def _check_alike(first: dict[Any, Tensor], other: dict[Any, Tensor], worker: int) -> None:
    shapes, theirs = ({name: tuple(layer.shape) for name, layer in layers.items()} for layers in (first, other))
    if list(shapes) != list(theirs):
        raise ValueError(f"worker {worker} must have worker 0's entries {list(shapes)}; it has {list(theirs)}")
    for name, shape in shapes.items():
        if theirs[name] != shape:
            raise ValueError(
                f"worker {worker}, entry {name!r}, must have worker 0's shape {shape}; its shape is {theirs[name]}"
            )


def _like(entry: Any, layers: dict[Any, Tensor], d: Tensor) -> Any:
    """The direction d (n,) in the shape of one worker's entry, dtype by dtype, arrays where it has arrays."""
    items, pack = _entries(entry)
    shaped: dict[Any, Any] = {}
    for (name, layer), piece in zip(
        layers.items(), torch.split(d, [layer.numel() for layer in layers.values()]), strict=True
    ):
        tensor = piece.view(layer.shape).to(layer.dtype)
        shaped[name] = tensor if isinstance(items[name], Tensor) else tensor.numpy()
    return pack(shaped)
