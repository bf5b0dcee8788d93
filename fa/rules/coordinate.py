"""The rules that decide each coordinate apart, by a statistic of its p sorted values."""

from dataclasses import dataclass
from typing import ClassVar

from fa.gradients.gram import Gram
from fa.rules.base import Choice, Rule, Statistic


def median(p: int) -> tuple[int, int]:
    """Where the sorted values are whose mean is the median: the middle one, or the middle two."""
    return (p - 1) // 2, p // 2 + 1


@dataclass(frozen=True, kw_only=True)
class CoordinateRule(Rule):
    """A rule that holds while the honest workers are the majority, and that need not see the Gram matrix."""

    looks: ClassVar[bool] = False
    condition: ClassVar[tuple[int, int]] = (2, 1)


@dataclass(frozen=True, kw_only=True)
class Median(CoordinateRule):
    """The median of each coordinate; of an even count, the mean of the middle two.

    Source: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018.
    """

    name: ClassVar[str] = "median"

    def decide(self, gram: Gram) -> Choice:
        return Choice(statistic=Statistic(*median(gram.p)))


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(CoordinateRule):
    """The mean of each coordinate without its f smallest and f largest values.

    Source: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018.
    """

    name: ClassVar[str] = "trimmed_mean"

    def decide(self, gram: Gram) -> Choice:
        return Choice(statistic=Statistic(self.f, gram.p - self.f))


@dataclass(frozen=True, kw_only=True)
class MeaMed(CoordinateRule):
    """The mean around the median: of each coordinate's p - f values nearest its median.

    Source: Xie, Koyejo and Gupta, Generalized Byzantine-Tolerant SGD, 2018.
    """

    name: ClassVar[str] = "meamed"

    def decide(self, gram: Gram) -> Choice:
        return Choice(statistic=Statistic(*median(gram.p), keep=gram.p - self.f))


@dataclass(frozen=True, kw_only=True)
class Phocas(CoordinateRule):
    """The mean of each coordinate's p - f values nearest its trimmed mean.

    Source: Xie, Koyejo and Gupta, Phocas: Dimensional Byzantine-Resilient SGD, 2018.
    """

    name: ClassVar[str] = "phocas"

    def decide(self, gram: Gram) -> Choice:
        return Choice(statistic=Statistic(self.f, gram.p - self.f, keep=gram.p - self.f))
