"""Errors of too little memory, which Python, torch and CUDA raise as different classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_PHRASES = (
    "allocate memory",  # torch, and the C library
    "out of memory",  # CUDA
    "bad_alloc",
    "could not create a memory",  # oneDNN
    "could not create a primitive",
    "failed to map segment",  # the dynamic linker
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for an error of too little memory, whichever library raised it.

    Args:
        error: The error.
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | ImportError) and any(phrase in str(error).lower() for phrase in _PHRASES)


@contextmanager
def attribute_out_of_memory(name: str, value: object, cure: str) -> Iterator[None]:
    """Raise a ValueError that names an argument if memory does not suffice in the block.

    Args:
        name: Name of the argument.
        value: Its value.
        cure: Sentence that describes a cure, with its full stop.

    Raises:
        ValueError: Memory does not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(f"{name} must be small enough for the memory, got {value!r}. {cure}") from error
