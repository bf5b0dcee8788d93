"""Solve eq. 5: FlagIRLS in the Gram matrix, and proximal steps for the regularizers whose Y leaves span(G)."""

from fa.irls.problem import FLOOR, Formulation, Problem, build_problem
from fa.irls.solution import DEFAULTS, FORMULATIONS, REGULARIZERS, Options, Solution
from fa.irls.solver import State, check_m, default_m, solve, solve_gram, step, terminates

__all__ = [
    "DEFAULTS",
    "FLOOR",
    "FORMULATIONS",
    "REGULARIZERS",
    "Formulation",
    "Options",
    "Problem",
    "Solution",
    "State",
    "build_problem",
    "check_m",
    "default_m",
    "solve",
    "solve_gram",
    "step",
    "terminates",
]
