"""Gradients as integers, for hardware without floating point: what they lose, and their Gram matrix in integers alone.

A number is a mantissa of b bits, from -L to L with L = 2^(b-1) - 1, times the step that it shares with its block of
coordinates. "integer" (int8, int4 and so on) takes for the step the block's largest number over L, one float a block;
"block_float" (block floating point) the next power of two, one exponent a block. Nearest rounding is off by half a
step at the most; stochastic rounding by less than one, and by nothing on average.

The Gram matrix then needs products, sums and shifts of integers only, so a switch can hold it: float is what the p x p
result is turned into.

Source: the paper, section 4 ("quantization approaches for SVD calculation with some accuracy loss"), and its reference
62, Song et al., Computation error analysis of block floating point arithmetic, AAAI 2018.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int, Shaped
from torch import Tensor

from fa import irls, objective
from fa.gradients import check_finite, read
from fa.gradients.gram import Gram
from fa.utils.validation import check, check_integer, check_one_of

KINDS = ("integer", "block_float")
ROUNDINGS = ("nearest", "stochastic")


@dataclass(frozen=True)
class Format:
    """How numbers are sent: mantissas of 2 to 16 bits, and one step for each `block` coordinates (None: all of them).

    `shared` steps are those of the worker with the largest number, as sums of mantissas inside a network need; others
    are each worker's own. Raises ValueError for what does not exist.
    """

    kind: str = "integer"
    bits: int = 8
    block: int | None = None
    rounding: str = "nearest"
    shared: bool = False

    def __post_init__(self) -> None:
        check_one_of("kind", self.kind, KINDS)
        _largest(self.bits)
        if self.block is not None:
            check_integer("block", self.block, 1)
        check_one_of("rounding", self.rounding, ROUNDINGS)


@dataclass(frozen=True)
class Quantised:
    """Gradients as they go over the wire: integer `mantissas` (p, n), int8 or int16, of `width` bits each, and float64
    `steps` (p, blocks), 0 for a block of zeros, of `step_bits` bits each.
    """

    mantissas: Int[Tensor, "p n"]
    steps: Float64[Tensor, "p blocks"]
    block: int
    width: int
    step_bits: int

    @property
    def bits(self) -> float:
        """Bits a coordinate, the steps' included."""
        p, n = self.mantissas.shape
        return self.width + self.step_bits * self.steps.shape[1] / n

    def dequantise(self) -> Float64[Tensor, "p n"]:
        """The numbers that the mantissas stand for, on their device."""
        steps = self.steps.repeat_interleave(self.block, dim=1)
        return self.mantissas * steps[:, : self.mantissas.shape[1]]


@dataclass(frozen=True)
class IntegerGram:
    """<g_i, g_j> = integers_ij steps_i steps_j, exactly: `integers` (p, p), int64 or, where that is too narrow,
    Python's own. Registers of `width` bits, sign included, hold every partial sum.
    """

    integers: Shaped[np.ndarray, "p p"]
    steps: Float64[np.ndarray, " p"]
    width: int

    @property
    def gram(self) -> Gram:
        """What a rule decides by, and `irls.solve_gram` takes; the first and only arithmetic in float."""
        halves = np.array([int(square).bit_length() // 2 for square in np.diag(self.integers)])
        powers = np.array([[1 << int(i + j) for j in halves] for i in halves], dtype=object)
        fractions, exponents = np.frexp(self.steps)
        K = (self.integers.astype(object) / powers).astype(np.float64) * np.outer(fractions, fractions)
        return Gram.from_inner_products(K, (exponents + halves).astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class Effect(Format):
    """What FA makes of gradients in this format, beside what it makes of the gradients themselves.

    `wire_bits` a coordinate. `direction_error` is ||d_q - d||/||d|| and `cosine` that of d_q and d; `decision_error` is
    the first one again where the weights, found from quantised gradients, are applied to the gradients themselves.
    `value_error` is the largest |v_i| apart, `objective_rise` by how much eq. 5, of the gradients themselves, is larger
    at the subspace found, `weights_error` the relative error of the p weights.
    """

    wire_bits: float
    direction_error: float
    cosine: float
    decision_error: float
    value_error: float
    objective_rise: float
    weights_error: float


def quantise(G: Any, format: Format, seed: int | torch.Generator = 0) -> Quantised:
    """The gradients G (p, n), or what `fa.aggregate` takes, in this format; on their device.

    Stochastic rounding draws from the generator, or from one with this seed. A step is a float32 number or power of
    two, of float64 gradients a float64 one, and never below the smallest normal number of that type. Raises ValueError
    for rows with NaN or Inf.
    """
    matrix = read(G).G
    p, n = matrix.shape
    block = min(format.block or n, n)
    largest = _largest(format.bits)
    double = matrix.dtype == torch.float64
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    highest = torch.stack([_blocks(row, block).abs().amax(dim=1) for row in matrix])
    check_finite(torch.isfinite(highest).all(dim=1).tolist(), (1,) * p)
    if format.shared:
        highest = highest.amax(dim=0).expand(p, -1)
    steps = _steps(highest, format.kind, largest, double)
    mantissas = torch.empty(p, n, dtype=torch.int8 if format.bits <= 8 else torch.int16, device=matrix.device)
    for i, row in enumerate(matrix):
        ratios = _blocks(row, block) / torch.where(steps[i] > 0, steps[i], 1.0)[:, None]
        rounded = ratios.round() if format.rounding == "nearest" else _either_way(ratios, generator)
        mantissas[i] = rounded.clamp(-largest, largest).view(-1)[:n]
    step_bits = {"integer": (32, 64), "block_float": (8, 11)}[format.kind][double]
    return Quantised(mantissas, steps, block, format.bits, step_bits)


def longest_chunk(bits: int) -> int:
    """The most products of two mantissas that int32 holds for certain: C (2^(b-1) - 1)^2 < 2^31."""
    return (2**31 - 1) // _largest(bits) ** 2


def integer_gram(quantised: Quantised, chunk: int | None = None) -> IntegerGram:
    """K in integers: chunks of columns (default: as long as can be) into int32 sums, which are shifted by their blocks'
    exponents and added up over the chunks; on the CPU.

    With S the most bits that a row's exponents lie apart, no sum exceeds n L^2 4^S. Raises ValueError for a chunk that
    int32 may not hold, and for rows with several steps that are not powers of two apart.
    """
    longest = longest_chunk(quantised.width)
    chunk = longest if chunk is None else chunk
    check_integer("chunk", chunk, 1)
    check("chunk", chunk, chunk <= longest, f"at most {longest} for mantissas of {quantised.width} bits")
    mantissas = quantised.mantissas.cpu().numpy()
    p, n = mantissas.shape
    shifts, steps = _shifts(quantised.steps.cpu().numpy())
    bound = n * _largest(quantised.width) ** 2 << 2 * int(shifts.max())
    width = bound.bit_length() + 1
    register: type = np.int64 if width <= 64 else object
    integers: np.ndarray = np.zeros((p, p), register)
    for number, start in enumerate(range(0, n, quantised.block)):
        within = mantissas[:, start : start + quantised.block].astype(np.int32)
        shift = np.add.outer(shifts[:, number], shifts[:, number]).astype(register)
        for first in range(0, within.shape[1], chunk):
            piece = within[:, first : first + chunk]
            integers += (piece @ piece.T).astype(register) << shift
    return IntegerGram(integers, steps, width)


def switch_bytes(p: int, bits: int, chunk: int, register: int = 64) -> int:
    """The memory of `integer_gram`: p(p + 1)/2 sums over a chunk (int32) and in all (`register` bits), and p chunks of
    mantissas, which wait for the last worker's.
    """
    pairs = p * (p + 1) // 2
    return pairs * 4 + -(-pairs * register // 8) + -(-p * chunk * bits // 8)


def effects(
    G: Any,
    formats: Sequence[Format],
    options: irls.Options = irls.DEFAULTS,
    formulation: irls.Formulation = "paper",
    seed: int = 0,
) -> list[Effect]:
    """What each format does to FA's direction, decision, values and objective on the gradients G (p, n).

    d is `irls.Solution.direction(formulation)`; relative to a d of 0, errors are NaN or infinite. Raises ValueError as
    `quantise` and `irls.solve` do, and where a format makes all of G 0.
    """
    matrix = read(G).G.double()
    exact = irls.solve(matrix, **asdict(options))
    weights = torch.from_numpy(exact.weights(formulation)).to(matrix.device)
    return [_effect(matrix, exact, weights, format, options, formulation, seed) for format in formats]


def _effect(
    G: Float64[Tensor, "p n"],
    exact: irls.Solution,
    weights: Float64[Tensor, " p"],
    format: Format,
    options: irls.Options,
    formulation: irls.Formulation,
    seed: int,
) -> Effect:
    quantised = quantise(G, format, seed)
    Q = quantised.dequantise()
    check("G", "0 throughout in this format", bool(Q.any()), "of numbers that the format keeps apart from 0")
    found = irls.solve(Q, **asdict(options))
    applied = torch.from_numpy(found.weights(formulation)).to(G.device)
    Y = torch.linalg.qr(Q.T @ torch.from_numpy(found.coefficients).to(G.device))[0]
    d, d_q = weights @ G, applied @ Q
    return Effect(
        **asdict(format),
        wire_bits=quantised.bits,
        direction_error=_relative(d_q, d),
        cosine=float(F.normalize(d_q / d_q.abs().max(), dim=0) @ F.normalize(d / d.abs().max(), dim=0)),
        decision_error=_relative(applied @ G, d),
        value_error=float(np.abs(found.values - exact.values).max()),
        objective_rise=objective.value(G, Y, options.lam, options.regularizer, options.a) - exact.objective,
        weights_error=_relative(applied, weights),
    )


def _relative(found: Float64[Tensor, " k"], exact: Float64[Tensor, " k"]) -> float:
    largest = exact.abs().max()  # whose square may leave the range
    return float(((found - exact) / largest).norm() / (exact / largest).norm())


def _largest(bits: int) -> int:
    """L, the largest mantissa of this many bits."""
    check_integer("bits", bits, 2)
    check("bits", bits, bits <= 16, "at most 16")
    return (1 << int(bits) - 1) - 1


def _blocks(row: Float[Tensor, " n"], block: int) -> Float64[Tensor, "blocks block"]:
    """In float64, the last one filled up with zeros."""
    return F.pad(row.double(), (0, -len(row) % block)).view(-1, block)


def _steps(highest: Float64[Tensor, "p blocks"], kind: str, largest: int, double: bool) -> Float64[Tensor, "p blocks"]:
    """The steps, rounded up, so that no mantissa exceeds the largest."""
    least = highest / largest
    if kind == "block_float":
        fraction, _ = torch.frexp(least)
        steps = torch.where(fraction == 0.5, least, least / fraction).clamp(max=2.0**1023)
    elif double:
        steps = least
    else:
        near = least.float()
        steps = torch.where(near < least, near.nextafter(near.new_tensor(torch.inf)), near).double()
    tiny = torch.finfo(torch.float64 if double else torch.float32).tiny
    return torch.where(highest > 0, steps.clamp(min=tiny), 0.0)


def _either_way(ratios: Float64[Tensor, "blocks block"], generator: torch.Generator) -> Float64[Tensor, "blocks block"]:
    """Up with the probability that makes the mean right; drawn where the generator is, alike for every device."""
    draws = torch.rand(ratios.shape, generator=generator, dtype=torch.float64, device=generator.device)
    whole = ratios.floor()
    return whole + (draws.to(ratios.device) < ratios - whole)


def _shifts(steps: Float64[np.ndarray, "p blocks"]) -> tuple[Int[np.ndarray, "p blocks"], Float64[np.ndarray, " p"]]:
    """By how many bits each block's step is above the row's smallest (0 for a block of zeros), and that step."""
    fractions, exponents = np.frexp(steps)
    used = steps > 0
    fraction = fractions.max(axis=1, keepdims=True)
    if not (fractions == fraction)[used].all():
        raise ValueError('the steps of a row must be powers of two apart: take kind="block_float" or one block a row')
    lowest = np.where(used, exponents, np.iinfo(exponents.dtype).max).min(axis=1, keepdims=True)
    lowest = np.where(used.any(axis=1, keepdims=True), lowest, 0)
    return np.where(used, exponents - lowest, 0), np.ldexp(fraction, lowest)[:, 0]
