"""What all rules share: decide in the p x p Gram matrix, apply in one pass over the coordinates, leave out what is
not finite.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64, Int
from torch import Tensor

from fa import kernels
from fa.gradients import read
from fa.gradients.blocks import ColumnBlocks
from fa.gradients.gram import Gram, measure
from fa.rules import preaggregators
from fa.rules.preaggregators import Mixture, Situation, columns, mix
from fa.utils import plugins
from fa.utils.blas import single_threaded
from fa.utils.validation import TooFewWorkersError, check, check_integer, check_min_workers

NOT_FINITE = "NaN or Inf"


@dataclass(frozen=True)
class Statistic:
    """What a coordinate rule takes of each coordinate's sorted values: the mean of values lo .. hi - 1 as the centre,
    and then, unless `keep` is 0, the mean of the `keep` values nearest it.
    """

    lo: int
    hi: int
    keep: int = 0


@dataclass(frozen=True)
class Choice:
    """What a rule decides about the q columns it sees: their weights (q,), or a statistic of the columns it takes.

    `coefficients` (q, m) give the basis Y of a rule that has one; `columns` are those it takes (None: all), or
    `combinations` (q, k) the weighted sums of columns on which the statistic is computed; `reason` is why not the
    others. Where Y leaves the span of the gradients, `direction` (n,) is the result and `values` the explained
    variances of the finite workers.
    """

    weights: Float64[np.ndarray, " q"] | None = None
    statistic: Statistic | None = None
    columns: tuple[int, ...] | None = None
    combinations: Float64[np.ndarray, "q k"] | None = None
    reason: str = ""
    coefficients: Float64[np.ndarray, "q m"] | None = None
    direction: Tensor | None = None
    values: Float64[np.ndarray, " rows"] | None = None


@dataclass(frozen=True)
class Decision:
    """What a rule decided about p workers.

    `weights` (p,): d = sum_i weights_i g_i, None where each coordinate is decided apart by `statistic` of the columns
    G R, R (p, q). `values` (p,): the explained variances v_i, None for rules without a basis. `selected`: workers
    whose gradient went into d; `left_out`: the others, and why.
    """

    selected: tuple[int, ...]
    left_out: dict[int, str]
    weights: Float64[np.ndarray, " p"] | None = None
    values: Float64[np.ndarray, " p"] | None = None
    statistic: Statistic | None = None
    R: Float64[np.ndarray, "p q"] | None = field(default=None, repr=False)
    direction: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Aggregate:
    """A rule's result: the direction d, of the gradients' shape, dtype and device, and the decision behind it."""

    direction: Any
    decision: Decision


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """An aggregation rule: options, and never state.

    f is the number of faulty workers that it is to withstand; `preaggregators` names the steps of
    `fa.rules.preaggregators` that the gradients go through first (None: what the rule has by default); `seed` is that
    of "bucketing".
    """

    f: int = 0
    preaggregators: Sequence[str] | None = None
    seed: int = 0

    name: ClassVar[str]
    looks: ClassVar[bool] = True  # whether it needs the Gram matrix
    condition: ClassVar[tuple[int, int]] = (0, 1)  # (times, plus): p >= times f + plus
    count: ClassVar[str] = ""  # the option, if there is one, that the number of columns bounds

    def __post_init__(self) -> None:
        for option in ("f", "seed"):
            check_integer(option, getattr(self, option), 0)
        given: Any = () if self.preaggregators is None else self.preaggregators
        check("preaggregators", given, isinstance(given, Sequence), "a sequence of steps' names")
        object.__setattr__(self, "preaggregators", (given,) if isinstance(given, str) else tuple(given))
        for name in self.steps:
            preaggregators.step(name)

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of the steps before the rule."""
        return tuple(self.preaggregators or ())

    def check_workers(self, p: int, remark: str = "") -> None:
        """Raise TooFewWorkersError if p gradients are too few for a pre-aggregator, or for the rule after them."""
        *before, q = columns(self.steps, p, self.f)
        for name, count in zip(self.steps, before, strict=True):
            check_min_workers(f'preaggregators="{name}"', count, self.f, *preaggregators.step(name).condition, remark)
        after = f" after {', '.join(self.steps)}" if q != p else ""
        check_min_workers(self.name, q, self.f, *self.condition, after + remark)
        if self._counted is not None:
            check(self.count, self._counted, self._counted <= q, f"at most p = {q}, the number of gradients{after}")

    def _admits(self, p: int) -> bool:
        """Whether p gradients are enough."""
        try:
            self.check_workers(p)
        except TooFewWorkersError:
            return False
        return True

    def without(self, missing: int, p: int) -> "Rule":
        """The rule for the p workers left when `missing` faulty ones are known: they count against f, and `count` falls
        to what is left.
        """
        if not missing:
            return self
        options: dict[str, Any] = {"f": max(0, self.f - missing)}
        if self._counted is not None:
            options[self.count] = max(1, min(self._counted, columns(self.steps, p, options["f"])[-1]))
        return replace(self, **options)

    @property
    def measures(self) -> bool:
        """Whether the Gram matrix is looked at, by the rule or by a step before it."""
        return self.looks or bool(self.steps)

    @property
    def leaves_span(self) -> bool:
        """Whether the direction leaves the span of the gradients, so that they must be in memory."""
        return False

    def check_span(self, where: str) -> None:
        """Raise ValueError for a direction that leaves the span of gradients which, `where`, are not in one memory."""
        check("rule", self.name, not self.leaves_span, f"one that decides in the Gram matrix {where}")

    @property
    def _counted(self) -> int | None:
        return getattr(self, self.count) if self.count else None

    @abstractmethod
    def decide(self, gram: Gram) -> Choice:
        """The choice among columns with this Gram matrix, whose number satisfies the rule's condition."""

    def __call__(self, G: Any, iteration: int = 0) -> Any:
        """The direction d of the gradients G: see `aggregate`."""
        return self.aggregate(G, iteration).direction

    def aggregate(
        self,
        G: Any,
        iteration: int = 0,
        out: Tensor | None = None,
        products: Float64[np.ndarray, "p p"] | None = None,
    ) -> Aggregate:
        """The direction d and the decision behind it.

        G is (p, n), one worker a row, or what `fa.gradients.read` takes; `iteration` picks the random numbers of
        "bucketing"; d is put into `out` (n,) if given; `products` are the rows' inner products as
        `fa.gradients.gram.IncrementalGram` has them, where they are known already. A worker with NaN or Inf is left out
        and counts against f. Raises ValueError where the rule's condition on p and f does not hold.
        """
        gradients = read(G)
        if out is not None:
            check_out(out, gradients.G)
            apart = out.untyped_storage().data_ptr() != gradients.G.untyped_storage().data_ptr()
            check("out", "in the memory of G", apart, "in memory of its own")
        (d,), decision = self.over(ColumnBlocks((gradients.G,)), iteration, (out,), products)
        return Aggregate(gradients.restore(d), decision)

    def over(
        self,
        G: ColumnBlocks,
        iteration: int = 0,
        out: Sequence[Tensor | None] | None = None,
        products: Float64[np.ndarray, "p p"] | None = None,
    ) -> tuple[list[Tensor], Decision]:
        """The parts of d that the parts of G held here give, put into `out` where given, and the decision, which all
        holders make alike.

        Otherwise as `aggregate`. A rule that leaves the span needs G in one part.
        """
        places = [None] * len(G.blocks) if out is None else out
        known = self.measures or not self._admits(G.p)  # whether some are not finite tells where they are too many
        gram, finite = measure(G, products) if known else (Gram.unmeasured(G.p), np.ones(G.p, dtype=bool))
        while True:
            decision = self._decide_among(G, gram, np.flatnonzero(finite), iteration)
            applied = [_apply(part, decision, place) for part, place in zip(G.blocks, places, strict=True)]
            bad = np.any([marks for _, marks in applied], axis=0)
            if not self.measures:  # else all know from the Gram matrix that none is
                bad = G.gather(bad).any(axis=0)
            if not bad.any():
                return [d for d, _ in applied], decision
            finite &= ~bad

    def choose(self, G: ColumnBlocks, rows: Int[np.ndarray, " k"], mixture: Mixture) -> Choice:
        """`decide`, for a rule that must see the gradients G themselves, too, of which `rows` are finite."""
        return self.decide(mixture.gram)

    @single_threaded
    def _decide_among(self, G: ColumnBlocks, gram: Gram, rows: np.ndarray, iteration: int) -> Decision:
        """The decision about all p workers, of which `rows` are finite."""
        missing = gram.p - rows.size
        if rows.size == 0:
            raise TooFewWorkersError("G must have a finite row; every worker's gradient holds NaN or Inf")
        rule = self.without(missing, rows.size)
        remark = f" ({missing} of {gram.p} left out: {NOT_FINITE})" if missing else ""
        rule.check_workers(rows.size, remark)
        mixture = mix(gram.select(rows), rule.steps, Situation(rule.f, rule.seed, iteration))
        with plugins.attribute_errors_to_plugin("rule"):
            choice = rule.choose(G, rows, mixture)
        _check_choice(self.name, choice, mixture.gram.p)
        return _describe(gram, rows, mixture, choice)


def _check_choice(name: str, choice: Any, q: int) -> None:
    """Raise ValueError where the rule of that name decides what no rule can."""
    check(f"what {name} decides", choice, isinstance(choice, Choice), "a fa.rules.base.Choice")
    weights = choice.weights
    if weights is None:
        said = choice.statistic is not None or choice.direction is not None
        check(f"what {name} decides", choice, said, "weights, a statistic or a direction")
    else:
        fits = isinstance(weights, np.ndarray) and weights.shape == (q,)
        check(f"the weights that {name} decides", weights, fits, f"an array of {q}, one a gradient")
        finite = bool(np.isfinite(weights).all())
        check(f"the weights that {name} decides", weights.tolist(), finite, "finite numbers")


def per_worker(numbers: Float64[np.ndarray, " p"] | None, p: int) -> list[float | None]:
    """A decision's weights or values as plain numbers; None where the rule has none, as of a gradient that is not
    finite.
    """
    if numbers is None:
        return [None] * p
    return [None if math.isnan(number) else number for number in numbers.tolist()]


def check_out(out: Tensor, G: Tensor) -> None:
    """Raise ValueError where `out` cannot hold a direction of G (p, n)."""
    kind = (tuple(out.shape), out.dtype, out.device)
    check("out", kind, kind == ((G.shape[1],), G.dtype, G.device), f"({(G.shape[1],)}, {G.dtype}, {G.device})")
    check("out", f"of stride {out.stride()}", out.is_contiguous(), "contiguous")


def _apply(G: Tensor, decision: Decision, out: Tensor | None) -> tuple[Tensor, np.ndarray]:
    if decision.direction is not None:
        d = decision.direction
        return d if out is None else out.copy_(d), np.zeros(len(G), dtype=bool)
    if decision.weights is not None:
        return kernels.combine(G, decision.weights, out)
    assert decision.statistic is not None  # a choice has weights or a statistic
    assert decision.R is not None
    statistic = decision.statistic
    return kernels.order_statistic(G, decision.R, statistic.lo, statistic.hi, statistic.keep, out)


def _describe(gram: Gram, rows: np.ndarray, mixture: Mixture, choice: Choice) -> Decision:
    """A choice among the columns, told of the workers."""
    R = np.zeros((gram.p, mixture.gram.p))
    R[rows] = mixture.R
    left_out = {int(i): NOT_FINITE for i in np.setdiff1d(np.arange(gram.p), rows)}
    left_out |= {int(i): "not chosen before the rule" for i in rows if not R[i].any()}
    taken = R if choice.columns is None else R[:, list(choice.columns)]
    if choice.combinations is not None:
        taken = R @ choice.combinations
    selected = tuple(int(i) for i in np.flatnonzero(taken.any(axis=1)))
    left_out |= {i: choice.reason for i in range(gram.p) if i not in selected and i not in left_out}
    values = np.full(gram.p, np.nan)
    values[rows] = np.nan if choice.values is None else choice.values
    explained = None if choice.values is None else values
    if choice.coefficients is not None:
        explained = _explained(gram, rows, R[rows] @ choice.coefficients)
    return Decision(
        selected=selected,
        left_out=dict(sorted(left_out.items())),
        weights=None if choice.weights is None else R @ choice.weights,
        values=explained,
        direction=choice.direction,
        statistic=choice.statistic,
        R=taken if choice.statistic is not None else None,
    )


def _explained(gram: Gram, rows: np.ndarray, coefficients: np.ndarray) -> Float64[np.ndarray, " p"]:
    """v_i = ||Y^T g_i||^2/||g_i||^2 of every worker under Y = G^T C; 1 for a gradient that is 0, NaN for one that is
    not finite.
    """
    finite = gram.select(rows)
    lengths = np.square(finite.cosines @ (finite.norms[:, None] * coefficients)).sum(axis=1)
    values = np.full(gram.p, np.nan)
    values[rows] = np.where(finite.norms > 0, np.minimum(lengths, 1.0), 1.0)
    return values
