"""What the theory notebooks say of the paper's claims, from the numbers that they measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fa.experiments.reporting.claims import LEVEL, NOT, Claim, format_mean_range, mean, verdict

if TYPE_CHECKING:
    from pandas import DataFrame, Series

EXACT = 1e-8  # of an identity in float64: more is no rounding
IDENTITY = 1e-5  # of one that holds in the limit of IRLS, relative
CURVED = -1e-8  # smallest over largest eigenvalue below which a point is no minimum
BITS = 8
ALIKE = 0.03  # of accuracy after a short run: the bound of the equivalence test


def maximum_likelihood(difference: float, exact_at_floor: bool) -> list[Claim]:
    """C14, from the largest difference of eq. 4 + p and eq. 5 at a = 2, and whether a fit of the exact Beta(1, 1/2) ran
    into the floor of 1 - v.
    """
    unbounded = "is unbounded (its fit ends at the floor of 1 - v)" if exact_at_floor else "has a minimum"
    return [
        Claim(
            "C14",
            "with alpha = 1, beta = 1/2 and a = 2, eq. 4 is the Flag Median's objective",
            f"largest difference between eq. 4 + p and eq. 5: {difference:.0e}; threshold: {EXACT:.0e}",
            verdict([bool(difference < EXACT)]),
        ),
        Claim(
            "C14",
            "Flag Median is a maximum likelihood estimate of Beta(1, 1/2)",
            f"the exact negative log-likelihood {unbounded}; Flag Median minimises eq. 4 instead",
            verdict([not exact_at_floor]),
        ),
    ]


def convergence(problems: DataFrame, trap: float, real: DataFrame) -> list[Claim]:
    """C13, from random problems (a, "smallest / largest" eigenvalue, "steps to 1e-10"), the smallest eigenvalue at the
    limit of a problem made to stop IRLS, and the steps that real gradients took (a, "steps to 1e-10").
    """
    saddles = int((problems["smallest / largest"] < CURVED).sum())
    steps = {"real": _steps(real), "random": _steps(problems)}
    slower = [bool(found[a] > found[2.0]) for found in steps.values() for a in found.index if a != 2.0]
    told = "; ".join(
        f"{where} " + ", ".join(f"a = {a:g}: {count:g}" for a, count in found.items()) for where, found in steps.items()
    )
    return [
        Claim(
            "C13",
            "IRLS converges to second-order optimal (local) solutions",
            f"limits with a negative eigenvalue: {saddles} of {len(problems)} random problems; smallest eigenvalue at"
            f" the limit of a counterexample with p = 3: {trap:.2f}",
            verdict([not saddles and trap >= 0]),
        ),
        Claim("C13", "slower for a other than 2", f"median steps to 1e-10: {told}", verdict(slower)),
    ]


def _steps(table: DataFrame) -> Series:
    """The median number of steps by a."""
    steps: Series = table.groupby("a")["steps to 1e-10"].median()
    return steps


def right_multiplication(violation: float, after_one_step: float) -> list[Claim]:
    """C15, from the largest ||Y Y^T g_i - G R_i|| / ||g_i|| at IRLS' limits, and the least after one step."""
    return [
        Claim(
            "C15",
            "Y Y^T G is a right multiplication by a matrix of the Lagrange multipliers",
            f"largest relative violation {violation:.0e} at the limit (after one step: {after_one_step:.0e} or more)",
            verdict([bool(violation < IDENTITY)]),
        )
    ]


def precision(errors: DataFrame, accuracy: Mapping[str, Sequence[float]], exact: str) -> list[Claim]:
    """C16, from the errors at each number of bits (bits, direction_error, gradients rounded to the nearest), and test
    accuracies over seeds by format, of which `exact` is that of gradients as they are.
    """
    of_eight = errors.loc[errors["bits"] == BITS, "direction_error"]
    trained = {name: reached for name, reached in accuracy.items() if name.startswith(f"{BITS} bits")}
    close = [equivalent(reached, accuracy[exact], ALIKE) for reached in trained.values()]
    told = ", ".join(
        f"{name} {format_mean_range(reached)}" for name, reached in {exact: accuracy[exact], **trained}.items()
    )
    return [
        Claim(
            "C16",
            "a quantised SVD costs some accuracy loss",
            f"{BITS} bits change d by {of_eight.min():.1%} to {of_eight.max():.1%}; test accuracy {told}",
            verdict(close, bool(trained) and len(accuracy[exact]) > 1),
        ),
        Claim(
            "C16",
            "FA can be fully offloaded to switches",
            "K needs integers only; the p x p steps need floating point, and d needs a second pass over the gradients",
            NOT,
        ),
    ]


def equivalent(ours: Sequence[float], theirs: Sequence[float], bound: float) -> bool:
    """Return whether two one-sided paired t tests at LEVEL place the mean difference within the bound."""
    from scipy.stats import ttest_1samp

    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(differences) < 2 or max(differences) - min(differences) < 1e-9:  # no spread to divide by
        return abs(mean(differences)) < bound
    above = ttest_1samp(differences, -bound, alternative="greater").pvalue
    below = ttest_1samp(differences, bound, alternative="less").pvalue
    return bool(max(above, below) < LEVEL)


def cost(exponents: DataFrame) -> list[Claim]:
    """C11's cost model, from the exponents of time (method, varied, measured) with an SVD at each step and without."""
    bounds = {"n": 1.0, "p": 2.0, "k": 2.0, "N": 1.0}
    methods = list(dict.fromkeys(exponents["method"]))
    found = {m: dict(exponents.loc[exponents["method"] == m, ["varied", "measured"]].to_numpy()) for m in methods}
    told = "; ".join(f"{m}: " + ", ".join(f"{x} {found[m][x]:.2f}" for x in bounds) for m in methods)
    within = [bool(found[methods[0]][x] <= bound + 0.25) for x, bound in bounds.items()]  # a noisy fit over few sizes
    return [
        Claim(
            "C11",
            "an SVD at each of N iterations: O(n N (sum k_i)^2)",
            f"exponents of the measured time: {told}",
            verdict(within),
        )
    ]
