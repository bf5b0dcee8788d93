"""One iteration to play with: real gradients, an attack and FA's settings, and what every rule makes of them.

The honest gradients are those of one iteration of a training run; the first f are then overwritten by the attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fa import irls, objective, sdp
from fa.attacks import make_attack
from fa.experiments.runs.profiles import for_profile
from fa.experiments.runs.recording import record
from fa.experiments.runs.user_rules import register_rules
from fa.experiments.runs.user_rules import resolve_variant as variant_of
from fa.experiments.runs.variants import PAPER_RULES
from fa.gradients.gram import measure
from fa.rules import make_rule
from fa.rules.flag import FlagAggregator
from fa.rules.preaggregators import StepContext, apply_preaggregators
from fa.training.config import TrainConfig
from fa.utils.validation import check_integer, check_one_of

FORMULATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "released": ("fa", {"formulation": "released"}),
    "default": ("fa_default", {}),
    "printed": ("fa_printed", {"preaggregators": ()}),
}
"""FA's formulations by name: the variant of `variants.VARIANTS`, and its options."""

OTHERS = (*PAPER_RULES[1:], "mean", "mean_unit")
MEANS, PRINCIPAL = "honest and faulty mean", "principal directions"
PLANES = (MEANS, PRINCIPAL)
MAX_WORKERS = 30  # workers
LIMIT = 100  # steps of IRLS, to see where it would end
_SIZES = {"smoke": {"at": 2, "batch": 4}, "quick": {"at": 10, "batch": 32}}


@dataclass(frozen=True)
class Setting:
    """What can be chosen: p workers, f of them faulty, what these send; FA's m, lambda, a, formulation; the plane."""

    p: int = 15
    f: int = 3
    attack: str = "random"
    m: int = 8
    lam: float = 0.0
    a: float = 2.0
    formulation: str = "default"
    plane: str = MEANS
    seed: int = 2021  # of the attack

    def __post_init__(self) -> None:
        check_one_of("formulation", self.formulation, tuple(FORMULATIONS))
        check_one_of("plane", self.plane, PLANES)
        check_integer("f", self.f, 0)
        check_integer("p", self.p, self.f + 1)


@dataclass(frozen=True)
class ProjectedDirection:
    """Where a rule's direction lands: its `point` in the plane, its cosine with the mean of the honest gradients, and
    the share of its squared length that the plane shows.
    """

    variant: str
    point: Float64[np.ndarray, " 2"]
    cosine: float
    inside: float


@dataclass(frozen=True)
class Scene:
    """What a setting comes to.

    `points` (p, 2) are the gradients, and the first landing is FA's; `refused` says which rules do not serve so many
    workers, and why. `values` (p,) are FA's v_i, `shares` (p,) its weights times the norms, over the sum of their
    sizes. `history` is eq. 5, smoothed, after each step of IRLS, of which FA takes `steps`; `objective` is eq. 5 at
    FA's Y (off that course for the released formulation with lam > 0, which weighs the pairs in another way), and
    `bound` what no Y goes below.
    """

    setting: Setting
    axes: tuple[str, str]
    points: Float64[np.ndarray, "p 2"]
    landings: tuple[ProjectedDirection, ...]
    values: Float64[np.ndarray, " p"]
    shares: Float64[np.ndarray, " p"]
    history: tuple[float, ...]
    steps: int
    objective: float
    bound: float
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """How far FA's objective can be from the best, relative to it; 0 where it is 0."""
        return (self.objective - self.bound) / self.objective if self.objective > 0 else 0.0


def gradients(profile: str, seed: int = 2021) -> Float[Tensor, "p n"]:
    """The gradients (MAX_WORKERS, n) of the CNN's honest workers in one iteration of a run, a while after its start."""
    size = for_profile(_SIZES, profile)
    config = TrainConfig(
        rule="mean",
        workers=MAX_WORKERS,
        byzantine=0,
        attack="none",
        batch=size["batch"],
        lr=0.05,
        momentum=0.9,
        seed=seed,
    )
    return record(config, at=[size["at"]])[size["at"]]


def scene(pool: Float[Tensor, "most n"], setting: Setting, rules: Sequence[str] = ()) -> Scene:
    """What the setting comes to on the first p gradients of the pool; `rules` are some that are not the paper's.

    Raises ValueError for settings that FA does not take, for more workers than the pool has, and for gradients that
    are not finite.
    """
    check_integer("workers in the pool", len(pool), setting.p)
    G = pool[: setting.p].clone()
    make_attack(setting.attack).apply(G, range(setting.f), setting.seed, 0)
    variant, own = FORMULATIONS[setting.formulation]
    rule = FlagAggregator(f=setting.f, m=setting.m, lam=setting.lam, a=setting.a, **own)
    aggregate = rule.aggregate(G)
    decision = aggregate.decision
    assert decision.weights is not None  # FA's Y is in the span
    assert decision.values is not None
    directions, refused = _directions(G, setting.f, rules)
    basis, axes = _plane(G.double(), setting)
    honest = G[setting.f :].double().mean(dim=0)
    landings = [_landing(key, d, basis, honest) for key, d in {variant: aggregate.direction, **directions}.items()]
    seen = _as_seen(G, setting)
    limit = irls.solve(seen, setting.m, setting.lam, a=setting.a, max_iter=LIMIT)
    counted = decision.weights * G.double().norm(dim=1).numpy()
    size = np.abs(counted).sum()
    return Scene(
        setting,
        axes,
        (G.double() @ basis.T).numpy(),
        tuple(landings),
        decision.values,
        counted / (size if size > 0 else 1.0),
        limit.history,
        rule.options.max_iter,
        _objective(seen, rule),
        sdp.certify(seen, limit).bound,
        refused,
    )


def _directions(G: Tensor, f: int, rules: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """By variant, each other rule's direction; and by label why those that refuse do."""
    directions: dict[str, Tensor] = {}
    refused: dict[str, str] = {}
    keys = (*OTHERS, *register_rules(rules))
    for key in keys:
        variant = variant_of(key)
        rule = make_rule(variant.rule, f=f, **dict(variant.options))
        try:
            rule.check_workers(len(G))
        except ValueError as error:
            refused[variant.label] = str(error)
        else:
            directions[key] = rule(G)
    return directions, refused


def _plane(G: Float64[Tensor, "p n"], setting: Setting) -> tuple[Float64[Tensor, "2 n"], tuple[str, str]]:
    """Two orthonormal directions, and what they are called.

    Where there is no faulty mean, or it is along the honest one, the second is what the honest gradients differ in
    most.
    """
    if setting.plane == PRINCIPAL:
        return _principal(G, 2), ("first principal direction", "second principal direction")
    honest, faulty = G[setting.f :].mean(dim=0), G[: setting.f]
    first = honest / honest.norm()
    other = faulty.mean(dim=0) if len(faulty) else torch.zeros_like(first)
    rest = other - (other @ first) * first
    name = "faulty mean, what is not along it"
    if rest.norm() <= 1e-6 * other.norm():
        rest = _principal(G[setting.f :] - torch.outer(G[setting.f :] @ first, first), 1)[0]
        name = "what the honest differ in most"
    second = rest - (rest @ first) * first
    return torch.stack([first, second / second.norm()]), ("honest mean", name)


def _principal(G: Float64[Tensor, "p n"], count: int) -> Float64[Tensor, "k n"]:
    """The first principal directions of the gradients, each divided by its norm, about the origin."""
    unit = G / G.norm(dim=1, keepdim=True).clamp_min(1e-300)
    lengths, vectors = torch.linalg.eigh(unit @ unit.T)
    directions = (vectors[:, -count:].flip(1) / lengths[-count:].flip(0).clamp_min(1e-300).sqrt()).T @ unit
    orthonormal: Tensor = torch.linalg.qr(directions.T)[0].T
    return orthonormal


def _landing(variant: str, d: Tensor, basis: Tensor, honest: Tensor) -> ProjectedDirection:
    d = d.double()
    point, length = basis @ d, float(d.norm())
    cosine = float(d @ honest / (d.norm() * honest.norm())) if length > 0 else 0.0
    return ProjectedDirection(variant, point.numpy(), cosine, float(point.norm() / length) ** 2 if length > 0 else 1.0)


def _as_seen(G: Tensor, setting: Setting) -> Float64[Tensor, "p k"]:
    """The gradients as FA's formulation scales them, on which the pairs of eq. 5 depend, in k <= p coordinates, with
    which they have the same lengths and angles.
    """
    steps = {"released": ("unit",), "default": ("median_norm",), "printed": ()}[setting.formulation]
    mixed = apply_preaggregators(measure(G)[0], steps, StepContext(setting.f, 0, 0))
    coordinates: Tensor = torch.linalg.qr(mixed.apply_to(G.double()).T).R.T
    return coordinates


def _objective(seen: Float64[Tensor, "p k"], rule: FlagAggregator) -> float:
    """Eq. 5 at the rule's Y."""
    solution = irls.solve_gram(measure(seen)[0], rule.options, formulation=rule.formulation)
    assert solution.coefficients is not None  # FA's Y is in the span
    return objective.value(seen, seen.T @ torch.from_numpy(solution.coefficients), rule.lam, a=rule.a)
