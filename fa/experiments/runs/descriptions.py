"""Descriptions of seeds, and of a study's runs that are not finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fa.experiments.runs.study import Cell


def describe_unfinished(cells: Sequence[Cell], finished: Sequence[Cell]) -> tuple[str, ...]:
    """Describe the cells that are not finished: most of a seed, then rules that no place has, then the rest by place.

    A seed with less than half of the runs of another seed is described by its exceptions.

    Args:
        cells: All cells of a study.
        finished: Those of them with finished runs.

    Returns:
        The parts of the description; none if all are finished.
    """
    parts = []
    missing = [cell for cell in cells if cell not in finished]
    seeds = _without(missing, finished, lambda cell: cell.config.seed)
    if seeds:
        parts.append(seeds_text(seeds))
        missing = [cell for cell in missing if cell.config.seed not in seeds]
    for seed, exceptions in _mostly_missing(missing, finished).items():
        places = dict.fromkeys(cell.case.place for cell in exceptions)
        named = (
            f"{place} {_join(cell.case.label for cell in exceptions if cell.case.place == place)}" for place in places
        )
        parts.append(f"{seeds_text([seed])} (except {', '.join(named)})")
        missing = [cell for cell in missing if cell.config.seed != seed]
        finished = [cell for cell in finished if cell.config.seed != seed]
    labels = _without(missing, finished, lambda cell: cell.case.label)
    if labels and len({cell.case.place for cell in cells}) > 1:
        parts.append(_join(labels))
        missing = [cell for cell in missing if cell.case.label not in labels]
    where: dict[str, list[str]] = {}
    for place in dict.fromkeys(cell.case.place for cell in missing):
        here = [cell for cell in finished if cell.case.place == place]
        for text in _at([cell for cell in missing if cell.case.place == place], here) if here else ["all"]:
            where.setdefault(text, []).append(place)
    everywhere = list(dict.fromkeys(cell.case.place for cell in cells))
    parts += [f"{_join_places(alike, everywhere)}: {text}" for text, alike in where.items()]
    return tuple(parts)


def _without(missing: Sequence[Cell], finished: Sequence[Cell], key: Callable[[Cell], Any]) -> list[Any]:
    """Return the values of a key that no finished cell has."""
    present = {key(cell) for cell in finished}
    return [value for value in dict.fromkeys(map(key, missing)) if value not in present]


def _mostly_missing(missing: Sequence[Cell], finished: Sequence[Cell]) -> dict[int, list[Cell]]:
    """Return the finished cells of each seed that has less than half of the runs of another."""
    by_seed: dict[int, list[Cell]] = {}
    for cell in finished:
        by_seed.setdefault(cell.config.seed, []).append(cell)
    most = max(map(len, by_seed.values()), default=0)
    incomplete = {cell.config.seed for cell in missing}
    return {seed: cells for seed, cells in by_seed.items() if seed in incomplete and 2 * len(cells) < most}


def _at(missing: Sequence[Cell], finished: Sequence[Cell]) -> list[str]:
    """Name the rules that are missing at a place, with their seeds where other seeds are finished."""
    by_seeds: dict[str, list[str]] = {}
    for name in dict.fromkeys(cell.case.label for cell in missing):
        seeds = dict.fromkeys(cell.config.seed for cell in missing if cell.case.label == name)
        begun = any(cell.case.label == name for cell in finished)
        by_seeds.setdefault(f" ({seeds_text(list(seeds))})" if begun else "", []).append(name)
    return [f"{_join(names)}{seeds}" for seeds, names in by_seeds.items()]


def _join_places(places: Sequence[str], everywhere: Sequence[str]) -> str:
    """Join places, as in "lam = 1, 2" for "f = 1, lam = 1" and "f = 1, lam = 2" if f is 1 everywhere."""
    split = [place.split(", ") for place in places]
    alike = [place.split(", ") for place in everywhere if place.count(",") == places[0].count(",")]
    varied = [k for k, column in enumerate(zip(*alike, strict=True)) if len(set(column)) > 1]
    if len(varied) == 1 and len({len(parts) for parts in split}) == 1:
        named = [parts[varied[0]].partition(" = ") for parts in split]
        if len({name for name, _, _ in named}) == 1:
            return f"{named[0][0]} = {', '.join(value for _, _, value in named)}"
    return "; ".join(places)


def _join(names: Iterable[str]) -> str:
    """Join names by commas; those that have a comma stand in quotation marks."""
    return ", ".join(f'"{name}"' if "," in name else name for name in names)


def seeds_text(seeds: Sequence[int]) -> str:
    """Describe seeds, as in "seed 2021" or "seeds 3001 to 3020" for four and more in a row.

    Args:
        seeds: The seeds, at least one.

    Returns:
        The text.

    Example:
        >>> seeds_text([2021]), seeds_text([2021, 2023]), seeds_text([2901, 3001, 3002, 3003, 3004])
        ('seed 2021', 'seeds 2021, 2023', 'seeds 2901, 3001 to 3004')
    """
    rows: list[list[int]] = []
    for seed in seeds:
        if rows and seed == rows[-1][-1] + 1:
            rows[-1].append(seed)
        else:
            rows.append([seed])
    parts = [[f"{row[0]} to {row[-1]}"] if len(row) > 3 else list(map(str, row)) for row in rows]
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(part for row in parts for part in row)}"
