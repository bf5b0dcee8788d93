"""The gradient matrix G (p, n): callers' formats, the Gram matrix, column blocks, memory-mapped files."""

from fa.gradients.inputs import Gradients, by_rows, check_finite, read, read_groups

__all__ = ["Gradients", "by_rows", "check_finite", "read", "read_groups"]
