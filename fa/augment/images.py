"""Images warped backward along a flow or a map, and noise: torch tensors of any dtype on any device."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from torch import Tensor

from fa.augment.maps import source, torus
from fa.utils.validation import check, check_one_of

INTERPOLATIONS = ("nearest", "bilinear")
"""Names of the interpolations."""

Images = Shaped[Tensor, "batch *channels height width"]


def warp(images: Any, system: str, t: float, interpolation: str = "nearest", **parameters: float) -> Any:
    """Warp images backward by a flow or a map.

    Output pixel (i, j) copies the source at the point to which the system moves (i, j). A pixel whose source lies
    outside the image is black (0), also where a trajectory diverges. "cat" wraps around instead.
    `fa.augment.source` defines the coordinates.

    Args:
        images: Images (B, C, H, W) or (B, H, W), a tensor or an array of any dtype.
        system: A name in `fa.augment.MOVES`. For "smooth_cat_map", the map itself is applied t times.
        t: Time. "cat" at an integer t is the exact permutation of the pixels, or its inverse for t < 0.
        interpolation: "nearest" (default, as in the paper) or "bilinear".
        **parameters: Parameters of the system; defaults in `fa.augment.SYSTEMS`.

    Returns:
        Images of the same shape, dtype, type and device.

    Raises:
        ValueError: An argument is out of range.
        ArithmeticError: LSODA fails.
        ImportError: scipy is missing, which flows need.

    Example:
        >>> import torch
        >>> from fa.augment import warp
        >>> image = torch.arange(9).view(1, 3, 3)
        >>> warp(image, "cat", t=1)
        tensor([[[0, 5, 7],
                 [4, 6, 2],
                 [8, 1, 3]]])
    """
    check_one_of("interpolation", interpolation, INTERPOLATIONS)
    if isinstance(images, np.ndarray):
        moved = warp(_from_array(images), system, t, interpolation, **parameters).numpy()
        return moved.astype(images.dtype, copy=False)  # The byte order is the caller's.
    check("images", type(images).__name__, isinstance(images, Tensor), "a tensor or an array")
    check("images", tuple(images.shape), images.ndim in (3, 4), "(B, C, H, W) or (B, H, W)")
    height, width = images.shape[-2:]
    source(system, height, width, t, parameters)  # This call checks the arguments and caches the grid.
    key = (system, height, width, float(t), tuple(sorted(parameters.items())), images.device)
    return _nearest(images, *key) if interpolation == "nearest" else _bilinear(images, *key)


def _from_array(images: np.ndarray) -> Tensor:
    """Copy an array to a tensor."""
    check("images", "a masked array", not isinstance(images, np.ma.MaskedArray), "without a mask", "Call .filled().")
    numeric = images.dtype.kind in "biufc" and images.dtype.itemsize <= (16 if images.dtype.kind == "c" else 8)
    check("images", images.dtype, numeric, "of numbers of at most 64 bits")
    return torch.from_numpy(images.astype(images.dtype.newbyteorder("=")))


def _nearest(images: Images, *key: Any) -> Images:
    """Warp with the nearest pixel."""
    index, inside = _nearest_pixels(*key)
    return _gather(images, index, inside).view_as(images)


def _bilinear(images: Images, *key: Any) -> Images:
    """Warp with the bilinear mean of four pixels."""
    check("images", images.dtype, not images.dtype.is_complex and images.dtype != torch.bool, "of real numbers")
    exact = images.dtype.itemsize < 8 or images.dtype == torch.float64 or _fits_float64(images)
    check("images", images.dtype, exact, "of values up to 2^53 in absolute value for bilinear")
    narrow = images.dtype.itemsize < 4 or images.dtype == torch.float32
    work = torch.float32 if narrow else torch.float64
    total = torch.zeros_like(images, dtype=work).flatten(-2)
    for index, inside, weight in _corners(*key):
        total += _gather(images, index, inside).to(work) * weight.to(work)
    if not images.dtype.is_floating_point:
        total.round_()
    return total.to(images.dtype).view_as(images)


def _fits_float64(images: Images) -> bool:
    """Return whether float64 represents 64-bit integers exactly."""
    values = images.numpy(force=True)  # torch compares no uint64.
    return bool((values <= 2**53).all() and (values >= -(2**53)).all())


def _gather(images: Images, index: Int64[Tensor, " pixels"], inside: Bool[Tensor, " pixels"]) -> Tensor:
    """Return each image's pixels in the order of `index`, and 0 where not `inside`: (..., H * W)."""
    flat = images.flatten(-2)
    moved = flat.gather(-1, index.expand_as(flat))  # gather takes an eighth of index_select's time.
    return torch.where(inside, moved, moved.new_zeros(()))


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # Cached tensors must serve later calls with gradients.
def _nearest_pixels(
    system: str, height: int, width: int, t: float, parameters: tuple[tuple[str, float], ...], device: torch.device
) -> tuple[Int64[Tensor, " pixels"], Bool[Tensor, " pixels"]]:
    """Return the nearest pixel to each source point, and True where it is inside the image."""
    grid = source(system, height, width, t, dict(parameters))
    return _flat(np.floor(grid + 0.5), height, width, torus(system), device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _corners(
    system: str, height: int, width: int, t: float, parameters: tuple[tuple[str, float], ...], device: torch.device
) -> list[tuple[Int64[Tensor, " pixels"], Bool[Tensor, " pixels"], Float64[Tensor, " pixels"]]]:
    """Return the four pixels around each source point, with their bilinear weights."""
    grid = source(system, height, width, t, dict(parameters))
    low = np.floor(grid)
    part = grid - low
    corners = []
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = np.abs(1 - right - part[..., 0]) * np.abs(1 - down - part[..., 1])
        index, inside = _flat(low + np.array([right, down]), height, width, torus(system), device)
        weights = torch.from_numpy(weight.ravel()).to(device)
        corners.append((index, inside & (weights > 0), weights))  # An infinity of weight 0 must not add NaN.
    return corners


def _flat(
    corner: Float64[np.ndarray, "height width 2"], height: int, width: int, wraps: bool, device: torch.device
) -> tuple[Int64[Tensor, " pixels"], Bool[Tensor, " pixels"]]:
    """Convert integer columns and rows to indices of the flattened image, and mark those inside the image."""
    size = np.array([width, height])
    if wraps:
        corner = corner % size
    inside = ((corner >= 0) & (corner < size)).all(axis=-1).ravel()
    columns, rows = corner.reshape(-1, 2).T
    index = np.where(inside, rows * width + columns, 0).astype(np.int64)
    return torch.from_numpy(index).to(device), torch.from_numpy(inside).to(device)


def add_noise(images: Images, deviations: Tensor | float, generator: torch.Generator) -> Images:
    """Add Gaussian noise to images.

    Standard deviations are fractions of white: of 255 for uint8, and of 1 for floating point. For uint8 the result is
    rounded and clipped to [0, 255]. Floating-point images are not clipped.

    Args:
        images: Images (B, ...), uint8 or floating point.
        deviations: Standard deviation for each image (B,), or one for all; at least 0.
        generator: Generator of the noise, on the images' device.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: Another dtype, or a deviation that is negative or not finite, or another number of them.
    """
    floating = images.dtype.is_floating_point
    check("images", images.dtype, floating or images.dtype == torch.uint8, "uint8 or floating point")
    work = images.dtype if floating else torch.float32
    white = 1.0 if floating else 255.0
    scale = torch.as_tensor(deviations, dtype=work, device=images.device) * white
    check("deviations", deviations, bool((scale >= 0).all() and scale.isfinite().all()), "finite and at least 0")
    shapes = ((), (len(images),))
    check("deviations", deviations, scale.shape in shapes, f"one number, or one for each of {len(images)} images")
    noise = torch.empty(images.shape, dtype=work, device=images.device).normal_(generator=generator)
    noisy = noise.mul_(scale.view(-1, *[1] * (images.ndim - 1))).add_(images)
    return noisy if floating else noisy.round_().clamp_(0, 255).to(torch.uint8)
