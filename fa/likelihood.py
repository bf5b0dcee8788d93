"""The Beta likelihood behind eq. 5: eq. 2 to 4 of the paper for any alpha, beta > 0, and the most likely basis.

    -log prod_i P(v_i) = -(alpha - 1) sum_i l(v_i) - (beta - 1) sum_i l(1 - v_i) + constant

In eq. 3, l is the logarithm. In eq. 4, l(x) = a x^(1/a) - a, which tends to the logarithm for a -> infinity; a = inf
selects the logarithm itself. alpha = 1, beta = 1/2 and a = 2 give sum_i sqrt(1 - v_i) - p, the Flag Median's objective.

With the logarithm and beta < 1, a most likely basis does not exist: the sum tends to minus infinity if span(Y) contains
a gradient. Every regularizer of eq. 5 is bounded on Y^T Y = I, so no lam changes this. With alpha < 1, the same holds
if Y is orthogonal to a gradient. `fit` then ends at the floor irls.FLOOR of v and 1 - v. In eq. 4, l is at least -a.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from fa import irls
from fa.gradients import Gradients
from fa.gradients.measurement import measure_groups
from fa.utils.validation import check, check_positive

_DESCENT = 1e-4  # Share of the first-order decrease that a step of the line search must reach.
_TRIES = 30  # Number of steps of the line search; each is a quarter of the previous one.

Numbers = Float64[np.ndarray, "..."]
Columns = Float64[np.ndarray, "d m"]
Terms = Float64[np.ndarray, "d N"]
Moment = Float64[np.ndarray, "d d"]


@dataclass(frozen=True)
class Beta:
    """Beta distribution of the explained variances, with logarithms in the form of eq. 4.

    Attributes:
        alpha: First parameter, greater than 0; default 1.
        beta: Second parameter, greater than 0; default 1/2.
        a: Parameter of l in eq. 4, greater than 0; default inf, the exact logarithm.

    Raises:
        ValueError: A parameter is out of range.
    """

    alpha: float = 1.0
    beta: float = 0.5
    a: float = math.inf

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "a"):
            if name != "a" or self.a != math.inf:
                check_positive(name, getattr(self, name))

    def density(self, v: Numbers) -> Numbers:
        """Return eq. 2, v^(alpha - 1) (1 - v)^(beta - 1)/B(alpha, beta), elementwise.

        Args:
            v: Explained variances in (0, 1), of any shape.

        Returns:
            The densities, of the shape of v.
        """
        log_constant = math.lgamma(self.alpha) + math.lgamma(self.beta) - math.lgamma(self.alpha + self.beta)
        density: np.ndarray = v ** (self.alpha - 1) * (1 - v) ** (self.beta - 1) * math.exp(-log_constant)
        return density

    def log(self, x: Numbers) -> Numbers:
        """Return l(x), elementwise.

        Args:
            x: Numbers greater than 0, of any shape.

        Returns:
            l of each number; -inf for 0 with the exact logarithm.
        """
        with np.errstate(divide="ignore"):
            logs: np.ndarray = np.log(x) if self.a == math.inf else self.a * (x ** (1 / self.a) - 1)
        return logs

    def negative_log_likelihood(self, v: Numbers) -> float:
        """Return the negative log-likelihood of eq. 3 or 4, without constants.

        Terms whose factor is 0 are omitted, so they cannot be infinite.

        Args:
            v: Explained variances in [0, 1], of any shape.

        Returns:
            The sum over all v.
        """
        sides = ((1 - self.alpha, v), (1 - self.beta, 1 - v))
        return sum(float(factor * self.log(x).sum()) for factor, x in sides if factor)

    def smoothed(self, v: Numbers, residuals: Numbers) -> Numbers:
        """Return each term of the negative log-likelihood, with l replaced by its tangent below irls.FLOOR.

        Args:
            v: Explained variances.
            residuals: Residuals 1 - v, of the same shape.

        Returns:
            The terms, of the shape of v.
        """
        both: np.ndarray = (1 - self.alpha) * self._floored(v) + (1 - self.beta) * self._floored(residuals)
        return both

    def slopes(self, v: Numbers, residuals: Numbers) -> Numbers:
        """Return the derivatives of `smoothed` by v.

        Args:
            v: Explained variances.
            residuals: Residuals 1 - v, of the same shape.

        Returns:
            The derivatives, of the shape of v.
        """
        both: np.ndarray = (1 - self.alpha) * self._slope(v) - (1 - self.beta) * self._slope(residuals)
        return both

    def _floored(self, x: Numbers) -> Numbers:
        """Return l, with its tangent below irls.FLOOR."""
        floored: np.ndarray = self.log(np.maximum(x, irls.FLOOR)) + np.minimum(x - irls.FLOOR, 0.0) * self._slope(0 * x)
        return floored

    def _slope(self, x: Numbers) -> Numbers:
        """Return the derivative of `_floored`."""
        slope: np.ndarray = np.maximum(x, irls.FLOOR) ** (1 / self.a - 1)
        return slope


@dataclass(frozen=True)
class Fit:
    """Result of `fit`.

    Attributes:
        objective: Smoothed objective at Y.
        history: Smoothed objective at the start and after each step.
        values: Explained variances (p,); 1 for a gradient of zeros.
        at_floor: True if some v or 1 - v is below irls.FLOOR, where the exact likelihood is infinite.
        Y: The basis, float64 (n, m).
    """

    objective: float
    history: tuple[float, ...]
    values: Float64[np.ndarray, " p"]
    at_floor: bool
    Y: Float64[np.ndarray, "n m"] = field(repr=False)


@dataclass(frozen=True)
class _Task:
    """The smoothed objective as a function of Y.

    Y is expressed in an orthonormal basis of span(G) and of up to m directions outside it. The latter let Y turn away
    from the gradients. `terms` are the problem's terms in this basis. `present` is 0 for a gradient of zeros.
    """

    pairs: irls.Problem  # The factors are 0 for the workers' own terms.
    present: Float64[np.ndarray, " p"]
    terms: Terms
    prior: Beta

    def explained(self, Y: Columns) -> tuple[Float64[np.ndarray, " T"], Float64[np.ndarray, " T"]]:
        """Return v and 1 - v of each term, each summed on its own to avoid cancellation."""
        pairs, inside = self.pairs, Y.T @ self.terms
        v, residuals = (
            np.bincount(pairs.owner, np.square(columns).sum(axis=0), minlength=pairs.factors.size)
            for columns in (inside, self.terms - Y @ inside)
        )
        return v, residuals

    def evaluate(self, Y: Columns) -> tuple[float, Moment]:
        """Return the objective and its derivative by Y Y^T."""
        pairs, p = self.pairs, self.present.size
        v, residuals = self.explained(Y)
        slopes = -pairs.factors * pairs.weights(residuals) / pairs.a
        slopes[:p] = self.present * self.prior.slopes(v[:p], residuals[:p])
        costs = self.prior.smoothed(v[:p], residuals[:p])
        objective = float(self.present @ costs) + pairs.smoothed_objective(residuals)
        return objective, (self.terms * slopes[pairs.owner]) @ self.terms.T


def fit(
    G: Any,
    prior: Beta,
    m: int | None = None,
    lam: float = 0.0,
    tol: float = 1e-10,
    max_iter: int = 500,
    restarts: int = 10,
    seed: int = 0,
) -> Fit:
    """Fit the most likely basis by descent from several starts.

    The starts are equal weights and `restarts` random bases. A step moves to the eigenvectors of the tangent, as IRLS
    does. It cannot rise where all terms are concave in v. If it does not lower the objective, the step follows the
    Riemannian gradient with backtracking. The method is meant for small problems.

    Args:
        G: Gradients (p, n), as for `fa.irls.solve`.
        prior: Distribution of the explained variances.
        m: Number of columns of Y; default None, as in `fa.irls.solve`.
        lam: Weight of eq. 5's pairwise regularizer; default 0. Its power is the prior's, or 2 for the exact logarithm.
        tol: Decrease of the objective at which the descent ends; default 1e-10.
        max_iter: Largest number of steps; default 500.
        restarts: Number of random starts; default 10.
        seed: Seed of the starts; default 0.

    Returns:
        The fit with the lowest objective.

    Raises:
        ValueError: An argument is out of range, as in `fa.irls.solve`.
    """
    irls.Options(m=m, lam=lam, tol=tol, max_iter=max_iter, restarts=restarts, seed=seed)  # Check the options.
    check("prior", prior, isinstance(prior, Beta), "a fa.likelihood.Beta")
    gradients, counts, gram = measure_groups(G)
    m = irls.default_m(len(counts)) if m is None else m
    irls.check_m(m, gram.p)
    problem = irls.build_problem(gram, m, lam, 2.0 if prior.a == math.inf else prior.a, counts=counts)
    outside = min(m, gradients.G.shape[1] - len(problem.terms))
    generator = np.random.default_rng(seed)
    terms = np.vstack([problem.terms, np.zeros((outside, problem.terms.shape[1]))])
    present, of_workers = problem.factors[: problem.p], np.arange(problem.factors.size) < problem.p
    task = _Task(replace(problem, factors=np.where(of_workers, 0.0, problem.factors)), present, terms, prior)
    random = [np.linalg.qr(generator.standard_normal((len(terms), m)))[0] for _ in range(restarts)]
    runs = [_descend(task, Y, tol, max_iter) for Y in (_lowest(-terms @ terms.T, m), *random)]
    history, Y = min(runs, key=lambda run: run[0][-1])
    v, residuals = (numbers[: problem.p] for numbers in task.explained(Y))
    floored = (prior.beta < 1) & (residuals < irls.FLOOR) | (prior.alpha < 1) & (v < irls.FLOOR)
    return Fit(
        objective=history[-1],
        history=tuple(history),
        values=np.where(present > 0, np.minimum(v, 1.0), 1.0),
        at_floor=bool((floored & (present > 0)).any()),
        Y=_directions(gradients, gram.divide_by_norms(problem.basis), outside, generator) @ Y,
    )


def _directions(
    gradients: Gradients,
    basis: Float64[np.ndarray, "q r"],
    outside: int,
    generator: np.random.Generator,
) -> Float64[np.ndarray, "n d"]:
    """Return G^T `basis`, an orthonormal basis of span(G), then directions outside it, as vectors of n coordinates."""
    Q = gradients.G.double().cpu().numpy().T @ basis
    others = generator.standard_normal((len(Q), outside))
    return np.hstack([Q, np.linalg.qr(others - Q @ (Q.T @ others))[0]])


def _lowest(moment: Moment, m: int) -> Columns:
    """Return the m eigenvectors of the lowest eigenvalues."""
    vectors: np.ndarray = np.linalg.eigh(moment)[1][:, :m]
    return vectors


def _descend(task: _Task, Y: Columns, tol: float, max_iter: int) -> tuple[list[float], Columns]:
    """Return history and basis of a descent from Y."""
    objective, moment = task.evaluate(Y)
    history, length, slope = [objective], 1.0, _riemannian(Y, moment)
    for _ in range(max_iter):
        following = _lowest(moment, Y.shape[1])
        if not task.evaluate(following)[0] < objective - tol:
            following = _line_search(task, Y, slope, objective, length)
        following = following @ _nearest_rotation(following.T @ Y)
        objective, moment = task.evaluate(following)
        if not objective < history[-1]:
            break
        history.append(objective)
        before, slope = slope, _riemannian(following, moment)
        moved, turned = following - Y, slope - before
        length = float(np.vdot(moved, moved) / max(abs(np.vdot(moved, turned)), 1e-300))  # Barzilai-Borwein
        Y = following
        if history[-2] - history[-1] < tol:
            break
    return history, Y


def _riemannian(Y: Columns, moment: Moment) -> Columns:
    """Return the gradient on the Grassmann manifold, from the derivative by Y Y^T."""
    slope: np.ndarray = 2 * (moment @ Y - Y @ (Y.T @ moment @ Y))
    return slope


def _line_search(task: _Task, Y: Columns, slope: Columns, objective: float, length: float) -> Columns:
    """Return the first of ever shorter steps that lowers the objective enough, or Y if none does."""
    squared = float(np.vdot(slope, slope))
    for _ in range(_TRIES):
        candidate: np.ndarray = np.linalg.qr(Y - length * slope)[0]
        if task.evaluate(candidate)[0] <= objective - _DESCENT * length * squared:
            return candidate
        length /= 4
    return Y


def _nearest_rotation(square: Float64[np.ndarray, "m m"]) -> Float64[np.ndarray, "m m"]:
    """Return the polar factor, which aligns Y's columns with those of the previous step."""
    left, _, right = np.linalg.svd(square)
    rotation: np.ndarray = left @ right
    return rotation
