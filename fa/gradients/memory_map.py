"""Map gradients in files as one matrix G (p, n) without reading them into memory, and write a direction into a file.

Files are .npy, as numpy.save writes them, or .safetensors. The tensors of a .safetensors file form one gradient, in the
order of their data. The files of p workers are mapped at equal distances. They are then the rows of one matrix, and
every rule and solver runs on them as on memory.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import mmap
import os
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from fa.utils.files import new_file, write_atomically
from fa.utils.validation import check

_NPY = b"\x93NUMPY"
_SAFETENSORS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_NUMPY = {np.dtype(f"float{bits}"): getattr(torch, f"float{bits}") for bits in (16, 32, 64)}
_MAP_FIXED = 0x10  # Missing in module mmap, as is the next one.
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0x40

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """Position, type and shape of the coordinates in a file.

    Attributes:
        path: The file.
        offset: Position of the first coordinate, in bytes.
        dtype: Data type of the coordinates.
        shape: (n,) or (p, n).
        tensors: Shapes of the tensors of a .safetensors file by name, in the order of their data; None for .npy.
    """

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    tensors: Shapes | None = None

    @property
    def kind(self) -> str:
        """Return the number and type of the coordinates, for messages."""
        return f"{math.prod(self.shape)} numbers of {str(self.dtype).removeprefix('torch.')}"

    @property
    def bytes(self) -> int:
        """Return the size of the coordinates in bytes, without the header."""
        return math.prod(self.shape) * self.dtype.itemsize


def layout(path: Path) -> Layout:
    """Read the layout of a .npy or .safetensors file.

    Args:
        path: The file.

    Returns:
        The layout.

    Raises:
        ValueError: The file has another format, is truncated, or cannot be read; the message names it.
    """
    try:
        special = path.exists() and not path.is_file()
        check(str(path), "a folder, pipe or device", not special, "a regular file, which can be mapped")
        with path.open("rb") as file:
            npy = file.read(len(_NPY)) == _NPY
        found = _npy(path) if npy else _safetensors(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    check(str(path), found.shape, math.prod(found.shape) > 0, "of at least one number")
    return found


def _npy(path: Path) -> Layout:
    """Read the layout of a .npy file."""
    try:
        with np.errstate(over="ignore"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    # The file is truncated, contains a pickle, or has a shape of huge numbers or of other things than numbers.
    except (ValueError, EOFError, OverflowError, TypeError, MemoryError) as error:
        why = "it is cut short" if "mmap length" in str(error) else str(error)
        raise ValueError(f"{path} cannot be read: {why}") from error
    check(str(path), str(array.dtype), array.dtype in _NUMPY, "of float16, float32 or float64")
    check(str(path), "Fortran order", array.flags.c_contiguous, "in C order, one worker's numbers after another's")
    return Layout(path, array.offset, _NUMPY[array.dtype], array.shape)


def _safetensors(path: Path) -> Layout:
    """Read the layout of a .safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            kinds = {each.get_dtype() for each in slices.values()}
            tensors = {name: tuple(each.get_shape()) for name, each in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} must be a .npy or .safetensors file; it cannot be read: {error}") from error
    supported = len(kinds) == 1 and kinds <= _SAFETENSORS.keys()
    check(str(path), sorted(kinds), supported, f"of numbers of one of {', '.join(_SAFETENSORS)}")
    shapes = list(tensors.values())
    shape = shapes[0] if len(shapes) == 1 and len(shapes[0]) == 2 else (sum(map(math.prod, shapes)),)
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")  # Length of the header, which precedes the coordinates.
    return Layout(path, 8 + length, _SAFETENSORS[kinds.pop()], shape, tensors)


def open_gradients(files: Sequence[Path]) -> tuple[Tensor, Layout]:
    """Map gradients in files as one matrix.

    Writing to G changes memory only, not the files. The files must not be truncated while G exists.

    Args:
        files: One file (p, n), or one file (n,) per worker.

    Returns:
        G (p, n), and the layout of the first file.

    Raises:
        ValueError: The files do not hold gradients of one length and dtype.
    """
    layouts = [layout(path) for path in files]
    if len(layouts) > 1:  # The only layer of a worker may be a matrix.
        layouts = [replace(each, shape=(math.prod(each.shape),)) if each.tensors else each for each in layouts]
    first = layouts[0]
    if len(layouts) == 1 and len(first.shape) == 2:
        return _matrix([first], first.shape), first
    for other in layouts:
        name, many = str(other.path), f"(n,), one gradient, as one of {len(files)} files"
        check(name, other.shape, len(other.shape) == 1, f"of shape {many if len(files) > 1 else '(p, n) or (n,)'}")
        same = (other.shape, other.dtype) == (first.shape, first.dtype)
        check(name, other.kind, same, f"of {first.kind}, as {first.path} is")
        named = _names(other.tensors) == _names(first.tensors)
        check(name, "others, or another order", named, f"of the tensors of {first.path} in their order")
    return _matrix(layouts, (len(layouts), *first.shape)), first


def _names(tensors: Shapes | None) -> list[tuple[str, tuple[int, ...]]]:
    """Return the names and shapes of a file's tensors in order; [] for one tensor, whose name does not matter."""
    return list(tensors.items()) if tensors is not None and len(tensors) > 1 else []


def _matrix(layouts: list[Layout], shape: tuple[int, ...]) -> Tensor:
    """Map the files at equal distances, as a matrix (p, n)."""
    page = mmap.ALLOCATIONGRANULARITY
    first = layouts[0]
    for other in layouts:  # Files are mapped by pages, so rows need equal offsets within a page.
        if (other.offset - first.offset) % page or other.offset % other.dtype.itemsize:
            return _copied(layouts).view(shape)
    starts = [each.offset - each.offset % page for each in layouts]
    begins = first.offset % page
    distance = -(-(begins + first.bytes) // page) * page
    memory = _mapped([each.path for each in layouts], starts, begins + first.bytes, distance)
    stride = shape[1] if len(layouts) == 1 else distance // first.dtype.itemsize
    return _as(memory, begins, first.dtype, shape, stride)


def _copied(layouts: list[Layout]) -> Tensor:
    """Read files whose headers differ in length, as metadata make them, into memory; (number of files, n)."""
    G = torch.empty(len(layouts), math.prod(layouts[0].shape), dtype=layouts[0].dtype, device="cpu")
    for row, each in zip(G, layouts, strict=True):
        row.view(torch.uint8).numpy()[:] = np.memmap(each.path, np.uint8, "r", each.offset, each.bytes)
    return G


def read_state_dicts(files: Sequence[Path]) -> list[dict[str, Tensor]]:
    """Read .safetensors files whose tensors have several dtypes, such as a state dict with counts, into memory.

    Args:
        files: One file per worker.

    Returns:
        A state dict per worker; [] if a file is not such a file, and must be mapped.
    """
    several = []
    for path in files:
        with suppress(OSError, SafetensorError), safe_open(path, "pt") as file:
            several.append(len({file.get_slice(name).get_dtype() for name in file.offset_keys()}) > 1)
    if len(files) < 2 or len(several) < len(files) or not any(several):
        return []
    return [load_file(path) for path in files]


def write_state_dict(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a state dict as .safetensors.

    Args:
        path: File to create.
        tensors: Tensors by name.

    Raises:
        ValueError: Another suffix, or the file cannot be written.
    """
    check("the name of the result", str(path), path.suffix == ".safetensors", "one in .safetensors")
    try:
        write_atomically(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from error


def _as(memory: Any, begins: int, dtype: torch.dtype, shape: tuple[int, ...], stride: int) -> Tensor:
    """View a buffer as a matrix, from byte `begins` on, with `stride` coordinates between rows."""
    flat = torch.frombuffer(memory, dtype=dtype, offset=begins, count=(shape[0] - 1) * stride + shape[1])
    return flat.as_strided(shape, (stride, 1))


def _mapped(paths: list[Path], starts: list[int], length: int, distance: int) -> Any:
    """Map file i, from byte starts_i on, at i * distance of one buffer; Python's mmap cannot choose the address."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    total = distance * len(paths)
    access = mmap.PROT_READ | mmap.PROT_WRITE  # MAP_PRIVATE copies a page when it is written to.

    def place(address: int | None, size: int, flags: int, descriptor: int, start: int) -> int:
        found: int = libc.mmap(address, size, access, mmap.MAP_PRIVATE | _MAP_NORESERVE | flags, descriptor, start)
        if found in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), f"the files cannot be mapped: {os.strerror(ctypes.get_errno())}")
        return found

    base = place(None, total, mmap.MAP_ANONYMOUS, -1, 0)
    memory = (ctypes.c_char * total).from_address(base)
    weakref.finalize(memory, libc.munmap, base, total).atexit = False  # At exit, a thread may still read it.
    for i, (path, start) in enumerate(zip(paths, starts, strict=True)):
        with path.open("rb") as file:
            place(base + i * distance, length, _MAP_FIXED, file.fileno(), start)
    return memory


@contextmanager
def create_output(path: Path, like: Layout, n: int) -> Iterator[Tensor]:
    """Yield a direction that becomes a file when the block ends without an error.

    The disk space is reserved first, so that the disk cannot become full later. If the block fails, no file remains.

    Args:
        path: File to create, .npy or .safetensors.
        like: Layout of the gradients, for the dtype and, in .safetensors, the tensors.
        n: Number of coordinates.

    Yields:
        d (n,), mapped to the file.

    Raises:
        ValueError: Another suffix, a dtype that the format does not have, a folder that is not writable, or a full
            disk.
    """
    head = _head(path, like, n)
    check("the name of the result", str(path), not path.is_dir(), "that of a file; there is a folder of that name")
    size = len(head) + n * like.dtype.itemsize
    try:
        with new_file(path) as unfinished:
            _reserve(unfinished, head, size)
            numbers = np.memmap(unfinished, np.uint8, "r+", offset=len(head))
            yield torch.from_numpy(numbers).view(like.dtype)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        raise ValueError(f"{path} cannot be written{f' ({size} bytes)' if full else ''}: {error.strerror}") from error


def _reserve(path: Path, head: bytes, size: int) -> None:
    """Create the file with its header, and reserve `size` bytes on the disk."""
    with path.open("wb") as file:
        file.write(head)
        file.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _head(path: Path, like: Layout, n: int) -> bytes:
    """Return the file's header."""
    check("the name of the result", str(path), path.suffix in (".npy", ".safetensors"), "one in .npy or .safetensors")
    if path.suffix == ".npy":
        supported = like.dtype in _NUMPY.values()
        check("the name of the result", str(path), supported, "one in .safetensors, as .npy has no bfloat16")
        dtype = next(dtype for dtype, kind in _NUMPY.items() if kind == like.dtype)
        file = BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": (n,)})
        return file.getvalue()
    code = next(code for code, dtype in _SAFETENSORS.items() if dtype == like.dtype)
    shapes = like.tensors if like.tensors and len(like.shape) == 1 else {"d": (n,)}
    ends = list(accumulate((math.prod(shape) * like.dtype.itemsize for shape in shapes.values()), initial=0))
    header = {
        name: {"dtype": code, "shape": shape, "data_offsets": span}
        for (name, shape), span in zip(shapes.items(), pairwise(ends), strict=True)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
