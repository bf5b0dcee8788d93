"""The rows of a benchmark as tables: each rule over the mean, and what one could call instead over the rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.table import Table

from fa.bench.cases import MIDDLE, OURS, PAPER, TORCH, USUAL, Row
from fa.bench.peers import LIBRARIES
from fa.utils import plugins

_WHOM = (*LIBRARIES, TORCH)


def table(rows: Sequence[Row]) -> Table:
    """Return the table of one case, a row for each rule, with the time of reading G alone in its title."""
    case = rows[0]
    found = {(row.rule, row.by): row for row in rows}
    read = next(row for row in rows if row.rule == "")
    title = (
        f"p = {case.p}, n = {case.n:,}, f = {case.f}; one read of G: "
        f"{1e3 * read.seconds:.3g} ms, {read.gigabytes_per_second:.1f} GB/s"
    )
    table = Table("rule", title=title)
    for column in ("ms", "/ mean", "GB/s", "first ms", "calls", *(f"{by}/ours" for by in _WHOM)):
        table.add_column(column, justify="right")
    ours = [found[rule, OURS] for rule in rules(rows)]
    for row in (*ours, *(row for row in rows if row.by == PAPER)):
        numbers = f"{1e3 * row.seconds:.3g} {row.over_mean:.2f} {row.gigabytes_per_second:.1f} {1e3 * row.first:.3g}"
        others = (_times(found.get((row.rule, by)), row) for by in _WHOM)
        table.add_row(plugins.display_name(row.rule), *numbers.split(), str(row.repeats), *others)
    return table


def rules(rows: Sequence[Row]) -> list[str]:
    """The rules of ours that were timed, in their order."""
    return list(dict.fromkeys(row.rule for row in rows if row.by == OURS))


def _times(peer: Row | None, ours: Row) -> str:
    return "" if peer is None else f"{peer.seconds / ours.seconds:.3g}"


def slopes(rows: Sequence[Row], varied: str) -> dict[str, float]:
    """By rule, the exponent with which our time grows in "n" (at the usual p) or in "p" (at the middle n), by least
    squares of the logarithms; empty where fewer than two sizes were measured.
    """
    found = {}
    for rule in rules(rows):
        line = growth(rows, rule, OURS, varied)
        if len(line) > 1:
            sizes, seconds = np.log(np.array(line)).T
            found[rule] = float(np.polyfit(sizes, seconds, 1)[0])
    return found


def growth(rows: Sequence[Row], rule: str, by: str, varied: str) -> list[tuple[int, float]]:
    """(size, seconds) of a rule as n or p grows, the other held."""
    held, at = ("p", USUAL) if varied == "n" else ("n", MIDDLE)
    found = [row for row in rows if (row.rule, row.by) == (rule, by) and getattr(row, held) == at]
    return sorted((getattr(row, varied), row.seconds) for row in found)


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """How time grows, once all cases are there."""
    for varied, at in (("n", f"p = {USUAL}"), ("p", f"n = {MIDDLE:,}")):
        exponents = slopes(rows, varied)
        if exponents:
            told = ", ".join(f"{plugins.display_name(rule)} {slope:.2f}" for rule, slope in exponents.items())
            yield f"time grows as {varied} to the power of, at {at}: {told}"
    last = {row.rule: row.seconds for row in rows if row.by == OURS and (row.n, row.p) == (MIDDLE, 60)}
    usual = {row.rule: row.seconds for row in rows if row.by == OURS and (row.n, row.p) == (MIDDLE, USUAL)}
    if last and usual:
        told = ", ".join(f"{plugins.display_name(rule)} {last[rule] / usual[rule]:.1f}" for rule in rules(rows))
        yield f"p = 60 over p = {USUAL}, at n = {MIDDLE:,}: {told}"
