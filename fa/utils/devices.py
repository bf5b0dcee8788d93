"""torch devices by name."""

from __future__ import annotations

import torch

from fa.utils.validation import check


def find_device(name: str) -> torch.device:
    """Return the device of this name.

    Args:
        name: "cpu", "cuda" or "cuda:N".

    Returns:
        The device.

    Raises:
        ValueError: Another name, or a device that this machine does not have.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # Meta is not supported either, so one message serves both cases.
    check("device", name, name == "cpu" or device.type == "cuda", "cpu, or cuda, cuda:0 and so on")
    if device.type == "cuda":
        check("device", name, torch.cuda.is_available(), "cpu here, where torch finds no CUDA device")
        count = torch.cuda.device_count()
        check("device", name, (device.index or 0) < count, f"cuda:{count - 1} at most, of the {count} here")
    return device


def with_index(device: torch.device) -> torch.device:
    """Return the device itself for "cuda", which is the current one, so that caches distinguish devices.

    Args:
        device: The device.
    """
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device
