"""Each attack acts: it changes the faulty rows as it says, repeatably, and nothing else."""

from collections.abc import Callable
from typing import Any

import byzfl
import numpy as np
import pytest
import torch
from torch import Tensor

import fa
from fa import make_rule
from fa.attacks import ATTACKS, make_attack
from fa.attacks.line_search import _maximize
from fa.training import TrainConfig
from fa.training.transports.completion import complete
from fa.utils.validation import TooFewWorkersError
from tests.tensors import DEVICE, normal

SEED, ITERATION = 2021, 7
FAULTY = (0, 3)
HONEST = [1, 2, 4, 5, 6]
RULE = make_rule("multi_krum", f=2)
DRAWS = 300


def attacked(name: str, G: Tensor, seed: int = SEED, iteration: int = ITERATION) -> Tensor:
    sent = G.clone()
    make_attack(name, RULE).apply(sent, FAULTY, seed, iteration)
    return sent


@pytest.fixture
def G() -> Tensor:
    return normal(7, 20_000, dtype=torch.float32)


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"none", "label_flipping"}))
def test_every_attack_acts(name: str, G: Tensor) -> None:
    """The released code's drop attack threw its own result away, and changed nothing."""
    sent = attacked(name, G)
    for worker in FAULTY:
        assert not torch.equal(sent[worker], G[worker])
        assert bool(torch.isfinite(sent[worker]).all()) == (name != "nan")
    assert torch.equal(sent[HONEST], G[HONEST])


@pytest.mark.parametrize("name", ATTACKS)
def test_own_gradients_matter_where_they_are_said_to(name: str, G: Tensor) -> None:
    """The simulator does not compute the gradients of faulty workers whose attack does not need them."""
    other = G.clone()
    other[list(FAULTY)] = 5.0
    same = torch.equal(attacked(name, G).nan_to_num(7.0), attacked(name, other).nan_to_num(7.0))
    assert same != ATTACKS[name].uses_own_gradient


@pytest.mark.parametrize("name", ["random", "random_symmetric", "random_honest_norm", "gaussian", "drop"])
def test_random_numbers_depend_on_seed_worker_and_iteration(name: str, G: Tensor) -> None:
    G[3] = G[0]
    sent = attacked(name, G)
    assert torch.equal(sent, attacked(name, G))
    assert not torch.equal(sent[0], sent[3])
    assert not torch.equal(sent[0], attacked(name, G, iteration=ITERATION + 1)[0])
    assert not torch.equal(sent[0], attacked(name, G, seed=SEED + 1)[0])


@pytest.mark.parametrize(("name", "low"), [("random", 0.0), ("random_symmetric", -1.0)])
def test_uniform_range(name: str, low: float, G: Tensor) -> None:
    """Mean and variance of a uniform variable on [low, 1), within five standard errors of 20,000 draws."""
    row = attacked(name, G)[0].double()
    assert low <= row.min() < low + 0.01
    assert 0.99 < row.max() <= 1
    variance = (1 - low) ** 2 / 12
    assert abs(row.mean() - (1 + low) / 2) < 5 * (variance / row.numel()) ** 0.5
    assert row.var() == pytest.approx(variance, rel=0.05)


def test_vectors_are_confined_to_what_an_honest_gradient_reaches(G: Tensor) -> None:
    """A coordinate in which one honest gradient is not 0 counts; the Byzantine workers' own gradients do not."""
    everywhere = G.clone()
    G[HONEST, :50], G[HONEST[0], :10] = 0.0, 1.0
    ATTACKS["random"].apply(everywhere, FAULTY, SEED, ITERATION)
    ATTACKS["random_reached"].apply(G, FAULTY, SEED, ITERATION)
    sent, expected = G[list(FAULTY)], everywhere[list(FAULTY)]
    expected[:, 10:50] = 0.0
    assert torch.equal(sent, expected)


def test_honest_norm_is_the_median(G: Tensor) -> None:
    """Of an even number of honest workers, so that the median lies between two norms."""
    G *= torch.arange(1, 8, device=G.device).float()[:, None]
    ATTACKS["random_honest_norm"].apply(G, (2, 4, 6), SEED, ITERATION)
    norms = np.linalg.norm(G.double().cpu().numpy(), axis=1)
    assert norms[[2, 4, 6]] == pytest.approx(np.median(norms[[0, 1, 3, 5]]), rel=1e-5)
    directions = G[[2, 4]] / G[[2, 4]].norm(dim=1, keepdim=True)
    assert abs(float(directions[0] @ directions[1])) < 5 / 20_000**0.5  # independent directions


def test_colluding_workers_send_one_vector_of_honest_norm(G: Tensor) -> None:
    sent = attacked("collude", G)
    assert torch.equal(sent[0], sent[3])
    norms = np.linalg.norm(sent.double().cpu().numpy(), axis=1)
    assert norms[0] == pytest.approx(np.median(norms[HONEST]), rel=1e-5)
    assert abs(float(sent[0] @ sent[1])) < 5 * norms[0] * norms[1] / 20_000**0.5
    assert torch.equal(sent, attacked("collude", G))
    assert not torch.equal(sent[0], attacked("collude", G, iteration=ITERATION + 1)[0])
    assert not torch.equal(sent[0], attacked("collude", G, seed=SEED + 1)[0])


@pytest.mark.parametrize(
    ("p", "faulty", "z"),
    [
        (15, (0, 1, 2), 0.210428),  # of 12 honest, 5 are needed: the 7/12 quantile
        (50, tuple(range(12)), 0.336038),  # of 38, 14: the 24/38 quantile
        (50, tuple(range(24)), 1.426077),  # of 26, 2: the 24/26 quantile
        (7, (0, 3), 0.253347),  # of 5, 2: the 3/5 quantile
        (4, (1,), 0.0),  # of 3, 2: more than half, and so the mean itself
        (9, (0, 1, 2, 3, 4), 0.674490),  # a majority is theirs already: one of 4 is to lie farther out
    ],
)
def test_alie_shifts_the_mean_by_z_deviations(p: int, faulty: tuple[int, ...], z: float) -> None:
    G = normal(p, 500, dtype=torch.float32)
    sent = G.clone()
    ATTACKS["alie"].apply(sent, faulty, SEED, ITERATION)
    honest = np.delete(G.double().cpu().numpy(), faulty, axis=0)
    expected = honest.mean(axis=0) - z * honest.std(axis=0)
    np.testing.assert_allclose(sent[list(faulty)].cpu(), np.tile(expected, (len(faulty), 1)), rtol=1e-4, atol=1e-5)


def test_ipm_opposes_the_honest_mean_and_mimic_copies_an_honest_worker(G: Tensor) -> None:
    mean = G[HONEST].double().mean(dim=0)
    for worker in FAULTY:
        torch.testing.assert_close(attacked("ipm", G)[worker].double(), -0.1 * mean, rtol=1e-4, atol=1e-7)
        assert torch.equal(attacked("mimic", G)[worker], G[1])
    sent = G.clone()
    ATTACKS["mimic"].apply(sent, (0, 1), SEED, ITERATION)
    assert torch.equal(sent[0], G[2])


def test_drop_zeroes_a_tenth_and_keeps_the_rest(G: Tensor) -> None:
    sent = attacked("drop", G)
    for worker in FAULTY:
        lost = sent[worker] == 0
        assert 0.09 < lost.float().mean() < 0.11
        assert torch.equal(sent[worker][~lost], G[worker][~lost])
        assert sent[worker].norm() < G[worker].norm()


def test_sign_flip_zero_nan_none(G: Tensor) -> None:
    rows = list(FAULTY)
    assert torch.equal(attacked("sign_flip", G)[rows], -G[rows])
    assert not attacked("zero", G)[rows].any()
    assert attacked("nan", G)[rows].isnan().all()
    assert torch.equal(attacked("none", G), G)
    assert torch.equal(attacked("label_flipping", G), G)  # whose workers have other labels


def test_nobody_faulty_changes_nothing() -> None:
    G = torch.ones(2, 3, device=DEVICE)
    for name in ATTACKS:
        make_attack(name, RULE).apply(G, (), SEED, ITERATION)
    assert torch.equal(G, torch.ones(2, 3, device=DEVICE))


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"^attack must be .*'lie'"):
        make_attack("lie")


@pytest.mark.parametrize("name", sorted(name for name, attack in ATTACKS.items() if not attack.flips_labels))
def test_an_attack_by_name_returns_new_gradients(name: str, G: Tensor) -> None:
    before = G.clone()
    expected = G.clone()
    make_attack(name, RULE).apply(expected, range(3), SEED, ITERATION)
    found = fa.attack(G, name, f=3, seed=SEED, iteration=ITERATION, rule=RULE)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(G, before)
    array = fa.attack(G.cpu().numpy(), name, f=3, seed=SEED, iteration=ITERATION, rule=RULE)
    np.testing.assert_allclose(array, expected.cpu().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "f", "argument"),
    [("lie", 0, "attack"), ("label_flipping", 2, "attack"), ("ipm", 9, "f"), ("ipm", -1, "f")],
)
def test_an_attack_by_name_checks_its_arguments(name: str, f: int, argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^{argument} must be .*{name if argument == 'attack' else f}"):
        fa.attack(torch.ones(9, 4), name, f)


@pytest.mark.parametrize("name", ["random", "ipm", "alie", "mimic", "min_max", "random_reached", "sign_flip"])
@pytest.mark.parametrize("byzantine", [[-1], [9], [0, 0], range(9)], ids=str)
def test_the_ranks_of_byzantine_workers_are_checked(name: str, byzantine: Any) -> None:
    with pytest.raises(ValueError, match=r"^byzantine must be .*\b8\b.*\b9\b"):
        make_attack(name).apply(torch.ones(9, 4), byzantine, SEED, ITERATION)


@pytest.mark.parametrize("name", ["random_shared", "line_search"])
def test_the_ranks_of_byzantine_workers_may_be_an_array(name: str) -> None:
    G = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    found, expected = G.clone(), G.clone()
    make_attack(name, RULE).apply(found, np.array([1, 3]), SEED, ITERATION)
    make_attack(name, RULE).apply(expected, [1, 3], SEED, ITERATION)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"nan"}))
def test_the_memory_order_does_not_change_an_attack(name: str) -> None:
    G = torch.randn(9, 100, generator=torch.Generator().manual_seed(0))
    transposed = G.T.contiguous().T
    for gradients in (G, transposed):
        make_attack(name, RULE).apply(gradients, [1, 3], SEED, ITERATION)
    assert torch.equal(G, transposed)


@pytest.mark.parametrize(("argument", "value"), [("seed", -1), ("iteration", -1), ("rule", "fa")])
@pytest.mark.parametrize("name", ["random", "ipm", "line_search"])
def test_an_attack_names_a_wrong_argument(name: str, argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{argument} must be .*{value}"):
        fa.attack(torch.ones(9, 4), name, 1, **{"rule": RULE, argument: value})


def test_an_attack_that_reads_honest_rows_reads_the_mean_in_place_of_a_missing_one() -> None:
    G = torch.tensor([[9.0], [1.0], [3.0], [8.0]])
    config = TrainConfig(workers=4, byzantine=1, rule="median", attack="ipm")
    complete(G, make_attack("ipm", factor=1.0), config, 0, {1: torch.ones(()), 2: torch.ones(())}, {3: "late"})
    assert G[:3].tolist() == [[-2.0], [1.0], [3.0]]
    assert G[3].isnan().all()


# --- options ---


def draw(seed: int) -> tuple[Tensor, int]:
    """Return gradients (p, n) in float64, and f."""
    rng = np.random.default_rng(seed)
    p = int(rng.integers(5, 12))
    G = torch.from_numpy(rng.standard_normal((p, int(rng.integers(2, 30)))) + rng.integers(0, 3))
    return G, int(rng.integers(1, (p - 1) // 2 + 1))


def sent_by(name: str, G: Tensor, f: int, **options: Any) -> np.ndarray:
    sent = G.clone()
    make_attack(name, **options).apply(sent, range(f), SEED, ITERATION)
    assert torch.equal(sent[f:], G[f:])
    return sent[f - 1].numpy()


PEERS: dict[str, tuple[Callable[[Tensor, int], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "ipm": (lambda G, f: sent_by("ipm", G, f, factor=2.5), byzfl.InnerProductManipulation(2.5)),
    "alie": (lambda G, f: sent_by("alie", G, f, factor=-1.5 * bessel(len(G) - f)), byzfl.ALittleIsEnough(1.5)),
    "sign_flip": (lambda G, f: sent_by("sign_flip", G, f, gradient="mean"), byzfl.SignFlipping()),
    "mimic": (lambda G, f: sent_by("mimic", G, f), byzfl.Mimic()),
}


def bessel(count: int) -> float:
    """Return the ratio of ByzFL's standard deviation, over h - 1, to ours, over h."""
    return (count / (count - 1)) ** 0.5


@pytest.mark.parametrize("name", PEERS)
def test_byzfls_attacks_agree_in_every_draw(name: str) -> None:
    ours, theirs = PEERS[name]
    draws = [draw(seed) for seed in range(DRAWS)]
    assert sum(np.allclose(ours(G, f), theirs(G[f:].numpy()), rtol=1e-10) for G, f in draws) == DRAWS


def test_gaussian_has_the_mean_and_the_deviation_of_its_options(G: Tensor) -> None:
    make_attack("gaussian", mean=3.0, std=20.0).apply(G, FAULTY, SEED, ITERATION)
    row = G[0].double()
    assert abs(row.mean() - 3) < 5 * 20 / 20_000**0.5
    assert float(row.std()) == pytest.approx(20, rel=0.05)


def test_losses_have_a_rate(G: Tensor) -> None:
    for name in ("drop", "chunk_loss"):
        sent = G.clone()
        make_attack(name, rate=0.5).apply(sent, FAULTY, SEED, ITERATION)
        assert 0.3 < (sent[0] == 0).float().mean() < 0.7


def farthest(honest: np.ndarray, vector: np.ndarray) -> float:
    return float(np.linalg.norm(honest - vector, axis=1).max())


def sum_of_squares(honest: np.ndarray, vector: np.ndarray) -> float:
    return float(np.square(honest - vector).sum())


@pytest.mark.parametrize(("name", "spread"), [("min_max", farthest), ("min_sum", sum_of_squares)])
@pytest.mark.parametrize("direction", ["std", "mean", "sign"])
def test_the_longest_shift_within_the_honest_spread(name: str, spread: Callable, direction: str) -> None:
    """Against bisection, as in the reference."""
    close = 0
    for seed in range(DRAWS):
        G, f = draw(seed)
        honest = G[f:].numpy()
        mean = honest.mean(axis=0)
        step = -{"std": honest.std(axis=0), "mean": mean, "sign": np.sign(mean)}[direction]
        bound = max(spread(honest, g) for g in honest)
        low, high = 0.0, 1e4
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if spread(honest, mean + middle * step) <= bound else (low, middle)
        close += np.allclose(sent_by(name, G, f, direction=direction), mean + low * step, rtol=1e-6)
    assert close == DRAWS


@pytest.mark.parametrize("name", ["random_honest_norm", "collude"])
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_honest_norm_is_right_where_squares_leave_the_range(name: str, scale: float) -> None:
    G = normal(9, 4, dtype=torch.float64)
    found = fa.attack(G * scale, name, f=2)[0] / scale
    assert float(found.norm()) == pytest.approx(float(G[2:].norm(dim=1).quantile(0.5)))


@pytest.mark.parametrize("name", ["min_max", "min_sum"])
@pytest.mark.parametrize("direction", ["std", "mean", "sign"])
@pytest.mark.parametrize("scale", [1e160, 1e300])
def test_squares_that_overflow_are_no_error(name: str, direction: str, scale: float) -> None:
    G = normal(9, 4, dtype=torch.float64) * scale
    found = fa.attack(G, name, f=2, direction=direction)
    assert torch.equal(found[2:], G[2:])


@pytest.mark.parametrize("name", ["min_max", "min_sum", "line_search"])
def test_equal_honest_gradients_leave_no_room(name: str) -> None:
    G = torch.ones(5, 4, dtype=torch.float64)
    G[0] = 7
    make_attack(name, make_rule("median", f=1)).apply(G, (0,), SEED, ITERATION)
    assert torch.equal(G, torch.ones(5, 4, dtype=torch.float64))


def moved(rule: Any, G: Tensor, f: int, vector: np.ndarray) -> float:
    """Return the distance of the rule's direction to the honest mean if the first f workers send a vector."""
    sent = G.clone()
    sent[:f] = torch.from_numpy(vector)
    return float((rule(sent, ITERATION) - G[f:].mean(dim=0)).norm())


@pytest.mark.parametrize("direction", ["std", "mean", "sign"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("multi_krum", {}),
        ("multi_krum", {"preaggregators": ("bucketing",)}),
        ("geometric_median", {"preaggregators": ("nnm",)}),
        ("fa", {}),
        ("median", {}),
        ("meamed", {"preaggregators": ("nnm",)}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*strict")
def test_the_line_search_does_more_harm_than_fixed_factors(name: str, options: dict, direction: str) -> None:
    """Also where the harm is computed in Gram space alone."""
    for seed in range(5):
        G, f = draw(seed)
        rule = make_rule(name, f=f, strict=False, **options)
        best = moved(rule, G, f, sent_by("line_search", G, f, rule=rule, direction=direction))
        honest = G[f:].numpy()
        mean = honest.mean(axis=0)
        step = -{"std": honest.std(axis=0), "mean": mean, "sign": np.sign(mean)}[direction]
        unit = np.sqrt(np.square(honest - mean).sum(axis=1).mean()) / np.linalg.norm(step)
        fixed = [moved(rule, G, f, mean + unit * 2.0**k * step) for k in range(-4, 8)]
        assert best >= max(fixed) * (1 - 1e-9)


@pytest.mark.filterwarnings("ignore:.*strict")
def test_the_line_search_finds_what_byzfls_finds() -> None:
    """Of 20 evaluations each, ours does as much harm in three of four draws or more."""
    wins = 0
    for seed in range(60):
        G, f = draw(seed)
        rule = make_rule("krum", f=f, strict=False)
        ours = moved(rule, G, f, sent_by("line_search", G, f, rule=rule, evaluations=20))
        peer = byzfl.Optimal_ALittleIsEnough(agg=rule, pre_agg_list=[], f=f, start=0.0, delta=-10.0)
        wins += ours >= moved(rule, G, f, np.asarray(peer(G[f:].numpy()))) * (1 - 1e-9)
    assert wins >= 45


@pytest.mark.parametrize("evaluations", [1, 5, 24, 120, 2000])
@pytest.mark.parametrize("peak", [0.3, -100.0, 40.0])
def test_a_line_search_ends(evaluations: int, peak: float) -> None:
    """Beyond the precision of floats, further evaluations would repeat earlier ones."""
    calls = []

    def damage(factor: float) -> float:
        calls.append(factor)
        assert len(calls) <= min(evaluations, 400)
        return -abs(np.log2(factor) - peak)

    assert _maximize(damage, evaluations) in calls
    assert evaluations > 24 or len(calls) == evaluations


@pytest.mark.parametrize("rule", ["monna", "minimum_diameter_averaging", "krum", "bulyan", "trimmed_mean"])
def test_a_line_search_with_too_few_workers_is_the_rules_error(rule: str) -> None:
    with pytest.raises(TooFewWorkersError):
        make_attack("line_search", make_rule(rule, f=2)).apply(torch.ones(3, 2), (0,), SEED, ITERATION)


def test_a_line_search_without_a_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^rule must be .*None"):
        make_attack("line_search").apply(torch.ones(3, 2), (0,), SEED, ITERATION)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ipm", {"strength": 1}, r"'ipm' must be one of factor\b.*'strength'"),
        ("random", {"factor": 1}, r"'random' must be .*'factor'"),
        ("ipm", {"factor": "x"}, r"^factor must be .*'x'"),
        ("ipm", {"factor": None}, r"^factor must be .*None"),
        ("alie", {"factor": float("nan")}, r"^factor must be .*nan"),
        ("gaussian", {"std": -1.0}, r"^std must be .*-1\.0"),
        ("drop", {"rate": 2}, r"^rate must be .*\b2\b"),
        ("sign_flip", {"gradient": "other"}, r"^gradient must be .*'other'"),
        ("min_max", {"direction": "unit"}, r"^direction must be .*'unit'"),
        ("line_search", {"evaluations": 0}, r"^evaluations must be .*\b0\b"),
    ],
)
def test_invalid_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_attack(name, **options)
