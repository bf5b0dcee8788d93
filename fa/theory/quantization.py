"""Quantized gradients, for hardware without floating point: the loss of accuracy, and an integer Gram matrix.

A coordinate is an integer mantissa times a step. The mantissa has b bits and lies in [-L, L], with L = 2^(b-1) - 1.
The coordinates of a block share one step:

- "integer" (int8, int4 and so on): the block's largest magnitude divided by L, one float per block.
- "block_float" (block floating point): the next power of two, one exponent per block.

The error of nearest rounding is at most half a step. That of stochastic rounding is less than one step, and 0 on
average.

The integer Gram matrix needs only products, sums and shifts of integers, so a switch can compute it. Only the final
p x p result is converted to float.

Source: the paper, section 4 ("quantization approaches for SVD calculation with some accuracy loss"). Its reference 62
is Song et al., Computation error analysis of block floating point arithmetic, AAAI 2018.
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
"""Kinds of steps."""
ROUNDINGS = ("nearest", "stochastic")
"""Names of the roundings."""


@dataclass(frozen=True)
class Format:
    """A number format for gradients.

    Attributes:
        kind: "integer" (default) or "block_float".
        bits: Bits of a mantissa, 2 to 16; default 8.
        block: Number of coordinates that share a step; default None, all of them.
        rounding: "nearest" (default) or "stochastic".
        shared: True if all workers use the largest worker's steps, as sums inside a network need; default False.

    Raises:
        ValueError: A value is out of range.
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
        check("shared", self.shared, isinstance(self.shared, bool), "True or False")


@dataclass(frozen=True)
class Quantized:
    """Quantized gradients, as they are sent.

    Attributes:
        mantissas: Integer mantissas (p, n), int8 or int16.
        steps: Steps (p, blocks), float64; 0 for a block of zeros.
        block: Number of coordinates in a block.
        width: Bits of a mantissa.
        step_bits: Bits of a step.
    """

    mantissas: Int[Tensor, "p n"]
    steps: Float64[Tensor, "p blocks"]
    block: int
    width: int
    step_bits: int

    @property
    def bits(self) -> float:
        """Bits per coordinate, steps included."""
        p, n = self.mantissas.shape
        return self.width + self.step_bits * self.steps.shape[1] / n

    def dequantize(self) -> Float64[Tensor, "p n"]:
        """Return mantissas times steps, float64 (p, n), on the same device."""
        steps = self.steps.repeat_interleave(self.block, dim=1)
        return self.mantissas * steps[:, : self.mantissas.shape[1]]


@dataclass(frozen=True)
class IntegerGram:
    """An exact Gram matrix in integers: <g_i, g_j> = integers_ij steps_i steps_j.

    Attributes:
        integers: Integers (p, p), int64, or Python integers if int64 is too narrow.
        steps: Steps (p,), float64.
        width: Register width that holds every partial sum, in bits, sign included.
    """

    integers: Shaped[np.ndarray, "p p"]
    steps: Float64[np.ndarray, " p"]
    width: int

    @property
    def gram(self) -> Gram:
        """The Gram matrix that rules and `fa.irls.solve_gram` use. This is the only floating-point arithmetic."""
        halves = np.array([int(square).bit_length() // 2 for square in np.diag(self.integers)])
        powers = np.array([[1 << int(i + j) for j in halves] for i in halves], dtype=object)
        fractions, exponents = np.frexp(self.steps)
        K = (self.integers.astype(object) / powers).astype(np.float64) * np.outer(fractions, fractions)
        return Gram.from_inner_products(K, (exponents + halves).astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class Effect(Format):
    """Effect of a format on FA, compared with FA on the original gradients. Fields of `Format` are included.

    Attributes:
        wire_bits: Bits per coordinate, steps included.
        direction_error: Relative error of the direction, ||d_q - d||/||d||.
        cosine: Cosine of d_q and d.
        decision_error: Relative error of the direction if the weights are applied to the original gradients.
        value_error: Largest error of an explained variance `v_i`, in absolute value.
        objective_rise: Increase of eq. 5 of the original gradients at the subspace of the quantized ones.
        weights_error: Relative error of the p weights.
    """

    wire_bits: float
    direction_error: float
    cosine: float
    decision_error: float
    value_error: float
    objective_rise: float
    weights_error: float


def quantize(G: Any, format: Format, seed: int | torch.Generator = 0) -> Quantized:
    """Quantize gradients.

    Steps are float32 numbers or powers of two (float64 for float64 gradients). They are never below the smallest
    normal number of that type.

    Args:
        G: Gradients (p, n), or another input of `fa.aggregate`.
        format: The number format.
        seed: Seed or generator of the stochastic rounding; default 0.

    Returns:
        The quantized gradients, on the gradients' device.

    Raises:
        ValueError: A gradient contains NaN or Inf.
    """
    matrix = read(G).G
    if not isinstance(seed, torch.Generator):
        check_integer("seed", seed, 0)
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
    return Quantized(mantissas, steps, block, format.bits, step_bits)


def longest_chunk(bits: int) -> int:
    """Return the largest number C of mantissa products that int32 can sum: C (2^(b-1) - 1)^2 < 2^31.

    Args:
        bits: Bits b of a mantissa, 2 to 16.

    Returns:
        The number of products.

    Raises:
        ValueError: `bits` is out of range.
    """
    return (2**31 - 1) // _largest(bits) ** 2


def integer_gram(quantized: Quantized, chunk: int | None = None) -> IntegerGram:
    """Compute the Gram matrix of quantized gradients in integers, on the CPU.

    Chunks of columns are summed in int32. The sums are shifted by the blocks' exponents and added up. If the exponents
    of a row differ by at most S bits, no sum exceeds n L^2 4^S.

    Args:
        quantized: The quantized gradients.
        chunk: Number of columns in a chunk; default None, `longest_chunk`.

    Returns:
        The integers, the steps and the register width.

    Raises:
        ValueError: The chunk is too long for int32, or a row's steps differ by a factor that is not a power of two.
    """
    longest = longest_chunk(quantized.width)
    chunk = longest if chunk is None else chunk
    check_integer("chunk", chunk, 1)
    check("chunk", chunk, chunk <= longest, f"at most {longest} for mantissas of {quantized.width} bits")
    mantissas = quantized.mantissas.cpu().numpy()
    p, n = mantissas.shape
    shifts, steps = _shifts(quantized.steps.cpu().numpy())
    bound = n * _largest(quantized.width) ** 2 << 2 * int(shifts.max())
    width = bound.bit_length() + 1
    register: type = np.int64 if width <= 64 else object
    integers: np.ndarray = np.zeros((p, p), register)
    for number, start in enumerate(range(0, n, quantized.block)):
        within = mantissas[:, start : start + quantized.block].astype(np.int32)
        shift = np.add.outer(shifts[:, number], shifts[:, number]).astype(register)
        for first in range(0, within.shape[1], chunk):
            piece = within[:, first : first + chunk]
            integers += (piece @ piece.T).astype(register) << shift
    return IntegerGram(integers, steps, width)


def switch_bytes(p: int, bits: int, chunk: int, register: int = 64) -> int:
    """Return the memory that `integer_gram` needs on a switch, in bytes.

    It holds p(p + 1)/2 sums over a chunk (int32), as many totals, and p chunks of mantissas.

    Args:
        p: Number of workers.
        bits: Bits of a mantissa.
        chunk: Number of columns in a chunk.
        register: Bits of a total; default 64.

    Returns:
        The number of bytes.
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
    """Measure the effect of number formats on FA.

    d is `fa.irls.Solution.direction`. If d is 0, relative errors are NaN or infinite.

    Args:
        G: Gradients (p, n).
        formats: Number formats.
        options: Options of `fa.irls.solve`; default `fa.irls.DEFAULTS`.
        formulation: "paper" (default) or "released".
        seed: Seed of the stochastic rounding; default 0.

    Returns:
        One effect for each format.

    Raises:
        ValueError: Invalid gradients or options, or a format that turns all of G into 0.
    """
    matrix = read(G).G.double()
    exact = irls.solve(matrix, formulation=formulation, **asdict(options))
    least = _objective(matrix, exact.basis(matrix), options)
    return [_effect(matrix, exact, least, format, options, formulation, seed) for format in formats]


def _effect(
    G: Float64[Tensor, "p n"],
    exact: irls.Solution,
    least: float,
    format: Format,
    options: irls.Options,
    formulation: irls.Formulation,
    seed: int,
) -> Effect:
    """Measure the effect of one format; `least` is eq. 5 at the exact solution."""
    quantized = quantize(G, format, seed)
    Q = quantized.dequantize()
    if not Q.any():
        raise ValueError(f"G must be of numbers that {format} does not round to 0, got none")
    solution = irls.solve(Q, formulation=formulation, **asdict(options))
    weights, applied = (torch.from_numpy(each.weights(formulation)).to(G.device) for each in (exact, solution))
    d, d_q = weights @ G, applied @ Q
    return Effect(
        **asdict(format),
        wire_bits=quantized.bits,
        direction_error=_relative(d_q, d),
        cosine=float(F.normalize(d_q / d_q.abs().max(), dim=0) @ F.normalize(d / d.abs().max(), dim=0)),
        decision_error=_relative(applied @ G, d),
        value_error=float(np.abs(solution.values - exact.values).max()),
        objective_rise=_objective(G, solution.basis(Q), options) - least,
        weights_error=_relative(applied, weights),
    )


def _objective(G: Float64[Tensor, "p n"], Y: Float64[Tensor, "n m"], options: irls.Options) -> float:
    """Evaluate eq. 5 with the solver's options."""
    chosen = options.lam, options.regularizer, options.a, options.worker_weights, options.group_term
    return objective.value(G, Y, *chosen)


def _relative(approximate: Float64[Tensor, " k"], exact: Float64[Tensor, " k"]) -> float:
    """Return the relative error of a vector."""
    largest = exact.abs().max()  # The square of this number may overflow.
    return float(((approximate - exact) / largest).norm() / (exact / largest).norm())


def _largest(bits: int) -> int:
    """Return L, the largest mantissa."""
    check_integer("bits", bits, 2)
    check("bits", bits, bits <= 16, "at most 16")
    return (1 << int(bits) - 1) - 1


def _blocks(row: Float[Tensor, " n"], block: int) -> Float64[Tensor, "blocks block"]:
    """Return a row in float64, cut into blocks and padded with zeros."""
    return F.pad(row.double(), (0, -len(row) % block)).view(-1, block)


def _steps(highest: Float64[Tensor, "p blocks"], kind: str, largest: int, double: bool) -> Float64[Tensor, "p blocks"]:
    """Return the steps, rounded up so that no mantissa exceeds the largest."""
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
    """Round up or down at random with the right mean; the draws do not depend on the gradients' device."""
    draws = torch.rand(ratios.shape, generator=generator, dtype=torch.float64, device=generator.device)
    lower = ratios.floor()
    return lower + (draws.to(ratios.device) < ratios - lower)


def _shifts(steps: Float64[np.ndarray, "p blocks"]) -> tuple[Int[np.ndarray, "p blocks"], Float64[np.ndarray, " p"]]:
    """Return the bits by which each block's step exceeds the row's smallest (0 for a block of zeros), and that step."""
    fractions, exponents = np.frexp(steps)
    used = steps > 0
    fraction = fractions.max(axis=1, keepdims=True)
    if not (fractions == fraction)[used].all():
        cure = 'Use kind="block_float", or one block per row.'
        raise ValueError(f"the steps of a row must be powers of two apart, got others. {cure}")
    lowest = np.where(used, exponents, np.iinfo(exponents.dtype).max).min(axis=1, keepdims=True)
    lowest = np.where(used.any(axis=1, keepdims=True), lowest, 0)
    return np.where(used, exponents - lowest, 0), np.ldexp(fraction, lowest)[:, 0]
