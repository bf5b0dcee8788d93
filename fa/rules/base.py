"""The base class of all rules: decide in the Gram matrix (p, p), then apply the decision in one pass over G."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from fa.gradients import read
from fa.gradients.blocks import ColumnBlocks
from fa.gradients.gram import Gram
from fa.gradients.measurement import measure
from fa.rules.application import apply_to_blocks, check_out, overlap
from fa.rules.decision import (
    Aggregate,
    ColumnDecision,
    Decision,
    check_column_decision,
    check_direction,
    to_worker_decision,
)
from fa.rules.options import RuleOptions
from fa.rules.preaggregators import MixedGradients, PreaggregatorContext, apply_preaggregators
from fa.utils import plugins
from fa.utils.ambient import usual_float_errors
from fa.utils.blas import single_threaded
from fa.utils.tracing import untraced
from fa.utils.validation import check, check_integer


@dataclass(frozen=True, kw_only=True)
class Rule(RuleOptions, ABC):
    """An aggregation rule: options without state.

    A rule of your own is a frozen dataclass with a `name` and `decide`; see `RuleOptions` for what else it may declare.
    """

    @property
    def needs_gradients(self) -> bool:
        """True if the rule decides from the gradients' coordinates, which must then be in memory."""
        return False

    def check_decides_in_gram(self, where: str) -> None:
        """Check that the rule decides in the Gram matrix, because the gradients are not in one memory.

        Args:
            where: End of the error message.

        Raises:
            ValueError: `needs_gradients` is true.
        """
        check("rule", self.name, not self.needs_gradients, f"one that decides in the Gram matrix {where}")

    @property
    def needs_coordinate_count(self) -> bool:
        """True if the decision depends on `Gram.n`, the number of coordinates."""
        return False

    @abstractmethod
    def decide(self, gram: Gram) -> ColumnDecision:
        """Decide about the columns that the rule sees.

        Each rule overrides this method. The decision depends on the rule's options and on the Gram matrix alone.

        Args:
            gram: Gram matrix of the q columns: the finite gradients, or what the pre-aggregators compute from them.
                `gram.p` is q and satisfies `min_workers`. Entries may be NaN if `reads_gram` is false.

        Returns:
            The decision, which consists of weights of the columns or of a statistic of each coordinate.
        """

    def decide_from_gradients(self, G: Tensor, mixed: MixedGradients) -> ColumnDecision:
        """Decide from gradients in memory; called if `needs_gradients` is true.

        By default, this is `decide` with the Gram matrix of the columns.

        Args:
            G: The finite gradients (rows, n), before pre-aggregators.
            mixed: The columns that the rule sees: the output of the pre-aggregators.

        Returns:
            The decision, which may hold the direction d (n,) itself instead of weights.
        """
        return self.decide(mixed.gram)

    def __call__(self, G: Any, iteration: int = 0) -> Any:
        """Return the direction d of the gradients G; see `aggregate`."""
        return self.aggregate(G, iteration).direction

    @untraced
    def aggregate(
        self,
        G: Any,
        iteration: int = 0,
        out: Tensor | None = None,
        inner_products: Float64[np.ndarray, "p p"] | None = None,
    ) -> Aggregate:
        """Aggregate p gradients of n coordinates.

        A worker whose gradient holds NaN or Inf is excluded, and counts against f.

        Args:
            G: (p, n), one worker in each row, or another format that `fa.gradients.read` accepts.
            iteration: Iteration of the training run, for what the rule and its pre-aggregators draw.
            out: Tensor (n,) for d.
            inner_products: G G^T, if it is already computed (`fa.gradients.incremental.IncrementalGram`).

        Returns:
            The direction and the decision about workers.

        Raises:
            ValueError: G, an option or `out` is invalid.
            TooFewWorkersError: p is too small for f.

        Example:
            >>> import numpy as np, fa
            >>> G = np.array([[1.0, 2.0], [1.0, 4.0], [1.0, 3.0], [9.0, 9.0]])
            >>> result = fa.make_rule("median", f=1).aggregate(G)
            >>> result.direction
            array([1. , 3.5])
        """
        gradients = read(G)
        if out is not None:
            check_out(out, gradients.G)
            check("out", "in the memory of G", not overlap(out, gradients.G), "in other memory than G")
        (d,), decision = self.aggregate_blocks(ColumnBlocks((gradients.G,)), iteration, (out,), inner_products)
        return Aggregate(gradients.restore(d), decision)

    @usual_float_errors()
    def aggregate_blocks(
        self,
        G: ColumnBlocks,
        iteration: int = 0,
        out: Sequence[Tensor | None] | None = None,
        inner_products: Float64[np.ndarray, "p p"] | None = None,
    ) -> tuple[list[Tensor], Decision]:
        """Aggregate gradients in blocks of columns, of which other processes may hold some.

        Args:
            G: The blocks in this process, one block if `needs_gradients`.
            iteration: As in `aggregate`.
            out: A tensor (n_k,) or None for each block.
            inner_products: As in `aggregate`.

        Returns:
            The direction in these blocks, and the decision, which is the same in all processes.

        Raises:
            TooFewWorkersError: p is too small for f.
            ValueError: `iteration` is not an integer of at least 0.
        """
        check_integer("iteration", iteration, 0)
        places = [None] * len(G.blocks) if out is None else out
        # A rule that rejects p gradients may accept the finite ones, because excluded workers count against f.
        if self.needs_gram or not self.accepts(G.p):
            gram, finite = measure(G, inner_products)
        else:
            gram, finite = Gram.unmeasured(G.p), np.ones(G.p, dtype=bool)
        if self.needs_coordinate_count:
            gram = replace(gram, n=G.coordinate_count())
        while True:
            decision = self._decide_about_workers(G, gram, finite, iteration)
            directions, not_finite = apply_to_blocks(decision.application, G, places)
            if not self.needs_gram:  # Otherwise all processes know the finite rows from the Gram matrix.
                not_finite = np.logical_or.reduce(G.gather(not_finite))
            if not not_finite.any():
                return directions, decision
            finite &= ~not_finite

    @usual_float_errors()
    @single_threaded
    def weights(self, gram: Gram, iteration: int = 0) -> Float64[np.ndarray, " p"] | None:
        """Decide the weights of p finite gradients from their Gram matrix alone.

        Args:
            gram: Gram matrix of the gradients.
            iteration: As in `aggregate`.

        Returns:
            Weights w with d = sum_i w_i g_i, or None if the rule needs more than weights of the gradients.
        """
        if self.needs_gradients or self.needs_coordinate_count:
            return None
        mixed = apply_preaggregators(gram, self.preaggregator_names, PreaggregatorContext(self.f, self.seed, iteration))
        rule = self.for_rows(range(gram.p), gram.p).for_iteration(iteration)
        weights = rule.decide(mixed.gram).weights
        return None if weights is None else mixed.R @ weights

    @single_threaded
    def _decide_about_workers(self, G: ColumnBlocks, gram: Gram, finite: np.ndarray, iteration: int) -> Decision:
        """Decide in Gram space, with the options adjusted for workers whose gradients are not finite."""
        rows = finite.nonzero()[0]
        rule = self.for_rows(rows.tolist(), gram.p).adjusted_for_missing(gram.p - rows.size, rows.size)
        context = PreaggregatorContext(rule.f, rule.seed, iteration)
        mixed = apply_preaggregators(gram.without(~finite), rule.preaggregator_names, context)
        rule = rule.for_iteration(iteration)
        with plugins.attribute_errors_to_plugin("rule"):
            if rule.needs_gradients:
                (whole,) = G.blocks
                decided = rule.decide_from_gradients(whole[rows], mixed)
            else:
                decided = rule.decide(mixed.gram)
        check_column_decision(self.name, decided, mixed.gram.p)
        if decided.direction is not None:
            check_direction(self.name, decided.direction, G.blocks)
        return to_worker_decision(gram, rows, mixed, decided)
