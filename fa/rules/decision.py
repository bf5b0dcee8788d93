"""What a rule decides: about the columns that it sees, and from that about the workers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64, Int
from torch import Tensor

from fa.gradients.gram import Gram
from fa.rules.application import Application, ComputedDirection, CoordinateStatistic, OrderStatistic, WeightedSum
from fa.rules.preaggregators import MixedGradients
from fa.utils.validation import check

NOT_FINITE = "NaN or Inf"
"""The reason to exclude a worker whose gradient is not finite."""

OUT_OF_RANGE = "a norm above 2^1004, or 2^1000 times the median norm"
"""The reason to exclude a worker whose gradient would leave float64 in a sum."""

UNUSABLE = f"{NOT_FINITE}, or a norm out of range"
"""Both of these reasons in short."""

_SHOWN = 100  # Number of workers whose weights and values a repr shows in full.


@dataclass(frozen=True)
class ColumnDecision:
    """A rule's decision about the q columns that it sees: the p gradients, or what pre-aggregators make of them.

    One of `weights`, `statistic` and `direction` is required.

    Attributes:
        weights: Weight of each column in d.
        statistic: Statistic of each coordinate, over `columns` or `combinations`.
        columns: Indices of the columns that the rule selects. None: all.
        combinations: Weighted sums of columns, as k columns of weights, for the statistic.
        reason: Why the other columns are excluded.
        coefficients: C (q, m) of the basis Y = G^T C, for rules that have one.
        direction: d (n,) itself, for rules whose d is outside the span of the gradients.
        values: Explained variances of the finite workers, with `direction`.
    """

    weights: Float64[np.ndarray, " q"] | None = None
    statistic: OrderStatistic | None = None
    columns: tuple[int, ...] | None = None
    combinations: Float64[np.ndarray, "q k"] | None = None
    reason: str = ""
    coefficients: Float64[np.ndarray, "q m"] | None = None
    direction: Tensor | None = None
    values: Float64[np.ndarray, " rows"] | None = None

    @classmethod
    def mean_of(cls, columns: Sequence[int] | Int[np.ndarray, " k"], q: int, reason: str) -> "ColumnDecision":
        """Select columns, of which d is the mean.

        Args:
            columns: Indices of the columns.
            q: Number of all columns.
            reason: Why the other columns are excluded.

        Returns:
            The decision, with equal weights for these columns.
        """
        weights = np.zeros(q)
        weights[list(columns)] = 1 / len(columns)
        return cls(weights=weights, columns=tuple(map(int, columns)), reason=reason)


@dataclass(frozen=True)
class Decision:
    """A rule's decision about p workers.

    Attributes:
        selected: Workers whose gradients contribute to d.
        excluded: The other workers, with the reason to exclude each.
        weights: d = sum_i weights_i g_i. None for a rule that does not weight gradients.
        values: Explained variances v_i, NaN for a gradient that is not finite. None for a rule without a basis.
        application: How d is computed from the gradients.
    """

    selected: tuple[int, ...]
    excluded: dict[int, str]
    weights: Float64[np.ndarray, " p"] | None
    values: Float64[np.ndarray, " p"] | None
    application: Application = field(repr=False)

    def __repr__(self) -> str:
        with np.printoptions(precision=3, suppress=True, threshold=_SHOWN, linewidth=10_000):
            return (
                f"Decision(selected={self.selected}, excluded={self.excluded}, weights={self.weights}, "
                f"values={self.values})"
            )


@dataclass(frozen=True)
class Aggregate:
    """The result of a rule.

    Attributes:
        direction: d, in the gradients' shape, dtype and device.
        decision: The decision about workers that gives d.
    """

    direction: Any
    decision: Decision

    def __repr__(self) -> str:
        shape = getattr(self.direction, "shape", None)
        text = type(self.direction).__name__ if shape is None else f"{self.direction.dtype} {tuple(shape)}"
        return f"Aggregate(direction={text}, decision={self.decision})"


def check_column_decision(rule: str, decided: Any, q: int) -> None:
    """Check what a rule of this name decides about q columns.

    Args:
        rule: Name of the rule, for the message.
        decided: What it returned.
        q: Number of columns.

    Raises:
        ValueError: It is no complete `ColumnDecision`, its weights are not q finite real numbers, or it names columns
            or values of a coordinate that do not exist.
    """
    check(f"the decision of {rule}", decided, isinstance(decided, ColumnDecision), "a fa.rules.ColumnDecision")
    complete = any(part is not None for part in (decided.weights, decided.statistic, decided.direction))
    check(f"the decision of {rule}", decided, complete, "weights, a statistic or a direction")
    if decided.weights is not None:
        _check_numbers(f"the weights of {rule}", decided.weights, (q,), f"a numpy array of {q}, one for each gradient")
    count = q
    if decided.columns is not None:
        count = _check_columns(f"the columns of {rule}", decided.columns, q)
        if decided.weights is not None:
            others = np.delete(decided.weights, decided.columns)
            check(f"the weights of {rule}", decided.weights, not others.any(), "0 outside of its columns")
    if decided.combinations is not None:
        requirement = f"a numpy array of {q} rows"
        _check_numbers(f"the combinations of {rule}", decided.combinations, (q, None), requirement)
        count = decided.combinations.shape[1]
    if decided.coefficients is not None:
        requirement = f"a numpy array of {q} rows"
        _check_numbers(f"the coefficients of {rule}", decided.coefficients, (q, None), requirement)
    if decided.statistic is not None:
        _check_statistic(f"the statistic of {rule}", decided.statistic, count)


def _check_numbers(name: str, numbers: Any, shape: tuple[int | None, ...], requirement: str) -> None:
    """Check that numbers are an array of finite real numbers of this shape, in which None is any length."""
    is_array = isinstance(numbers, np.ndarray) and numbers.ndim == len(shape)
    value = f"one of {numbers.shape}" if isinstance(numbers, np.ndarray) and numbers.ndim > 1 else numbers
    check(name, value, is_array and all(map(_fits, numbers.shape, shape)), requirement)
    if numbers.dtype.kind not in "biuf" or not np.isfinite(numbers).all():  # Lists of numbers take time.
        check(name, numbers.tolist(), False, "finite real numbers")


def _fits(length: int, wanted: int | None) -> bool:
    return wanted is None or length == wanted


def _check_columns(name: str, columns: Any, q: int) -> int:
    """Check that columns are some of q, and return their number."""
    requirement = f"a tuple of one or more of 0 to {q - 1}"
    check(name, columns, isinstance(columns, tuple) and len(columns) > 0, requirement)
    check(name, columns, all(_is_integer(column) and 0 <= column < q for column in columns), requirement)
    return len(columns)


def _check_statistic(name: str, statistic: Any, count: int) -> None:
    """Check that a statistic of `count` sorted values uses only those."""
    check(name, statistic, isinstance(statistic, OrderStatistic), "an OrderStatistic, or None")
    first, stop, nearest = statistic.first, statistic.stop, statistic.nearest
    is_whole = all(map(_is_integer, (first, stop, nearest)))
    is_inside = is_whole and 0 <= first < stop <= count and 0 <= nearest <= count
    check(name, statistic, is_inside, f"of integers, 0 <= first < stop <= {count}, and nearest at most {count}")


def _is_integer(number: Any) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def check_direction(rule: str, direction: Any, blocks: Sequence[Tensor]) -> None:
    """Check the direction that a rule of this name computes itself.

    Args:
        rule: Name of the rule, for the message.
        direction: `ColumnDecision.direction`.
        blocks: The gradients' blocks of columns in this process.

    Raises:
        ValueError: It is not a tensor (n,) of the gradients' dtype and device, or they are in several blocks.
    """
    check(f"the direction of {rule}", f"one for {len(blocks)} blocks", len(blocks) == 1, "for gradients in one block")
    check(f"the direction of {rule}", type(direction).__name__, isinstance(direction, Tensor), "a tensor")
    kind = tuple(direction.shape), direction.dtype, direction.device
    needed = (blocks[0].shape[1],), blocks[0].dtype, blocks[0].device
    check(f"the direction of {rule}", kind, kind == needed, f"of {needed}")
    check(
        f"the direction of {rule}",
        "one that requires a gradient",
        not direction.requires_grad,
        "a tensor without a graph",
    )


def to_worker_decision(
    gram: Gram, rows: Int[np.ndarray, " k"], mixed: MixedGradients, decided: ColumnDecision
) -> Decision:
    """Translate a decision about columns into one about workers.

    Args:
        gram: Gram matrix of all p gradients.
        rows: The k workers whose gradients are finite.
        mixed: The columns, as combinations of those k gradients.
        decided: The decision about the columns.

    Returns:
        The decision about the p workers, with the reason to exclude each of the others.
    """
    R = np.zeros((gram.p, mixed.gram.p))
    R[rows] = mixed.R
    used = R if decided.columns is None else R[:, list(decided.columns)]
    if decided.combinations is not None:
        used = R @ decided.combinations
    contributes: np.ndarray = np.any(used, axis=1)
    weights = None if decided.weights is None else R @ decided.weights
    return Decision(
        selected=tuple(contributes.nonzero()[0].tolist()),
        excluded=_reasons(gram, rows, R, contributes, decided.reason),
        weights=weights,
        values=_explained_variances(gram, rows, R, decided),
        application=_application(decided, weights, used),
    )


def _reasons(gram: Gram, rows: np.ndarray, R: np.ndarray, contributes: np.ndarray, reason: str) -> dict[int, str]:
    """Why each worker that does not contribute is excluded: by its values, by a pre-aggregator, or by the rule."""
    if contributes.all():
        return {}
    finite = set(rows.tolist())
    mixed: np.ndarray = np.any(R, axis=1)

    def why(i: int) -> str:
        if i not in finite:
            return OUT_OF_RANGE if np.isinf(gram.scaled_norms[i]) else NOT_FINITE
        return reason if mixed[i] else "not chosen before the rule"

    return {i: why(i) for i in np.flatnonzero(~contributes).tolist()}


def _application(decided: ColumnDecision, weights: np.ndarray | None, used: np.ndarray) -> Application:
    if decided.direction is not None:
        return ComputedDirection(decided.direction)
    if weights is not None:
        return WeightedSum(weights)
    assert decided.statistic is not None  # by check_column_decision
    return CoordinateStatistic(decided.statistic, used)


def _explained_variances(
    gram: Gram, rows: np.ndarray, R: np.ndarray, decided: ColumnDecision
) -> Float64[np.ndarray, " p"] | None:
    """v_i = ||Y^T g_i||^2/||g_i||^2 of every worker under Y = G^T C; 1 for a zero gradient, NaN for one not finite."""
    values = np.full(gram.p, np.nan)
    if decided.coefficients is not None:
        finite = gram.select(rows) if rows.size < gram.p else gram
        C = R[rows] @ decided.coefficients
        squares = np.square(finite.cosines @ (finite.norms[:, None] * C)).sum(axis=1)
        values[rows] = np.where(finite.norms > 0, np.minimum(squares, 1.0), 1.0)
    elif decided.values is not None:
        values[rows] = decided.values
    else:
        return None
    return values


def per_worker(numbers: Float64[np.ndarray, " p"] | None, p: int) -> list[float | None]:
    """Convert a decision's weights or values to a list.

    Args:
        numbers: `Decision.weights` or `Decision.values`.
        p: Number of workers.

    Returns:
        One float for each worker; None for NaN, and everywhere if `numbers` is None.
    """
    if numbers is None:
        return [None] * p
    return [None if math.isnan(number) else number for number in numbers.tolist()]
