"""Studies: the runs of one figure."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fa.data.registry import REGISTRY
from fa.experiments.paths import figures_dir
from fa.experiments.runs.descriptions import describe_unfinished, seeds_text
from fa.experiments.runs.profiles import MARGINS, profile_settings
from fa.experiments.runs.results import Results
from fa.experiments.runs.store import RunStore
from fa.experiments.runs.sweep import Outcome, select_shard, sweep
from fa.experiments.runs.user_rules import label, resolve_attack, resolve_variant
from fa.experiments.runs.variants import DATASETS, MODELS, VARIANTS
from fa.rules import make_rule
from fa.training.config import TrainConfig
from fa.utils import plugins
from fa.utils.validation import TooFewWorkersError, check, check_one_of

OutDir = str | Path | None
"""Folder of a figure; None: the profile's."""

Seeds = Sequence[int] | None
"""Seeds to use instead of the profile's; None: the profile's."""

RuleNames = Sequence[str] | None
"""The user's rules to add to a figure; None to add none."""

_SETTINGS = tuple(sorted({field.name for field in fields(TrainConfig)} - {"rule", "rule_options", "byzantine", "seed"}))
"""Settings that the runs of a study share; its grid and its seeds set the others."""


@dataclass(frozen=True)
class Case:
    """One entry of a figure's grid: a rule with its options and settings.

    Attributes:
        variant: Key in `variants.VARIANTS`, or a rule of the user's.
        f: Number of Byzantine workers.
        settings: Settings instead of the figure's. Except "iterations", they become columns of the table.
        options: Options of the rule beside the variant's; columns of the table too.
        seeds: Seeds instead of the profile's.
        label_override: Label instead of the variant's.
    """

    variant: str
    f: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    label_override: str = ""

    @property
    def columns(self) -> dict[str, Any]:
        """Settings and options that distinguish this case from others with its variant and f."""
        return {name: value for name, value in {**self.settings, **self.options}.items() if name != "iterations"}

    @property
    def label(self) -> str:
        """Name in the figure."""
        return self.label_override or label(self.variant)

    @property
    def place(self) -> str:
        """The case without the rule: f, and the columns if the label does not tell them."""
        columns = [] if self.label_override else [f"{name} = {_plain(value)}" for name, value in self.columns.items()]
        return ", ".join([f"f = {self.f}", *columns])

    def __str__(self) -> str:
        return f"{self.label}, {self.place}"


def _plain(value: Any) -> Any:
    """Return a whole number without its decimal point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True)
class Cell:
    """One run of a study: a case with one seed."""

    case: Case
    config: TrainConfig

    @property
    def variant(self) -> str:
        """Variant of the case."""
        return self.case.variant


@dataclass(frozen=True)
class Study:
    """The runs of a figure at a profile's size.

    Attributes:
        name: Name of the figure.
        folder: Folder of the figure and of its records.
        skipped: Cases whose rule needs more workers, with the reason; the last one's for cases of one description.
        worker_processes: Whether workers are processes, whose records are kept apart from those of simulated workers.
        records: Folder of the records of simulated workers. "records-many" is not committed.
        seed_caption: How the figure shows several seeds.
        attack: Attack instead of the figure's.
        unfinished: Cases that are not shown because their runs are not finished.
        command_options: Options of `fa reproduce` beside the profile that give these runs; None if no options do.
        live: Whether the figure's module trains the runs while it looks at their gradients: a sweep does nothing.
    """

    name: str
    profile: str
    folder: Path
    cells: tuple[Cell, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    worker_processes: bool = False
    records: str = "records"
    seed_caption: str = " (line: mean, band: range)"
    attack: str | None = None
    unfinished: tuple[str, ...] = ()
    command_options: tuple[str, ...] | None = ()
    live: bool = False

    @property
    def configs(self) -> list[TrainConfig]:
        """Every configuration once."""
        return list(dict.fromkeys(cell.config for cell in self.cells))

    @property
    def store(self) -> RunStore:
        """The store of this study's runs.

        A custom study also reads the profile's runs. Runs with processes are an exception: their times may be of
        another machine.
        """
        name = "records-rpc" if self.worker_processes else self.records
        shared = self.folder == figures_dir(self.profile, custom=True) and not self.worker_processes
        return RunStore(self.folder / name, figures_dir(self.profile) / name if shared else None)

    def sweep(self, jobs: int | None = None, progress: bool = True, shard: str | None = None) -> list[Outcome]:
        """Do the runs that are not finished.

        Args:
            jobs: Number of runs at a time; default: one a core.
            progress: Whether to show progress.
            shard: The part i/k of the runs; default: all.

        Returns:
            One outcome for each configuration; none for a live study.
        """
        return [] if self.live else sweep(self.shard(shard), self.store, jobs, progress, self.worker_processes)

    def shard(self, text: str | None) -> list[TrainConfig]:
        """Return the configurations of the shard i/k, or all.

        Args:
            text: The shard, as in "1/4"; None for all.

        Returns:
            The configurations.

        Raises:
            ValueError: The text is not a shard.
        """
        return self.configs if text is None else select_shard(self.configs, text)

    def run(self, jobs: int | None = None, progress: bool = True) -> Results:
        """Do the runs that are not finished, and return the results of all.

        Args:
            jobs: Number of runs at a time; default: one a core.
            progress: Whether to show progress.

        Returns:
            The results.

        Raises:
            ValueError: Some runs failed. The message has the first run of each reason.
        """
        started = time.monotonic()
        outcomes = self.sweep(jobs, progress)
        failed = [outcome for outcome in outcomes if outcome.record is None]
        if failed:
            first = {outcome.error: str(outcome) for outcome in reversed(failed)}
            reasons = "; ".join(reversed(first.values()))
            raise ValueError(f"{len(failed)} of {len(outcomes)} runs failed, the others are kept: {reasons}")
        descriptions = tuple(outcome.record.description for outcome in outcomes if outcome.record is not None)
        seconds = time.monotonic() - started
        return Results(self, {outcome.config: outcome for outcome in outcomes}, seconds, descriptions)

    def finished(self) -> Study:
        """Return the study of the finished runs, which names the others in `unfinished`.

        Raises:
            ValueError: No run is finished.
        """
        cells = tuple(cell for cell in self.cells if self.store.find(cell.config) is not None)
        check("finished", True, bool(cells), f"False while no run is in {self.store.root}")
        return replace(self, cells=cells, unfinished=describe_unfinished(self.cells, cells))

    @property
    def command(self) -> str | None:
        """The command that draws the figure of this study again; None if the profile has other runs."""
        if self.command_options is None:
            return None
        return reproduce_command(self.profile, self.name, self.command_options, bool(self.unfinished))

    @property
    def chance(self) -> float:
        """Test accuracy of guessing."""
        return 1 / REGISTRY[self.cells[0].config.dataset].classes

    @property
    def margin(self) -> float:
        """Accuracies that differ by less are equal."""
        return MARGINS[self.profile]

    def title(self) -> str:
        """Return the settings that all runs share, the seeds and the skipped cases, for the figure's title."""
        config = self.cells[0].config
        seeds = sorted({cell.config.seed for cell in self.cells})
        task = f"{MODELS.get(config.model, config.model)}, {DATASETS.get(config.dataset, config.dataset)}"
        counts = f"p = {self._values('workers')}, B = {self._values('batch')}, lr = {self._values('lr')}"
        steps = f"{self._values('iterations')} iterations"
        attack = f", attack {plugins.display_name(self.attack)}" if self.attack else ""
        seed_text = seeds_text(seeds) + self.seed_caption * (len(seeds) > 1)
        needs = "; ".join(dict.fromkeys(reason.partition(", got")[0] for reason in self.skipped.values()))
        skipped = f"\nexcluded where p is too small: {needs}" if needs else ""
        unfinished = f"\nnot finished: {'; '.join(self.unfinished)}" if self.unfinished else ""
        return f"{task}; {counts}{attack}, {steps}, {seed_text}{skipped}{unfinished}"

    def _values(self, setting: str) -> str:
        """Return the values of a setting in the order of the cases, as in 64/128/192."""
        values = (getattr(cell.config, setting) for cell in self.cells)
        each = (value if isinstance(value, tuple) else (value,) for value in values)
        return "/".join(dict.fromkeys(str(one) for several in each for one in several))


def make_study(
    name: str,
    profile: str,
    grid: Iterable[Case],
    out: OutDir = None,
    seeds: Seeds = None,
    figure_settings: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Study:
    """Create the study of a figure at a profile's size.

    Args:
        name: Name of the figure.
        profile: Name of the profile.
        grid: Cases of the figure.
        out: Folder of the figure; default: figures/PROFILE, or figures/PROFILE-custom where the runs differ from the
            profile's on any device, or a rule is the user's. The figures of a profile are never overwritten.
        seeds: Seeds to use instead of those of the cases and of the profile.
        figure_settings: Settings of this figure, instead of the profile's.
        **overrides: Settings that replace all others, unless they are None. An attack becomes a column of the table.

    Returns:
        The study, whose `skipped` names the cases that need more workers.

    Raises:
        ValueError: An unknown profile or setting, a setting that the grid varies, an invalid value, or no seeds.
    """
    for setting in overrides:
        check_one_of("a setting", setting, _SETTINGS)
    if seeds is not None:
        check("seeds", seeds, isinstance(seeds, Sequence) and len(seeds) > 0, "a list of one seed or more")
    usual = profile_settings(profile, **figure_settings or {})
    overrides = {setting: value for setting, value in overrides.items() if value is not None}
    grid = list(grid)
    # An attack is a column of the table, and another number of iterations for all cases has no label.
    varied = {setting for case in grid for setting in case.settings} - {"attack", "iterations"}
    for setting, value in overrides.items():
        check(setting, value, setting not in varied, f"omitted, since {name} varies it")
    if "attack" in overrides:
        overrides["attack"] = resolve_attack(overrides["attack"])
        if overrides["attack"] == usual.get("attack", TrainConfig.attack):
            del overrides["attack"]
    cells = configurations(grid, usual, seeds, overrides)
    rules = [rule for rule in dict.fromkeys(case.variant for case in grid) if rule not in VARIANTS]
    device = {setting: value for setting, value in overrides.items() if setting == "device"}
    custom = bool(rules) or cells != configurations(grid, usual, None, device)
    attack = {setting: value for setting, value in overrides.items() if setting == "attack"}
    reproducible = cells == configurations(grid, usual, None, device | attack)
    # Cases with different options may have one label: check each cell, and name the refused ones by their labels.
    refusals = [refusal(run.rule, run.rule_f, run.options, run.workers) for run in (cell.config for cell in cells)]
    skipped = {str(cell.case): reason for cell, reason in zip(cells, refusals, strict=True) if reason}
    accepted = tuple(cell for cell, reason in zip(cells, refusals, strict=True) if not reason)
    folder = figures_dir(profile, out, custom)
    options = _command_options(rules, overrides) if reproducible else None
    return Study(name, profile, folder, accepted, skipped, attack=overrides.get("attack"), command_options=options)


def _command_options(rules: Iterable[str], overrides: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the words of `fa reproduce` for the user's rules, a device and an attack."""
    words = [word for rule in rules for word in ("--rule", rule)]
    if overrides.get("device", TrainConfig.device) != TrainConfig.device:
        words += ["--device", overrides["device"]]
    if "attack" in overrides:
        words += ["--attack", overrides["attack"]]
    return tuple(words)


def reproduce_command(profile: str, name: str, options: Sequence[str] = (), finished: bool = False) -> str:
    """Return the command that draws a figure.

    Args:
        profile: Name of the profile.
        name: Name of the figure or notebook.
        options: Further words of the command line.
        finished: True to draw finished runs only.

    Returns:
        The command, quoted for a shell.

    Example:
        >>> reproduce_command("quick", "fig04", ("--rule", "my rule.py:Rule"))
        "fa reproduce --profile quick fig04 --rule 'my rule.py:Rule'"
    """
    words = ["fa", "reproduce", "--profile", profile, *(["--finished"] if finished else []), name, *options]
    return shlex.join(words)


def configurations(
    grid: Iterable[Case],
    settings: Mapping[str, Any],
    seeds: Seeds = None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> list[Cell]:
    """Return the run of each case with each seed.

    Args:
        grid: Cases of a figure.
        settings: Settings of the profile and the figure, with "seeds"; those of a case replace them.
        seeds: Seeds to use instead of those of the cases and of the settings.
        overrides: Settings that replace all others; an attack among them becomes one of the case's.

    Returns:
        The cells, in the order of the grid.
    """
    common = {setting: value for setting, value in settings.items() if setting != "seeds"}
    attack = {"attack": overrides["attack"]} if "attack" in overrides else {}
    cells = []
    for case in grid:
        variant = resolve_variant(case.variant)
        rule = {"rule": variant.rule, "rule_options": {**dict(variant.options), **case.options}, "byzantine": case.f}
        config = TrainConfig(**{**common, **case.settings, **rule, **overrides})
        case = replace(case, settings={**case.settings, **attack})
        cells += [Cell(case, replace(config, seed=seed)) for seed in seeds or case.seeds or settings["seeds"]]
    return cells


def refusal(rule: str, f: int, options: Mapping[str, Any], workers: int) -> str:
    """Return why there are too few workers for a rule.

    Args:
        rule: Name of the rule.
        f: Number of Byzantine workers to tolerate.
        options: Options of the rule.
        workers: Number of workers.

    Returns:
        The reason, or an empty string.

    Raises:
        ValueError: An option is invalid, or does not fit the number of workers.
    """
    try:
        make_rule(rule, f=f, **options).check_workers(workers)
    except TooFewWorkersError as error:
        return str(error)
    return ""
