"""Figure 10: what it makes of records whose workers were processes, and that such runs are made and kept apart."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from fa.experiments.figures import fig10
from fa.experiments.reporting.claims import HOLDS, NOT, UNTESTABLE
from fa.experiments.runs.store import RunStore
from fa.experiments.runs.variants import PAPER_RULES_AND_MEAN
from fa.training import train
from tests.texts import numbers

COSTS = pd.DataFrame(
    {"method": name, "workers": 15, "n": 1_000_000, "milliseconds": cost}
    for name, cost in (("FA", 2.0), ("FA by 1 SVD", 30.0), ("FA by 5 SVDs", 150.0))
)


def spent(ours: float) -> pd.DataFrame:
    """Where an iteration's time goes, with FA's aggregation of `ours` seconds and the others' of 2 ms."""
    about = {"seed": 1, "compute": 0.1, "network": 0.05, "update": 0.001, "epoch": 4.0}
    return pd.DataFrame(
        about | {"variant": key, "aggregation": ours if key == "fa" else 0.002} for key in PAPER_RULES_AND_MEAN
    )


def curves(fa: tuple[float, float], others: tuple[float, float], pace: float = 1.0) -> pd.DataFrame:
    """Accuracies after 10 and 20 iterations of a second each; FA's of `pace` seconds."""
    return pd.DataFrame(
        {
            "variant": key,
            "label": key,
            "f": 3,
            "seed": 1,
            "iteration": 10 * (i + 1),
            "seconds": 10 * (i + 1) * (pace if key == "fa" else 1.0),
            "test_accuracy": accuracy,
        }
        for key in PAPER_RULES_AND_MEAN
        for i, accuracy in enumerate(fa if key == "fa" else others)
    )


@pytest.mark.parametrize(
    ("table", "cost", "expected"),
    [
        (curves((0.8, 0.9), (0.3, 0.7)), 0.003, [HOLDS] * 4),
        (
            curves((0.8, 0.9), (0.3, 0.7), pace=3.0),
            0.003,
            [HOLDS, NOT, HOLDS, HOLDS],
        ),  # fewer iterations, and slower ones
        (curves((0.7, 0.7), (0.3, 0.7), pace=1.9), 0.001, [NOT, NOT, NOT, NOT]),  # 19 s for 20
        (curves((0.5, 0.6), (0.6, 0.7)), 0.003, [HOLDS, NOT, NOT, NOT]),
        (curves((0.8, 0.9), (0.3, 0.7)), 0.0021, [NOT, HOLDS, HOLDS, HOLDS]),  # 5% more than the others' 2 ms
        (curves((0.1, 0.1), (0.1, 0.1)), 0.003, [HOLDS, *[UNTESTABLE] * 3]),
        (curves((0.5, 0.9), (0.1, 0.1)), 0.003, [HOLDS, UNTESTABLE, HOLDS, UNTESTABLE]),  # no target that two reach
        (curves((0.1, 0.1), (0.5, 0.9)), 0.003, [HOLDS, UNTESTABLE, NOT, NOT]),
    ],
)
def test_the_verdict_on_time_and_communication(table: pd.DataFrame, cost: float, expected: list[str]) -> None:
    claims = fig10.claims(table, spent(cost), COSTS, 0.1)
    assert [claim.verdict for claim in claims] == expected
    assert [claim.number for claim in claims] == ["C11", "C11", "C11", "C12"]
    measured = claims[0].measured
    assert 1000 * cost in numbers(measured)
    places = [measured.rindex(f"{row.method} {row.milliseconds:.1f}") for row in COSTS.itertuples()]
    assert places == sorted(places)
    assert 120.0 in numbers(claims[3].measured)  # megabytes: 15 workers, a million numbers of 4 bytes, there and back


def test_it_shows_curves_by_time_and_the_parts_of_an_epoch() -> None:
    a, b, c, d = fig10.draw(curves((0.8, 0.9), (0.5, 0.7), pace=3.0), spent(0.004), COSTS, "title", 0.1).axes
    assert list(a.lines[0].get_xdata()) == [30, 60]
    assert [line.get_ydata()[0] for line in a.lines[-3:]] == pytest.approx([0.4, 0.55, 0.64])
    parts = b.patches[:: len(PAPER_RULES_AND_MEAN)]  # FA's
    assert [part.get_width() for part in parts] == pytest.approx([4 * x / 0.155 for x in (0.1, 0.05, 0.004, 0.001)])
    assert len(c.collections) == len(PAPER_RULES_AND_MEAN)
    dots = [float(line.get_xdata()[0]) for line in d.lines]
    assert [dots[0], *dots[-3:]] == [4, 2, 30, 150]
    assert [text.get_text() for text in d.texts][-3:] == ["2", "30", "150"]


def test_runs_are_of_processes_and_kept_apart_from_simulated_ones(tmp_path: Path) -> None:
    study = fig10.study("smoke", tmp_path, iterations=2, device="cuda")
    study = replace(study, cells=study.cells[:1])
    results = study.run(progress=False)
    (config,) = study.configs
    record = RunStore(tmp_path / "records-rpc").find(config)
    assert record is not None
    assert record.description["backend"]["name"] == "rpc"
    assert RunStore(tmp_path / "records").find(config) is None
    (row,) = fig10.iteration_times(results).to_dict("records")
    assert 0 < row["epoch"] <= 178 / 2 * record.curve[-1]["seconds"] * 1.001  # 10,000 images, 7 workers of 8 images
    train(config, threads=1, out=tmp_path / "simulated")
    assert (record.folder / "workers.csv").read_text() == (tmp_path / "simulated" / "workers.csv").read_text()
    again = study.run(progress=False)
    assert again.outcomes[config].record == record


def test_a_run_that_fails_is_named_and_the_next_one_tried(tmp_path: Path) -> None:
    study = fig10.study("smoke", tmp_path, iterations=2, model="resnet18")
    study = replace(study, cells=study.cells[:2])
    with pytest.raises(
        ValueError,
        match=r"^2\b.*\b2\b.*\bfa\b.*\breleased\b.*\bf = 1\b.*\b3\b.*\b1\b.*\bconvnet\b",
    ):
        study.run(progress=False)
