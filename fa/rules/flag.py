"""FA, the Flag Aggregator: the mean of the gradients, reconstructed in the subspace Y.

Source: the paper, Algorithm 1 and eq. 5.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fa import irls
from fa.gradients import Gradients, read
from fa.gradients.gram import Gram
from fa.rules import flag_solvers
from fa.rules.base import Rule
from fa.rules.decision import ColumnDecision
from fa.rules.flag_options import FlagOptions
from fa.rules.preaggregators import MixedGradients
from fa.utils.validation import check


@dataclass(frozen=True, kw_only=True)
class FlagAggregator(FlagOptions, Rule):
    """d = (1/p) Y Y^T G 1, with the basis Y from IRLS on eq. 5; `FlagOptions` describes the options.

    With regularizer="l1" or "rows" and lam > 0, Y is outside the span of the gradients. The decision then has no
    weights, and `max_iter` counts proximal steps.
    """

    name: ClassVar[str] = "fa"
    column_count_option: ClassVar[str] = "m"

    def decide(self, gram: Gram) -> ColumnDecision:
        if not self.needs_coordinate_count:
            return self._decide(gram, self.start)
        check("n", gram.n, gram.n is not None, "available for a random first basis, as in `aggregate`")
        assert gram.n is not None
        return self._decide(gram, irls.random_first_basis(gram.n, self.seed))

    def decide_from_gradients(self, G: Tensor, mixed: MixedGradients) -> ColumnDecision:
        columns = mixed.apply_to(G)
        if self.irls_options.leaves_span:
            return flag_solvers.by_proximal_steps(self, G, columns)
        if self.prior is not None:
            return flag_solvers.by_likelihood(self, self.prior, G, columns)
        rows = columns.double()
        return self._decide(mixed.gram, flag_solvers.largest_coordinates(self, rows), read(rows))

    def _decide(self, gram: Gram, start: Any, gradients: Gradients | None = None) -> ColumnDecision:
        if self.dims is None:
            return flag_solvers.by_irls(self, gram, start, gradients)
        return flag_solvers.by_nested_subspaces(self, self.dims, gram, start, gradients)
