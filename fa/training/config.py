"""Configuration of a training run: it is hashed into the record's name, stored, and reproduced."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fa.data.sampling import SAMPLINGS, SPLITS
from fa.utils import plugins
from fa.utils.validation import check, check_integer, check_one_of, check_real

RECORD_VERSION = 1
"""Version of the results that a configuration gives. A change makes older records invalid."""

PRECISIONS = ("float32", "bfloat16")
LAYERS = ("torch", "fast")
DIRECTION_NORMS = ("rule", "unit_mean")

_LARGEST = float(np.finfo(np.float32).max)

Option = bool | int | float | str | None | tuple["Option", ...]
"""A rule's option: a JSON value, with tuples for lists so that it can be hashed."""

Real = float | int
"""A real setting; integers are converted to float."""

Batch = int | tuple[int, ...]
"""A batch size of all workers, or one of each worker by rank."""


def _setting(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """Return a field with its help on the command line, and its choices if it has a few."""
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run of Algorithm 1: p workers, the first f of them Byzantine, one server with SGD.

    The defaults are the paper's settings where it states them, and those of the released code elsewhere, on the
    embedded data. Mappings become sorted pairs, and numpy's numbers become Python's, so that a configuration can be
    hashed.

    Raises:
        ValueError: A setting is out of range.

    Example:
        >>> TrainConfig(rule="multi_krum", workers=7, byzantine=2, rule_options={"preaggregators": "nnm"}).options
        {'preaggregators': 'nnm'}
    """

    dataset: str = _setting("mnist-mini", "Data set.")
    model: str = _setting("convnet", "convnet, resnet18 or any torchvision classifier.")
    rule: str = _setting("fa", "Aggregation rule: one of fa.RULES, FILE.py:NAME, or byzfl:NAME.")
    rule_options: Mapping[str, Any] | tuple[tuple[str, Option], ...] = ()
    workers: int = _setting(15, "Number of workers, p.")
    byzantine: int = _setting(3, "Number of Byzantine workers, f: the first ranks.")
    f: int | None = _setting(None, "Number of Byzantine workers that the rule tolerates, by default --byzantine.")
    attack: str = _setting("random", "Attack: a name in docs/training.md, FILE.py:NAME, or byzfl:NAME.")
    iterations: int = _setting(300, "Number of iterations.")
    batch: Batch = _setting(128, "Images per worker and backward pass: one number, or one for each rank, as in 128,64.")
    lr: Real = _setting(0.2, "Learning rate.")
    momentum: Real = _setting(0.0, "Momentum of the server's SGD; the released code and the figures use 0.9.")
    weight_decay: Real = _setting(5e-4, "Weight decay of SGD.")
    lr_decay: Real = _setting(0.2, "Factor of the step schedule.")
    lr_decay_epochs: int | None = _setting(None, "Epochs between two steps of the learning-rate schedule.")
    seed: int = _setting(2021, "Seed of all random numbers.")
    sampling: str = _setting("random", "Fresh minibatches, or passes over fixed slices.", SAMPLINGS)
    device: str = _setting("cpu", "cpu, cuda or cuda:N.")
    evaluate_every: int | None = _setting(None, "Iterations between two test accuracies; 0: once an epoch.")
    augmentation: Mapping[str, Any] | tuple[tuple[str, Option], ...] = _setting(
        (), "Recipe of augmented data, a TOML file or a name in data_aug; with --attack none."
    )
    augmented: str = _setting("faulty", "Workers with augmented data: the Byzantine ones, or all.", ("faulty", "all"))
    # For choosing a setting without having seen the test images.
    validation: Real = _setting(0.0, "Share of the training images for accuracy, instead of the test images.")
    # Byzantine workers that compute gradients always draw from all images.
    split: str = _setting(
        "iid", "Honest workers' images: all, unequal shares of each class, by class, or partly by class.", SPLITS
    )
    alpha: Real | None = _setting(None, "Dirichlet parameter of --split dirichlet: small for unequal shares.")
    gamma: Real | None = _setting(None, "Share of the images that --split gamma deals at random, the rest by class.")
    worker_momentum: Real = _setting(0.0, "Momentum beta of the workers, which send beta m + (1 - beta) g.")
    precision: str = _setting("float32", "Precision of the forward pass; gradients and server use float32.", PRECISIONS)
    accumulate: int = _setting(1, "Backward passes of --batch images for one gradient, which is their mean.")
    layers: str = _setting("torch", "Implementation of a model's layers; gradients are equal up to rounding.", LAYERS)
    direction_norm: str = _setting(
        "rule", "Norm of the step's direction: the rule's, or that of the mean of unit gradients.", DIRECTION_NORMS
    )

    attack_options: Mapping[str, Any] | tuple[tuple[str, Option], ...] = ()
    local_steps: int = _setting(1, "SGD steps of a worker in an iteration; it sends the change over minus --lr.")

    def __post_init__(self) -> None:
        for name in ("dataset", "model", "rule", "attack", "sampling", "device"):
            value = getattr(self, name)
            check(name, value, isinstance(value, str) and value != "", "a name")
        for name in ("rule_options", "augmentation", "attack_options"):
            object.__setattr__(self, name, _pairs(name, getattr(self, name)))
        allowed = not {"f", "name"} & self.options.keys()
        check("rule_options", self.options, allowed, "without f and name, which other settings give")
        given = dict(self.attack_options)
        check("attack_options", given, not {"rule", "name"} & given.keys(), "without name and rule, the run's own")
        for name, low in _LEAST_INTEGER.items():
            self._normalize(name, int, low)
        self._normalize_batch()
        for name, low in (("evaluate_every", 0), ("lr_decay_epochs", 1)):
            if getattr(self, name) is not None:
                self._normalize(name, int, low)
        for name in ("byzantine", "f"):
            value = getattr(self, name)
            if value is not None:
                self._normalize(name, int, 0)
                check(name, value, value < self.workers, f"less than workers={self.workers}")
        for name in ("lr", "momentum", "weight_decay", "lr_decay", "validation", "worker_momentum"):
            self._normalize(name, float, 0)
        check("lr", self.lr, self.lr > 0, "greater than 0")
        for name in ("lr", "weight_decay"):
            check(name, getattr(self, name), getattr(self, name) <= _LARGEST, f"at most {_LARGEST:.2g}, for float32")
        for name in ("momentum", "worker_momentum", "validation"):
            check(name, getattr(self, name), getattr(self, name) < 1, "in [0, 1)")
        check("lr_decay", self.lr_decay, 0 < self.lr_decay <= 1, "in (0, 1]")
        for field in dataclasses.fields(self):
            if choices := field.metadata.get("choices"):
                check_one_of(field.name, getattr(self, field.name), choices)
        self._check_parameter("alpha", "dirichlet", "0.5")
        self._check_parameter("gamma", "gamma", "0.5")
        if self.alpha is not None:
            check("alpha", self.alpha, self.alpha != 0, "greater than 0")
        if self.gamma is not None:
            check("gamma", self.gamma, self.gamma <= 1, "in [0, 1]")
        used = bool(self.augmentation) or self.augmented == "faulty"
        check("augmented", self.augmented, used, "'faulty' without augmentation")

    def files_and_packages(self) -> dict[str, dict[str, str]]:
        """Return the files and packages that the rule and the attack come from; see `fa.utils.plugins`."""
        from fa.attacks import ATTACKS
        from fa.rules import RULES

        builtin = {"rule": RULES, "attack": ATTACKS}
        names = {"rule": self.rule, "attack": self.attack}
        return plugins.files_and_packages({kind: name for kind, name in names.items() if name not in builtin[kind]})

    def _check_parameter(self, name: str, split: str, example: str) -> None:
        """Check that the parameter of a split is set with this split only."""
        value = getattr(self, name)
        if self.split != split:
            check(name, value, value is None, f"omitted where split is {self.split!r}")
            return
        check(name, value, value is not None, f"given where split is {split!r}, as {example} is")
        self._normalize(name, float, 0)

    def _normalize_batch(self) -> None:
        """Check the batch sizes; equal ones become one number, so that they hash as before."""
        if not isinstance(self.batch, list | tuple):
            return self._normalize("batch", int, 1)
        for size in self.batch:
            check_integer("each of batch", size, 1)
        sizes = tuple(int(size) for size in self.batch)
        check("batch", sizes, len(sizes) == self.workers, f"one number, or workers={self.workers} of them")
        object.__setattr__(self, "batch", sizes[0] if len(set(sizes)) == 1 else sizes)

    def _normalize(self, name: str, kind: type[int] | type[float], least: int) -> None:
        """Check a number and convert it to `kind`: equal ints, floats and numpy scalars give one hash."""
        (check_integer if kind is int else check_real)(name, getattr(self, name), least)
        object.__setattr__(self, name, kind(getattr(self, name)))

    @property
    def options(self) -> dict[str, Option]:
        """Options of the rule as keyword arguments."""
        return dict(self.rule_options)

    @property
    def rule_f(self) -> int:
        """Number of Byzantine workers that the rule tolerates."""
        return self.byzantine if self.f is None else self.f

    @property
    def batches(self) -> tuple[int, ...]:
        """Images in a backward pass of each worker, by rank."""
        return self.batch if isinstance(self.batch, tuple) else (self.batch,) * self.workers

    @property
    def max_images(self) -> int:
        """Number of images in one gradient, the largest of the workers'."""
        return (max(self.batch) if isinstance(self.batch, tuple) else self.batch) * self.accumulate

    def epoch_length(self, train_size: int) -> int:
        """Return the iterations of an epoch, in which the workers together draw `train_size` images.

        Args:
            train_size: Number of training images.

        Returns:
            Number of iterations, at least 1.
        """
        images = sum(self.batch) if isinstance(self.batch, tuple) else self.batch * self.workers
        return max(1, train_size // (images * self.accumulate * self.local_steps))

    def to_json(self) -> str:
        """Return the canonical JSON text: equal configurations give equal texts.

        Settings that were added later are omitted at the value of older runs, so that these keep their hashes.
        """
        record = dataclasses.asdict(self) | {"rule_options": self.options, "augmentation": dict(self.augmentation)}
        if not self.augmentation:
            del record["augmentation"], record["augmented"]
        for name, value in _OMITTED.items():
            if record[name] == value:
                del record[name]
        if self.attack_options:
            record["attack_options"] = dict(self.attack_options)
        return json.dumps(record, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Parse the text of `to_json`; missing keys take the values of older runs, which are the defaults for most.

        Args:
            text: JSON text of a configuration.

        Returns:
            The configuration.

        Raises:
            ValueError: The text is no JSON object, has an unknown key, or an invalid value.
        """
        record = json.loads(text)
        check("the configuration", record, isinstance(record, dict), "a JSON object")
        unknown = sorted(set(record) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown key in a configuration: {', '.join(unknown)}")
        if isinstance(record.get("batch"), list):
            record["batch"] = tuple(record["batch"])
        for field in dataclasses.fields(cls):
            value = record.get(field.name, "")
            check(field.name, value, field.type != "str" or isinstance(value, str), "a string")
        return cls(**_OMITTED | record)


_OMITTED: dict[str, Any] = {
    "evaluate_every": 0,  # The default is newer than the setting.
    "validation": 0.0,
    "split": "iid",
    "alpha": None,
    "worker_momentum": 0.0,
    "precision": "float32",
    "accumulate": 1,
    "layers": "torch",
    "direction_norm": "rule",
    "attack_options": (),
    "gamma": None,
    "local_steps": 1,
}
"""Settings added since the first records, with the values that those runs had."""

_LEAST_INTEGER = {"accumulate": 1, "workers": 1, "iterations": 1, "seed": 0, "local_steps": 1}


def _pairs(setting: str, options: Any) -> tuple[tuple[str, Option], ...]:
    try:
        pairs = dict(options)
    except (TypeError, ValueError):
        raise ValueError(f"{setting} must be a mapping of options, got {options!r}") from None
    for name in pairs:
        check(setting, name, isinstance(name, str), "named by strings")
    return tuple((name, _option(f"{setting}[{name!r}]", pairs[name])) for name in sorted(pairs))


def _option(name: str, value: Any) -> Option:
    if isinstance(value, (list, tuple)):
        return tuple(_option(name, item) for item in value)
    if isinstance(value, np.generic):
        value = value.item()
    plain = value is None or isinstance(value, (bool, int, float, str))
    finite = not isinstance(value, float) or math.isfinite(value)
    check(name, value, plain and finite, "a finite number, a string, a truth value or a list")
    return value  # type: ignore[no-any-return]
