"""Flags, which are nested subspaces, and the dimensions that workers name as relevant."""

from fa.flags.nested import Flag, solve, solve_gram, step
from fa.flags.relevance import hints, restrict

__all__ = ["Flag", "hints", "restrict", "solve", "solve_gram", "step"]
