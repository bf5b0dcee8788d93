"""What theory notebooks say of the claims: verdicts that follow from the numbers, and the way into the report."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from fa.experiments.reporting import theory_claims
from fa.experiments.reporting.artifacts import save_claims
from fa.experiments.reporting.claims import HOLDS, IN_PART, NOT, UNTESTABLE, Claim
from fa.experiments.reporting.report import REPRODUCED, write
from tests.texts import numbers

QUICK = Path(__file__).parents[1] / "figures" / "quick"


def verdicts(claims: list[Claim]) -> list[str]:
    return [claim.verdict for claim in claims]


def problems(saddles: int, steps: dict[float, int]) -> pd.DataFrame:
    rows = [{"a": a, "smallest / largest": 1e-3, "steps to 1e-10": count} for a, count in steps.items()] * 20
    table = pd.DataFrame(rows)
    table.loc[: saddles - 1, "smallest / largest"] = -0.1
    return table


def test_maximum_likelihood() -> None:
    assert verdicts(theory_claims.maximum_likelihood(1e-15, True)) == [HOLDS, NOT]
    assert verdicts(theory_claims.maximum_likelihood(1e-3, False)) == [NOT, HOLDS]


@pytest.mark.parametrize(
    ("saddles", "trap", "expected"), [(0, 1.0, HOLDS), (0, -1.0, NOT), (1, 1.0, NOT), (30, 1.0, NOT)]
)
def test_one_limit_that_is_no_minimum_refutes_second_order_optimality(saddles: int, trap: float, expected: str) -> None:
    table = problems(saddles, {1.5: 9, 2.0: 5, 3.0: 9})
    assert verdicts(theory_claims.convergence(table, trap, table)) == [expected, HOLDS]


@pytest.mark.parametrize(
    ("real", "expected"),
    [
        ({2.0: 5, 3.0: 9}, IN_PART),
        ({1.5: 1, 2.0: 5, 3.0: 9}, IN_PART),
        ({1.5: 9, 2.0: 5, 3.0: 4}, NOT),
        ({2.0: 5, 3.0: 5}, NOT),
    ],
)
def test_slower_for_higher_powers(real: dict[float, int], expected: str) -> None:
    found = theory_claims.convergence(problems(0, {2.0: 5, 3.0: 4}), 1.0, problems(0, real))
    assert verdicts(found)[1] == expected


def test_right_multiplication() -> None:
    assert verdicts(theory_claims.right_multiplication(1e-7, 0.1)) == [HOLDS]
    assert verdicts(theory_claims.right_multiplication(1e-3, 0.1)) == [NOT]


def test_precision() -> None:
    errors = pd.DataFrame({"bits": [4, 8, 8], "direction_error": [0.5, 0.01, 0.02]})

    def verdict(reached: list[float], exact: list[float]) -> str:
        accuracy = {"float32": exact, "4 bits": [0.2] * len(exact), "8 bits, blocks": reached}
        found = theory_claims.precision(errors, accuracy, "float32")
        assert found[1].verdict == NOT
        assert {1.0, 2.0} <= set(numbers(found[0].measured))  # per cent of d
        return found[0].verdict

    assert verdict([0.89, 0.90, 0.91], [0.90, 0.91, 0.92]) == HOLDS
    assert verdict([0.80, 0.81, 0.82], [0.90, 0.91, 0.92]) == NOT
    assert verdict([0.85, 0.95, 0.90], [0.90, 0.90, 0.90]) == NOT  # close on average, but not shown to be
    assert verdict([0.90], [0.90]) == UNTESTABLE  # one seed allows no test
    found = theory_claims.precision(errors, {"float32": [0.9, 0.9]}, "float32")
    assert found[0].verdict == UNTESTABLE


def test_cost() -> None:
    def table(p: float) -> pd.DataFrame:
        rows = [("SVD", "n", 0.9), ("SVD", "p", p), ("SVD", "k", 1.4), ("SVD", "N", 1.0)]
        gram = [("Gram", varied, 0.5) for varied in "npkN"]
        return pd.DataFrame([*rows, *gram], columns=["method", "varied", "measured"])

    assert verdicts(theory_claims.cost(table(1.3))) == [HOLDS]
    assert verdicts(theory_claims.cost(table(2.24))) == [HOLDS]  # 0.25 above the bound's are allowed
    assert verdicts(theory_claims.cost(table(2.26))) == [IN_PART]


def test_the_report_of_any_profile_tells_of_theory(tmp_path: Path) -> None:
    folder = tmp_path / "cpu"
    folder.mkdir()
    for path in QUICK.glob("fig02*"):
        shutil.copy(path, folder)
    claims = theory_claims.right_multiplication(1e-7, 0.1)
    assert save_claims("theory06_optimality", "quick", claims, tmp_path / "quick") == claims
    report = write(folder).read_text()
    row = next(line for line in report.splitlines() if line.startswith("| C15"))
    assert claims[0].measured in row
    assert "[theory06](#theory06_optimality)" in row
    assert f"**{REPRODUCED[HOLDS]}**" in row
    assert '<a id="theory06_optimality"></a>' in report
