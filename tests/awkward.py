"""Gradients as no one should hold them, but someone will: odd dtypes, layouts, sizes and values, for hypothesis."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

DIGITS = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 1e-5, "float64": 1e-11}

REFUSED = (  # dtypes that no gradient has
    np.bool_, np.int8, np.uint16, np.int64, np.complex64, np.complex128, np.longdouble, object, "U4", "datetime64[s]",
)  # fmt: skip

LARGE = {"float16": 6e4, "bfloat16": 3e38, "float32": 3e38, "float64": 1e300}
SUBNORMAL = {"float16": 6e-8, "bfloat16": 1e-40, "float32": 1e-44, "float64": 1e-320}


@dataclass(frozen=True)
class Awkward:
    """`G`, as it is handed over, and what it holds in float64 (p, n)."""

    G: Any
    values: np.ndarray
    dtype: str
    kinds: tuple[str, ...]

    @property
    def digits(self) -> float:
        """What a result may be off by, of the largest number that it is made of."""
        return DIGITS[self.dtype]

    @property
    def finite(self) -> np.ndarray:
        """Which rows are."""
        return np.isfinite(self.values).all(axis=1)


def _overlapping(G: np.ndarray) -> np.ndarray:
    """Rows that share memory: row i + 1 begins one number after row i."""
    line = np.concatenate([G[0], G[1:, -1]])
    return np.lib.stride_tricks.sliding_window_view(line, G.shape[1])


def _frozen(G: np.ndarray) -> np.ndarray:
    G = G.copy()
    G.flags.writeable = False
    return G


ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda G: G,
    "Fortran": np.asfortranarray,
    "backwards": lambda G: np.ascontiguousarray(G[::-1, ::-1])[::-1, ::-1],
    "last row first": lambda G: np.ascontiguousarray(G[::-1])[::-1],
    "last number first": lambda G: np.ascontiguousarray(G[:, ::-1])[:, ::-1],
    "every third": lambda G: np.repeat(G, 3, axis=1)[:, ::3],
    "every other row": lambda G: np.repeat(G, 2, axis=0)[::2],
    "read-only": _frozen,
    "other byte order": lambda G: G.astype(G.dtype.newbyteorder()),
    "one row for all": lambda G: np.broadcast_to(G[0], G.shape),
    "overlapping": _overlapping,
}
TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda G: G,
    "transposed": lambda G: G.T.contiguous().T,
    "every third": lambda G: G.repeat_interleave(3, dim=1)[:, ::3],
    "within a wider one": lambda G: torch.cat([G, G], dim=1)[:, : G.shape[1]],
    "one row for all": lambda G: G[:1].expand(G.shape),
    "overlapping": lambda G: torch.cat([G[0], G[1:, -1]]).unfold(0, G.shape[1], 1),
    "with a gradient": lambda G: G.clone().requires_grad_(),
}


def _spoil(G: np.ndarray, kind: str, row: int, dtype: str) -> None:
    other = (row + 1) % len(G)
    if kind == "equal rows":
        G[other] = G[row]
    elif kind == "near rows":
        G[other] = G[row] * (1 + 1e-12)
    elif kind == "opposite rows":
        G[other] = -G[row]
    elif kind == "zero row":
        G[row] = 0.0
    elif kind == "all zero":
        G[:] = 0.0
    elif kind == "negative zeros":
        G[row] = -0.0
    elif kind == "subnormal row":
        G[row] *= SUBNORMAL[dtype]
    elif kind == "large row":
        G[row] *= LARGE[dtype] / max(np.abs(G[row]).max(), 1e-300)
    elif kind == "all large":
        G *= (LARGE[dtype] / np.maximum(np.abs(G).max(axis=1), 1e-300))[:, None]
    elif kind == "1e38":
        G[row] = np.minimum(1e38, LARGE[dtype])
    else:
        G[row, row % G.shape[1]] = {"NaN": np.nan, "Inf": np.inf, "-Inf": -np.inf}[kind]


NOT_FINITE = ("NaN", "Inf", "-Inf")
KINDS = (
    "equal rows", "near rows", "opposite rows", "zero row", "all zero", "negative zeros", "subnormal row", "large row",
    "all large", "1e38",
)  # fmt: skip


@st.composite
def gradients(draw: st.DrawFn, least: int = 1, most: int = 12, kinds: tuple[str, ...] = KINDS + NOT_FINITE) -> Awkward:
    """p from `least` to `most` rows of 1 to 40 numbers, spoilt in up to three ways, in any layout and dtype."""
    p = draw(st.integers(least, most))
    n = draw(st.sampled_from([1, 2, 3, 7, 40]))
    dtype = draw(st.sampled_from(sorted(DIGITS)))
    G = np.random.default_rng(draw(st.integers(0, 1000))).standard_normal((p, n))
    spoilt = draw(st.lists(st.sampled_from(kinds), max_size=3))
    with np.errstate(all="ignore"):
        for kind in spoilt:
            _spoil(G, kind, draw(st.integers(0, p - 1)), dtype)
    limit = LARGE[dtype] * 1.09
    tensor = torch.from_numpy(np.where(np.isfinite(G), np.clip(G, -limit, limit), G)).to(getattr(torch, dtype))
    if dtype != "bfloat16" and draw(st.booleans()):
        laid: Any = ARRAYS[draw(st.sampled_from(sorted(ARRAYS)))](tensor.numpy())
        values = laid.astype(np.float64)
    else:
        laid = TENSORS[draw(st.sampled_from(sorted(TENSORS)))](tensor)
        values = laid.detach().double().numpy().copy()
    return Awkward(laid, values, dtype, tuple(spoilt))


def snapshot(G: Any) -> bytes:
    """Its values, bit for bit."""
    return (G.detach().double().numpy() if isinstance(G, torch.Tensor) else G).tobytes()
