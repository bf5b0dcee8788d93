"""Claims of the paper, what was measured, and verdicts by the rules of docs/claims.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fa.experiments.reporting.equivalence import LEVEL, PairedDifferences
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.variants import OTHER_RULES, VARIANTS

if TYPE_CHECKING:
    from pandas import DataFrame
    from pandas.io.formats.style import Styler

HOLDS, IN_PART, NOT, UNTESTABLE = "holds", "in part", "does not hold", "not testable"
MISSING = "runs missing"  # The finished runs do not decide.
OPEN = "not established"  # Some differences exceed the margin, but none passes the test over seeds.

LEARNED = 3.0  # Factor of chance: if no run exceeds it, no rule learned, and accuracies cannot be compared.
CHANCE_MARGIN = 0.05  # Accuracy above chance that still counts as chance.
MAX_LOSS = 0.05  # Accuracy below the mean without Byzantine workers that still counts as near it.


@dataclass(frozen=True)
class Claim:
    """One statement of the paper.

    Attributes:
        number: Number of the claim, as in docs/claims.md.
        words: The statement.
        measured: What was measured.
        verdict: HOLDS, IN_PART, NOT, UNTESTABLE, MISSING or OPEN.
    """

    number: str
    words: str
    measured: str
    verdict: str


@dataclass(frozen=True)
class Lead:
    """The final accuracy of FA, or of a variant of it, beside that of another rule.

    Attributes:
        case: Part of the figure, as in "f = 3".
        accuracies: Final accuracies, one per seed.
        other: Variant of the other rule, or its label.
        other_accuracies: The other's final accuracies with the same seeds.
        name: Label of the first.
    """

    case: str
    accuracies: Sequence[float]
    other: str
    other_accuracies: Sequence[float]
    name: str = "FA"

    @property
    def difference(self) -> float:
        """Difference of the means over seeds."""
        return mean(self.accuracies) - mean(self.other_accuracies)

    @property
    def p_value(self) -> float | None:
        """One-sided p-value of Student's paired t test over seeds; None for one seed, which allows no test."""
        return PairedDifferences.between(self.accuracies, self.other_accuracies).p_above(0.0)

    def better(self, margin: float = MARGIN, level: float = LEVEL) -> bool:
        """Return True if the lead exceeds the margin and, with several seeds, passes the test at `level`.

        Args:
            margin: Least difference that counts.
            level: Significance level of the test.

        Returns:
            True if FA, or the variant of it, is better.
        """
        return self.difference > margin and (self.p_value is None or self.p_value < level)

    def __str__(self) -> str:
        return self.describe("best other rule ")

    def describe(self, prefix: str = "") -> str:
        """Describe both final accuracies.

        Args:
            prefix: Text before the other rule's name, such as "best other rule ".

        Returns:
            The case and both accuracies, which are means over seeds, with the range if there are several.

        Example:
            >>> Lead("f = 3", [0.5], "median", [0.25]).describe()
            'f = 3: FA 0.500, Median 0.250'
        """
        other = VARIANTS[self.other].label if self.other in VARIANTS else self.other
        ours, theirs = format_mean_range(self.accuracies), format_mean_range(self.other_accuracies)
        return f"{self.case}: {self.name} {ours}, {prefix}{other} {theirs}"

    @property
    def difference_text(self) -> str:
        """The difference, with the p-value if there is one."""
        test = "" if self.p_value is None else f" (p = {self.p_value:.2g})"
        return f"{self.case}: {self.difference:+.3f}{test}"


def describe_leads(leads: Iterable[Lead], difference: str = "lead") -> str:
    """Describe comparisons by their accuracies and their differences.

    Args:
        leads: The comparisons.
        difference: Word before each difference, such as "lead" or "loss".

    Returns:
        The descriptions, separated by semicolons; empty if there are no comparisons.

    Example:
        >>> describe_leads([Lead("f = 3", [0.5], "median", [0.25])])
        'f = 3: FA 0.500, Median 0.250; lead f = 3: +0.250'
    """
    return "; ".join(f"{lead.describe()}; {difference} {lead.difference_text}" for lead in leads)


def comparison_claim(
    number: str,
    words: str,
    leads: Sequence[Lead],
    testable: bool,
    margin: float,
    level: float = LEVEL,
    prefix: str = "",
    difference: str = "lead",
) -> Claim:
    """Judge the statement that the first is better than the other in each of `leads`.

    Args:
        number: Number of the claim.
        words: The statement.
        leads: The comparisons.
        testable: False for the verdict UNTESTABLE.
        margin: Least difference that counts.
        level: Significance level of each test.
        prefix: Text before the descriptions of the comparisons.
        difference: Word before each difference; see `describe_leads`.

    Returns:
        The claim, with the verdict of `comparison_verdict`.
    """
    measured = prefix + describe_leads(leads, difference)
    return Claim(number, words, measured, comparison_verdict(leads, testable, level, margin))


def claims_frame(claims: Sequence[Claim]) -> DataFrame:
    """Convert claims to a table.

    Args:
        claims: The claims, which may be empty.

    Returns:
        One row for each claim, with the columns number, words, measured and verdict.

    Example:
        >>> list(claims_frame([]).columns)
        ['number', 'words', 'measured', 'verdict']
    """
    import pandas

    columns = [field.name for field in dataclasses.fields(Claim)]
    return pandas.DataFrame([vars(claim) for claim in claims], columns=columns)


def claims_table(claims: Sequence[Claim]) -> Styler:
    """Convert claims to a table for a notebook, with wrapped cells and without an index.

    Args:
        claims: The claims, which may be empty.

    Returns:
        The table, which a notebook displays.
    """
    names = {"number": "", "words": "the paper", "measured": "measured here"}
    table = claims_frame(claims).rename(columns=names)
    return table.style.hide(axis="index").set_properties(**{"text-align": "left", "white-space": "normal"})


def format_mean_range(values: Sequence[float]) -> str:
    """Format final accuracies with three decimals.

    Args:
        values: Accuracies (fractions), one per seed, at least one.

    Returns:
        The mean, with the range in parentheses if there are several values.

    Example:
        >>> format_mean_range([0.5, 0.75])
        '0.625 (0.500 to 0.750)'
    """
    middle = f"{mean(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3f} to {max(values):.3f})"


def mean(values: Sequence[float]) -> float:
    """Compute the arithmetic mean.

    Args:
        values: Numbers, at least one.

    Returns:
        The mean.

    Raises:
        ZeroDivisionError: There are no values.

    Example:
        >>> mean([0.5, 0.75])
        0.625
    """
    return sum(values) / len(values)


def learned(final: Mapping[Any, Sequence[float]], chance: float) -> bool:
    """Return True if some mean accuracy exceeds LEARNED times chance, so that rules can be compared.

    Args:
        final: Final accuracies by any key, one per seed.
        chance: Accuracy of guessing.

    Returns:
        True if rules can be compared.
    """
    return max(map(mean, final.values()), default=0.0) > LEARNED * chance


def lead(final: Mapping[tuple[str, Any], Sequence[float]], value: Any, symbol: str = "") -> Lead:
    """Compare FA with the best other rule.

    Args:
        final: Final accuracies; see `final_accuracies`, with the columns "variant" and one more.
        value: Value of their second key.
        symbol: Symbol of that key for texts, as in "f".

    Returns:
        The lead, over the other rule with the best mean.
    """
    others = [key for key in OTHER_RULES if (key, value) in final]
    other = max(others, key=lambda key: mean(final[key, value]))
    case = f"{symbol} = {value}" if symbol else str(value)
    return Lead(case, final["fa", value], other, final[other, value])


def same_iterations(table: DataFrame, by: str) -> tuple[bool, str]:
    """Compare the numbers of iterations of runs.

    Args:
        table: The curves, one row a point.
        by: Column that is varied.

    Returns:
        True if all values of the column have the same number of iterations, and these numbers in words.
    """
    counts = list(table.groupby(by)["iteration"].max())
    same = len(set(counts)) == 1
    text = "/".join(map(str, counts)) + " iterations"
    return same, text if same else f"{text}: {by} is not the only change"


def verdict(holds: Sequence[bool], testable: bool = True) -> str:
    """Return the verdict on a statement about several cases: HOLDS in all, IN_PART in some, NOT in none.

    Args:
        holds: Whether the statement holds in each case.
        testable: False for the verdict UNTESTABLE.

    Returns:
        The verdict.
    """
    if not testable:
        return UNTESTABLE
    return HOLDS if all(holds) else IN_PART if any(holds) else NOT


def comparison_verdict(
    leads: Sequence[Lead],
    testable: bool = True,
    level: float = LEVEL,
    margin: float = MARGIN,
    min_relative_lead: float = 0.0,
) -> str:
    """Return the verdict on the statement that the first is better than the other in each of `leads`.

    It is OPEN if some differences are large enough, and none of these passes the test at `level`.

    Args:
        leads: The comparisons.
        testable: False for the verdict UNTESTABLE.
        level: Significance level of each test.
        margin: Least difference that counts.
        min_relative_lead: Least difference that counts, as a share of the other's accuracy.

    Returns:
        The verdict.
    """
    large = [
        lead.difference > margin and lead.difference >= min_relative_lead * mean(lead.other_accuracies)
        for lead in leads
    ]
    holds = [enough and lead.better(margin, level) for enough, lead in zip(large, leads, strict=True)]
    return OPEN if testable and any(large) and not any(holds) else verdict(holds, testable)
