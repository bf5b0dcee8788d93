"""Flows and maps against one solve_ivp a pixel, closed forms and what they conserve; images against plain loops."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.linalg import expm, logm

from fa.augment import SYSTEMS, add_noise, cat_period, flow, source, warp
from fa.augment.images import _corners, _nearest_pixels
from fa.augment.maps import MOVES, cat_pixels
from tests.tensors import DEVICE

CAT = np.array([[2.0, 1.0], [1.0, 1.0]])
LOG_CAT = logm(CAT)
RELEASED = {"gamma": 1.0, "delta": 1.0}
SIDE = 6


def images(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    numbers = torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(0))
    return numbers.to(DEVICE, dtype)


def lotka_volterra(sign: float) -> Any:
    """gamma = delta = -1 in the paper, 1 in the released code."""
    return lambda _, p: [2 / 3 * p[0] - 4 / 3 * p[0] * p[1], sign * p[0] * p[1] - sign * p[1]]


def smooth(x: float, y: float, m: float = 0.95) -> list[float]:
    """The map as the paper prints it, its logarithm included."""
    return [a / (1 + np.exp(-m * np.log(a))) if a > 0 else 0.0 for a in (2 * x + y, x + y)]


def smooth_flow(_: float, p: Any) -> Any:
    return np.subtract(smooth(*p), p)


def one_by_one(velocity: Any, points: np.ndarray, t: float) -> np.ndarray:
    """Each point in a solve_ivp of its own, by another method."""
    return np.array([solve_ivp(velocity, (0, t), p, "DOP853", rtol=1e-12, atol=1e-12).y[:, -1] for p in points])


def grid(side: int, centre: float, scale: float) -> np.ndarray:
    return np.array([[(j - centre) / scale, (i - centre) / scale] for i in range(side) for j in range(side)])


CASES = [
    ("lotka_volterra", lotka_volterra(-1), 0.01, {}),
    ("lotka_volterra", lotka_volterra(-1), 0.05, {}),
    ("lotka_volterra", lotka_volterra(1), 0.01, RELEASED),
    ("rotation", lambda _, p: [-p[1], p[0]], 0.7, {}),
    ("cat", lambda _, p: LOG_CAT @ p, 0.3, {}),
    ("smooth_cat", smooth_flow, 0.4, {}),
]


@pytest.mark.parametrize(("system", "velocity", "t", "parameters"), CASES)
def test_all_pixels_at_once_go_where_each_goes_alone(
    system: str, velocity: Any, t: float, parameters: dict[str, float]
) -> None:
    side = 10
    in_pixels = system in ("lotka_volterra", "rotation")
    centre, scale = ((side - 1) / 2, 1.0) if in_pixels else (0.0, float(side))
    alone = one_by_one(velocity, grid(side, centre, scale), t)
    alone = alone * scale + centre if system != "cat" else alone % 1 * scale
    together = source(system, side, side, t, parameters).reshape(-1, 2)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test_a_rotation_turns_about_the_origin() -> None:
    points = grid(8, 3.5, 1)
    turned = np.array([[np.cos(2), -np.sin(2)], [np.sin(2), np.cos(2)]])
    np.testing.assert_allclose(flow("rotation", points, 2.0), points @ turned.T, atol=1e-6)
    np.testing.assert_allclose(flow("rotation", points, 1.0, omega=2.0), points @ turned.T, atol=1e-6)
    np.testing.assert_allclose(flow("rotation", points, -2.0), points @ turned, atol=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0, -1.5])
def test_the_cat_flow_is_the_matrix_exponential_mod_1(t: float) -> None:
    points = grid(7, 0, 7)
    distance = np.abs(flow("cat", points, t) - points @ expm(t * LOG_CAT).T % 1)
    assert np.minimum(distance, 1 - distance).max() < 1e-6  # 0 and 1 are one point of the torus


def test_lotka_volterra_conserves_its_constant() -> None:
    """The released code's signs are the classic ones, whose orbits in the first quadrant close."""
    alpha, beta, gamma, delta = 2 / 3, 4 / 3, 1.0, 1.0
    start = np.array([[0.1, 0.1], [1.0, 0.5], [0.9, 0.9], [2.0, 3.0], [5.0, 0.2]])  # farther out, y falls to ATOL

    def constant(points: np.ndarray) -> np.ndarray:
        x, y = points.T
        return delta * x - gamma * np.log(x) + beta * y - alpha * np.log(y)

    for t in (0.5, 3.0, 20.0):
        end = flow("lotka_volterra", start, t, **RELEASED)
        np.testing.assert_allclose(constant(end), constant(start), rtol=0, atol=1e-5)
        assert np.abs(end[2] - start[2]).max() > 0.01
    np.testing.assert_allclose(end[1], [1.0, 0.5], atol=1e-7)  # the fixed point (gamma/delta, alpha/beta)


def test_the_papers_signs_are_not_the_released_codes() -> None:
    points = np.array([[1.0, 2.0]])
    x, y = (flow("lotka_volterra", points, 1e-4) - points)[0] / 1e-4
    assert (x, y) == (pytest.approx(-2, abs=1e-3), pytest.approx(0, abs=1e-3))  # y' = -xy + y = 0 at x = 1
    assert (
        flow("lotka_volterra", [[3.0, 2.0]], 1e-4)[0, 1]
        < 2
        < flow("lotka_volterra", [[3.0, 2.0]], 1e-4, **RELEASED)[0, 1]
    )


@given(st.sampled_from(sorted(SYSTEMS)), st.floats(-0.2, 0.2), st.integers(0, 20))
def test_flows_compose_and_go_back(system: str, t: float, seed: int) -> None:
    points = np.random.default_rng(seed).uniform(0.2, 0.4, (3, 2))  # far enough from 0 not to cross it
    halfway = flow(system, points, t / 2)
    np.testing.assert_allclose(flow(system, halfway, t / 2), flow(system, points, t), atol=1e-6)
    np.testing.assert_allclose(flow(system, halfway, -t / 2), points, atol=1e-6)


@pytest.mark.parametrize(("side", "period"), [(1, 1), (2, 3), (28, 24), (32, 24), (124, 15), (150, 300)])
def test_the_cat_map_returns_after_its_period(side: int, period: int) -> None:
    """Periods from the literature: 3 N for N = 2 * 5^k, 300 for N = 150, 15 for N = 124."""
    assert cat_period(side) == period
    pixels = grid(side, 0, 1).astype(np.int64)
    np.testing.assert_array_equal(cat_pixels(pixels, side, period), pixels)
    moved = pixels
    for times in range(1, period):
        moved = np.stack([moved @ [2, 1], moved @ [1, 1]], axis=1) % side
        if side <= 32 or times < 3:
            np.testing.assert_array_equal(cat_pixels(pixels, side, times), moved)
        assert not np.array_equal(moved, pixels)


@given(st.integers(1, 20), st.integers(-50, 50))
def test_the_cat_map_permutes_pixels_and_goes_back(side: int, times: int) -> None:
    """Area is preserved: every pixel is copied once."""
    pictures = torch.arange(side * side).view(1, side, side)
    moved = warp(pictures, "cat", times)
    assert torch.equal(moved.flatten().sort().values, pictures.flatten())
    assert torch.equal(warp(moved, "cat", -times), pictures)
    assert torch.equal(warp(warp(pictures, "cat", times), "cat", 2), warp(pictures, "cat", times + 2))


def test_output_pixel_i_j_copies_the_source_at_the_mapped_point() -> None:
    x = images(2, 3, SIDE, SIDE)
    moved = warp(x, "cat", 1)
    for i in range(SIDE):
        for j in range(SIDE):  # x is the column, y the row
            assert torch.equal(moved[..., i, j], x[..., (j + i) % SIDE, (2 * j + i) % SIDE])


def test_a_quarter_turn_is_rot90_and_a_small_time_leaves_all_as_it_was() -> None:
    x = images(2, 3, 7, 7)
    assert torch.equal(warp(x, "rotation", np.pi / 2), torch.rot90(x, 1, (2, 3)))
    for system in MOVES:
        assert torch.equal(warp(x, system, 0), x)
    assert torch.equal(warp(x, "lotka_volterra", 1e-5), x)
    assert torch.equal(warp(x[:, :, :5], "lotka_volterra", 1e-5), x[:, :, :5])


@pytest.mark.parametrize(
    ("system", "t"), [("lotka_volterra", 0.05), ("rotation", 0.5), ("cat", 0.4), ("smooth_cat", 1.0)]
)
def test_nearest_and_bilinear_against_a_loop(system: str, t: float) -> None:
    side = 8
    x = images(1, side, side, dtype=torch.float64)
    nearest, bilinear = warp(x, system, t)[0], warp(x, system, t, "bilinear")[0]
    places = source(system, side, side, t)

    def pixel(row: float, column: float) -> float:
        if system == "cat":
            row, column = row % side, column % side
        inside = 0 <= row < side and 0 <= column < side
        return float(x[0, int(row), int(column)]) if inside else 0.0

    for i in range(side):
        for j in range(side):
            column, row = places[i, j]
            assert nearest[i, j] == pixel(np.floor(row + 0.5), np.floor(column + 0.5))
            low_row, low_column = np.floor(row), np.floor(column)
            expected = sum(
                pixel(r, c) * (1 - abs(row - r)) * (1 - abs(column - c))
                for r in (low_row, low_row + 1)
                for c in (low_column, low_column + 1)
            )
            assert float(bilinear[i, j]) == pytest.approx(expected, abs=1e-9)
    assert (nearest == 0).any() == (system != "cat")


def test_the_smooth_map_is_the_papers_and_pixels_leave_the_square() -> None:
    side = 20
    expected = np.array([smooth(*smooth(*p)) for p in grid(side, 0, side)]) * side
    np.testing.assert_allclose(source("smooth_cat_map", side, side, 2).reshape(-1, 2), expected, atol=1e-9)
    left = (source("smooth_cat_map", 32, 32, 1) >= 32).any(axis=-1).mean()
    assert 0.38 < left < 0.44


@pytest.mark.parametrize("system", ["lotka_volterra", "smooth_cat", "smooth_cat_map"])
def test_what_runs_away_is_black_and_never_nan(system: str) -> None:
    """At such times most trajectories have blown up, some of them in a finite time."""
    t = 3.0
    assert np.isfinite(source(system, 12, 12, t)).all()
    moved = warp(images(2, 1, 12, 12, dtype=torch.float32), system, t)
    assert moved.isfinite().all()
    assert (moved == 0).float().mean() > 0.5
    assert (moved > 0).any()
    assert np.isfinite(flow("lotka_volterra", [[30.0, -30.0], [1.0, 0.5]], 5.0)).all()


DTYPES = [
    torch.uint16,
    torch.uint32,
    torch.uint8,
    torch.int16,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.bool,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_device_shape_and_input_are_kept(dtype: torch.dtype) -> None:
    x = images(3, 2, SIDE, SIDE, dtype=dtype)
    before = x.clone()
    for system, t in (("rotation", 0.3), ("cat", 2)):
        moved = warp(x, system, t)
        assert (moved.dtype, moved.device, moved.shape) == (x.dtype, x.device, x.shape)
        assert torch.equal(moved[:, 0], warp(x[:, 0], system, t))
        if dtype != torch.bool:
            smooth_ = warp(x, system, t, "bilinear")
            assert (smooth_.dtype, smooth_.shape) == (x.dtype, x.shape)
            assert system != "cat" or torch.equal(smooth_, moved)
    assert torch.equal(x, before)
    assert warp(x[:0], "rotation", 0.3).shape == (0, 2, SIDE, SIDE)


def test_arrays_serve_as_tensors_do() -> None:
    x = images(2, SIDE, SIDE).cpu()
    moved = warp(x.numpy()[:, ::-1], "rotation", 0.3)
    assert isinstance(moved, np.ndarray)
    np.testing.assert_array_equal(moved, warp(x.flip(1), "rotation", 0.3).numpy())


def test_a_grid_is_computed_once() -> None:
    x = images(1, 9, 9)
    _nearest_pixels.cache_clear()
    for _ in range(3):
        warp(x, "rotation", 0.123, omega=2.0)
    assert (_nearest_pixels.cache_info().misses, _nearest_pixels.cache_info().hits) == (1, 2)
    with pytest.raises(ValueError, match="read-only"):
        source("rotation", 9, 9, 0.123, {"omega": 2.0})[0, 0, 0] = 1


def test_noise_has_each_images_level_and_follows_its_seed() -> None:
    x = torch.full((4, 3, 40, 40), 128, dtype=torch.uint8, device=DEVICE)
    levels = torch.tensor([0.0, 0.02, 0.05, 0.1])
    noisy = add_noise(x, levels, torch.Generator(DEVICE).manual_seed(3))
    assert noisy.dtype == torch.uint8
    assert torch.equal(noisy[0], x[0])
    found = noisy.float().flatten(1).std(dim=1).cpu()
    assert torch.allclose(found[1:], levels[1:] * 255, rtol=0.05)
    assert torch.equal(noisy, add_noise(x, levels, torch.Generator(DEVICE).manual_seed(3)))
    assert not torch.equal(noisy, add_noise(x, levels, torch.Generator(DEVICE).manual_seed(4)))
    white = add_noise(torch.full_like(x, 255), 0.1, torch.Generator(DEVICE).manual_seed(3))
    assert white.max() == 255
    assert white.min() > 100  # clipped, not wrapped round to black
    floats = add_noise(torch.zeros(1, 50, 50, dtype=torch.float64), 0.5, torch.Generator().manual_seed(0))
    assert (floats.dtype, float(floats.std())) == (torch.float64, pytest.approx(0.5, rel=0.1))
    assert floats.min() < 0


@pytest.mark.parametrize(
    ("call", "pattern"),
    [
        (lambda x: warp(x, "cats", 1), r"^system must be .*'cats'.*'cat'"),
        (lambda x: warp(x, "cat", float("nan")), r"^t must be .*nan"),
        (lambda x: warp(x, "smooth_cat_map", 0.5), r"^t must be .*0\.5"),
        (lambda x: warp(x, "rotation", 1, speed=3.0), r"^parameters must be .*omega.*'speed'"),
        (lambda x: warp(x, "cat", 1, m=3.0), r"^parameters must be .*'m'"),
        (lambda x: warp(x, "rotation", 1, omega=float("inf")), r"^omega must be .*inf"),
        (lambda x: warp(x, "rotation", 1, "cubic"), r"^interpolation must be .*'cubic'"),
        (lambda x: warp(x[0], "rotation", 1), r"^images must be .*\(6, 6\)"),
        (lambda x: warp(x[:, :4], "cat", 1), r"^images must be .*\b4\b.*\b6\b"),
        (lambda x: warp([[1]], "cat", 1), r"^images must be .*'list'"),
        (lambda x: warp(x > 3, "cat", 1, "bilinear"), r"^images must be .*torch\.bool"),
        (lambda x: warp(x.long() + 2**53, "cat", 1, "bilinear"), r"^images must be .*2\^53.*int64"),
        (lambda x: warp(np.ma.masked_array(x.numpy()), "cat", 1), r"^images must be .*mask"),
        (lambda x: warp(x.numpy().astype(object), "cat", 1), r"^images must be .*'O'"),
        (lambda x: warp(x, "smooth_cat_map", True), r"^t must be .*True"),
        (lambda x: warp(x, "cat", 24.5), r"^t must be .*\b24\b.*\b24\.5\b"),
        (lambda x: flow("cat", [1.0, 2.0], 1), r"^points must be .*\(2,\)"),
        (lambda x: flow("cat", [[1.0, float("inf")]], 1), r"^points must be .*finite"),
        (lambda x: flow("smooth_cat_map", [[1.0, 1.0]], 1), r"^system must be .*'smooth_cat_map'"),
        (lambda x: add_noise(x, -0.1, torch.Generator()), r"^deviations must be .*-0\.1"),
        (lambda x: add_noise(x, float("inf"), torch.Generator()), r"^deviations must be .*inf"),
        (lambda x: add_noise(x, torch.zeros(3), torch.Generator()), r"^deviations must be .*\b2\b"),
        (lambda x: add_noise(x, torch.zeros(6, 6), torch.Generator()), r"^deviations must be .*\b2\b"),
        (lambda x: add_noise(x.long(), 0.1, torch.Generator()), r"^images must be .*int64"),
        (lambda x: cat_period(0), r"^side must be .*\b0\b"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call: Any, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        call(images(2, SIDE, SIDE))


def test_images_with_a_negative_stride_along_a_dimension_of_one_are_moved() -> None:
    """numpy calls these contiguous, and torch refuses them."""
    given = np.arange(1.0, 13.0).reshape(3, 4, 1)[:, :, ::-1]
    np.testing.assert_array_equal(warp(given, "rotation", 0), given)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.uint32, np.int64, np.uint64, ">f4", ">i2"])
def test_bilinear_keeps_the_largest_numbers_and_the_byte_order(dtype: Any) -> None:
    largest = 2**24 - 1 if np.dtype(dtype).kind == "f" else min(np.iinfo(dtype).max, 2**53)
    given = np.full((1, 4, 4), largest, dtype=dtype)
    found = warp(given, "rotation", 0.0, "bilinear")
    assert found.dtype == given.dtype
    np.testing.assert_array_equal(found, given)


def test_an_infinity_stays_at_its_pixel() -> None:
    given = torch.ones(1, 4, 4)
    given[0, 1, 1] = torch.inf
    assert torch.equal(warp(given, "rotation", 0.0, "bilinear"), given)


def test_many_iterations_of_the_smooth_cat_map_do_not_overflow() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = warp(torch.ones(1, 8, 8), "smooth_cat_map", 2000)
    assert torch.equal(found, warp(torch.ones(1, 8, 8), "smooth_cat_map", 200))


def test_the_torus_ends_below_1() -> None:
    assert flow("cat", [[-1e-20, 0.0]], 0.0).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_a_warp_in_inference_mode_leaves_later_gradients(interpolation: str) -> None:
    """Tensors that are kept between calls must not be those of inference mode."""
    for cached in (_nearest_pixels, _corners):
        cached.cache_clear()
    images = torch.ones(2, 1, 5, 5)
    with torch.inference_mode():
        warp(images, "rotation", 0.31, interpolation=interpolation)
    images.requires_grad_()
    warp(images, "rotation", 0.31, interpolation=interpolation).sum().backward()
    assert images.grad is not None
