"""Attacks: vectors that Byzantine workers send instead of their gradients.

An attack overwrites the Byzantine rows of the gradient matrix, after the honest rows are complete. Its random numbers
come from one generator per Byzantine worker, seeded by (seed, worker, iteration). Built-in attacks draw on the CPU, so
that a seed gives the same vectors on every device.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from fa.attacks import noise, shifts
from fa.attacks.base import Attack, Streams, Writer
from fa.attacks.line_search import line_search
from fa.attacks.noise import CHUNK, DROPPED
from fa.attacks.shifts import OPPOSED
from fa.gradients import read
from fa.utils import plugins
from fa.utils.validation import check, check_integer, check_one_of, check_real

__all__ = ["ATTACKS", "CHUNK", "DROPPED", "OPPOSED", "Attack", "Streams", "Writer", "attack", "make_attack"]


def make_attack(name: str, rule: Any = None, **options: Any) -> Attack:
    """Return an attack.

    Args:
        name: A name in `ATTACKS`, "FILE.py:NAME" for a user's `Attack`, "byzfl:NAME" for an attack of ByzFL, or an
            entry point of the group "fa.attacks".
        rule: The rule in use, a `fa.Rule`, for attacks that are optimized against it.
        options: Options of the attack, such as `factor`.

    Raises:
        ValueError: Unknown name, not an `Attack`, not a rule, or an invalid option.

    Example:
        >>> import torch
        >>> G = torch.ones(3, 2)
        >>> make_attack("ipm", factor=0.5).apply(G, byzantine=[0], seed=0, iteration=1)
        >>> G[0]
        tensor([-0.5000, -0.5000])
    """
    check("attack", name, isinstance(name, str), "a name")
    attack = ATTACKS[name] if name in ATTACKS else _load(name)
    is_rule = hasattr(rule, "check_workers") and not isinstance(rule, type)
    check("rule", rule, rule is None or is_rule, "a fa.Rule or None", "fa.make_rule returns one.")
    for option, value in options.items():
        check_one_of(f"the option of attack {name!r}", option, tuple(attack.options))
        if attack.builtin and (value is not None or attack.options[option] is not None):
            _CHECKS[option](option, value)
    changed = attack.options if not options else MappingProxyType({**attack.options, **options})
    return replace(attack, options=changed, rule=rule) if attack.uses_rule or options else attack


def attack(G: Any, name: str, f: int, seed: int = 0, iteration: int = 0, rule: Any = None, **options: Any) -> Any:
    """Return a copy of G in which the first f workers are Byzantine.

    Args:
        G: Gradients (p, n), a tensor or an array. For attacks that change the worker's own gradient, the first f rows
            are those workers' gradients; otherwise they are ignored.
        name: Attack, as in `make_attack`.
        f: Number of Byzantine workers, less than p.
        seed: Seed of the attack's random numbers.
        iteration: Iteration, from which they also depend.
        rule: The rule in use, as in `make_attack`.
        options: Options of the attack.

    Returns:
        The new gradients, of G's kind, dtype and device.

    Raises:
        ValueError: An argument is invalid, the attack changes labels and not gradients, or a user's attack has changed
            an honest row.

    Example:
        >>> import numpy as np, fa
        >>> fa.attack(np.ones((3, 2)), "ipm", f=1)
        array([[-0.1, -0.1],
               [ 1. ,  1. ],
               [ 1. ,  1. ]])
    """
    check("G", type(G).__name__, isinstance(G, Tensor | np.ndarray), "a tensor or an array (p, n)")
    gradients = read(G)
    attacked = gradients.G.clone()
    check_integer("f", f, 0)
    check("f", f, f < len(attacked), f"less than p = {len(attacked)}, the number of gradients")
    chosen = make_attack(name, rule, **options)
    cure = "Compute the Byzantine workers' gradients on flipped labels, or use fa train."
    check("attack", name, not chosen.flips_labels, "an attack that changes gradients", cure)
    if f:
        chosen.apply(attacked, range(f), seed, iteration)
    return gradients.restore(attacked)


def _load(name: str) -> Attack:
    loaded = plugins.load("attack", name)
    if loaded is None:
        check_one_of("attack", name, tuple(ATTACKS), plugins.OTHER_SPECS)
    check("attack", name, isinstance(loaded, Attack), "a fa.attacks.Attack")
    attack: Attack = replace(loaded, source=plugins.resolve_spec(name))
    _check_writer(attack)
    return attack


def _check_writer(attack: Attack) -> None:
    """Check that a user's function accepts what `Attack.apply` calls it with."""
    names = (*attack.options, *(("rule", "iteration") if attack.uses_rule else ()))
    signature = inspect.signature(attack.write)
    try:
        signature.bind(None, (), None, **dict.fromkeys(names))
    except TypeError:
        needed = f"a function of ({', '.join(('G', 'byzantine', 'streams', *names))})"
        raise ValueError(f"write must be {needed}, got one of {signature}") from None


def _builtin(name: str, uses_own_gradient: bool, write: Writer, /, **options: Any) -> Attack:
    return Attack(name, uses_own_gradient, write, MappingProxyType(options), builtin=True)


ATTACKS = MappingProxyType(
    {
        attack.name: attack
        for attack in (
            _builtin("random", False, noise.random),
            _builtin("random_symmetric", False, noise.random_symmetric),
            _builtin("random_honest_norm", False, noise.random_honest_norm),
            _builtin("random_shared", False, noise.random_shared),
            _builtin("random_reached", False, noise.random_reached),
            _builtin("gaussian", False, noise.gaussian, mean=0.0, std=1.0),
            _builtin("collude", False, noise.collude),
            _builtin("alie", False, shifts.alie, factor=None),
            _builtin("ipm", False, shifts.ipm, factor=OPPOSED),
            _builtin("min_max", False, shifts.min_max, direction="std"),
            _builtin("min_sum", False, shifts.min_sum, direction="std"),
            replace(_builtin("line_search", False, line_search, direction="std", evaluations=24), uses_rule=True),
            _builtin("mimic", False, shifts.mimic),
            _builtin("drop", True, noise.drop, rate=DROPPED),
            _builtin("chunk_loss", True, noise.chunk_loss, rate=DROPPED),
            _builtin("sign_flip", True, shifts.sign_flip, gradient="own"),
            replace(_builtin("label_flipping", True, shifts.nothing), flips_labels=True),
            _builtin("zero", False, shifts.constant(0.0)),
            _builtin("nan", False, shifts.constant(float("nan"))),
            _builtin("none", True, shifts.nothing),
        )
    }
)
"""All built-in attacks by name."""


def _check_real(name: str, value: Any) -> None:
    check_real(name, value, -math.inf)


def _check_rate(name: str, value: Any) -> None:
    check_real(name, value, 0)
    check(name, value, value <= 1, "at most 1")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "mean": _check_real,
    "std": lambda name, value: check_real(name, value, 0),
    "factor": _check_real,
    "rate": _check_rate,
    "gradient": lambda name, value: check_one_of(name, value, ("own", "mean")),
    "direction": lambda name, value: check_one_of(name, value, shifts.DIRECTIONS),
    "evaluations": lambda name, value: check_integer(name, value, 1),
}
"""Check of each option of a built-in attack."""
