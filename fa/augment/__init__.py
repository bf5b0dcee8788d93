"""Nonlinear augmentation of images (the paper's second threat): coordinates carried by flows and maps, and noise."""

from fa.augment.flows import SYSTEMS, flow

__all__ = ["SYSTEMS", "flow"]
