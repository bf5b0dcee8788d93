"""A study: the runs behind one figure, each with what it is in that figure, and their curves as one tidy table."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from fa.data.registry import REGISTRY
from fa.experiments.paths import figures
from fa.experiments.runs.profiles import MARGINS, settings
from fa.experiments.runs.store import Record, RunStore
from fa.experiments.runs.sweep import Outcome, shard, sweep
from fa.experiments.runs.user_rules import label, replaced
from fa.experiments.runs.user_rules import variant as variant_of
from fa.experiments.runs.variants import DATASETS, MODELS, VARIANTS
from fa.rules import make_rule
from fa.training.config import TrainConfig
from fa.utils import plugins
from fa.utils.validation import check, check_one_of

if TYPE_CHECKING:
    from pandas import DataFrame


Place = str | Path | None
"""A folder for a figure; None: the profile's."""

Seeds = Sequence[int] | None
"""In place of the profile's; None: those."""

Names = Sequence[str] | None
"""Of rules that are not the paper's, to enter a figure; None: none."""

_SETTINGS = tuple(sorted({field.name for field in fields(TrainConfig)} - {"rule", "rule_options", "byzantine", "seed"}))
"""What the runs of a study share; the rest is what its grid and its seeds are made of."""


@dataclass(frozen=True)
class Case:
    """What a figure's grid asks for: a variant of `variants.VARIANTS`, or a rule that was entered, under f faulty
    workers, with settings and rule options that are this case's own. Those that are not "iterations" become columns of
    the table.
    """

    variant: str
    f: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = ()  # its own, in place of the profile's
    called: str = ""  # what the table's label says, in place of the variant's

    @property
    def columns(self) -> dict[str, Any]:
        """What tells this case from others of its variant and f."""
        return {name: value for name, value in {**self.settings, **self.options}.items() if name != "iterations"}

    @property
    def label(self) -> str:
        """What the figure calls it."""
        return self.called or label(self.variant)

    def __str__(self) -> str:
        own = [f"{name} = {value}" for name, value in self.columns.items()]
        return ", ".join([self.label, f"f = {self.f}", *own])


@dataclass(frozen=True)
class Cell:
    """One run of a study: a case with one seed."""

    case: Case
    config: TrainConfig

    @property
    def variant(self) -> str:
        """The case's variant."""
        return self.case.variant


@dataclass(frozen=True)
class Study:
    """The runs of the figure `name` at a profile's size, and the cases that its rules' conditions leave out, with the
    reason.
    """

    name: str
    profile: str
    folder: Path
    cells: tuple[Cell, ...]
    gaps: dict[str, str] = field(default_factory=dict)
    processes: bool = False  # whether workers are processes of their own, else simulated; their records lie apart
    spread: str = " (line: their mean; band: their range)"  # how several seeds are shown
    attack: str | None = None  # what the faulty workers send, where that is not what the figure has them send
    unfinished: tuple[str, ...] = ()  # cases that are not shown since their runs are not finished

    @property
    def configs(self) -> list[TrainConfig]:
        """Every configuration once."""
        return list(dict.fromkeys(cell.config for cell in self.cells))

    @property
    def store(self) -> RunStore:
        """Where this study's runs are kept."""
        name = "records-rpc" if self.processes else "records"
        # Those of the profile serve too, but for their times, which may be of another machine.
        shared = self.folder == figures(self.profile, custom=True) and not self.processes
        return RunStore(self.folder / name, figures(self.profile) / name if shared else None)

    def sweep(self, jobs: int | None = None, progress: bool = True, part: str | None = None) -> list[Outcome]:
        """Run what is not finished (of the `part` i/k, if given), and say what became of each run."""
        return sweep(self.part(part), self.store, jobs, progress, self.processes)

    def part(self, text: str | None) -> list[TrainConfig]:
        """The configurations of the part i/k, or all."""
        return self.configs if text is None else shard(self.configs, text)

    def run(self, jobs: int | None = None, progress: bool = True) -> Results:
        """Run what is not finished, and give all. Raises ValueError that names the runs that failed, each with its
        reason.
        """
        started = time.monotonic()
        outcomes = self.sweep(jobs, progress)
        failed = [outcome for outcome in outcomes if outcome.record is None]
        if failed:
            # Of those that failed for one reason the first is told.
            told = {outcome.error: str(outcome) for outcome in reversed(failed)}
            reasons = "; ".join(list(told.values())[::-1])
            raise ValueError(f"{len(failed)} of {len(outcomes)} runs failed, the others are kept: {reasons}")
        seconds = time.monotonic() - started
        descriptions = tuple(outcome.record.description for outcome in outcomes if outcome.record is not None)
        return Results(self, {outcome.config: outcome for outcome in outcomes}, seconds, descriptions)

    def finished(self) -> Study:
        """Return the study of the runs that are finished, which names those that are not.

        Raises:
            ValueError: No run is finished.
        """
        cells = tuple(cell for cell in self.cells if self.store.find(cell.config) is not None)
        check("finished", True, bool(cells), f"False as long as no run is in {self.store.root}")
        seen = {(str(cell.case), cell.config.seed) for cell in cells}
        missing: dict[str, list[int]] = {}
        for cell in self.cells:
            if (str(cell.case), cell.config.seed) not in seen:
                missing.setdefault(str(cell.case), []).append(cell.config.seed)
        shown = {str(cell.case) for cell in cells}
        names = [
            f"{case} (seed {', '.join(map(str, seeds))})" if case in shown else case for case, seeds in missing.items()
        ]
        return replace(self, cells=cells, unfinished=tuple(names))

    @property
    def chance(self) -> float:
        """The test accuracy of guessing."""
        return 1 / REGISTRY[self.cells[0].config.dataset].classes

    @property
    def margin(self) -> float:
        """Accuracies of this profile that are closer than this are equal."""
        return MARGINS[self.profile]

    def title(self) -> str:
        """The settings that all runs share, how seeds are shown, and what is left out: for the figure's title."""
        config = self.cells[0].config
        seeds = sorted({cell.config.seed for cell in self.cells})
        task = f"{MODELS.get(config.model, config.model)}, {DATASETS.get(config.dataset, config.dataset)}"
        counts = f"p = {self._all('workers')}, B = {self._all('batch')}, lr = {self._all('lr')}"
        steps = f"{self._all('iterations')} iterations"
        several = len(seeds) > 1
        attack = f", attack {plugins.display_name(self.attack)}" if self.attack else ""
        shown = f"seed{'s' * several} {', '.join(map(str, seeds))}{self.spread * several}"
        reasons = dict.fromkeys(reason.partition(":")[0] for reason in self.gaps.values())
        gaps = "".join(f"\nexcluded: {reason}" for reason in reasons)
        unfinished = f"not finished: {'; '.join(self.unfinished)}" if self.unfinished else ""
        return "\n".join([f"{task}; {counts}{attack}, {steps}, {shown}{gaps}", *wrap(unfinished, 120)])

    def _all(self, setting: str) -> str:
        """The values that the cases have of a setting, in their order, as in 64/128/192."""
        return "/".join(dict.fromkeys(str(getattr(cell.config, setting)) for cell in self.cells))


@dataclass(frozen=True)
class Results:
    """A study whose runs are all finished."""

    study: Study
    outcomes: dict[TrainConfig, Outcome]
    seconds: float  # that this call took: little where the runs were there
    descriptions: tuple[dict[str, Any], ...]  # of each run, what its config.json says

    def record(self, cell: Cell) -> Record:
        """The record of one of the study's runs."""
        record = self.outcomes[cell.config].record
        assert record is not None  # a study with a failed run has no results
        return record

    def table(self) -> DataFrame:
        """One row for each point of each curve: variant, label, f, the case's own columns, seed, and those of
        curve.csv.
        """
        import pandas

        rows = []
        own = list(dict.fromkeys(name for cell in self.study.cells for name in cell.case.columns))
        for cell in self.study.cells:
            about = {
                "variant": cell.variant,
                "label": cell.case.label,
                "f": cell.config.byzantine,
                **{name: cell.case.columns.get(name) for name in own},
                "seed": cell.config.seed,
            }
            rows += [about | point for point in self.record(cell).curve]
        return pandas.DataFrame(rows).astype({"iteration": int, "epoch": int})


def make_study(
    name: str,
    profile: str,
    grid: Iterable[Case],
    out: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    own: Mapping[str, Any] | None = None,
    **given: Any,
) -> Study:
    """The study of a grid of cases at a profile's size, with the figure's `own` settings in that profile.

    A case's settings replace the profile's, and `seeds` and `given` settings that are not None replace both. Where that
    makes them others, on whatever device, or a case's rule is the user's own, and `out` is None, the study's folder is
    figures/PROFILE-custom: the figures of a profile are not written over. An attack that is given becomes a column of
    the table. Raises ValueError for a name that is no setting, and for empty seeds.
    """
    for setting in given:
        check_one_of("a setting", setting, _SETTINGS)
    if seeds is not None:
        check("seeds", seeds, isinstance(seeds, Sequence) and len(seeds) > 0, "a list of one seed or more")
    given = {name: value for name, value in given.items() if value is not None}
    usual = settings(profile, **own or {})
    if "attack" in given:
        given["attack"] = replaced(given["attack"])
        if given["attack"] == usual.get("attack", TrainConfig.attack):
            del given["attack"]
    attack = given.get("attack")
    profile_seeds = usual.pop("seeds")
    changed = False
    cells, gaps = [], {}
    for wanted in grid:
        case = wanted if attack is None else replace(wanted, settings={**wanted.settings, "attack": attack})
        usual_seeds = tuple(case.seeds or profile_seeds)
        changed |= tuple(seeds or usual_seeds) != usual_seeds or case.variant not in VARIANTS
        variant = variant_of(case.variant)
        options = {**dict(variant.options), **case.options}
        its = usual | dict(wanted.settings) | {"rule": variant.rule, "rule_options": options, "byzantine": case.f}
        changed |= any(its.get(name, getattr(TrainConfig, name)) != given[name] for name in given.keys() - {"device"})
        config = TrainConfig(**its | given)
        refusal = _refusal(config)
        if refusal:
            gaps[str(case)] = refusal
            continue
        cells += [Cell(case, replace(config, seed=seed)) for seed in seeds or usual_seeds]
    folder = figures(profile, out, custom=changed)
    return Study(name, profile, folder, tuple(cells), gaps, attack=attack)


def _refusal(config: TrainConfig) -> str:
    """Why the rule cannot serve so many workers, or nothing."""
    try:
        make_rule(config.rule, f=config.rule_f, **config.options).check_workers(config.workers)
    except ValueError as refusal:
        return str(refusal)
    return ""


def last_points(table: DataFrame) -> DataFrame:
    """The last point of every curve."""
    curve = list(table.columns[: list(table.columns).index("iteration")])
    last: DataFrame = (
        table.sort_values("iteration", kind="stable").groupby(curve, sort=False, dropna=False).last().reset_index()
    )
    return last


def final_accuracies(table: DataFrame, by: str = "f") -> DataFrame:
    """The final test accuracy by label and the column `by`: its mean, least and greatest value over the seeds."""
    over_seeds = last_points(table).groupby(["label", by], sort=False)["test_accuracy"]
    final: DataFrame = over_seeds.agg(["mean", "min", "max"])
    return final
