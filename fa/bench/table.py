"""Tables of a benchmark: each rule as a multiple of the mean, and alternatives as multiples of the rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.table import Table

from fa.bench.cases import DEFAULT_N, DEFAULT_P, OURS, PAPER, TORCH, RuleTiming
from fa.bench.peers import LIBRARIES
from fa.utils import plugins

_OTHERS = (*LIBRARIES, TORCH)


def table(rows: Sequence[RuleTiming]) -> Table:
    """Create the table of one case, a row for each rule, with the time of reading G alone in its title.

    Args:
        rows: All rows of one (n, p), including the one of `read_once`.

    Returns:
        The table, with time in ms, multiple of the mean, GB/s, first call in ms and number of calls. The last columns
        are the times of other implementations as multiples of ours.
    """
    case = rows[0]
    by_key = {(row.rule, row.by): row for row in rows}
    read = next(row for row in rows if row.rule == "")
    title = (
        f"p = {case.p}, n = {case.n:,}, f = {case.f}; one read of G: "
        f"{1e3 * read.seconds:.3g} ms, {read.gigabytes_per_second:.1f} GB/s"
    )
    table = Table("rule", title=title)
    for column in ("ms", "/ mean", "GB/s", "first ms", "calls", *(f"{by}/ours" for by in _OTHERS)):
        table.add_column(column, justify="right")
    ours = [by_key[rule, OURS] for rule in rules(rows)]
    for row in (*ours, *(row for row in rows if row.by == PAPER)):
        numbers = f"{1e3 * row.seconds:.3g} {row.over_mean:.2f} {row.gigabytes_per_second:.1f} {1e3 * row.first:.3g}"
        others = (_times(by_key.get((row.rule, by)), row) for by in _OTHERS)
        table.add_row(plugins.display_name(row.rule), *numbers.split(), str(row.repeats), *others)
    return table


def rules(rows: Sequence[RuleTiming]) -> list[str]:
    """Return the names of our timed rules.

    Args:
        rows: Rows of any number of cases.

    Returns:
        Each name once, in the order of the rows.

    Example:
        >>> common = dict(n=10, p=7, f=1, seconds=1.0, first=1.0, repeats=1, over_mean=1.0)
        >>> rules([RuleTiming(rule=name, by=by, **common) for name in ("mean", "fa") for by in (OURS, TORCH)])
        ['mean', 'fa']
    """
    return list(dict.fromkeys(row.rule for row in rows if row.by == OURS))


def _times(peer: RuleTiming | None, ours: RuleTiming) -> str:
    return "" if peer is None else f"{peer.seconds / ours.seconds:.3g}"


def slopes(rows: Sequence[RuleTiming], varied: str) -> dict[str, float]:
    """Return the exponent of our time's growth by rule, by least squares of the logarithms.

    Args:
        rows: Rows of all cases.
        varied: "n" (at the default p) or "p" (at the default n).

    Returns:
        Nothing for rules that were timed at fewer than two sizes.
    """
    exponents = {}
    for rule in rules(rows):
        line = growth(rows, rule, OURS, varied)
        if len(line) > 1:
            sizes, seconds = np.log(np.array(line)).T
            exponents[rule] = float(np.polyfit(sizes, seconds, 1)[0])
    return exponents


def growth(rows: Sequence[RuleTiming], rule: str, by: str, varied: str) -> list[tuple[int, float]]:
    """Select the times of a rule as n or p grows and the other is at its default.

    Args:
        rows: Rows of all cases.
        rule: Name of the rule.
        by: Implementation, as in `RuleTiming.by`.
        varied: "n" (with p = 15) or "p" (with n = 1,000,000).

    Returns:
        Pairs (value of `varied`, median seconds) in ascending order; empty if the rule was not timed.

    Example:
        >>> common = dict(p=15, f=3, rule="mean", by=OURS, first=1.0, repeats=1, over_mean=1.0)
        >>> timings = [RuleTiming(n=20, seconds=2.0, **common), RuleTiming(n=10, seconds=1.0, **common)]
        >>> growth(timings, "mean", OURS, "n")
        [(10, 1.0), (20, 2.0)]
    """
    held, at = ("p", DEFAULT_P) if varied == "n" else ("n", DEFAULT_N)
    found = [row for row in rows if (row.rule, row.by) == (rule, by) and getattr(row, held) == at]
    return sorted((getattr(row, varied), row.seconds) for row in found)


def summary(rows: Sequence[RuleTiming]) -> Iterator[str]:
    """Describe how our times grow with n and p.

    Args:
        rows: Rows of all cases.

    Yields:
        At most three lines. They have each rule's exponent in n, its exponent in p, and the ratio of its times at
        p = 60 and p = 15. A line is omitted if too few sizes were timed.
    """
    for varied, at in (("n", f"p = {DEFAULT_P}"), ("p", f"n = {DEFAULT_N:,}")):
        exponents = slopes(rows, varied)
        if exponents:
            values = ", ".join(f"{plugins.display_name(rule)} {slope:.2f}" for rule, slope in exponents.items())
            yield f"time grows as {varied} to the power of, at {at}: {values}"
    last = {row.rule: row.seconds for row in rows if row.by == OURS and (row.n, row.p) == (DEFAULT_N, 60)}
    usual = {row.rule: row.seconds for row in rows if row.by == OURS and (row.n, row.p) == (DEFAULT_N, DEFAULT_P)}
    if last and usual:
        values = ", ".join(f"{plugins.display_name(rule)} {last[rule] / usual[rule]:.1f}" for rule in rules(rows))
        yield f"p = 60 over p = {DEFAULT_P}, at n = {DEFAULT_N:,}: {values}"
