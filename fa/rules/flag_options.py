"""Options of FA: their definitions, their checks, and what becomes of them where workers are excluded."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from fa import irls, likelihood
from fa.flags.nested import check_dims
from fa.irls import DEFAULTS
from fa.irls.worker_weights import read_weights
from fa.rules.options import RuleOptions
from fa.rules.preaggregators import make_preaggregator
from fa.utils.seeds import derive_seed
from fa.utils.validation import check, check_integer, check_one_of

_LARGEST = "largest:"  # Start of "largest:K", a start beside those of `fa.irls`.
_WITHIN_SPAN = '"pairwise" or "group"'  # Regularizers whose Y is in the span of the gradients.

# Not typing.Self, for the reason in `fa.rules.options`.
AnyOptions = TypeVar("AnyOptions", bound="FlagOptions")


@dataclass(frozen=True, kw_only=True)
class FlagOptions(RuleOptions):
    """Options of `fa.rules.flag.FlagAggregator`.

    Attributes:
        m: Number of columns of Y. None: ceil((p + 1)/2).
        lam: Weight of the regularizer.
        regularizer: A name in `fa.irls.REGULARIZERS`.
        a: Inverse of the power in eq. 5, at least 1.
        tol: Change of the smoothed objective below which IRLS stops.
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
        gradients_per_worker: Number k_i of gradients of each worker, or one for all. The first k_0 rows are those
            of worker 0, and so on; each worker has one term in eq. 5. `worker_weights` and the default of `m` then
            count workers, and `f` counts rows.
        group_term: Term of a worker with several gradients, "fraction" or "chordal", as in `fa.irls.solve`.
        prior: alpha and beta of the Beta distribution of the explained variances, in the form of eq. 4 with this `a`.
            The solver is `fa.likelihood.fit` without random starts. None: (1, 1/2), by IRLS.
    """

    m: int | None = DEFAULTS.m
    lam: float = DEFAULTS.lam
    regularizer: str = DEFAULTS.regularizer
    a: float = DEFAULTS.a
    tol: float = DEFAULTS.tol
    max_iter: int | None = None
    formulation: irls.Formulation = "paper"
    worker_weights: Sequence[float] | np.ndarray | None = DEFAULTS.worker_weights
    start: str = "equal"
    dims: Sequence[int] | None = None
    prior: Sequence[float] | None = None
    gradients_per_worker: int | Sequence[int] = 1
    group_term: irls.GroupTerm = DEFAULTS.group_term

    def __post_init__(self) -> None:
        self._set_defaults()
        super().__post_init__()
        self._check_workers_options()
        _ = self.irls_options  # checks its options
        self._check_start()
        self._check_released()
        if self.dims is not None:
            self._check_dims(self.dims)
        if self.prior is not None:
            self._check_prior(self.prior)

    def _set_defaults(self) -> None:
        """Replace None by the default of the formulation."""
        check_one_of("formulation", self.formulation, irls.FORMULATIONS)
        released = self.formulation == "released"
        if self.preaggregators is None and not released:
            object.__setattr__(self, "preaggregators", ("median_norm",))
        if self.max_iter is None:
            object.__setattr__(self, "max_iter", 1 if released else DEFAULTS.max_iter)

    def _check_released(self) -> None:
        """Check that no option contradicts the released code's one step from equal weights."""
        if self.formulation != "released":
            return
        check("max_iter", self.max_iter, self.max_iter == 1, '1 with formulation="released"')
        within = not self.irls_options.leaves_span
        check("regularizer", self.regularizer, within, f'{_WITHIN_SPAN} with formulation="released"')

    def _check_start(self) -> None:
        if not self.hint_count:
            check_one_of("start", self.start, irls.STARTS, f"or {_LARGEST}K")
        within = self.start in irls.STARTS or not self.irls_options.leaves_span
        check("start", self.start, within, f"a name with regularizer={self.regularizer!r}")

    def _check_workers_options(self) -> None:
        """Check the options that have one number for each worker."""
        if self.worker_weights is not None:
            object.__setattr__(self, "worker_weights", read_weights(self.worker_weights))
        counts = self.gradients_per_worker
        if isinstance(counts, list | tuple):
            object.__setattr__(self, "gradients_per_worker", tuple(counts))
        for count in counts if isinstance(counts, list | tuple) else (counts,):
            check_integer("gradients_per_worker", count, 1)

    def _check_dims(self, dims: Sequence[int]) -> None:
        """Check the dimensions of a flag, and that no option contradicts them."""
        check_dims(dims)
        object.__setattr__(self, "dims", tuple(dims))
        check("m", self.m, self.m is None, "None with dims, the last of which replaces it")
        check("regularizer", self.regularizer, not self.irls_options.leaves_span, f"{_WITHIN_SPAN} with dims")
        check("formulation", self.formulation, self.formulation == "paper", '"paper" with dims')
        check("group_term", self.group_term, self.group_term == "fraction", '"fraction" with dims')

    def _check_prior(self, prior: Sequence[float]) -> None:
        """Check alpha and beta, and that no option needs another solver."""
        check("prior", prior, isinstance(prior, list | tuple) and len(prior) == 2, "two numbers, alpha and beta")
        object.__setattr__(self, "prior", tuple(prior))
        likelihood.Beta(prior[0], prior[1], self.a)  # The constructor checks them.
        names = ("worker_weights", "start", "dims", "formulation", "gradients_per_worker")
        changed = [name for name in names if getattr(self, name) != getattr(type(self), name)]
        check("prior", prior, not changed, f"None with {', '.join(changed)}")
        check("regularizer", self.regularizer, self.regularizer == "pairwise" or self.lam == 0, '"pairwise" with prior')

    @cached_property
    def irls_options(self) -> irls.Options:
        """Options of IRLS."""
        assert self.max_iter is not None  # by __post_init__
        return irls.Options(
            m=self.m,
            lam=self.lam,
            regularizer=self.regularizer,
            a=self.a,
            tol=self.tol,
            max_iter=self.max_iter,
            seed=self.seed,
            worker_weights=self.worker_weights,
            group_term=self.group_term,
        )

    @cached_property
    def hint_count(self) -> int:
        """K of the start "largest:K", and 0 for another start."""
        name, colon, number = self.start.partition(":") if isinstance(self.start, str) else ("", "", "")
        if name + colon != _LARGEST:
            return 0
        requirement = f"{_LARGEST}K with an integer K of at least 1"
        check("start", self.start, number.isdecimal() and int(number) > 0, requirement)
        return int(number)

    @property
    def needs_coordinate_count(self) -> bool:
        """True for a random start in all n coordinates."""
        return self.formulation == "released" and self.start == "random"

    def exposure(self, given: Collection[str]) -> str:
        """Return how the options expose the rule, also by pre-aggregators under which one long gradient decides.

        Args:
            given: As for `RuleOptions.exposure`.

        Returns:
            A warning, or an empty string.
        """
        names = self.preaggregator_names
        bounded = self.formulation == "released" or any(make_preaggregator(name).bounds_norms for name in names)
        if bounded or not names:
            return super().exposure(given)
        return super().exposure(given) or (
            f"preaggregators must bound norms for rule {self.name!r} to tolerate long Byzantine gradients, got {names}"
            f". They replace the default; {(*names, 'median_norm')} keeps it."
        )

    @property
    def needs_gradients(self) -> bool:
        """True for norms of Y, for a prior, and for hints, which read the gradients' coordinates."""
        return self.irls_options.leaves_span or self.hint_count > 0 or self.prior is not None

    def check_decides_in_gram(self, where: str) -> None:
        """Check the options that need the gradients, and name the one that does.

        Args:
            where: End of the error message.

        Raises:
            ValueError: `needs_gradients` is true.
        """
        check("regularizer", self.regularizer, not self.irls_options.leaves_span, f"{_WITHIN_SPAN} {where}")
        check("start", self.start, not self.hint_count, f"one of {', '.join(irls.STARTS)} {where}")
        check("prior", self.prior, self.prior is None, f"None {where}")

    def check_workers(self, p: int, remark: str = "") -> None:
        """Check p as every rule does, and that there are gradients and a weight of each worker.

        Args:
            p: Number of gradients.
            remark: As for `RuleOptions.check_workers`.

        Raises:
            ValueError: p is too small, or does not fit the workers' weights, numbers of gradients or pre-aggregators.
        """
        super().check_workers(p, remark)
        if self.worker_weights is None and self.gradients_per_worker == 1:
            return
        counts = self.counts(p)
        if self.worker_weights is not None:
            read_weights(self.worker_weights, len(counts))
        mixing = [name for name in self.preaggregator_names if not make_preaggregator(name).keeps_workers]
        requirement = "ones that neither choose nor mix workers, with worker_weights or gradients_per_worker"
        check("preaggregators", mixing, not mixing, requirement)

    def counts(self, p: int) -> tuple[int, ...]:
        """Return the number of gradients of each worker.

        Args:
            p: Number of all gradients.

        Raises:
            ValueError: `gradients_per_worker` has another sum, or does not divide p.
        """
        counts = self.gradients_per_worker
        if isinstance(counts, int):
            check("gradients_per_worker", counts, p % counts == 0, f"a divisor of p = {p}, the number of gradients")
            return (counts,) * (p // counts)
        check("gradients_per_worker", counts, sum(counts) == p, f"numbers with the sum p = {p}")
        return tuple(counts)

    def for_rows(self: AnyOptions, rows: Sequence[int], p: int) -> AnyOptions:
        """Return the rule with the workers of these rows, and their weights.

        Args:
            rows: Rows of the gradients that remain, in ascending order.
            p: Number of all gradients.
        """
        if self.worker_weights is None and self.gradients_per_worker == 1:
            return self
        counts = self.counts(p)
        owner = np.repeat(np.arange(len(counts)), counts)
        remaining = Counter(owner[list(rows)].tolist())
        weights = None if self.worker_weights is None else read_weights(self.worker_weights, len(counts))
        return replace(
            self,
            gradients_per_worker=tuple(remaining.values()),
            worker_weights=None if weights is None else tuple(weights[worker] for worker in remaining),
        )

    def for_iteration(self: AnyOptions, iteration: int) -> AnyOptions:
        """Return the rule with the seed of the iteration's random start.

        Args:
            iteration: Iteration of the training run.
        """
        if self.start != "random":
            return self
        return replace(self, seed=derive_seed("first basis", self.seed, 0, iteration))
