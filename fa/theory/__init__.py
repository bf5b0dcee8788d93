"""Computations that only the theory notebooks use."""

from fa.utils.lazy import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, ("algorithm1_line5", "breakdown", "optimality", "quantization"))
