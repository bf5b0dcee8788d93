"""Solve eq. 5: FlagIRLS in the Gram matrix, and proximal steps for the regularizers whose Y leaves span(G)."""

from fa.irls.first_basis import random_first_basis
from fa.irls.problem import FLOOR, Formulation, GroupTerm, Problem, build_problem
from fa.irls.solution import DEFAULTS, FORMULATIONS, GROUP_TERMS, REGULARIZERS, Options, Solution, basis_of_span
from fa.irls.solver import STARTS, State, check_m, default_m, iterate, solve, solve_gram, step
from fa.irls.worker_weights import from_batches as weights_from_batches
from fa.irls.worker_weights import from_noise as weights_from_noise
from fa.irls.worker_weights import mean_weight, noise_variances

__all__ = [
    "DEFAULTS",
    "FLOOR",
    "FORMULATIONS",
    "GROUP_TERMS",
    "REGULARIZERS",
    "STARTS",
    "Formulation",
    "GroupTerm",
    "Options",
    "Problem",
    "Solution",
    "State",
    "basis_of_span",
    "build_problem",
    "check_m",
    "default_m",
    "iterate",
    "mean_weight",
    "noise_variances",
    "random_first_basis",
    "solve",
    "solve_gram",
    "step",
    "weights_from_batches",
    "weights_from_noise",
]
