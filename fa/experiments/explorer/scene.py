"""Scene of the explorer: real gradients under an attack, and the directions of all rules.

The honest gradients are those of one iteration of a training run. The attack overwrites the first f of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
from fa.experiments.runs.variants import OTHER_RULES, VARIANTS
from fa.gradients import read
from fa.gradients.measurement import measure
from fa.gradients.memory_map import open_gradients
from fa.rules.flag import FlagAggregator
from fa.rules.preaggregators import PreaggregatorContext, apply_preaggregators
from fa.training.config import TrainConfig
from fa.utils.validation import check, check_integer, check_one_of

FORMULATIONS = {"released": "fa", "default": "fa_default", "printed": "fa_printed"}
"""Key in `VARIANTS` of each formulation of FA."""

OTHERS = (*OTHER_RULES, "mean_unit")
MEANS, PRINCIPAL = "honest and Byzantine mean", "principal directions"
PLANES = (MEANS, PRINCIPAL)
MAX_WORKERS = 30
LIMIT = 100  # Steps of IRLS, enough to show its limit.
_SIZES = {"smoke": {"at": 2, "batch": 4}, "quick": {"at": 10, "batch": 32}}


@dataclass(frozen=True)
class Setting:
    """The explorer's settings.

    Attributes:
        p: Number of workers.
        f: Number of Byzantine workers.
        attack: Name of the attack.
        m: Columns of FA's Y.
        lam: Weight lambda of FA's pairwise term.
        a: Inverse of the power in eq. 5.
        formulation: Key in `FORMULATIONS`.
        plane: One of `PLANES`.
        seed: Seed of the attack.
    """

    p: int = 15
    f: int = 3
    attack: str = "random"
    m: int = 8
    lam: float = 0.0
    a: float = 2.0
    formulation: str = "default"
    plane: str = MEANS
    seed: int = 2021

    def __post_init__(self) -> None:
        check_one_of("formulation", self.formulation, tuple(FORMULATIONS))
        check_one_of("plane", self.plane, PLANES)
        check_integer("f", self.f, 0)
        check_integer("p", self.p, self.f + 1)


@dataclass(frozen=True)
class ProjectedDirection:
    """The direction of a rule, projected onto the plane.

    Attributes:
        variant: Variant of the rule.
        point: Coordinates in the plane (2,).
        cosine: Cosine with the mean of the honest gradients.
        inside: Share of the squared length that lies in the plane.
    """

    variant: str
    point: Float64[np.ndarray, " 2"]
    cosine: float
    inside: float


@dataclass(frozen=True)
class Scene:
    """The result of a setting.

    Attributes:
        setting: The setting.
        axes: Names of the plane's axes.
        points: The gradients in the plane (p, 2).
        landings: The directions of the rules, FA's first.
        values: FA's explained variances v_i (p,).
        shares: FA's weights times the gradients' norms (p,), divided by the sum of their absolute values.
        history: Smoothed objective (eq. 5) after each step of IRLS.
        steps: Number of steps that FA takes.
        objective: Eq. 5 at FA's Y. It is not on the curve of `history` for the released formulation with lam > 0, which
            weighs the pairs differently.
        bound: Lower bound of eq. 5 over all Y.
        refused: Rules that reject this number of workers, with the reason.
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
        """Upper bound of FA's relative distance from the optimum; 0 if the objective is 0 up to rounding."""
        return sdp.relative_gap(self.objective, self.bound)


def load_gradients(source: Any) -> Float64[Tensor, "p n"]:
    """Read the user's gradients for a notebook.

    Args:
        source: Array or tensor (p, n), or the path of an .npy file with one.

    Returns:
        The gradients in float64, which keeps those of float32 exactly.

    Raises:
        ValueError: The source holds no gradients, or one has NaN or Inf.
    """
    if isinstance(source, str | Path):
        G = open_gradients((Path(source),))[0]
    else:
        G = read(source).G
    check("gradients", "with NaN or Inf", bool(torch.isfinite(G).all()), "finite")
    return G.double().cpu()


def default_setting(p: int) -> Setting:
    """Return the explorer's first setting.

    Args:
        p: Number of available gradients, at least 1.

    Returns:
        The default `Setting` (p = 15, f = 3) if p is at least 15. Otherwise all p gradients, without an attack.

    Raises:
        ValueError: p is below 1.

    Example:
        >>> setting = default_setting(7)
        >>> setting.p, setting.f, setting.attack, setting.m
        (7, 0, 'none', 4)
    """
    usual = Setting()
    return usual if p >= usual.p else Setting(p=p, f=0, attack="none", m=irls.default_m(p))


def gradients(profile: str, seed: int = 2021) -> Float[Tensor, "p n"]:
    """Compute honest gradients of the CNN in one iteration of a run, a few iterations after its start.

    Args:
        profile: Name of the profile, which sets the iteration and the batch size.
        seed: Seed of the run.

    Returns:
        The gradients (MAX_WORKERS, n).
    """
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
    """Compute the scene of a setting.

    Args:
        pool: Honest gradients; the first p are used.
        setting: The setting.
        rules: The user's rules, in addition to the paper's.

    Returns:
        The scene.

    Raises:
        ValueError: FA rejects the setting, the pool has fewer than p gradients, or a gradient is not finite.
    """
    check_integer("workers in the pool", len(pool), setting.p)
    G = pool[: setting.p].clone()
    variant = FORMULATIONS[setting.formulation]
    options = dict(VARIANTS[variant].options)
    rule = FlagAggregator(f=setting.f, m=setting.m, lam=setting.lam, a=setting.a, **options)
    make_attack(setting.attack, rule).apply(G, range(setting.f), setting.seed, 0)
    aggregate = rule.aggregate(G)
    decision = aggregate.decision
    assert decision.weights is not None  # FA's Y is in the span
    assert decision.values is not None
    directions, refused = _directions(G, setting.f, rules)
    basis, axes = _plane(G.double(), setting)
    honest = G[setting.f :].double().mean(dim=0)
    landings = [_landing(key, d, basis, honest) for key, d in {variant: aggregate.direction, **directions}.items()]
    seen = _as_seen(G, rule)
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
        rule.irls_options.max_iter,
        _objective(seen, rule),
        sdp.certify(seen, limit).bound,
        refused,
    )


def _directions(G: Tensor, f: int, rules: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the other rules' directions by variant, and the reasons of rules that reject the workers, by label."""
    directions: dict[str, Tensor] = {}
    refused: dict[str, str] = {}
    keys = (*OTHERS, *register_rules(rules))
    for key in keys:
        variant = variant_of(key)
        rule = variant.make_rule(f)
        try:
            rule.check_workers(len(G))
        except ValueError as error:
            refused[variant.label] = str(error)
        else:
            directions[key] = rule(G)
    return directions, refused


def _plane(G: Float64[Tensor, "p n"], setting: Setting) -> tuple[Float64[Tensor, "2 n"], tuple[str, str]]:
    """Return two orthonormal directions and their names.

    Without a Byzantine mean that differs in direction from the honest mean, the second is the honest gradients'
    principal direction orthogonal to their mean. If that mean is 0, the directions are those of `PRINCIPAL`.
    """
    check("gradients", f"{G.shape[1]} coordinate", G.shape[1] > 1, "of at least two coordinates, to show a plane")
    if setting.plane == PRINCIPAL or not G[setting.f :].mean(dim=0).any():
        return _principal(G, 2), ("first principal direction", "second principal direction")
    honest, byzantine = G[setting.f :].mean(dim=0), G[: setting.f]
    first = honest / honest.norm()
    other = byzantine.mean(dim=0) if len(byzantine) else torch.zeros_like(first)
    rest = other - (other @ first) * first
    name = "Byzantine mean, orthogonal part"
    if rest.norm() <= 1e-6 * other.norm():
        rest = _principal(G[setting.f :] - torch.outer(G[setting.f :] @ first, first), 1)[0]
        name = "principal direction of the honest gradients, orthogonal part"
    return _orthonormal(torch.stack([first, rest])), ("honest mean", name)


def _principal(G: Float64[Tensor, "p n"], count: int) -> Float64[Tensor, "k n"]:
    """Return the first principal directions of the gradients, divided by their norms and not centred."""
    unit = G / G.norm(dim=1, keepdim=True).clamp_min(1e-300)
    lengths, vectors = torch.linalg.eigh(unit @ unit.T)
    largest = (vectors[:, -count:].flip(1) / lengths[-count:].flip(0).clamp_min(1e-300).sqrt()).T @ unit
    directions = torch.zeros(count, G.shape[1], dtype=G.dtype)
    directions[: len(largest)] = largest
    return _orthonormal(directions)


def _orthonormal(directions: Float64[Tensor, "k n"]) -> Float64[Tensor, "k n"]:
    """Return Gram-Schmidt's orthonormal rows; arbitrary ones take the places of dependent directions."""
    Q, R = torch.linalg.qr(directions.T)
    rows: Tensor = (Q * torch.where(R.diagonal() < 0, -1.0, 1.0)).T
    return rows


def _landing(variant: str, d: Tensor, basis: Tensor, honest: Tensor) -> ProjectedDirection:
    d = d.double()
    point, length = basis @ d, float(d.norm())
    cosine = float(d @ honest / (d.norm() * honest.norm())) if length > 0 else 0.0
    return ProjectedDirection(variant, point.numpy(), cosine, float(point.norm() / length) ** 2 if length > 0 else 1.0)


def _as_seen(G: Tensor, rule: FlagAggregator) -> Float64[Tensor, "p k"]:
    """Return the gradients as FA's formulation scales them, in k <= p coordinates that preserve lengths and angles."""
    steps = ("unit",) if rule.formulation == "released" else rule.preaggregator_names
    mixed = apply_preaggregators(measure(G)[0], steps, PreaggregatorContext(rule.f, 0, 0))
    coordinates: Tensor = torch.linalg.qr(mixed.apply_to(G.double()).T).R.T
    return coordinates


def _objective(seen: Float64[Tensor, "p k"], rule: FlagAggregator) -> float:
    """Return eq. 5 at the rule's Y."""
    solution = irls.solve_gram(measure(seen)[0], rule.irls_options, formulation=rule.formulation)
    assert solution.coefficients is not None  # FA's Y is in the span
    return objective.value(seen, seen.T @ torch.from_numpy(solution.coefficients), rule.lam, a=rule.a)
