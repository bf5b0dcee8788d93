"""Rules that aggregate each coordinate separately, by a statistic of its p sorted values."""

from dataclasses import dataclass
from typing import ClassVar

from fa.gradients.gram import Gram
from fa.rules.application import OrderStatistic
from fa.rules.base import Rule
from fa.rules.decision import ColumnDecision
from fa.utils.validation import check_one_of


def median_range(p: int) -> tuple[int, int]:
    """Return the range of the sorted values whose mean is the median: the middle one, or the middle two.

    Args:
        p: Number of values.

    Returns:
        Index of the first of them, and the index behind the last one.
    """
    return (p - 1) // 2, p // 2 + 1


@dataclass(frozen=True, kw_only=True)
class CoordinateRule(Rule):
    """A rule that needs a majority of honest workers, and no Gram matrix."""

    reads_gram: ClassVar[bool] = False
    min_workers: ClassVar[tuple[int, int]] = (2, 1)


@dataclass(frozen=True, kw_only=True)
class MedianRule(CoordinateRule):
    """A rule that takes the median of each coordinate.

    Attributes:
        interpolation: Median of an even number of values: "midpoint", the mean of the middle two, or "lower", the
            smaller of them.
    """

    interpolation: str = "midpoint"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("interpolation", self.interpolation, ("midpoint", "lower"))

    def _median_range(self, p: int) -> tuple[int, int]:
        first, stop = median_range(p)
        return first, stop if self.interpolation == "midpoint" else first + 1


@dataclass(frozen=True, kw_only=True)
class Median(MedianRule):
    """The median of each coordinate.

    Source: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018.
    """

    name: ClassVar[str] = "median"

    def decide(self, gram: Gram) -> ColumnDecision:
        return ColumnDecision(statistic=OrderStatistic(*self._median_range(gram.p)))


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(CoordinateRule):
    """The mean of each coordinate without its f smallest and f largest values.

    Source: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018.
    """

    name: ClassVar[str] = "trimmed_mean"
    uses_f: ClassVar[bool] = True
    least_workers: ClassVar[tuple[int, int]] = (2, 1)

    def decide(self, gram: Gram) -> ColumnDecision:
        return ColumnDecision(statistic=OrderStatistic(self.f, gram.p - self.f))


@dataclass(frozen=True, kw_only=True)
class MeaMed(MedianRule):
    """The mean around the median: the mean of each coordinate's p - f values nearest its median.

    Source: Xie, Koyejo and Gupta, Generalized Byzantine-Tolerant SGD, 2018.
    """

    name: ClassVar[str] = "meamed"
    uses_f: ClassVar[bool] = True

    def decide(self, gram: Gram) -> ColumnDecision:
        return ColumnDecision(statistic=OrderStatistic(*self._median_range(gram.p), nearest=gram.p - self.f))


@dataclass(frozen=True, kw_only=True)
class Phocas(CoordinateRule):
    """The mean of each coordinate's p - f values nearest its trimmed mean.

    Source: Xie, Koyejo and Gupta, Phocas: Dimensional Byzantine-Resilient SGD, 2018.
    """

    name: ClassVar[str] = "phocas"
    uses_f: ClassVar[bool] = True
    least_workers: ClassVar[tuple[int, int]] = (2, 1)

    def decide(self, gram: Gram) -> ColumnDecision:
        return ColumnDecision(statistic=OrderStatistic(self.f, gram.p - self.f, nearest=gram.p - self.f))
