"""Options of a rule, and its conditions on p, the number of gradients, and f, the number of Byzantine workers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

from fa.rules.decision import UNUSABLE
from fa.rules.preaggregators import Preaggregator, column_counts, make_preaggregator
from fa.utils import plugins
from fa.utils.validation import TooFewWorkersError, check, check_integer, check_min_workers
from fa.utils.warn import warn

# Not typing.Self, which beartype, with which the tests check calls, supports for decorated classes only.
AnyRule = TypeVar("AnyRule", bound="RuleOptions")


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """Options that all rules have, and what a rule's class declares.

    Attributes:
        f: Number of Byzantine workers to tolerate.
        preaggregators: Names in `fa.rules.preaggregators.PREAGGREGATORS`, applied in this order. A value may follow a
            name, as in "clip:2.0". None: the rule's default.
        seed: Seed of what the rule and its pre-aggregators draw, as "bucketing" does.
        strict: True to raise an error if p is too small for the theorems of the rule and its pre-aggregators. False to
            warn, as long as the rule can be computed.
        name: Name of the rule.
        min_workers: (times, plus): the rule needs p >= times f + plus.
        least_workers: (times, plus) with `strict` false.
        reads_gram: Whether `decide` reads the Gram matrix.
        uses_f: Whether the decision depends on f.
        column_count_option: Name of an option that is at most the number of columns that the rule sees. "": none.
    """

    f: int = 0
    preaggregators: Sequence[str] | None = None
    seed: int = 0
    strict: bool = True

    name: ClassVar[str]
    min_workers: ClassVar[tuple[int, int]] = (0, 1)
    least_workers: ClassVar[tuple[int, int]] = (1, 1)
    reads_gram: ClassVar[bool] = True
    uses_f: ClassVar[bool] = False
    column_count_option: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for option in ("f", "seed"):
            check_integer(option, getattr(self, option), 0)
        names: Any = () if self.preaggregators is None else self.preaggregators
        check("preaggregators", names, isinstance(names, Sequence), "a sequence of names")
        object.__setattr__(self, "preaggregators", (names,) if isinstance(names, str) else tuple(names))
        for name in self.preaggregator_names:
            make_preaggregator(name)  # checks it
        check("strict", self.strict, isinstance(self.strict, bool), "True or False")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Support copy and pickle for rules of users' files, whose modules other processes lack."""
        spec = plugins.file_spec(type(self))
        if spec is None:
            return super().__reduce_ex__(protocol)
        return _restore, (spec, {option.name: getattr(self, option.name) for option in fields(self)})

    @property
    def preaggregator_names(self) -> tuple[str, ...]:
        """Names of the pre-aggregators."""
        return tuple(self.preaggregators or ())

    @property
    def needs_gram(self) -> bool:
        """Whether the rule or one of its pre-aggregators reads the Gram matrix."""
        return self.reads_gram or bool(self.preaggregator_names)

    @property
    def depends_on_f(self) -> bool:
        """Whether the direction depends on f, in the rule or in one of its pre-aggregators."""
        return self.uses_f or any(make_preaggregator(name).min_workers[0] > 0 for name in self.preaggregator_names)

    def exposure(self, given: Collection[str]) -> str:
        """Return how the options expose the rule to Byzantine workers, perhaps by mistake.

        Args:
            given: Names of the options that the caller has set.

        Returns:
            A warning, or an empty string.
        """
        if "f" in given or not self.depends_on_f:
            return ""
        return f"f must be set for rule {self.name!r} to tolerate Byzantine workers, got none. f=0 stops this warning."

    def check_workers(self, p: int, remark: str = "") -> None:
        """Check that p gradients are enough.

        Args:
            p: Number of gradients.
            remark: Where the p gradients come from, in words that follow them in the message.

        Raises:
            TooFewWorkersError: p is too small for a pre-aggregator, or for the rule after them.
            ValueError: The option of `column_count_option` is too large.
        """
        *counts, q = column_counts(self.preaggregator_names, p, self.f)
        for name, count in zip(self.preaggregator_names, counts, strict=True):
            chosen = make_preaggregator(name)
            self._check_min_workers(f'preaggregators="{name}"', count, chosen.min_workers, chosen.least_workers, remark)
        after = f" after {', '.join(self.preaggregator_names)}" if q != p else ""
        self._check_min_workers(self.name, q, self.min_workers, self.least_workers, after + remark)
        used = self._column_count
        if used is not None:
            check(self.column_count_option, used, used <= q, f"at most p = {q}, the number of gradients{after}")

    def accepts(self, p: int) -> bool:
        """Return whether p gradients are enough; see `check_workers`.

        Args:
            p: Number of gradients.
        """
        *counts, q = column_counts(self.preaggregator_names, p, self.f)
        chosen = [make_preaggregator(name) for name in self.preaggregator_names]
        return self._enough(q, self) and all(map(self._enough, counts, chosen))

    def _enough(self, p: int, what: "RuleOptions | Preaggregator") -> bool:
        """Return whether a rule or pre-aggregator can be computed of p gradients, with a guarantee if `strict`."""
        conditions = (what.min_workers,) if self.strict else (what.min_workers, what.least_workers)
        return any(p >= self._count(condition) for condition in conditions)

    def _count(self, condition: tuple[int, int]) -> int:
        """Return the number of gradients that the condition p >= times f + plus needs."""
        times, plus = condition
        return times * self.f + plus

    def _check_min_workers(
        self, name: str, p: int, min_workers: tuple[int, int], least_workers: tuple[int, int], remark: str
    ) -> None:
        """Check p >= times f + plus; with `strict` false, warn if only `least_workers` holds."""
        try:
            check_min_workers(name, p, self.f, *min_workers, remark)
        except TooFewWorkersError as error:
            if self.strict or self._count(least_workers) >= self._count(min_workers):
                raise
            check_min_workers(name, p, self.f, *least_workers, remark)
            warn(f"{error} It runs, without a guarantee, because strict is False.")

    def for_rows(self: AnyRule, rows: Sequence[int], p: int) -> AnyRule:
        """Return the rule for some of p gradients.

        A rule with an option that is the rank of a worker overrides this method.

        Args:
            rows: Ranks of the workers whose gradients remain, in ascending order.
            p: Number of all workers.
        """
        return self

    def for_iteration(self: AnyRule, iteration: int) -> AnyRule:
        """Return the rule for one iteration.

        A rule that draws random numbers in `decide` overrides this method.

        Args:
            iteration: Iteration of the training run.
        """
        return self

    def adjusted_for_missing(self: AnyRule, missing: int, p: int) -> AnyRule:
        """Return the rule for p gradients that remain when `missing` workers are known to be Byzantine.

        They count against f. The option of `column_count_option` is reduced to the number of columns that remain.

        Args:
            missing: Number of workers without a finite gradient.
            p: Number of the other workers.

        Raises:
            TooFewWorkersError: p is too small for the adjusted rule.
        """
        if p == 0:
            raise TooFewWorkersError(f"G must have a finite row; every worker's gradient has {UNUSABLE}")
        rule, remark = self, ""
        if missing:
            options: dict[str, Any] = {"f": max(0, self.f - missing)}
            if self._column_count is not None:
                q = column_counts(self.preaggregator_names, p, options["f"])[-1]
                options[self.column_count_option] = max(1, min(self._column_count, q))
            rule, remark = replace(self, **options), f" ({missing} of {p + missing} excluded: {UNUSABLE})"
        rule.check_workers(p, remark)
        return rule

    @property
    def _column_count(self) -> int | None:
        return getattr(self, self.column_count_option) if self.column_count_option else None


def _restore(spec: str, options: dict[str, Any]) -> Any:
    """Create a rule of a user's file, which this process may not have loaded."""
    return plugins.load("rule", spec)(**options)
