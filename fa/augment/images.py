"""Images moved along a flow or a map, backward, and noise upon them: torch tensors of any dtype on any device."""

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

Images = Shaped[Tensor, "batch *channels height width"]


def warp(images: Any, system: str, t: float, interpolation: str = "nearest", **parameters: float) -> Any:
    """Images (B, C, H, W) or (B, H, W), tensor or array, moved by a system to time t: of the same shape, dtype, device.

    Output pixel (i, j) copies the source at the point to which the system carries (i, j): the nearest pixel (the
    paper), or the bilinear mean of four. What lies outside of the source is black (0), also where a trajectory runs
    away; "cat" wraps round. Systems and parameters: `flow`; "cat" at a whole t is the exact permutation of the pixels
    (negative: its inverse), "smooth_cat_map" the smooth map itself, t times. Coordinates: fa.augment.maps.source.
    Raises ValueError for arguments out of range.
    """
    check_one_of("interpolation", interpolation, INTERPOLATIONS)
    if isinstance(images, np.ndarray):
        return warp(torch.from_numpy(images.copy()), system, t, interpolation, **parameters).numpy()
    check("images", type(images).__name__, isinstance(images, Tensor), "a tensor or an array")
    check("images", tuple(images.shape), images.ndim in (3, 4), "(B, C, H, W) or (B, H, W)")
    height, width = images.shape[-2:]
    source(system, height, width, t, parameters)  # the checks, and the grid into its cache
    key = (system, height, width, float(t), tuple(sorted(parameters.items())), images.device)
    return _nearest(images, *key) if interpolation == "nearest" else _bilinear(images, *key)


def _nearest(images: Images, *key: Any) -> Images:
    index, inside = _nearest_pixels(*key)
    return _gather(images, index, inside).view_as(images)


def _bilinear(images: Images, *key: Any) -> Images:
    check("images", images.dtype, not images.dtype.is_complex and images.dtype != torch.bool, "of real numbers")
    work = torch.float64 if images.dtype == torch.float64 else torch.float32
    total = torch.zeros_like(images, dtype=work).flatten(-2)
    for index, inside, weight in _corners(*key):
        total += _gather(images, index, inside).to(work) * weight.to(work)
    if not images.dtype.is_floating_point:
        total.round_()
    return total.to(images.dtype).view_as(images)


def _gather(images: Images, index: Int64[Tensor, " pixels"], inside: Bool[Tensor, " pixels"]) -> Tensor:
    """The pixels of each image in the order of `index`, and 0 where they are not inside: (..., H * W)."""
    flat = images.flatten(-2)
    moved = flat.gather(-1, index.expand_as(flat))  # an eighth of index_select's time
    return moved.index_fill_(-1, (~inside).nonzero().flatten(), 0)


@lru_cache(maxsize=64)
def _nearest_pixels(
    system: str, height: int, width: int, t: float, parameters: tuple[tuple[str, float], ...], device: torch.device
) -> tuple[Int64[Tensor, " pixels"], Bool[Tensor, " pixels"]]:
    grid = source(system, height, width, t, dict(parameters))
    return _flat(np.floor(grid + 0.5), height, width, torus(system), device)


@lru_cache(maxsize=16)
def _corners(
    system: str, height: int, width: int, t: float, parameters: tuple[tuple[str, float], ...], device: torch.device
) -> list[tuple[Int64[Tensor, " pixels"], Bool[Tensor, " pixels"], Float64[Tensor, " pixels"]]]:
    """The four pixels around each source point, with their bilinear weights."""
    grid = source(system, height, width, t, dict(parameters))
    low = np.floor(grid)
    part = grid - low
    corners = []
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = np.abs(1 - right - part[..., 0]) * np.abs(1 - down - part[..., 1])
        index, inside = _flat(low + np.array([right, down]), height, width, torus(system), device)
        corners.append((index, inside, torch.from_numpy(weight.ravel()).to(device)))
    return corners


def _flat(
    corner: Float64[np.ndarray, "height width 2"], height: int, width: int, wraps: bool, device: torch.device
) -> tuple[Int64[Tensor, " pixels"], Bool[Tensor, " pixels"]]:
    """Whole columns and rows as indices into the flattened image (0 where outside), and whether they are inside."""
    size = np.array([width, height])
    if wraps:
        corner = corner % size
    inside = ((corner >= 0) & (corner < size)).all(axis=-1).ravel()
    columns, rows = corner.reshape(-1, 2).T
    index = np.where(inside, rows * width + columns, 0).astype(np.int64)
    return torch.from_numpy(index).to(device), torch.from_numpy(inside).to(device)


def add_noise(images: Images, deviations: Shaped[Tensor, " batch"] | float, generator: torch.Generator) -> Images:
    """Gaussian noise on images (B, ..., H, W), dtype kept: image i gets the standard deviation deviations[i].

    It is a fraction of white: of 255 for uint8, whose values are rounded and clipped to [0, 255], and of 1 for
    floating-point numbers, which are not clipped. The generator is on the images' device. ValueError for other dtypes.
    """
    floating = images.dtype.is_floating_point
    check("images", images.dtype, floating or images.dtype == torch.uint8, "uint8 or floating point")
    work = images.dtype if floating else torch.float32
    white = 1.0 if floating else 255.0
    scale = torch.as_tensor(deviations, dtype=work, device=images.device) * white
    check("deviations", deviations, bool((scale >= 0).all()), "0 or more")
    noise = torch.empty(images.shape, dtype=work, device=images.device).normal_(generator=generator)
    noisy = noise.mul_(scale.view(-1, *[1] * (images.ndim - 1))).add_(images)
    return noisy if floating else noisy.round_().clamp_(0, 255).to(torch.uint8)
