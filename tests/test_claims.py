"""The thresholds in docs/claims.md are those of the code that judges."""

import re
from pathlib import Path

import pytest

from fa.experiments.figures import equal_length, extra11, fig02, fig03, fig04, fig07, fig08, fig10
from fa.experiments.reporting import claims, equivalence, theory_claims
from tests.texts import numbers

PAGE = (Path(__file__).parents[1] / "docs" / "claims.md").read_text(encoding="utf-8")
RULES = {line.split(" |")[0].removeprefix("| "): line for line in PAGE.splitlines() if re.match(r"\| C\d", line)}


@pytest.mark.parametrize(
    ("claim", "threshold"),
    [
        ("C2", fig03.MIN_SPIKE_VALUE),
        ("C3, second", claims.CHANCE_MARGIN),
        ("C4", 100 * fig04.MIN_RELATIVE_LEAD),
        ("C7, first", claims.MAX_LOSS),
        ("C8, third", fig07.MIN_DIFFERENCE),
        ("C9, second", fig08.MIN_COSINE_GAIN),
        ("C10", claims.MAX_LOSS),
        ("C11, first", 100 * (fig10.MIN_COST_RATIO - 1)),
        ("C11, fourth", theory_claims.MAX_EXPONENT_EXCESS),
        ("C13, first", theory_claims.MIN_CURVATURE),
        ("C14, first", theory_claims.MAX_ROUNDING_ERROR),
        ("C15", theory_claims.MAX_LIMIT_ERROR),
        ("C16, first", equivalence.LEVEL),
        ("C16, first", theory_claims.EQUIVALENCE_BOUND),
    ],
)
def test_a_claims_threshold_is_on_the_page(claim: str, threshold: float) -> None:
    measure, condition = RULES[claim].split(" | ")[-2:]
    assert any(number == pytest.approx(threshold) for number in numbers(f"{measure} {condition}"))


def test_thresholds_in_words_are_the_codes() -> None:
    assert ("half" in RULES["C1"], fig02.MAX_RELATIVE_ACCURACY) == (True, 0.5)
    assert f"by more than {fig03.MIN_DIFFERENCE:g}," in RULES["C2"]
    tests, level = len(extra11.OTHERS), equivalence.LEVEL
    assert f"level {level:g}/{tests}" in RULES["C17"]
    assert f"place it within {equal_length.EQUIVALENT_WITHIN:g}." in PAGE
