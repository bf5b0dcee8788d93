"""Cases of the benchmark: sizes, timed calls, and the resulting rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from fa.bench.peers import (
    LIBRARIES,
    Aggregator,
    Missing,
    library_aggregators,
    read_once,
    svd_flag_aggregator,
    torch_aggregators,
)
from fa.bench.timing import Call, Timing, interleaved
from fa.rules import RULES, make_rule
from fa.utils.validation import check

OURS, TORCH, PAPER, READ = "fa", "torch", "paper", "read"
SIZES = (20_000, 1_000_000, 11_181_642)  # the last is the size of a ResNet-18 with ten classes
WORKERS = (7, 15, 30, 60)
DEFAULT_P = 15  # workers where n varies
DEFAULT_N = 1_000_000  # coordinates where p varies
STEPS = (1, 5)  # of FA by SVDs: the released code's number, the paper's limit


@dataclass(frozen=True)
class RuleTiming:
    """Median time of a rule for p gradients with n coordinates, f of them Byzantine."""

    n: int
    p: int
    f: int
    rule: str
    by: str  # implementation: OURS, TORCH, PAPER, READ, or a library
    seconds: float
    first: float  # the first call, which may compile
    repeats: int
    over_mean: float  # seconds, as a multiple of this package's mean

    @property
    def gigabytes_per_second(self) -> float:
        """Size of G per second, as if G were read once."""
        return 4e-9 * self.n * self.p / self.seconds


def default_cases() -> list[tuple[int, int]]:
    """Return (n, p): each n with 15 workers, each p with a million coordinates."""
    return [(n, DEFAULT_P) for n in SIZES] + [(DEFAULT_N, p) for p in WORKERS if p != DEFAULT_P]


def all_cases() -> list[tuple[int, int]]:
    """Return (n, p): each n with each p."""
    return [(n, p) for p in WORKERS for n in SIZES]


def num_byzantine(p: int) -> int:
    """Return the largest f that every rule accepts: p >= 4f + 3.

    Args:
        p: Number of workers.

    Returns:
        floor((p - 3)/4), or 0 if p is below 7.

    Example:
        >>> [num_byzantine(p) for p in WORKERS]
        [1, 3, 6, 14]
    """
    return max(0, (p - 3) // 4)


def missing_libraries() -> list[str]:
    """Return a line for each missing library, with the command that installs it."""
    lines = []
    for library in LIBRARIES:
        try:
            library_aggregators(library, DEFAULT_P, num_byzantine(DEFAULT_P))
        except Missing as missing:
            lines.append(str(missing))
    return lines


def check_cases(cases: Sequence[tuple[int, int]], rules: Sequence[str] = ()) -> None:
    """Check that all rules accept all cases.

    Args:
        cases: (n, p) of each case.
        rules: Further rules, beside `fa.RULES`.

    Raises:
        ValueError: A further rule is already timed, or a rule does not accept p workers.
    """
    for name in rules:
        check("a rule", name, name not in RULES, "a rule that is not timed already")
    for _, p in cases:
        for name in (*RULES, *rules):
            make_rule(name, f=num_byzantine(p)).check_workers(p)


def measure_times(
    cases: Sequence[tuple[int, int]],
    device: str = "cpu",
    repeats: int = 10,
    patience: float = 10.0,
    progress: Callable[[str], None] = lambda text: None,
    rules: Sequence[str] = (),
) -> Iterator[list[RuleTiming]]:
    """Time all implementations, case by case.

    Args:
        cases: (n, p) of each case.
        device: Device of the gradients.
        repeats: Number of timed calls.
        patience: Total time after which a call is not repeated, in seconds.
        progress: Called with a line before each first call.
        rules: Further rules, beside `fa.RULES`.

    Yields:
        The rows of one case.

    Raises:
        ValueError: A further rule is already timed, or a rule does not accept p workers.
    """
    check_cases(cases, rules)
    for n, p in cases:
        generator = torch.Generator(device=device).manual_seed(n + p)
        G = torch.randn(p, n, generator=generator, device=device)
        calls = _calls(G, num_byzantine(p), rules)

        def report(name: str, n: int = n, p: int = p) -> None:
            progress(f"p = {p}, n = {n:,}: {name}")

        timings = interleaved(
            {f"{by} {rule}": call for (rule, by), call in calls.items()}, repeats, patience, device, report
        )
        yield _rows(n, p, list(calls), list(timings.values()))


def _calls(G: Tensor, f: int, rules: Sequence[str]) -> dict[tuple[str, str], Call]:
    """Return the calls by (rule, implementation): our rules first, then further ones."""
    p = len(G)
    aggregators: dict[tuple[str, str], Aggregator] = {(name, OURS): make_rule(name, f=f) for name in (*RULES, *rules)}
    aggregators |= {(name, TORCH): aggregate for name, aggregate in torch_aggregators().items()}
    for library in LIBRARIES:
        with suppress(Missing):
            aggregators |= {
                (name, library): aggregate for name, aggregate in library_aggregators(library, p, f).items()
            }
    if G.device.type == "cpu":  # cuSOLVER refuses 11 million rows
        aggregators |= {(f"fa, {steps} SVD{'s' * (steps > 1)}", PAPER): svd_flag_aggregator(steps) for steps in STEPS}
    aggregators["", READ] = read_once
    return {key: partial(aggregate, G) for key, aggregate in aggregators.items()}


def _rows(n: int, p: int, keys: Sequence[tuple[str, str]], timings: Sequence[Timing]) -> list[RuleTiming]:
    mean = timings[keys.index(("mean", OURS))].median
    return [
        RuleTiming(n, p, num_byzantine(p), rule, by, timing.median, timing.first, timing.repeats, timing.median / mean)
        for (rule, by), timing in zip(keys, timings, strict=True)
    ]


def as_records(rows: Sequence[RuleTiming]) -> list[dict[str, object]]:
    """Convert rows to dictionaries for a JSON file.

    Args:
        rows: Rows of any number of cases.

    Returns:
        A dictionary for each row, with the fields of `RuleTiming` (times in seconds). Its gigabytes_per_second is
        rounded to three decimals.

    Example:
        >>> row = RuleTiming(n=10**9, p=7, f=1, rule="mean", by=OURS, seconds=2.0, first=3.0, repeats=5, over_mean=1.0)
        >>> as_records([row])[0]["gigabytes_per_second"]
        14.0
    """
    return [asdict(row) | {"gigabytes_per_second": round(row.gigabytes_per_second, 3)} for row in rows]
