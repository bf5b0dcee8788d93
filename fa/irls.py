"""FlagIRLS in the Gram matrix: the subspace Y that minimises eq. 5 by iteratively reweighted least squares.

    min over Y^T Y = I of  sum_k c_k (1 - ||Y^T t_k||^2)^(1/a)

The terms t_k are the unit gradients x_i = g_i/||g_i|| (c = 1) and, with lam > 0, the unit differences (g_i -
g_j)/D_ij of every pair (c = 2 lam/(p - 1), since eq. 5 counts each pair twice). The power is concave in ||Y^T
t_k||^2, so its tangent bounds it above and the tangent's minimiser, the top m eigenvectors of sum_k c_k w_k t_k t_k^T
with w = (1 - v)^(1/a - 1), does not raise the objective. Everything is written in an orthonormal basis of span(G), of
p dimensions at the most: nothing of size n is built.

Source: the paper, sections 2.2 and 2.3; Mankovich et al., The Flag Median and FlagIRLS, CVPR 2022.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from fa import kernels
from fa.checks import check_integer, check_one_of, check_real
from fa.gradients import read
from fa.gram import Gram, measure

Reading = Literal["paper", "released"]
READINGS = ("paper", "released")
REGULARIZERS = ("pairwise",)

FLOOR = 1e-12  # of 1 - v: below it the power is replaced by its tangent there, so that weights stay finite
_RANK = 1e-12  # eigenvalues of the cosines below this fraction of the largest are rounding, not directions
_EQUAL = 1e-12  # squared distance over squared norms below which two gradients count as one and their term as 0


@dataclass(frozen=True)
class Options:
    """What `solve` can be told; raises ValueError for a value that no problem admits."""

    m: int | None = None
    lam: float = 0.0
    regularizer: str = "pairwise"
    a: float = 2.0
    tol: float = 1e-10
    max_iter: int = 5

    def __post_init__(self) -> None:
        if self.m is not None:
            check_integer("m", self.m, 1)
        check_real("lam", self.lam, 0)
        check_one_of("regularizer", self.regularizer, REGULARIZERS)
        check_real("a", self.a, 1, ", where (1 - v)^(1/a) is concave")
        check_real("tol", self.tol, 0)
        check_integer("max_iter", self.max_iter, 1)


DEFAULTS = Options()


@dataclass(frozen=True)
class Problem:
    """Eq. 5 in an orthonormal basis Q of span(G): r dimensions, N terms, p workers.

    `basis` (p, r) holds the coefficients of Q in the unit gradients; `terms` (r, N) the t_k, the p unit gradients
    first; `factors` (N,) the c_k. A gradient that is zero has a zero column and c = 0.
    """

    basis: Float64[np.ndarray, "p r"]
    terms: Float64[np.ndarray, "r N"]
    factors: Float64[np.ndarray, " N"]
    norms: Float64[np.ndarray, " p"]
    m: int
    a: float

    @property
    def p(self) -> int:
        """The number of gradients."""
        return self.norms.size

    def objective(self, residuals: Float64[np.ndarray, " N"]) -> float:
        """Eq. 5 with (1 - v)^(1/a) for the square root, of the residuals 1 - v."""
        return float(self.factors @ residuals ** (1 / self.a))

    def smoothed(self, residuals: Float64[np.ndarray, " N"]) -> float:
        """The objective with the power's tangent at FLOOR below FLOOR: what every step lowers."""
        floored = np.maximum(residuals, FLOOR)
        below = np.minimum(residuals - FLOOR, 0.0) * FLOOR ** (1 / self.a - 1) / self.a
        return float(self.factors @ (floored ** (1 / self.a) + below))

    def weights(self, residuals: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
        """w_k = (1 - v_k)^(1/a - 1), the tangents' slopes up to the factor 1/a."""
        weights: np.ndarray = np.maximum(residuals, FLOOR) ** (1 / self.a - 1)
        return weights


@dataclass(frozen=True)
class State:
    """One iterate: Y in the basis (r, min(m, r)), the residuals 1 - v_k it leaves (N,), its smoothed objective."""

    Y: Float64[np.ndarray, "r m"]
    residuals: Float64[np.ndarray, " N"]
    smoothed: float


@dataclass(frozen=True)
class Solution:
    """What IRLS found: `objective` is eq. 5 at Y, `history` the smoothed objective after each step, `values` the v_i
    (p,).

    `coefficients` C (p, min(m, rank G)) give Y = G^T C. The objective's `resolution` is what its terms below FLOOR,
    which the smoothing cannot tell from FLOOR, can hide: their number times FLOOR^(1/a).
    """

    objective: float
    resolution: float
    history: tuple[float, ...]
    converged: bool
    values: Float64[np.ndarray, " p"]
    coefficients: Float64[np.ndarray, "p m"]
    m: int
    lam: float
    a: float
    regularizer: str
    gram: Gram = field(repr=False)
    G: Tensor | None = field(default=None, repr=False)

    @property
    def iterations(self) -> int:
        """The number of steps taken."""
        return len(self.history)

    def weights(self, reading: Reading = "paper") -> Float64[np.ndarray, " p"]:
        """The direction's coefficients on the gradients, (p,): "paper" (1/p) Y Y^T G 1, "released" (1/m) sum_i Y Y^T
        g_i/||g_i||.
        """
        check_one_of("reading", reading, READINGS)
        p, norms = self.gram.p, self.gram.norms
        cosines = _cosines(self.gram)
        share = norms / p if reading == "paper" else (norms > 0) / self.m
        scaled = norms[:, None] * self.coefficients
        beta = scaled @ (scaled.T @ (cosines @ share))
        weights: np.ndarray = np.divide(beta, norms, out=np.zeros(p), where=norms > 0)
        return weights

    def direction(self, reading: Reading = "paper") -> Tensor:
        """d (n,), in G's dtype."""
        if self.G is None:
            raise ValueError(
                "this solution was found from a Gram matrix alone: take .weights() and combine the gradients with them"
            )
        return kernels.combine(self.G, self.weights(reading))[0]


def solve(
    G: Any,
    m: int | None = None,
    lam: float = 0.0,
    regularizer: str = "pairwise",
    a: float = 2.0,
    tol: float = 1e-10,
    max_iter: int = 5,
) -> Solution:
    """The subspace of m dimensions (default ceil((p + 1)/2)) that IRLS finds for eq. 5, from equal weights.

    G: (p, n), one worker a row, or what `fa.aggregate` takes. lam weighs the pairwise term, a is the power's inverse.
    It stops when the smoothed objective changes by less than tol, or after max_iter steps. Raises ValueError for
    values out of range and for rows with NaN or Inf.
    """
    options = Options(m, lam, regularizer, a, tol, max_iter)
    matrix = read(G).G
    gram, finite = measure(matrix)
    if not finite.all():
        raise ValueError(
            f"G must be finite; NaN or Inf is in row {', '.join(map(str, np.flatnonzero(~finite)))}: leave it out"
        )
    return solve_gram(gram, options, matrix)


def solve_gram(
    gram: Gram, options: Options = DEFAULTS, G: Tensor | None = None, reading: Reading = "paper"
) -> Solution:
    """As `solve`, from the Gram matrix; reading="released" takes the pairs as the released code does."""
    m = default_m(gram.p) if options.m is None else options.m
    if m > gram.p:
        raise ValueError(f"m must be at most p = {gram.p}, the number of gradients; it is {m}")
    problem = pose(gram, m, options.lam, options.a, reading)
    states, converged = _iterate(problem, options.tol, options.max_iter)
    last = states[-1]
    norms = gram.norms[:, None]
    unit = problem.basis @ last.Y
    return Solution(
        objective=problem.objective(last.residuals),
        resolution=float(problem.factors[last.residuals < FLOOR].sum() * FLOOR ** (1 / options.a)),
        history=tuple(state.smoothed for state in states),
        converged=converged,
        values=1.0 - last.residuals[: gram.p],
        coefficients=np.divide(unit, norms, out=np.zeros_like(unit), where=norms > 0),
        m=m,
        lam=options.lam,
        a=options.a,
        regularizer=options.regularizer,
        gram=gram,
        G=G,
    )


def default_m(p: int) -> int:
    """ceil((p + 1)/2), the paper's number of columns of Y."""
    return -(-(p + 1) // 2)


def pose(gram: Gram, m: int, lam: float, a: float, reading: Reading = "paper") -> Problem:
    """Eq. 5 for these gradients, in an orthonormal basis of their span."""
    lengths, vectors = np.linalg.eigh(_cosines(gram))
    kept = lengths > _RANK * max(lengths[-1], 1.0)
    basis = vectors[:, kept] / np.sqrt(lengths[kept])
    unit_gradients = (vectors[:, kept] * np.sqrt(lengths[kept])).T
    alive = (gram.norms > 0).astype(np.float64)
    differences, factors = _pairs(gram, lam, reading)
    return Problem(
        basis=basis * alive[:, None],
        terms=np.hstack([unit_gradients * alive, unit_gradients @ differences]),
        factors=np.concatenate([alive, factors]),
        norms=gram.norms,
        m=m,
        a=a,
    )


def _cosines(gram: Gram) -> Float64[np.ndarray, "p p"]:
    """Inner products of the unit gradients; 0 for a gradient that is 0."""
    norms = np.sqrt(np.diag(gram.K))
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    cosines: np.ndarray = gram.K * np.outer(scale, scale)
    return cosines


def _pairs(gram: Gram, lam: float, reading: Reading) -> tuple[Float64[np.ndarray, "p N"], Float64[np.ndarray, " N"]]:
    """The pairs' terms as coefficients of the unit gradients (p, N), and their factors c (N,); none with lam = 0.

    "paper": (g_i - g_j)/D_ij, each pair twice, over p - 1. "released": x_i - x_j, not divided, in columns that carry
    the factor lam/(p(p - 1)), which is therefore squared in the matrix whose eigenvectors are taken.
    """
    p = gram.p
    if lam == 0 or p == 1:
        return np.zeros((p, 0)), np.zeros(0)
    norms = np.sqrt(np.diag(gram.K))
    i, j = np.triu_indices(p, 1)
    columns = np.arange(i.size)
    differences = np.zeros((p, i.size))
    if reading == "released":
        differences[i, columns], differences[j, columns] = 1.0, -1.0
        return differences, np.full(i.size, 2 * (lam / (p * (p - 1))) ** 2)
    distances = np.sqrt(gram.D2[i, j])
    apart = distances > np.sqrt(_EQUAL) * np.hypot(norms[i], norms[j])
    distances[~apart] = np.inf
    differences[i, columns], differences[j, columns] = norms[i] / distances, -norms[j] / distances
    return differences, np.where(apart, 2 * lam / (p - 1), 0.0)


def _iterate(problem: Problem, tol: float, max_iter: int) -> tuple[list[State], bool]:
    states = [step(problem, np.ones_like(problem.factors))]
    while len(states) < max_iter:
        states.append(step(problem, problem.weights(states[-1].residuals)))
        if terminates(states[-2], states[-1], tol):
            return states, True
    return states, False


def step(problem: Problem, weights: Float64[np.ndarray, " N"]) -> State:
    """The top m eigenvectors of the weighted terms' second moment, and what they leave of each term.

    Residuals are lengths in the other eigenvectors, not 1 less the length in these, which would cancel.
    """
    moment = (problem.terms * (problem.factors * weights)) @ problem.terms.T
    _, vectors = np.linalg.eigh(moment)
    split = max(vectors.shape[0] - problem.m, 0)
    residuals = np.square(vectors[:, :split].T @ problem.terms).sum(axis=0)
    return State(vectors[:, split:], residuals, problem.smoothed(residuals))


def terminates(before: State, after: State, tol: float) -> bool:
    """Whether the last step changed the smoothed objective by less than tol."""
    return abs(before.smoothed - after.smoothed) < tol
