"""Each attack acts: it changes the faulty rows as it says, repeatably, and nothing else."""

import numpy as np
import pytest
import torch
from torch import Tensor

import fa
from fa.attacks import ATTACKS, make_attack
from tests.tensors import DEVICE, normal

SEED, ITERATION = 2021, 7
FAULTY = (0, 3)
HONEST = [1, 2, 4, 5, 6]


def attacked(name: str, G: Tensor, seed: int = SEED, iteration: int = ITERATION) -> Tensor:
    sent = G.clone()
    ATTACKS[name].apply(sent, FAULTY, seed, iteration)
    return sent


@pytest.fixture
def G() -> Tensor:
    return normal(7, 20_000, dtype=torch.float32)


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"none"}))
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


@pytest.mark.parametrize("name", ["random", "random_symmetric", "random_honest_norm", "drop"])
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


def test_nobody_faulty_changes_nothing() -> None:
    G = torch.ones(2, 3, device=DEVICE)
    for attack in ATTACKS.values():
        attack.apply(G, (), SEED, ITERATION)
    assert torch.equal(G, torch.ones(2, 3, device=DEVICE))


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"^attack must be .*'lie'"):
        make_attack("lie")


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_by_name_returns_new_gradients(name: str, G: Tensor) -> None:
    before = G.clone()
    expected = G.clone()
    ATTACKS[name].apply(expected, range(3), SEED, ITERATION)
    found = fa.attack(G, name, f=3, seed=SEED, iteration=ITERATION)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(G, before)
    array = fa.attack(G.cpu().numpy(), name, f=3, seed=SEED, iteration=ITERATION)
    np.testing.assert_allclose(array, expected.cpu().numpy(), rtol=1e-5)


@pytest.mark.parametrize(("name", "f", "argument"), [("lie", 0, "attack"), ("ipm", 9, "f"), ("ipm", -1, "f")])
def test_an_attack_by_name_checks_its_arguments(name: str, f: int, argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^{argument} must be .*{name if argument == 'attack' else f}"):
        fa.attack(torch.ones(9, 4), name, f)
