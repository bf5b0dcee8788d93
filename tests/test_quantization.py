"""Quantizers against exact rational arithmetic and the variance of a coin, the integer K against Python's integers."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fa import irls
from fa.gradients.measurement import measure
from fa.theory.quantization import (
    KINDS,
    Format,
    Quantized,
    effects,
    integer_gram,
    longest_chunk,
    quantize,
    switch_bytes,
)
from tests.tensors import DEVICE, normal

KIND = pytest.mark.parametrize("kind", KINDS)
STOCHASTIC = "stochastic"


def steps_of(quantized: Quantized) -> torch.Tensor:
    """The step of each coordinate, (p, n)."""
    n = quantized.mantissas.shape[1]
    return quantized.steps.repeat_interleave(quantized.block, dim=1)[:, :n]


def integers_of(quantized: Quantized) -> list[list[int]]:
    """K over the product of the rows' smallest steps, in Python's integers, from the definition."""
    steps = [[Fraction(float(step)) for step in row] for row in steps_of(quantized)]
    lowest = [min((step for step in row if step), default=Fraction(1)) for row in steps]
    rows = [
        [int(m) * step / low for m, step in zip(mantissas.tolist(), row, strict=True)]
        for mantissas, row, low in zip(quantized.mantissas, steps, lowest, strict=True)
    ]
    return [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]


numbers = st.one_of(st.just(0.0), st.floats(-(2.0**100), 2.0**100, width=32), st.floats(-1, 1, width=32))
matrices = st.integers(1, 4).flatmap(
    lambda p: st.integers(1, 9).flatmap(
        lambda n: st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=p, max_size=p)
    )
)
formats = st.tuples(  # of what Format takes, which is made in the test: beartype draws from the global state
    st.sampled_from(KINDS),
    st.integers(2, 16),
    st.one_of(st.none(), st.integers(1, 10)),
    st.sampled_from(("nearest", STOCHASTIC)),
)


@given(matrices, formats, st.sampled_from((torch.float32, torch.float64, torch.bfloat16)))
def test_rounding_is_off_by_half_a_step_or_less_than_one(
    matrix: list[list[float]], settings: tuple[str, int, int | None, str], dtype: torch.dtype
) -> None:
    format = Format(*settings)
    G = torch.tensor(matrix, dtype=dtype, device=DEVICE)
    quantized = quantize(G, format)
    steps = steps_of(quantized)
    error = (quantized.dequantize() - G.double()).abs()
    bound = (0.5 if format.rounding == "nearest" else 1.0) * steps
    assert (error <= bound * (1 + 1e-9)).all()
    largest = 2 ** (format.bits - 1) - 1
    assert quantized.mantissas.abs().max() <= largest
    assert quantized.mantissas.dtype == (torch.int8 if format.bits <= 8 else torch.int16)
    for block, step in zip(G.double().split(quantized.block, dim=1), quantized.steps.T, strict=True):
        highest = block.abs().amax(dim=1)
        tiny = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).tiny
        assert (step[highest == 0] == 0).all()
        used = highest > 0
        needed = (highest / largest).clamp(min=tiny)[used]
        assert (step[used] >= needed * (1 - 1e-15)).all()
        slack = 2.0 if format.kind == "block_float" else 1 + 2e-7
        assert (step[used] <= needed * slack).all()
    if format.kind == "block_float":
        assert (torch.frexp(quantized.steps)[0][quantized.steps > 0] == 0.5).all()


@KIND
def test_stochastic_rounding_is_right_on_average(kind: str) -> None:
    """A number f of a step above a whole one is rounded up with probability f: the mean of N roundings has variance
    f(1 - f)/N, and is off by less than 5 of its standard deviations in all of 400 numbers.
    """
    draws, numbers = 2000, normal(400, seed=3, dtype=torch.float32)
    G = numbers.repeat(draws)[None]
    rounded = quantize(G, Format(kind, 4, None, STOCHASTIC), seed=8)
    mean = rounded.mantissas.view(draws, -1).double().mean(dim=0)
    ratios = numbers.double() / rounded.steps[0, 0]
    fraction = ratios - ratios.floor()
    sure = fraction * (1 - fraction) > 0.01  # where the coin falls often enough for the normal law
    z = ((mean - ratios) / (fraction * (1 - fraction) / draws).sqrt())[sure]
    assert sure.sum() > 350
    assert z.abs().max() < 5
    assert 0.8 < float(z.square().mean()) < 1.2
    nearest = quantize(G, Format(kind, 4)).mantissas.view(draws, -1).double().mean(dim=0)
    assert (nearest - ratios).abs().mean() > 0.1


@KIND
def test_a_seed_decides_and_the_global_state_does_not(kind: str) -> None:
    G = normal(3, 100)
    format = Format(kind, 5, 10, STOCHASTIC)
    first = quantize(G, format, seed=1).mantissas
    with torch.random.fork_rng():
        torch.manual_seed(5)
        assert torch.equal(first, quantize(G, format, seed=1).mantissas)
    assert torch.equal(first, quantize(G, format, torch.Generator().manual_seed(1)).mantissas)
    assert not torch.equal(first, quantize(G, format, seed=2).mantissas)


@KIND
@pytest.mark.parametrize("rounding", ["nearest", STOCHASTIC])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_numbers_that_the_format_holds_come_back(kind: str, rounding: str, dtype: torch.dtype) -> None:
    mantissas = torch.arange(-7, 8, dtype=torch.float64)
    G = torch.outer(torch.tensor([2.0**-99, 1.0, 2.0**99], dtype=torch.float64), mantissas).to(DEVICE, dtype)
    quantized = quantize(G, Format(kind, 4, None, rounding), seed=5)
    assert torch.equal(quantized.dequantize(), G.double())


def test_bits_on_the_wire() -> None:
    G = normal(2, 100, dtype=torch.float32)
    assert quantize(G, Format("integer", 4)).bits == 4 + 32 / 100
    assert quantize(G, Format("integer", 4, 30)).bits == 4 + 4 * 32 / 100
    assert quantize(G, Format("block_float", 8, 10)).bits == 8 + 10 * 8 / 100
    assert quantize(G.double(), Format("block_float", 8, 10)).bits == 8 + 10 * 11 / 100
    assert quantize(G.bfloat16(), Format("block_float", 8, 1000)).bits == 8 + 8 / 100


def test_one_huge_number_takes_the_bits_of_its_block_only() -> None:
    G = normal(1, 64, dtype=torch.float32)
    G[0, 0] = 1e30
    shared, own = (quantize(G, Format("block_float", 8, block)).dequantize() for block in (None, 16))
    assert (shared[0, 1:] == 0).all()
    assert (own[0, 1:16] == 0).all()
    assert ((own - G.double())[0, 16:].abs() < 0.05).all()


@KIND
def test_a_shared_step_is_the_largest_workers_and_adds_up_in_integers(kind: str) -> None:
    """What lies below half a step of a faulty worker's vanishes."""
    G = normal(4, 30, dtype=torch.float32)
    G[2] *= 1e4
    own, shared = (quantize(G, Format(kind, 8, 10, shared=together)) for together in (False, True))
    assert torch.equal(shared.steps, own.steps.amax(dim=0).expand(4, -1))
    assert torch.equal(shared.steps[0], own.steps[2])
    assert torch.equal(shared.mantissas[2], own.mantissas[2])
    assert not shared.mantissas[[0, 1, 3]].any()
    total = shared.mantissas.sum(dim=0) * shared.steps[0].repeat_interleave(10)
    assert torch.equal(total, shared.dequantize().sum(dim=0))


@given(matrices, formats, st.integers(1, 12))
def test_integer_gram_is_exact_whatever_the_chunk(
    matrix: list[list[float]], settings: tuple[str, int, int | None, str], chunk: int
) -> None:
    format = Format(*settings)
    quantized = quantize(torch.tensor(matrix, dtype=torch.float32, device=DEVICE), format)
    if format.kind == "integer" and quantized.steps.shape[1] > 1:
        return
    expected = integers_of(quantized)
    for length in (None, min(chunk, longest_chunk(format.bits))):
        found = integer_gram(quantized, length)
        assert found.integers.tolist() == expected
        assert max(abs(x) for row in expected for x in row) < 2 ** (found.width - 1)


@pytest.mark.parametrize("bits", [2, 8, 15, 16])
def test_the_longest_chunk_fits_and_one_more_may_not(bits: int) -> None:
    """Every mantissa the largest: the worst case there is."""
    largest, chunk = 2 ** (bits - 1) - 1, min(longest_chunk(bits), 200_000)
    assert chunk * largest**2 < 2**31
    assert longest_chunk(bits) == 2**31 - 1 or (longest_chunk(bits) + 1) * largest**2 >= 2**31
    G = torch.full((2, chunk + 1), float(largest), device=DEVICE)
    G[1] = -G[1]
    found = integer_gram(quantize(G, Format("block_float", bits)))
    square = (chunk + 1) * largest**2
    assert found.integers.tolist() == [[square, -square], [-square, square]]
    assert square.bit_length() + 1 == found.width


def test_sums_wider_than_64_bits_are_exact_too() -> None:
    """Exponents 2^120 apart: Python's integers take over, and the Gram matrix is the same as in float64."""
    G = normal(3, 40, dtype=torch.float32)
    G[:, 20:] *= 2.0**-120
    quantized = quantize(G, Format("block_float", 12, 20))
    found = integer_gram(quantized)
    assert found.width > 240
    assert found.integers.dtype == object
    assert found.integers.tolist() == integers_of(quantized)
    np.testing.assert_allclose(found.gram.cosines, measure(quantized.dequantize())[0].cosines, atol=1e-15)


@pytest.mark.parametrize(("kind", "block"), [("integer", None), ("block_float", 16), ("block_float", None)])
def test_what_a_switch_sums_decides_as_the_gradients_do(kind: str, block: int | None) -> None:
    """Gradients as small as 1e-30 and as large as 1e30 among them."""
    scale = torch.tensor([1.0, 1e30, 1e-30, 2.0, 3.0, 0.0], device=DEVICE, dtype=torch.float64)[:, None]
    G = ((normal(6, 200) + 0.5) * scale).float()
    quantized = quantize(G, Format(kind, 8, block))
    found = irls.solve_gram(integer_gram(quantized).gram)
    expected = irls.solve(quantized.dequantize())
    np.testing.assert_allclose(found.values, expected.values, atol=1e-9)
    np.testing.assert_allclose(found.gram.norms, expected.gram.norms, rtol=1e-12)
    np.testing.assert_allclose(found.weights("released"), expected.weights("released"), rtol=1e-7)


@KIND
def test_workers_may_come_in_any_order(kind: str) -> None:
    G, order = normal(5, 60), [3, 0, 4, 1, 2]
    format = Format(kind, 6, None)
    one, other = quantize(G, format), quantize(G[order], format)
    assert torch.equal(one.dequantize()[order], other.dequantize())
    assert (integer_gram(one).integers[np.ix_(order, order)] == integer_gram(other).integers).all()


def test_the_memory_of_a_switch() -> None:
    """15 workers: 120 pairs of 4 and 8 bytes, and 256 mantissas of 8, or of 4, bits from each."""
    assert switch_bytes(15, 8, 256) == 120 * 12 + 15 * 256
    assert switch_bytes(15, 4, 256, register=48) == 120 * 10 + 15 * 128


def test_effects_fade_as_bits_are_added() -> None:
    G = normal(7, 500, seed=2) + 0.3
    for kind in KINDS:
        few, some, many = effects(G, [Format(kind, bits, 50) for bits in (4, 8, 16)])
        for name in ("direction_error", "decision_error", "value_error", "weights_error"):
            assert getattr(few, name) > getattr(some, name) > getattr(many, name) > 0
        assert many.direction_error < 1e-3
        assert few.cosine < some.cosine <= 1 + 1e-12
        assert (few.wire_bits, few.bits, few.kind) == (quantize(G, Format(kind, 4, 50)).bits, 4, kind)


def test_effects_are_those_of_the_definitions() -> None:
    G = normal(5, 50, seed=4).double() + 0.2
    format = Format("integer", 3)
    (effect,) = effects(G, [format], irls.Options(m=2), "released")
    Q = quantize(G, format).dequantize()
    exact, found = irls.solve(G, m=2), irls.solve(Q, m=2)
    d, d_q = exact.direction("released"), found.direction("released")
    assert effect.direction_error == pytest.approx(float((d_q - d).norm() / d.norm()))
    assert effect.value_error == pytest.approx(np.abs(found.values - exact.values).max())
    left, _, _ = np.linalg.svd((Q.T.cpu().numpy() @ found.coefficients), full_matrices=False)
    unit = G.cpu().numpy() / np.linalg.norm(G.cpu().numpy(), axis=1, keepdims=True)
    eq5 = np.sqrt(1 - np.square(unit @ left).sum(axis=1)).sum()
    assert effect.objective_rise == pytest.approx(eq5 - exact.objective)


@pytest.mark.parametrize("options", [irls.Options(worker_weights=(1, 2, 3, 4, 5)), irls.Options(lam=7.0)])
@pytest.mark.parametrize("formulation", irls.FORMULATIONS)
def test_effects_have_the_solvers_options(options: irls.Options, formulation: irls.Formulation) -> None:
    G = normal(5, 50, seed=4).double() + 0.2
    (effect,) = effects(G, [Format("integer", 16)], options, formulation)
    assert abs(effect.objective_rise) < 1e-2


@KIND
def test_rows_that_are_not_finite_are_named(kind: str) -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        G = normal(3, 20)
        G[1, 7] = bad
        with pytest.raises(ValueError, match=r"^G must be .*\b1\b"):
            quantize(G, Format(kind))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "int"}, r"^kind must be .*\binteger, block_float\b.*'int'"),
        ({"bits": 1}, r"^bits must be .*\b2\b.*\b1\b"),
        ({"bits": 17}, r"^bits must be .*\b16\b.*\b17\b"),
        ({"block": 0}, r"^block must be .*\b1\b.*\b0\b"),
        ({"rounding": "up"}, r"^rounding must be .*\bnearest, stochastic\b.*'up'"),
    ],
)
def test_a_format_that_does_not_exist(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Format(**wrong)


def test_what_a_switch_cannot_sum() -> None:
    G = normal(2, 20)
    with pytest.raises(ValueError, match=r"^chunk must be .*\b133144\b.*\b133145\b"):
        integer_gram(quantize(G, Format("block_float")), chunk=133145)
    with pytest.raises(ValueError, match=r"^chunk must be .*\b1\b.*\b0\b"):
        integer_gram(quantize(G, Format("block_float")), chunk=0)
    with pytest.raises(ValueError, match=r"\bsteps\b.*\bblock_float\b"):
        integer_gram(quantize(G, Format("integer", 8, 5)))


def test_effects_of_huge_gradients_are_those_of_ordinary_ones_and_of_none_are_refused() -> None:
    G = normal(5, 40)
    (huge,), (plain,) = (effects(G * scale, [Format(bits=8)]) for scale in (2.0**1000, 1.0))
    assert huge.direction_error == pytest.approx(plain.direction_error, rel=1e-6)
    assert huge.cosine == pytest.approx(plain.cosine, rel=1e-12)
    for nothing in (0.0, 1e-320):
        with pytest.raises(ValueError, match=r"^G must be .*\b0\b"):
            effects(G * nothing, [Format(bits=8)])
