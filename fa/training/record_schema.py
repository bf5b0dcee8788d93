"""Schema of a record's config.json.

`RECORD_VERSION` counts changes of the numbers that a configuration gives, beyond rounding. `SCHEMA_VERSION` counts
changes of what is written about a run: its keys, and the names of settings. Only records of the present versions are
read.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeGuard

from fa.training.config import RECORD_VERSION
from fa.utils.validation import check

SCHEMA_VERSION = 4
"""Version that is written, and the only one that is read."""

_VERSIONS = MappingProxyType({"schema_version": SCHEMA_VERSION, "record_version": RECORD_VERSION})

_OBJECTS = ("config", "versions", "hardware", "backend", "seconds_of")
_NUMBERS = ("threads", "seconds", "final_accuracy")
_STRINGS = ("data_checksum",)


class NewerRecord(ValueError):
    """A record of a later release, which this one must neither read nor replace."""


def read(described: Any) -> dict[str, Any]:
    """Check what config.json holds.

    Args:
        described: The parsed config.json.

    Returns:
        The same description as a dict.

    Raises:
        NewerRecord: A later release wrote the record.
        ValueError: An earlier release wrote it, or it does not describe a run.
    """
    check("config.json", described, isinstance(described, Mapping), "a run's description")
    _check_versions(described)
    for names, kind, requirement in (
        (_OBJECTS, Mapping, "an object"),
        (_NUMBERS, int | float, "a number"),
        (_STRINGS, str, "a string"),
    ):
        for name in names:
            check(f"{name} of config.json", described.get(name), isinstance(described.get(name), kind), requirement)
    initial = described.get("initial_accuracy")  # Earlier records of this version lack it.
    check("initial_accuracy of config.json", initial, initial is None or isinstance(initial, int | float), "a number")
    return dict(described)


def _check_versions(described: Mapping[str, Any]) -> None:
    """Refuse newer versions first: a later release may have changed everything else."""
    for name, supported in _VERSIONS.items():
        version = described.get(name)
        if _is_integer(version) and version > supported:
            raise NewerRecord(
                f"it is by a later release of fa ({name} {version}; this one knows {supported}): update fa"
            )
    for name, supported in _VERSIONS.items():
        version = described.get(name)
        current = _is_integer(version) and version == supported
        check(name, version, current, f"{supported}: an earlier release's run must be done again")


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
