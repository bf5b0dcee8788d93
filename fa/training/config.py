"""The frozen description of one training run: what is hashed, stored and reproduced."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fa.checks import check_integer, check_one_of, check_real, require
from fa.sampling import SAMPLINGS, SPLITS

RECORD_VERSION = 1
"""Raised whenever the numbers that a given configuration leads to change, so that older records are run again."""

PRECISIONS = ("float32", "bfloat16")

Option = bool | int | float | str | None | tuple["Option", ...]
"""A rule's option: what JSON can hold, with tuples for lists so that it can be hashed."""


Real = float | int
"""A setting that is a real number: an int is taken, and kept as a float."""


@dataclass(frozen=True)
class TrainConfig:
    """One run of Algorithm 1: p workers, the first f of them faulty, one server with SGD.

    The defaults are the paper's settings where it states them and the released code's elsewhere, on the embedded data.
    `rule_options` may be given as a mapping and is kept as sorted pairs; numpy's numbers are kept as Python's. Raises
    ValueError for values out of range.
    """

    dataset: str = "mnist-mini"
    model: str = "convnet"
    rule: str = "fa"
    rule_options: Mapping[str, Any] | tuple[tuple[str, Option], ...] = ()
    workers: int = 15
    byzantine: int = 3  # the first ranks, as in the released code
    f: int | None = None  # the f that the rule is told; None: the true one
    attack: str = "random"
    iterations: int = 300
    batch: int = 128  # images per worker and iteration, or with `accumulate` per backward pass
    lr: Real = 0.2
    momentum: Real = 0.0  # of the server's SGD; the released code has 0.9, as the profiles of the figures do
    weight_decay: Real = 5e-4
    lr_decay: Real = 0.2  # factor of the step schedule
    lr_decay_epochs: int = 10
    seed: int = 2021
    sampling: str = "random"
    device: str = "cpu"
    evaluate_every: int | None = None  # iterations from one test accuracy to the next; None: an epoch
    # A recipe of fa.recipes, by its options: what training images are augmented by, for those workers that have such.
    augmentation: Mapping[str, Any] | tuple[tuple[str, Option], ...] = ()
    augmented: str = "faulty"  # who has them: the faulty workers (the others' are clean), or all
    # The share of the training images that nobody trains on, and that take the place of the test images: for choosing
    # a setting without having seen those.
    validation: Real = 0.0
    # Whose training images are whose: everybody draws from all (iid), or each honest worker has its own share, of each
    # class by a Dirichlet distribution with parameter alpha (dirichlet), or of the images sorted by class (classes).
    # Faulty workers that compute gradients draw from all.
    split: str = "iid"
    alpha: Real | None = None
    worker_momentum: Real = 0.0  # beta: workers send m_t = beta m_(t-1) + (1 - beta) g_t
    precision: str = "float32"  # of the forward pass; with "bfloat16" parameters, gradients and server stay float32
    accumulate: int = 1  # backward passes whose gradients' mean a worker sends: a larger minibatch in the same memory

    def __post_init__(self) -> None:
        for name in ("dataset", "model", "rule", "attack", "sampling", "device"):
            value = getattr(self, name)
            require(isinstance(value, str) and value != "", name, value, "a name")
        for name in ("rule_options", "augmentation"):
            object.__setattr__(self, name, _pairs(name, getattr(self, name)))
        own = not {"f", "name"} & self.options.keys()
        require(own, "rule_options", self.options, "without f and name, which other settings give")
        for name, low in _LEAST_INTEGER.items():
            self._keep(name, int, low)
        if self.evaluate_every is not None:
            self._keep("evaluate_every", int, 1)
        for name in ("byzantine", "f"):
            value = getattr(self, name)
            if value is not None:
                self._keep(name, int, 0)
                require(value < self.workers, name, value, f"less than workers={self.workers}")
        for name in ("lr", "momentum", "weight_decay", "lr_decay", "validation", "worker_momentum"):
            self._keep(name, float, 0)
        require(self.lr > 0, "lr", self.lr, "greater than 0")
        for name in ("momentum", "worker_momentum", "validation"):
            require(getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        require(0 < self.lr_decay <= 1, "lr_decay", self.lr_decay, "in (0, 1]")
        check_one_of("sampling", self.sampling, SAMPLINGS)
        check_one_of("split", self.split, SPLITS)
        self._check_alpha()
        check_one_of("augmented", self.augmented, ("faulty", "all"))
        check_one_of("precision", self.precision, PRECISIONS)
        said = bool(self.augmentation) or self.augmented == "faulty"
        require(said, "augmented", self.augmented, "'faulty' where there is no augmentation")

    def _check_alpha(self) -> None:
        if self.split != "dirichlet":
            require(self.alpha is None, "alpha", self.alpha, f"left out where split is {self.split!r}")
            return
        require(self.alpha is not None, "alpha", self.alpha, "given where split is 'dirichlet', as 0.5 is")
        self._keep("alpha", float, 0)
        require(self.alpha != 0, "alpha", self.alpha, "greater than 0")

    def _keep(self, name: str, kind: type[int] | type[float], least: int) -> None:
        """Check a number, and keep it as a `kind`: an int, a float and a numpy scalar of one value give one hash."""
        (check_integer if kind is int else check_real)(name, getattr(self, name), least)
        object.__setattr__(self, name, kind(getattr(self, name)))

    @property
    def options(self) -> dict[str, Option]:
        """The rule's options as keyword arguments."""
        return dict(self.rule_options)

    @property
    def rule_f(self) -> int:
        """The f that the rule is told."""
        return self.byzantine if self.f is None else self.f

    @property
    def images(self) -> int:
        """Images that go into one gradient."""
        return self.batch * self.accumulate

    def epoch_length(self, train_size: int) -> int:
        """Iterations in one epoch over `train_size` images: each is seen once among all the workers."""
        return max(1, train_size // (self.workers * self.images))

    def to_json(self) -> str:
        """The one JSON text of this configuration: sorted keys, so that equal configurations give equal texts.

        Without augmentation nothing is said of it, nor of whatever else in `_LATER` is as it was before there was a
        choice, so that such a run keeps the hash it had then.
        """
        record = dataclasses.asdict(self) | {"rule_options": self.options, "augmentation": dict(self.augmentation)}
        if not self.augmentation:
            del record["augmentation"], record["augmented"]
        for name in _LATER:
            if record[name] == getattr(TrainConfig, name):
                del record[name]
        return json.dumps(record, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """The configuration that `to_json` wrote; a missing key takes its default, an unknown key is a ValueError."""
        record = json.loads(text)
        require(isinstance(record, dict), "the configuration", record, "a JSON object")
        unknown = sorted(set(record) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown key in a configuration: {', '.join(unknown)}")
        return cls(**record)


_LATER = ("evaluate_every", "validation", "split", "alpha", "worker_momentum", "precision", "accumulate")
"""Settings that once there were not."""

_LEAST_INTEGER = {"accumulate": 1, "workers": 1, "iterations": 1, "batch": 1, "lr_decay_epochs": 1, "seed": 0}


def _pairs(setting: str, options: Any) -> tuple[tuple[str, Option], ...]:
    try:
        pairs = dict(options)
    except (TypeError, ValueError):
        raise ValueError(f"{setting} must be a mapping of options; it is {options!r}") from None
    for name in pairs:
        require(isinstance(name, str), setting, name, "named by strings")
    return tuple((name, _option(f"{setting}[{name!r}]", pairs[name])) for name in sorted(pairs))


def _option(name: str, value: Any) -> Option:
    if isinstance(value, (list, tuple)):
        return tuple(_option(name, item) for item in value)
    if isinstance(value, np.generic):
        value = value.item()
    plain = value is None or isinstance(value, (bool, int, float, str))
    finite = not isinstance(value, float) or math.isfinite(value)
    require(plain and finite, name, value, "a finite number, a string, a truth value or a list")
    return value  # type: ignore[no-any-return]
