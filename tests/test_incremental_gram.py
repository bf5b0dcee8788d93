"""Rows of K taken as gradients land: the bits of one pass over all, whatever the order and whoever is missing."""

import numpy as np
import pytest
import torch

from fa import kernels
from fa.gradients.incremental import IncrementalGram
from fa.gradients.measurement import measure
from fa.rules import make_rule


def normal(p: int, n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((p, n)).astype(np.float32)


@pytest.mark.parametrize(("p", "n"), [(1, 5), (2, 2048), (4, 70_000), (7, 2049), (15, 21_840), (25, 6145), (30, 4099)])
def test_rows_that_land_one_by_one_give_the_bits_of_one_pass(p: int, n: int) -> None:
    generator = np.random.default_rng(p)
    G = torch.from_numpy(generator.standard_normal((p, n)).astype(np.float32))
    landing = IncrementalGram(G)
    for row in generator.permutation(p):
        landing.add_row(int(row))
    assert np.array_equal(landing.matrix(), kernels.gram(G))


def test_a_row_may_not_land_or_not_be_finite() -> None:
    G = torch.from_numpy(normal(6, 300))
    landing, part = IncrementalGram(G), torch.cat([G[:2], G[3:]])
    for row in (5, 0, 3, 1, 4):
        landing.add_row(row)
    G[2] = torch.nan
    landing_K = landing.matrix()
    rest = [0, 1, 3, 4, 5]
    assert np.array_equal(landing_K[np.ix_(rest, rest)], kernels.gram(part))
    gram, finite = measure(G, landing_K)
    assert finite.tolist() == [True, True, False, True, True, True]
    expected, _ = measure(G)
    assert np.array_equal(gram.D2, expected.D2, equal_nan=True)


def test_products_that_are_known_are_not_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    G = torch.from_numpy(normal(5, 300))
    known = kernels.gram(G)
    expected = make_rule("fa").aggregate(G)
    monkeypatch.setattr("fa.gradients.measurement.kernels.gram", lambda *_, **__: pytest.fail("a second pass"))
    found = make_rule("fa").aggregate(G, inner_products=known)
    assert torch.equal(found.direction, expected.direction)


def test_products_that_have_cancelled_are_taken_again_in_float64() -> None:
    """A common offset of 1000: float32 products lose the distances."""
    G = torch.from_numpy(normal(5, 300) + 1000)
    landing = IncrementalGram(G)
    for row in range(5):
        landing.add_row(row)
    gram, _ = measure(G, landing.matrix())
    wide = G.double().numpy()
    np.testing.assert_allclose(gram.D2 * gram.scale**2, np.square(wide[:, None] - wide[None]).sum(axis=2), rtol=1e-6)


@pytest.mark.parametrize("rule", ["fa", "multi_krum", "krum", "geometric_median", "bulyan"])
@pytest.mark.parametrize("p", [6, 8, 300])
def test_inner_products_of_another_number_of_workers_are_refused(rule: str, p: int) -> None:
    with pytest.raises(ValueError, match=rf"^inner_products must be .*\b7, 7\b.*\b{p}, {p}\b"):
        make_rule(rule, f=1).aggregate(torch.eye(7, 1000), inner_products=np.eye(p))
