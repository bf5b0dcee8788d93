"""Grids: every rule under every attack, f and split of a TOML file, as runs of the store.

    rules = ["median", { rule = "fa", formulation = "released", label = "FA released" }]
    attacks = ["random", { attack = "alie", factor = 1.5 }]
    byzantine = [1, 3]
    splits = ["iid", { split = "dirichlet", alpha = 0.5 }]    # default: ["iid"]
    seeds = [1, 2]                                            # default: [2021]

    [settings]                                                # settings of `fa train`
    workers = 11

    [tuning]                                                  # optional: a learning rate for each rule
    lr = [0.05, 0.1]
    seeds = [100]                                             # none of the seeds above
    validation = 0.2                                          # share of the training images, default 0.2
    byzantine = [3]                                           # some of the numbers above, default all

With [tuning], each rule has one learning rate for the whole grid, since a server does not know the attack. It is the
rate with the greatest mean validation accuracy over the attacks, splits, f and seeds of the tuning; the lowest of
equals.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from fa.experiments.runs.store import RunStore
from fa.experiments.runs.study import refusal
from fa.experiments.runs.sweep import Outcome, sweep
from fa.rules import make_rule
from fa.training.config import TrainConfig
from fa.training.setup import configured_attack
from fa.utils import plugins
from fa.utils.validation import check, check_integer, check_one_of, check_positive, check_real

_AXES = {"rules": "rule", "attacks": "attack", "splits": "split"}
_KEYS = ("rules", "attacks", "byzantine", "splits", "seeds", "settings", "tuning")
_TUNING_KEYS = ("lr", "seeds", "validation", "byzantine")
_OF_AXES = (
    "rule",
    "rule_options",
    "attack",
    "attack_options",
    "byzantine",
    "f",
    "split",
    "alpha",
    "gamma",
    "seed",
    "validation",
)
_SETTINGS = tuple(field.name for field in fields(TrainConfig) if field.name not in _OF_AXES)


@dataclass(frozen=True)
class Choice:
    """An entry of an axis of the grid.

    Attributes:
        label: Name in the heat map.
        settings: Settings of the run.
    """

    label: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Tuning:
    """Learning rates to choose from, and the seeds, share of validation images and numbers f for the choice."""

    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    validation: float
    byzantine: tuple[int, ...]


@dataclass(frozen=True)
class GridRun:
    """One run, and its place in the grid."""

    rule: str
    attack: str
    f: int
    split: str
    config: TrainConfig


@dataclass(frozen=True)
class Grid:
    """A grid of runs.

    Attributes:
        rules: Rules with their options.
        attacks: Attacks with their options.
        byzantine: Numbers of Byzantine workers.
        splits: Splits of the training images.
        seeds: Seeds of the reported runs.
        settings: Settings that all runs share.
        tuning: Learning rates to choose from; None to use the one of the settings.
    """

    rules: tuple[Choice, ...]
    attacks: tuple[Choice, ...]
    byzantine: tuple[int, ...]
    splits: tuple[Choice, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    tuning: Tuning | None = None

    def cells(self, rates: Mapping[str, float] | None = None) -> list[GridRun]:
        """Return the reported runs.

        Without Byzantine workers the attack does not matter, and one run stands for all attacks.

        Args:
            rates: Learning rate by rule, as `choose_rates` returns it; default: that of the settings.
        """
        rate = (lambda rule: {"lr": rates[rule.label]}) if rates else (lambda _: {})
        return list(self._cells(self.seeds, rate, self.byzantine))

    def tuning_cells(self) -> list[GridRun]:
        """Return the runs on validation images, from which the rates are chosen."""
        if self.tuning is None:
            return []
        tuning: Tuning = self.tuning
        cells: list[GridRun] = []
        for rate in tuning.rates:
            settings = {"lr": rate, "validation": tuning.validation}
            cells += self._cells(tuning.seeds, lambda _, settings=settings: settings, tuning.byzantine)
        return cells

    def _cells(self, seeds: Sequence[int], further: Any, byzantine: Sequence[int]) -> Iterator[GridRun]:
        for split, f, rule, attack, seed in product(self.splits, byzantine, self.rules, self.attacks, seeds):
            if not self.reason_against(rule, f):
                attacked = attack.settings if f else {"attack": "none"}
                settings = {**self.settings, **rule.settings, **attacked, **split.settings, **further(rule)}
                config = TrainConfig(**settings, byzantine=f, seed=seed)
                yield GridRun(rule.label, attack.label, f, split.label, config)

    def reason_against(self, rule: Choice, f: int) -> str:
        """Check that a rule tolerates f of the grid's workers.

        Args:
            rule: An entry of `rules`.
            f: Number of Byzantine workers.

        Returns:
            The reason why there are too few workers, or an empty string.

        Raises:
            ValueError: An option is invalid, or does not fit the number of workers.

        Example:
            >>> krum = Choice("Krum", {"rule": "krum", "rule_options": {}})
            >>> grid = Grid((krum,), (), (1, 2), (), (2021,), {"workers": 5})
            >>> [bool(grid.reason_against(krum, f)) for f in grid.byzantine]
            [False, True]
        """
        workers = self.settings.get("workers", TrainConfig.workers)
        return refusal(rule.settings["rule"], f, rule.settings["rule_options"], workers)

    def skipped(self) -> dict[str, str]:
        """Return the excluded pairs of rule and f with the reason."""
        pairs = {f"{rule.label}, f = {f}": self.reason_against(rule, f) for rule in self.rules for f in self.byzantine}
        return {pair: reason for pair, reason in pairs.items() if reason}


def read(path: str | Path, device: str | None = None) -> tuple[Grid, str]:
    """Read a grid from a TOML file; the module's docstring describes it.

    Args:
        path: The file.
        device: Device instead of the file's.

    Returns:
        The grid, and the file's text.

    Raises:
        ValueError: The file cannot be read, is not TOML, or a key or value is invalid. The message names the file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = tomllib.loads(text)
        if device is not None and isinstance(content.get("settings", {}), dict):
            content["settings"] = content.get("settings", {}) | {"device": device}
        return parse(content), text
    except OSError as error:
        raise ValueError(f"the grid {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse(content: Mapping[str, Any]) -> Grid:
    """Check the content of a grid file.

    Args:
        content: The parsed TOML.

    Returns:
        The grid.

    Raises:
        ValueError: A key or value is invalid.
    """
    _check_keys("a grid", content, _KEYS)
    settings = _table("settings", content.get("settings", {}))
    byzantine = _naturals("byzantine", content.get("byzantine"))
    _check_keys("[settings]", settings, _SETTINGS)
    check_integer("workers", settings.get("workers", TrainConfig.workers), 1)
    grid = Grid(
        rules=_axis("rules", content, _rule),
        attacks=_axis("attacks", content, _attack),
        byzantine=byzantine,
        splits=_axis("splits", {"splits": ["iid"], **content}, _split),
        seeds=_naturals("seeds", content.get("seeds", [TrainConfig.seed])),
        settings=settings,
        tuning=_tuning(content["tuning"], byzantine) if "tuning" in content else None,
    )
    if grid.tuning is not None:
        shared = sorted(set(grid.tuning.seeds) & set(grid.seeds))
        check("seeds of [tuning]", list(grid.tuning.seeds), not shared, f"others than seeds = {list(grid.seeds)}")
        check("lr of [settings]", settings.get("lr"), "lr" not in settings, "omitted with [tuning], which chooses it")
        for rule in grid.rules:
            tuned, reported = (
                any(not grid.reason_against(rule, f) for f in numbers) for numbers in (grid.tuning.byzantine, byzantine)
            )
            requirement = f"numbers of which {rule.label} tolerates one, as it does in byzantine"
            check("byzantine of [tuning]", list(grid.tuning.byzantine), tuned or not reported, requirement)
    for cell in grid.cells():
        configured_attack(cell.config)  # Fail before any run.
    check("rules", [rule.label for rule in grid.rules], bool(grid.cells()), "rules for which there are enough workers")
    return grid


def _rule(table: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in table.items() if name != "rule"}
    own = sorted({"f", "name"} & options.keys())
    check("options of a rule", own, not own, "without f and name", "f is the grid's list byzantine.")
    rule = plugins.resolve_spec(table["rule"])
    make_rule(rule, f=1, **options)  # Fail before any run.
    return {"rule": rule, "rule_options": options}


def _attack(table: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in table.items() if name != "attack"}
    return {"attack": plugins.resolve_spec(table["attack"]), "attack_options": options}


def _split(table: Mapping[str, Any]) -> dict[str, Any]:
    _check_keys("an entry of splits", table, ("split", "alpha", "gamma"))
    return dict(table)


def _axis(name: str, content: Mapping[str, Any], settings_of: Any) -> tuple[Choice, ...]:
    """Read rules, attacks or splits: names, or tables with the name, its options, and a label."""
    entries, kind = _list(name, content.get(name)), _AXES[name]
    choices = []
    for entry in entries:
        table = {kind: entry} if isinstance(entry, str) else entry
        valid = isinstance(table, Mapping) and isinstance(table.get(kind), str) and table[kind] != ""
        check(f"an entry of {name}", entry, valid, f"a name, or a table with the key {kind}")
        settings = {key: value for key, value in table.items() if key != "label"}
        label = table.get("label", _label(kind, settings))
        check(f"label in {name}", label, isinstance(label, str) and label != "", "a text")
        choices.append(Choice(label, settings_of(settings)))
    labels = [choice.label for choice in choices]
    check(name, labels, len(set(labels)) == len(labels), "different from each other", "Add a label to equal ones.")
    return tuple(choices)


def _label(kind: str, table: Mapping[str, Any]) -> str:
    return plugins.display_name(table[kind], {name: value for name, value in table.items() if name != kind})


def _tuning(value: Any, byzantine: tuple[int, ...]) -> Tuning:
    table = _table("tuning", value)
    _check_keys("[tuning]", table, _TUNING_KEYS)
    rates = _list("lr of [tuning]", table.get("lr"))
    for rate in rates:
        check_positive("a rate in lr of [tuning]", rate)
    seeds = _naturals("seeds of [tuning]", table.get("seeds"))
    share = table.get("validation", 0.2)
    check_real("validation of [tuning]", share, 0)
    check("validation of [tuning]", share, 0 < share < 1, "between 0 and 1, both excluded")
    numbers = _naturals("byzantine of [tuning]", table.get("byzantine", list(byzantine)))
    check("byzantine of [tuning]", list(numbers), set(numbers) <= set(byzantine), f"some of {list(byzantine)}")
    return Tuning(tuple(sorted(set(map(float, rates)))), seeds, float(share), numbers)


def _check_keys(place: str, table: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for key in table:
        check_one_of(f"a key of {place}", key, allowed)


def _table(name: str, value: Any) -> Mapping[str, Any]:
    check(name, value, isinstance(value, Mapping), f"a table, as in [{name}]")
    return dict(value)


def _list(name: str, value: Any) -> list[Any]:
    check(name, value, isinstance(value, list) and len(value) > 0, "a list of one entry or more")
    return list(value)


def _naturals(name: str, value: Any) -> tuple[int, ...]:
    values = _list(name, value)
    for one in values:
        check_integer(f"an entry of {name}", one, 0)
    return tuple(dict.fromkeys(values))


@dataclass(frozen=True)
class GridResult:
    """Outcomes of a grid.

    Attributes:
        grid: The grid.
        cells: The reported runs.
        outcomes: Outcome of each configuration, those of tuning included.
        rates: Learning rate by rule, if they were tuned.
    """

    grid: Grid
    cells: tuple[GridRun, ...]
    outcomes: Mapping[TrainConfig, Outcome]
    rates: Mapping[str, float]

    @property
    def failed(self) -> list[Outcome]:
        """Outcomes without a record."""
        return [outcome for outcome in self.outcomes.values() if outcome.record is None]

    def accuracy(self, config: TrainConfig) -> float | None:
        """Return the final accuracy of a run.

        Args:
            config: Configuration of a run of the grid, those of its tuning included.

        Returns:
            The accuracy of the last parameters (a fraction), on validation images in a run of the tuning. None if the
            run failed.

        Raises:
            KeyError: The grid has no such run.
        """
        record = self.outcomes[config].record
        return None if record is None else record.final_accuracy


def run(grid: Grid, store: RunStore, jobs: int | None = None, progress: bool = True) -> GridResult:
    """Do the runs of a grid that the store lacks: first those of the tuning, if any.

    Args:
        grid: The grid.
        store: The run store.
        jobs: Number of runs at a time; default: one a core.
        progress: True to show progress.

    Returns:
        The outcomes. A failed run does not affect the others.
    """
    outcomes: dict[TrainConfig, Outcome] = {}
    rates: dict[str, float] = {}
    if grid.tuning is not None:
        tuning = grid.tuning_cells()
        outcomes |= _sweep(tuning, store, jobs, progress)
        rates = choose_rates(tuning, outcomes)
    cells = tuple(grid.cells(rates or None))
    outcomes |= _sweep(cells, store, jobs, progress)
    return GridResult(grid, cells, outcomes, rates)


def _sweep(cells: Sequence[GridRun], store: RunStore, jobs: int | None, progress: bool) -> dict[TrainConfig, Outcome]:
    configs = list(dict.fromkeys(cell.config for cell in cells))
    return {outcome.config: outcome for outcome in sweep(configs, store, jobs, progress)}


def choose_rates(cells: Sequence[GridRun], outcomes: Mapping[TrainConfig, Outcome]) -> dict[str, float]:
    """Choose each rule's learning rate by the greatest mean validation accuracy, and the lowest of equals.

    Args:
        cells: The runs of the tuning.
        outcomes: Their outcomes. A failed run counts as accuracy 0.

    Returns:
        The rates by rule.
    """
    reached: dict[str, dict[float, list[float]]] = {}
    for cell in cells:
        record = outcomes[cell.config].record
        value = 0.0 if record is None else record.final_accuracy
        reached.setdefault(cell.rule, {}).setdefault(float(cell.config.lr), []).append(value)
    return {rule: max(sorted(by_rate), key=lambda rate: mean(by_rate[rate])) for rule, by_rate in reached.items()}
