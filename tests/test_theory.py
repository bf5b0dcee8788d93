"""What theory notebooks say of the claims: verdicts that follow from the numbers, and the way into the report."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from fa.experiments.reporting import theory_claims
from fa.experiments.reporting.artifacts import save_claims
from fa.experiments.reporting.claims import IN_PART, NOT, REPRODUCED, UNTESTABLE, Claim
from fa.experiments.reporting.report import write

QUICK = Path(__file__).parents[1] / "figures" / "quick"


def verdicts(claims: list[Claim]) -> list[str]:
    return [claim.verdict for claim in claims]


def problems(saddles: int, steps: dict[float, int]) -> pd.DataFrame:
    rows = [{"a": a, "smallest / largest": 1e-3, "steps to 1e-10": count} for a, count in steps.items()] * 20
    table = pd.DataFrame(rows)
    table.loc[: saddles - 1, "smallest / largest"] = -0.1
    return table


def test_maximum_likelihood() -> None:
    assert verdicts(theory_claims.maximum_likelihood(1e-15, True)) == [REPRODUCED, NOT]
    assert verdicts(theory_claims.maximum_likelihood(1e-3, False)) == [NOT, REPRODUCED]


@pytest.mark.parametrize(
    ("saddles", "trap", "expected"), [(0, 1.0, REPRODUCED), (0, -1.0, IN_PART), (1, 1.0, IN_PART), (30, 1.0, NOT)]
)
def test_second_order_points(saddles: int, trap: float, expected: str) -> None:
    table = problems(saddles, {1.5: 9, 2.0: 5, 3.0: 9})
    assert verdicts(theory_claims.convergence(table, trap, table)) == [expected, REPRODUCED]


@pytest.mark.parametrize(
    ("real", "expected"), [({2.0: 5, 3.0: 9}, IN_PART), ({2.0: 5, 3.0: 4}, NOT), ({2.0: 5, 3.0: 5}, NOT)]
)
def test_slower_for_other_powers(real: dict[float, int], expected: str) -> None:
    found = theory_claims.convergence(problems(0, {2.0: 5, 3.0: 4}), 1.0, problems(0, real))
    assert verdicts(found)[1] == expected


def test_right_multiplication() -> None:
    assert verdicts(theory_claims.right_multiplication(1e-7, 0.1)) == [REPRODUCED]
    assert verdicts(theory_claims.right_multiplication(1e-3, 0.1)) == [NOT]


def test_precision() -> None:
    errors = pd.DataFrame({"bits": [4, 8, 8], "direction_error": [0.5, 0.01, 0.02]})
    close, far = ({"float32": [0.9], "4 bits": [0.2], "8 bits, blocks": [reached]} for reached in (0.89, 0.8))
    found = theory_claims.precision(errors, close, "float32")
    assert verdicts(found) == [REPRODUCED, NOT]
    assert "1.0% to 2.0%" in found[0].measured
    assert verdicts(theory_claims.precision(errors, far, "float32"))[0] == NOT
    assert verdicts(theory_claims.precision(errors, {"float32": [0.9]}, "float32"))[0] == UNTESTABLE


def test_cost() -> None:
    def table(p: float) -> pd.DataFrame:
        rows = [("SVD", "n", 0.9), ("SVD", "p", p), ("SVD", "k", 1.4), ("SVD", "N", 1.0)]
        gram = [("Gram", varied, 0.5) for varied in "npkN"]
        return pd.DataFrame([*rows, *gram], columns=["method", "varied", "measured"])

    assert verdicts(theory_claims.cost(table(1.3))) == [REPRODUCED]
    assert verdicts(theory_claims.cost(table(2.6))) == [IN_PART]


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
    assert f"**{REPRODUCED}**" in row
    assert '<a id="theory06_optimality"></a>' in report
