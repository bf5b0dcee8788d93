"""What is timed, at which sizes, and the rows that come of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from fa.bench.peers import LIBRARIES, Aggregator, Missing, a_plain_read, as_the_paper, of_library, of_torch
from fa.bench.timing import Call, Timing, interleaved
from fa.rules import RULES, make_rule
from fa.utils.validation import check

OURS, TORCH, PAPER, READ = "fa", "torch", "paper", "read"
SIZES = (20_000, 1_000_000, 11_181_642)  # the last is that of a ResNet-18 with ten classes
WORKERS = (7, 15, 30, 60)
USUAL = 15  # workers, of the growth with n
MIDDLE = 1_000_000  # numbers, of the growth with p
STEPS = (1, 5)  # of FA as the paper computes it: the released code's one, the paper's limit


@dataclass(frozen=True)
class Row:
    """One median: of a rule, by whom, for p gradients of n numbers, f of them faulty."""

    n: int
    p: int
    f: int
    rule: str
    by: str  # OURS, TORCH, PAPER, READ, or a library
    seconds: float
    first: float  # the first call, which may compile
    repeats: int
    over_mean: float  # seconds over those of this package's mean

    @property
    def gigabytes_per_second(self) -> float:
        """Of G, if it were read once."""
        return 4e-9 * self.n * self.p / self.seconds


def usual_cases() -> list[tuple[int, int]]:
    """(n, p): n varied at 15 workers, p at a million numbers."""
    return [(n, USUAL) for n in SIZES] + [(MIDDLE, p) for p in WORKERS if p != USUAL]


def all_cases() -> list[tuple[int, int]]:
    """Every n with every p."""
    return [(n, p) for p in WORKERS for n in SIZES]


def faulty(p: int) -> int:
    """The most faulty workers that every rule can be told of: p >= 4f + 3."""
    return max(0, (p - 3) // 4)


def missing_libraries() -> list[str]:
    """A line for each library that is not here, with how to get it."""
    lines = []
    for library in LIBRARIES:
        try:
            of_library(library, USUAL, faulty(USUAL))
        except Missing as missing:
            lines.append(str(missing))
    return lines


def measure(
    cases: Sequence[tuple[int, int]],
    device: str = "cpu",
    repeats: int = 10,
    patience: float = 10.0,
    progress: Callable[[str], None] = lambda text: None,
    rules: Sequence[str] = (),
) -> Iterator[list[Row]]:
    """The rows of one case after another, also of `rules` besides RULES. Raises ValueError where one of these refuses
    p workers.
    """
    for _, p in cases:
        for name in rules:
            check("a rule", name, name not in RULES, "one that is not timed anyway")
            make_rule(name, f=faulty(p)).check_workers(p)
    for n, p in cases:
        generator = torch.Generator(device=device).manual_seed(n + p)
        G = torch.randn(p, n, generator=generator, device=device)
        calls = _calls(G, faulty(p), rules)

        def tell(name: str, n: int = n, p: int = p) -> None:
            progress(f"p = {p}, n = {n:,}: {name}")

        timings = interleaved(
            {f"{by} {rule}": call for (rule, by), call in calls.items()}, repeats, patience, device, tell
        )
        yield _rows(n, p, list(calls), list(timings.values()))


def _calls(G: Tensor, f: int, rules: Sequence[str]) -> dict[tuple[str, str], Call]:
    """By (rule, by whom): our nine rules first, and then those given."""
    p = len(G)
    aggregators: dict[tuple[str, str], Aggregator] = {(name, OURS): make_rule(name, f=f) for name in (*RULES, *rules)}
    aggregators |= {(name, TORCH): aggregate for name, aggregate in of_torch().items()}
    for library in LIBRARIES:
        with suppress(Missing):
            aggregators |= {(name, library): aggregate for name, aggregate in of_library(library, p, f).items()}
    aggregators |= {(f"fa, {steps} SVD{'s' * (steps > 1)}", PAPER): as_the_paper(steps) for steps in STEPS}
    aggregators["", READ] = a_plain_read
    return {key: partial(aggregate, G) for key, aggregate in aggregators.items()}


def _rows(n: int, p: int, keys: Sequence[tuple[str, str]], timings: Sequence[Timing]) -> list[Row]:
    mean = timings[keys.index(("mean", OURS))].median
    return [
        Row(n, p, faulty(p), rule, by, timing.median, timing.first, timing.repeats, timing.median / mean)
        for (rule, by), timing in zip(keys, timings, strict=True)
    ]


def as_records(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The rows for a JSON file."""
    return [asdict(row) | {"gigabytes_per_second": round(row.gigabytes_per_second, 3)} for row in rows]
