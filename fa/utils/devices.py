"""Where tensors live, by name."""

from __future__ import annotations

import torch

from fa.utils.validation import require


def find_device(name: str) -> torch.device:
    """The device "cpu", "cuda" or "cuda:N"; ValueError for another, or one that is not here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # nothing that one can train on either
    require(device.type in ("cpu", "cuda"), "device", name, "cpu, or cuda, cuda:0 and so on")
    if device.type == "cuda":
        require(torch.cuda.is_available(), "device", name, "cpu here, where torch finds no CUDA device")
        count = torch.cuda.device_count()
        require((device.index or 0) < count, "device", name, f"cuda:{count - 1} at most, of the {count} here")
    return device
