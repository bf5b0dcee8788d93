"""FA, the Flag Aggregator: the mean of the gradients, reconstructed in the subspace Y.

Source: the paper, Algorithm 1 and eq. 5.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fa import flags
from fa.flags.nested import check_dims
from fa.gradients import Gradients, read
from fa.gradients.gram import Gram
from fa.irls import (
    DEFAULTS,
    FORMULATIONS,
    Formulation,
    GroupTerm,
    Options,
    Solution,
    random_first_basis,
    solve,
    solve_gram,
)
from fa.irls.worker_weights import read_weights
from fa.objective import values
from fa.rules.base import Rule
from fa.rules.decision import ColumnDecision
from fa.rules.options import AnyRule
from fa.rules.preaggregators import MixedGradients, make_step
from fa.theory.likelihood import Beta, fit
from fa.utils import seeds
from fa.utils.validation import check, check_integer, check_one_of

STARTS = ("equal", "data", "random")
"""Names of starts. "largest:K" is one more."""

_LARGEST = "largest:"


@dataclass(frozen=True, kw_only=True)
class FlagAggregator(Rule):
    """d = (1/p) Y Y^T G 1, with the basis Y from IRLS on eq. 5.

    With regularizer="l1" or "rows" and lam > 0, Y is outside the span of the gradients. The decision then has no
    weights, and `max_iter` counts proximal steps.

    Attributes:
        m: Number of columns of Y. None: ceil((p + 1)/2).
        lam: Weight of the regularizer.
        regularizer: A name in `fa.irls.REGULARIZERS`.
        a: Parameter of the prior in eq. 5.
        tol: Relative tolerance of IRLS.
        max_iter: Maximum number of IRLS steps. None: 5, or 1 with formulation="released".
        formulation: "paper" is eq. 5, where a gradient's weight depends on its norm. It is robust with
            `preaggregators=("median_norm",)`, its default; `preaggregators=()` is the formula as printed.
            "released" is the authors' released code: unit gradients, one step from equal weights, and
            d = (1/m) sum_i Y Y^T g_i/||g_i||. Its pairs' terms are not divided by D_ij; their factor is squared.
        worker_weights: Weight of each worker, for workers that differ in batch size or noise; see
            `fa.irls.worker_weights`. None: 1. Pre-aggregators must keep all gradients apart.
        start: First subspace: "equal" for equal weights, "data" for the span of the first m gradients, "random" for a
            random subspace, drawn in each iteration. With formulation="released", "random" is the released code's
            random Y in all n coordinates; otherwise it is in the span of the gradients. "largest:K" starts at the
            hints of `fa.flags.hints`: each worker names the K coordinates in which its gradient is largest.
        dims: Dimensions m_1 < ... < m_K of nested subspaces, as in `fa.flags.solve`, with the direction of the
            outermost. They replace `m`. None: one subspace.
        gradients_per_worker: Number k of gradients of each worker: rows i k to i k + k - 1 are those of worker i, with
            one term in eq. 5. `worker_weights` and the default of `m` then count workers, and `f` counts rows.
        group_term: Term of a worker with several gradients, "fraction" or "chordal", as in `fa.irls.solve`.
        prior: alpha and beta of the Beta distribution of the explained variances, in the form of eq. 4 with this `a`.
            The solver is `fa.theory.likelihood.fit` without random starts. None: (1, 1/2), by IRLS.
    """

    m: int | None = DEFAULTS.m
    lam: float = DEFAULTS.lam
    regularizer: str = DEFAULTS.regularizer
    a: float = DEFAULTS.a
    tol: float = DEFAULTS.tol
    max_iter: int | None = None
    formulation: Formulation = "paper"
    worker_weights: Sequence[float] | None = DEFAULTS.worker_weights
    start: str = "equal"
    dims: Sequence[int] | None = None
    prior: Sequence[float] | None = None
    gradients_per_worker: int = 1
    group_term: GroupTerm = DEFAULTS.group_term
    _drawn: tuple[int, int | None] = field(default=(0, None), init=False, repr=False, compare=False)
    _counts: tuple[int, ...] | None = field(default=None, init=False, repr=False, compare=False)

    name: ClassVar[str] = "fa"
    column_count_option: ClassVar[str] = "m"

    def __post_init__(self) -> None:
        check_one_of("formulation", self.formulation, FORMULATIONS)
        released = self.formulation == "released"
        if self.preaggregators is None and not released:
            object.__setattr__(self, "preaggregators", ("median_norm",))
        super().__post_init__()
        if self.max_iter is None:
            object.__setattr__(self, "max_iter", 1 if released else DEFAULTS.max_iter)
        check("max_iter", self.max_iter, self.max_iter == 1 or not released, '1 with formulation="released"')
        check_integer("gradients_per_worker", self.gradients_per_worker, 1)
        norm = self.options.leaves_span  # The constructor of the options checks them.
        within = not (released and norm)
        check("regularizer", self.regularizer, within, '"pairwise" or "group" with formulation="released"')
        if self.worker_weights is not None:
            object.__setattr__(self, "worker_weights", read_weights(self.worker_weights))
        if not _largest(self.start):
            check_one_of("start", self.start, STARTS, f"or {_LARGEST}K")
        check("start", self.start, self.start in STARTS or not norm, f"a name with regularizer={self.regularizer!r}")
        if self.dims is not None:
            check_dims(self.dims)
            object.__setattr__(self, "dims", tuple(self.dims))
            check("m", self.m, self.m is None, "None with dims, the last of which replaces it")
            check("regularizer", self.regularizer, not norm, '"pairwise" with dims')
            check("formulation", self.formulation, not released, '"paper" with dims')

        if self.prior is not None:
            self._check_prior(self.prior)

    def _check_prior(self, prior: Sequence[float]) -> None:
        """Check alpha and beta, and that no option asks for another solver."""
        check("prior", prior, isinstance(prior, list | tuple) and len(prior) == 2, "two numbers, alpha and beta")
        object.__setattr__(self, "prior", tuple(prior))
        Beta(prior[0], prior[1], self.a)  # The constructor checks them.
        names = ("worker_weights", "start", "dims", "formulation", "gradients_per_worker")
        changed = [name for name in names if getattr(self, name) != getattr(type(self), name)]
        check("prior", prior, not changed, f"None with {', '.join(changed)}")
        check("regularizer", self.regularizer, not self.options.leaves_span, '"pairwise" with prior')

    @cached_property
    def options(self) -> Options:
        """Options of IRLS."""
        assert self.max_iter is not None  # by __post_init__
        weights = None if self.worker_weights is None else tuple(self.worker_weights)
        settings = self.m, self.lam, self.regularizer, self.a, self.tol, self.max_iter
        return Options(*settings, seed=self._seed, worker_weights=weights, group_term=self.group_term)

    @property
    def _seed(self) -> int:
        """Seed of the iteration's random start."""
        if self.start != "random":
            return self.seed
        return seeds.derive_seed("first basis", self.seed, 0, self._drawn[0])

    @property
    def needs_coordinate_count(self) -> bool:
        return self.formulation == "released" and self.start == "random"

    @property
    def direction_outside_span(self) -> bool:
        """True for norms of Y, for a prior, and for hints, which read the gradients' coordinates."""
        return self.options.leaves_span or _largest(self.start) > 0 or self.prior is not None

    def check_within_span(self, where: str) -> None:
        check("regularizer", self.regularizer, not self.options.leaves_span, f"'pairwise' or 'group' {where}")
        check("start", self.start, not _largest(self.start), f"one of {', '.join(STARTS)} {where}")
        check("prior", self.prior, self.prior is None, f"None {where}")

    def check_workers(self, p: int, remark: str = "") -> None:
        """Check p as every rule does, and that there are gradients and a weight of each worker."""
        super().check_workers(p, remark)
        k = self.gradients_per_worker
        if self._counts is None:
            check("gradients_per_worker", k, p % k == 0, f"a divisor of p = {p}, the number of gradients")
        if self.worker_weights is not None or k > 1:
            mixing = [name for name in self.steps if not make_step(name).keeps_workers]
            requirement = "ones that neither choose nor mix workers, with worker_weights or gradients_per_worker"
            check("preaggregators", mixing, not mixing, requirement)
        if self.worker_weights is not None:
            read_weights(self.worker_weights, p // k if self._counts is None else len(self._counts))

    def for_rows(self: AnyRule, rows: Sequence[int], p: int) -> AnyRule:
        """Return the rule with the workers of these rows, and their weights."""
        assert isinstance(self, FlagAggregator)
        k, weights = self.gradients_per_worker, self.worker_weights
        if k == 1 and weights is None:
            return self
        check("gradients_per_worker", k, p % k == 0, f"a divisor of p = {p}, the number of gradients")
        counts = Counter(row // k for row in rows)
        rule: Any = self
        if weights is not None:
            read_weights(weights, p // k)
            rule = replace(self, worker_weights=tuple(weights[worker] for worker in counts))
        return _with_state(rule, self._drawn, tuple(counts.values()))  # type: ignore[no-any-return]

    def for_iteration(self: AnyRule, iteration: int, n: int | None = None) -> AnyRule:
        """Return the rule that draws the iteration's random start."""
        assert isinstance(self, FlagAggregator)
        if self.start != "random":
            return self
        return _with_state(self, (iteration, n), self._counts)  # type: ignore[no-any-return]

    def with_options(self: AnyRule, **options: Any) -> AnyRule:
        """Return a copy with other options, which keeps what depends on an iteration's gradients."""
        assert isinstance(self, FlagAggregator)
        return _with_state(replace(self, **options), self._drawn, self._counts)  # type: ignore[no-any-return]

    def decide_from_gradients(self, G: Tensor, mixed: MixedGradients) -> ColumnDecision:
        columns = mixed.apply_to(G)
        if self.options.leaves_span:
            options = vars(self.options)
            groups = columns if self._counts is None else list(columns.split(self._counts))
            solution = solve(groups, start=self.start, **options)
            return ColumnDecision(direction=solution.direction(), values=values(G, solution.Y))
        if self.prior is not None:
            return self._decide_by_likelihood(columns, *self.prior)
        rows = columns.double()
        largest = torch.topk(rows.abs(), min(_largest(self.start), rows.shape[1]), dim=1).indices
        start = flags.hints(rows, list(largest), self.dims[-1] if self.dims else self.m)
        return self._decide(mixed.gram, read(rows), start)

    def _decide_by_likelihood(self, columns: Tensor, alpha: float, beta: float) -> ColumnDecision:
        options, rows, dtype = self.options, columns.double(), columns.dtype
        found = fit(
            rows, Beta(alpha, beta, self.a), self.m, self.lam, self.tol, options.max_iter, restarts=0, seed=self.seed
        )
        Y = torch.from_numpy(found.Y).to(rows)
        direction = (Y @ (Y.T @ rows.mean(dim=0))).to(dtype)
        return ColumnDecision(direction=direction, values=found.values)

    def decide(self, gram: Gram) -> ColumnDecision:
        if not self.needs_coordinate_count:
            return self._decide(gram, None, self.start)
        n = self._drawn[1]
        check("n", n, n is not None, "available for a random first basis, as in `aggregate`")
        assert n is not None
        return self._decide(gram, None, random_first_basis(n, self._seed))

    def _decide(self, gram: Gram, gradients: Gradients | None, start: Any) -> ColumnDecision:
        solution = self._solve(gram, gradients, start)
        return ColumnDecision(weights=solution.weights(self.formulation), coefficients=solution.coefficients)

    def _solve(self, gram: Gram, gradients: Gradients | None, start: Any) -> Solution:
        if self.dims is None:
            return solve_gram(gram, self.options, gradients, self.formulation, start, self._counts)
        # Excluded workers, and gradients that agree, leave fewer dimensions than were asked for.
        rank = int(np.linalg.matrix_rank(gram.cosines, hermitian=True))
        dims = [m for m in self.dims if m <= rank] or [max(1, rank)]
        return flags.solve_gram(gram, dims, self.options, gradients, start, self._counts).levels[-1]


def _with_state(rule: Any, drawn: tuple[int, int | None], counts: tuple[int, ...] | None) -> Any:
    """Return a copy of the rule with the fields that depend on an iteration's gradients."""
    copied = replace(rule)
    object.__setattr__(copied, "_drawn", drawn)
    object.__setattr__(copied, "_counts", counts)
    return copied


def _largest(start: str) -> int:
    """Return K of "largest:K", and 0 for another start."""
    name, colon, number = start.partition(":") if isinstance(start, str) else ("", "", "")
    if name + colon != _LARGEST:
        return 0
    check("start", start, number.isdecimal() and int(number) > 0, f"{_LARGEST}K with an integer K of at least 1")
    return int(number)
