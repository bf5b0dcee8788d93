"""What is p x p has one thread of numpy's BLAS, whatever the process has, and gives them back."""

from dataclasses import dataclass

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

import fa
from fa.rules.base import Choice
from fa.threads import on_one_thread


def threads() -> set[int]:
    return {library.num_threads for library in ThreadpoolController().select(user_api="blas").lib_controllers}


@pytest.fixture
def several() -> int:
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        if threads() != {2}:
            pytest.skip("this BLAS has one thread at the most")
        yield


@dataclass(frozen=True, kw_only=True)
class Watching(fa.Rule):
    name = "watching"

    def decide(self, gram) -> Choice:
        assert threads() == {1}
        return Choice(weights=np.ones(gram.p))


def test_a_rule_decides_on_one_thread(several: None) -> None:
    Watching()(np.eye(4))
    assert threads() == {2}


def test_they_are_given_back_after_an_error(several: None) -> None:
    @on_one_thread
    def fail() -> None:
        assert threads() == {1}
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert threads() == {2}


def test_solvers_do_the_same(several: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, eigh = list[int](), np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda A: seen.extend(threads()) or eigh(A))
    G = np.random.default_rng(0).standard_normal((6, 20))
    for work in (fa.irls.solve(G), fa.sdp.certify(G, fa.irls.solve(G)), fa.flags.solve(G, dims=(1, 3))):
        assert work is not None
    assert set(seen) == {1}
