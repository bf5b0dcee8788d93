"""Where tensors live, by name."""

from __future__ import annotations

import torch

from fa.utils.validation import check


def find_device(name: str) -> torch.device:
    """The device "cpu", "cuda" or "cuda:N"; ValueError for another, or one that is not here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # nothing that one can train on either
    check("device", name, device.type in ("cpu", "cuda"), "cpu, or cuda, cuda:0 and so on")
    if device.type == "cuda":
        check("device", name, torch.cuda.is_available(), "cpu here, where torch finds no CUDA device")
        count = torch.cuda.device_count()
        check("device", name, (device.index or 0) < count, f"cuda:{count - 1} at most, of the {count} here")
    return device
