"""Claims that the theory notebooks test, judged by the numbers that they measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fa.experiments.reporting.claims import NOT, Claim, format_mean_range, verdict
from fa.experiments.reporting.equivalence import LEVEL, PairedDifferences

if TYPE_CHECKING:
    from pandas import DataFrame, Series

MAX_ROUNDING_ERROR = 1e-8  # Largest rounding error of an identity in float64.
MAX_LIMIT_ERROR = 1e-5  # Largest relative error of an identity in IRLS' limit.
MIN_CURVATURE = -1e-8  # Smallest over largest eigenvalue: a point below it is not a minimum.
MAX_EXPONENT_EXCESS = 0.25  # For the noise of a fit over a few sizes.
BITS = 8
EQUIVALENCE_BOUND = 0.03  # Bound of the equivalence test for accuracies after a short run.


def maximum_likelihood(difference: float, exact_at_floor: bool) -> list[Claim]:
    """Judge C14.

    Args:
        difference: Largest difference between eq. 4 + p and eq. 5 at a = 2.
        exact_at_floor: True if a fit of the exact Beta(1, 1/2) ended at the floor of 1 - v.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    unbounded = "is unbounded (its fit ends at the floor of 1 - v)" if exact_at_floor else "has a minimum"
    return [
        Claim(
            "C14",
            "with alpha = 1, beta = 1/2 and a = 2, eq. 4 is the Flag Median's objective",
            f"largest difference between eq. 4 + p and eq. 5: {difference:.0e}; threshold: {MAX_ROUNDING_ERROR:.0e}",
            verdict([bool(difference < MAX_ROUNDING_ERROR)]),
        ),
        Claim(
            "C14",
            "Flag Median is a maximum likelihood estimate of Beta(1, 1/2)",
            f"the exact negative log-likelihood {unbounded}; Flag Median minimises eq. 4 instead",
            verdict([not exact_at_floor]),
        ),
    ]


def convergence(problems: DataFrame, trap: float, real: DataFrame) -> list[Claim]:
    """Judge C13.

    Args:
        problems: Random problems, with columns a, "smallest / largest" (eigenvalue) and "steps to 1e-10".
        trap: Smallest eigenvalue at the limit of a problem constructed to stop IRLS.
        real: Steps for real gradients, with columns a and "steps to 1e-10".

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    saddles = int((problems["smallest / largest"] < MIN_CURVATURE).sum())
    steps = {"real": _steps(real), "random": _steps(problems)}
    slower = [bool(counts[a] > counts[2.0]) for counts in steps.values() for a in counts.index if a > 2.0]
    median_steps = "; ".join(
        f"{where} " + ", ".join(f"a = {a:g}: {count:g}" for a, count in counts.items())
        for where, counts in steps.items()
    )
    return [
        Claim(
            "C13",
            "IRLS converges to second-order optimal (local) solutions",
            f"limits with a negative eigenvalue: {saddles} of {len(problems)} random problems; smallest eigenvalue at"
            f" the limit of a counterexample with p = 3: {trap:.2f}",
            verdict([not saddles and trap >= 0]),
        ),
        Claim("C13", "slower for higher values of a than 2", f"median steps to 1e-10: {median_steps}", verdict(slower)),
    ]


def _steps(table: DataFrame) -> Series:
    """Return the median number of steps by a."""
    steps: Series = table.groupby("a")["steps to 1e-10"].median()
    return steps


def right_multiplication(violation: float, after_one_step: float) -> list[Claim]:
    """Judge C15.

    Args:
        violation: Largest ||Y Y^T g_i - G R_i|| / ||g_i|| at IRLS' limits.
        after_one_step: Least such ratio after one step.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    return [
        Claim(
            "C15",
            "Y Y^T G is a right multiplication by a matrix of the Lagrange multipliers",
            f"largest relative violation {violation:.0e} at the limit (after one step: {after_one_step:.0e} or more)",
            verdict([bool(violation < MAX_LIMIT_ERROR)]),
        )
    ]


def precision(errors: DataFrame, accuracy: Mapping[str, Sequence[float]], exact: str) -> list[Claim]:
    """Judge C16.

    Args:
        errors: Errors of d, with columns bits and direction_error, for gradients rounded to the nearest value.
        accuracy: Test accuracies, one per seed, by number format.
        exact: Format of unrounded gradients.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    of_eight = errors.loc[errors["bits"] == BITS, "direction_error"]
    trained = {name: reached for name, reached in accuracy.items() if name.startswith(f"{BITS} bits")}
    p_values = [
        PairedDifferences.between(reached, accuracy[exact]).p_equivalent(EQUIVALENCE_BOUND)
        for reached in trained.values()
    ]
    test_accuracies = ", ".join(
        f"{name} {format_mean_range(reached)}" for name, reached in {exact: accuracy[exact], **trained}.items()
    )
    return [
        Claim(
            "C16",
            "a quantised SVD costs some accuracy loss",
            f"{BITS} bits change d by {of_eight.min():.1%} to {of_eight.max():.1%}; test accuracy {test_accuracies}",
            verdict([p is not None and p < LEVEL for p in p_values], bool(trained) and len(accuracy[exact]) > 1),
        ),
        Claim(
            "C16",
            "FA can be fully offloaded to switches",
            "K needs integers only; the p x p steps need floating point, and d needs a second pass over the gradients",
            NOT,
        ),
    ]


def cost(exponents: DataFrame) -> list[Claim]:
    """Judge C11's cost model.

    Args:
        exponents: Exponents of time, with columns method, varied and measured, with an SVD at each step and without.

    Returns:
        The claims with their measurements and verdicts, one for each part.
    """
    bounds = {"n": 1.0, "p": 2.0, "k": 2.0, "N": 1.0}
    methods = list(dict.fromkeys(exponents["method"]))
    measured = {m: dict(exponents.loc[exponents["method"] == m, ["varied", "measured"]].to_numpy()) for m in methods}
    measured_exponents = "; ".join(f"{m}: " + ", ".join(f"{x} {measured[m][x]:.2f}" for x in bounds) for m in methods)
    within = [bool(measured[methods[0]][x] <= bound + MAX_EXPONENT_EXCESS) for x, bound in bounds.items()]
    return [
        Claim(
            "C11",
            "an SVD at each of N iterations: O(n N (sum k_i)^2)",
            f"exponents of the measured time: {measured_exponents}",
            verdict(within),
        )
    ]
