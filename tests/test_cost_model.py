"""Both ways of FlagIRLS do the same work, and a fitted exponent is that of the law it is fitted to."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from fa.experiments.measurements.cost import (
    METHODS,
    CostTiming,
    Workload,
    exponents,
    in_gram_space,
    measure_costs,
    svd_steps,
)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("steps", [1, 4])
def test_an_svd_at_each_step_and_the_gram_matrix_agree(k: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(2)
    workers = list(torch.randn(6, k, 40, generator=generator, dtype=torch.float64) + 0.3)
    values, d = svd_steps(workers, 3, steps)
    expected, direction = in_gram_space(workers, 3, steps)
    np.testing.assert_allclose(values, expected, atol=1e-9)
    torch.testing.assert_close(d, direction, atol=1e-9, rtol=1e-7)


def test_exponents_of_a_law() -> None:
    cases = [Workload(n=n) for n in (10, 100, 1000)] + [Workload(N=N) for N in (1, 8)]
    varied = ["n"] * 3 + ["N"] * 2
    timings = [
        CostTiming(**asdict(case), varied=size, method="law", seconds=case.n**1.5 * case.N**0.25)
        for case, size in zip(cases, varied, strict=True)
    ]
    of_n, of_steps = exponents(timings)
    assert (of_n["measured"], of_n["paper"]) == (pytest.approx(1.5), pytest.approx(1.0))
    assert (of_steps["measured"], of_steps["paper"]) == (pytest.approx(0.25), pytest.approx(1.0))
    assert 0 < of_steps["Gram space"] < 0.01


def test_every_size_is_measured_by_both_methods() -> None:
    timings = measure_costs({"n": [20, 30], "k": [2]}, Workload(n=25, p=3), repeats=1)
    assert [(t.varied, t.n, t.p, t.k) for t in timings[::2]] == [("n", 20, 3, 1), ("n", 30, 3, 1), ("k", 25, 3, 2)]
    assert [t.method for t in timings] == [*METHODS] * 3
