"""The layout of a record's config.json, which has changed with time: every one there was is read as the last one.

`RECORD_VERSION` counts changes of the numbers that a configuration gives, after which runs are done anew. The layout
counts changes of what is written about a run, after which nothing need be done anew: a conversion from each layout to
the next is in `CONVERSIONS`. To change it, raise `LAYOUT` and add the conversion from the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from fa.checks import require
from fa.training.config import RECORD_VERSION

LAYOUT = 3
"""What is written now."""


class NewerRecord(ValueError):
    """A record that a later release has written, and that this one must neither read nor replace."""


def read(described: Any) -> dict[str, Any]:
    """What config.json holds, in the last layout. Raises NewerRecord for one from a later release, ValueError for what
    is no record.
    """
    require(isinstance(described, dict) and "config" in described, "config.json", described, "a run's description")
    record = dict(described)
    for name, known in (("layout", LAYOUT), ("record_version", RECORD_VERSION)):
        its = record.get(name, 1)
        require(isinstance(its, int), name, its, "a whole number")
        if its > known:
            raise NewerRecord(f"it is by a later release of fa ({name} {its}; this one knows {known}): update fa")
    for layout in range(_layout(record), LAYOUT):
        record = CONVERSIONS[layout](record)
    return record | {"layout": LAYOUT}


def _layout(record: dict[str, Any]) -> int:
    """As it says; those up to the third did not say it, and are told by what they lack."""
    if "layout" in record:
        return int(record["layout"])
    return 1 if "backend" not in record else 2 if "seconds_of" not in record else 3


def _with_backend(record: dict[str, Any]) -> dict[str, Any]:
    """There was but one way to run workers."""
    return record | {"backend": {"name": "simulate"}}


def _with_parts(record: dict[str, Any]) -> dict[str, Any]:
    """Nothing is known of where the seconds went."""
    return record | {"seconds_of": {}}


CONVERSIONS: MappingProxyType[int, Callable[[dict[str, Any]], dict[str, Any]]] = MappingProxyType(
    {1: _with_backend, 2: _with_parts}
)
"""From layout k to k + 1, by k."""
