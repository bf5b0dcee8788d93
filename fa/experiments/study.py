"""A study: the runs behind one figure, each with what it is in that figure, and their curves as one tidy table."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fa.checks import check_one_of, require
from fa.data.registry import REGISTRY
from fa.experiments import style
from fa.experiments.paths import figures
from fa.experiments.profiles import settings
from fa.experiments.store import RunStore
from fa.experiments.sweep import Outcome, shard, sweep
from fa.rules import make_rule
from fa.training.config import TrainConfig

if TYPE_CHECKING:
    from pandas import DataFrame


_SETTINGS = tuple(sorted({field.name for field in fields(TrainConfig)} - {"rule", "rule_options", "byzantine", "seed"}))
"""What the runs of a study share; the rest is what its grid and its seeds are made of."""


@dataclass(frozen=True)
class Cell:
    """One run of a study: a variant of `style.VARIANTS` under f faulty workers with one seed."""

    variant: str
    config: TrainConfig


@dataclass(frozen=True)
class Study:
    """The runs of the figure `name` at a profile's size, and the variants that its rules' conditions leave out, and
    why.
    """

    name: str
    profile: str
    folder: Path
    cells: tuple[Cell, ...]
    gaps: dict[str, str] = field(default_factory=dict)

    @property
    def configs(self) -> list[TrainConfig]:
        """Every configuration once."""
        return list(dict.fromkeys(cell.config for cell in self.cells))

    @property
    def store(self) -> RunStore:
        """Where this study's runs are kept."""
        return RunStore(self.folder / "records")

    def sweep(self, jobs: int | None = None, progress: bool = True, part: str | None = None) -> list[Outcome]:
        """Run what is not finished (of the `part` i/k, if given), and say what became of each run."""
        return sweep(self.part(part), self.store, jobs, progress)

    def part(self, text: str | None) -> list[TrainConfig]:
        """The configurations of the part i/k, or all."""
        return self.configs if text is None else shard(self.configs, text)

    def run(self, jobs: int | None = None, progress: bool = True) -> Results:
        """Run what is not finished, and give all. Raises ValueError that names the runs that failed, each with its
        reason.
        """
        started = time.monotonic()
        outcomes = self.sweep(jobs, progress)
        failed = [str(outcome) for outcome in outcomes if outcome.record is None]
        if failed:
            raise ValueError(f"{len(failed)} of {len(outcomes)} runs failed, the others are kept: {'; '.join(failed)}")
        seconds = time.monotonic() - started
        descriptions = tuple(outcome.record.description for outcome in outcomes if outcome.record is not None)
        return Results(self, {outcome.config: outcome for outcome in outcomes}, seconds, descriptions)

    @property
    def chance(self) -> float:
        """The test accuracy of guessing."""
        return 1 / REGISTRY[self.cells[0].config.dataset].classes

    def title(self) -> str:
        """The settings that all runs share, how seeds are shown, and what is left out: for the figure's title."""
        config = self.cells[0].config
        seeds = sorted({cell.config.seed for cell in self.cells})
        iterations = sorted({cell.config.iterations for cell in self.cells})
        task = f"{style.MODELS.get(config.model, config.model)}, {style.DATASETS.get(config.dataset, config.dataset)}"
        counts = f"p = {config.workers}, B = {config.batch}, lr = {config.lr:g}"
        steps = f"{'/'.join(map(str, iterations))} iterations"
        shown = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        spread = " (line: their mean; band: their range)" if len(seeds) > 1 else ""
        gaps = "".join(f"\nleft out: {reason.partition(':')[0]}" for reason in self.gaps.values())
        return f"{task}; {counts}, {steps}, {shown}{spread}{gaps}"


@dataclass(frozen=True)
class Results:
    """A study whose runs are all finished."""

    study: Study
    outcomes: dict[TrainConfig, Outcome]
    seconds: float  # that this call took: little where the runs were there
    descriptions: tuple[dict[str, Any], ...]  # of each run, what its config.json says

    def table(self) -> DataFrame:
        """One row for each point of each curve: variant, label, f, seed, and the columns of curve.csv."""
        import pandas

        rows = []
        for cell in self.study.cells:
            record = self.outcomes[cell.config].record
            assert record is not None  # a study with a failed run has no results
            about = {
                "variant": cell.variant,
                "label": style.VARIANTS[cell.variant].label,
                "f": cell.config.byzantine,
                "seed": cell.config.seed,
            }
            rows += [about | point for point in record.curve]
        return pandas.DataFrame(rows).astype({"iteration": int, "epoch": int})


def make_study(
    name: str,
    profile: str,
    grid: Iterable[tuple[str, int]],
    out: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    own: Mapping[str, Any] | None = None,
    **given: Any,
) -> Study:
    """The study of a grid of (variant, f) at a profile's size, with the figure's `own` settings in that profile.

    `seeds` and `given` settings that are not None replace the profile's. Where that makes them others, on whatever
    device, and `out` is None, the study's folder is figures/PROFILE-custom: the figures of a profile are not written
    over. Raises ValueError for a name that is no setting, and for empty seeds.
    """
    for setting in given:
        check_one_of("a setting", setting, _SETTINGS)
    usual = settings(profile, **own or {})
    if seeds is not None:
        require(isinstance(seeds, Sequence) and len(seeds) > 0, "seeds", seeds, "a list of one seed or more")
        given["seeds"] = tuple(seeds)
    shared = usual | {name: value for name, value in given.items() if value is not None}
    custom = shared | {"device": ""} != usual | {"device": ""}
    seeds = shared.pop("seeds")
    cells, gaps = [], {}
    for key, f in grid:
        variant = style.VARIANTS[key]
        base = shared | {"rule": variant.rule, "rule_options": dict(variant.options), "byzantine": f}
        refusal = _refusal(TrainConfig(**base))
        if refusal:
            gaps[f"{variant.label}, f = {f}"] = refusal
            continue
        cells += [Cell(key, TrainConfig(**base, seed=seed)) for seed in seeds]
    return Study(name, profile, figures(f"{profile}-custom" if custom else profile, out), tuple(cells), gaps)


def _refusal(config: TrainConfig) -> str:
    """Why the rule cannot serve so many workers, or nothing."""
    try:
        make_rule(config.rule, f=config.rule_byzantine, **config.options).check_workers(config.workers)
    except ValueError as refusal:
        return str(refusal)
    return ""


def last_points(table: DataFrame) -> DataFrame:
    """The last point of every curve."""
    curves = table.sort_values("iteration", kind="stable").groupby(["variant", "label", "f", "seed"], sort=False)
    last: DataFrame = curves.last().reset_index()
    return last


def final_accuracies(table: DataFrame) -> DataFrame:
    """The final test accuracy by label and f: its mean, least and greatest value over the seeds."""
    over_seeds = last_points(table).groupby(["label", "f"], sort=False)["test_accuracy"]
    final: DataFrame = over_seeds.agg(["mean", "min", "max"])
    return final
