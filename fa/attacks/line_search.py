"""An attack on the rule in use: the honest mean, shifted by the factor that moves the rule's direction farthest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fa.attacks.base import Streams, honest_rows, send_all
from fa.attacks.shifts import Shift
from fa.gradients.measurement import measure
from fa.utils.validation import TooFewWorkersError, check

_EXPONENTS = range(-4, 8)
"""Powers of two that are tried first, as factors of the honest gradients' root-mean-square distance to the mean."""


def line_search(
    G: Tensor,
    byzantine: Sequence[int],
    streams: Streams,
    rule: Any = None,
    iteration: int = 0,
    direction: str = "std",
    evaluations: int = 24,
) -> None:
    """Send the vector of a line that moves the rule's direction farthest from the honest mean.

    The line is the honest mean plus x times a direction of `shifts.DIRECTIONS`. The search tries powers of two, then
    halves its steps around the best. If the rule weights gradients, an evaluation needs only the Gram matrix of the
    honest gradients and one point of the line. Otherwise it applies the rule.

    Args:
        G: Gradient matrix (p, n).
        byzantine: Ranks of the Byzantine workers.
        streams: Not used: nothing is drawn.
        rule: The rule in use, a `fa.Rule`.
        iteration: Iteration of the run, on which the rule may depend.
        direction: A name in `shifts.DIRECTIONS`.
        evaluations: Number of factors to try.

    Raises:
        ValueError: There is no rule, or there are too few workers for it.

    Source: the idea of Fang et al., Local Model Poisoning Attacks, USENIX Security 2020, for any rule and line.
    """
    check("rule", rule, rule is not None, "the rule in use", "Pass it to make_attack.")
    if not byzantine:
        return
    rule.check_workers(len(G))
    shift = Shift(honest_rows(G, byzantine), direction)
    with np.errstate(all="ignore"):  # as for gradients that are not finite
        spread = math.sqrt(shift.squares.mean()) / shift.length if shift.length else 0.0
    factor = spread * _maximize(_damage(G, byzantine, shift, spread, rule, iteration), evaluations)
    send_all(shift.vector(factor), G, byzantine)


def _maximize(damage: Callable[[float], float], evaluations: int) -> float:
    """Try up to `evaluations` factors, and return the one of largest damage.

    The search ends earlier where halved steps no longer change a float.
    """
    tried = {float(k): damage(2.0**k) for k in list(_EXPONENTS)[:evaluations]}
    step = 0.5
    while len(tried) < evaluations:
        best = max(tried, key=tried.__getitem__)
        if best - step == best:
            break
        for exponent in (best - step, best + step)[: evaluations - len(tried)]:
            tried[exponent] = damage(2.0**exponent)
        step /= 2
    return float(2.0 ** max(tried, key=tried.__getitem__))


def _damage(
    G: Tensor, byzantine: Sequence[int], shift: Shift, spread: float, rule: Any, iteration: int
) -> Callable[[float], float]:
    """Return the distance of the rule's direction to the honest mean, as a function of the factor over `spread`."""
    honest = [worker for worker in range(len(G)) if worker not in byzantine]
    h = len(honest)
    base, finite = measure(torch.vstack([G[honest], shift.vector(spread)[None]]))
    in_gram_space = bool(finite.all()) and not rule.needs_gradients
    mean = np.append(np.full(h, 1 / h), 0.0)

    def damage(factor: float) -> float:
        """Express the p gradients by the honest ones and one point of the line; each column of R sums to 1."""
        R = np.zeros((h + 1, len(G)))
        R[np.arange(h), honest] = 1.0
        R[:, list(byzantine)] = ((1 - factor) * mean + factor * np.eye(h + 1)[h])[:, None]
        weights = rule.weights(base.averaged(R), iteration) if in_gram_space else None
        if weights is None:
            return _applied(factor)
        moved = R @ weights - mean
        return float(moved @ base.K @ moved)

    def _applied(factor: float) -> float:
        sent = G.clone()
        send_all(shift.vector(spread * factor), sent, byzantine)
        try:
            moved = rule(sent, iteration).double() - shift.mean.double()
        except TooFewWorkersError:  # Honest gradients are not finite.
            return 0.0
        return float(torch.linalg.vector_norm(moved))

    return damage
