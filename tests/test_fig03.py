"""Figure 3: what it computes against eq. 5's own values, what it says of made-up tables, and what it writes."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fa import irls, objective
from fa.experiments.figures import fig03
from fa.experiments.reporting.artifacts import save
from fa.experiments.reporting.claims import HOLDS, IN_PART, NOT, UNTESTABLE
from fa.experiments.runs.recording import record


@pytest.fixture(scope="module")
def watched():
    study = fig03.study("smoke")
    return study, *fig03.collect(study)


def table(values):
    """Ten minibatches of two honest workers, with these values by basis; the Byzantine one's are to be left out."""
    rows = [
        {
            "basis": basis,
            "f": f,
            "seed": 0,
            "iteration": t,
            "worker": w,
            "byzantine": w < f,
            "value": 0.7 if w < f else value,
        }
        for basis, value in values.items()
        for f in fig03.F_VALUES
        for t in range(10)
        for w in range(5)
    ]
    return pd.DataFrame(rows)


def test_it_explains_as_eq_5_does():
    """From cosines and coefficients, as against the n x m basis itself; directions that coincide count once."""
    G = np.random.default_rng(0).standard_normal((6, 20)) + 0.3
    mixed = np.random.default_rng(1).standard_normal((6, 2))
    unit = G / np.linalg.norm(G, axis=1, keepdims=True)
    values = fig03.explained(unit @ unit.T, np.hstack([mixed, mixed[:, :1]]))
    np.testing.assert_allclose(values, objective.values(G, np.linalg.qr(unit.T @ mixed)[0]), atol=1e-9)


def test_the_table_is_of_all_workers_and_of_the_gradients_that_were_sent(watched):
    study, rows, _ = watched
    assert len(rows) == 4 * 2 * 2 * 15  # bases, f, minibatches, workers
    assert rows["value"].between(0, 1).all()
    honest = {f: group["worker"].nunique() for f, group in rows[~rows["byzantine"]].groupby("f")}
    assert honest == {0: 15, 3: 12}
    config = next(config for config in study.configs if config.byzantine == 3)
    G = record(config, at=(4,))[4].double().numpy()
    mean, Y = G.mean(axis=0), G.T @ irls.solve(G).coefficients
    at_four = rows[(rows["f"] == 3) & (rows["iteration"] == 4)].groupby("basis")["value"].apply(np.array)
    np.testing.assert_allclose(at_four["mean"], objective.values(G, mean[:, None] / np.linalg.norm(mean)), atol=1e-3)
    np.testing.assert_allclose(at_four["fa"], objective.values(G, np.linalg.qr(Y)[0]), atol=1e-2)
    assert (at_four["any"] > 1 - 1e-9).sum() >= 8  # those that were drawn


@pytest.mark.parametrize(
    ("values", "verdicts"),
    [
        ({"fa": 0.95, "mean": 0.1, "fa_one": 0.1, "any": 0.5}, [HOLDS]),
        ({"fa": 0.95, "mean": 0.1, "fa_one": 0.1, "any": 0.96}, [HOLDS]),  # the random span decides nothing
        ({"fa": 0.95, "mean": 0.935, "fa_one": 0.1, "any": 0.5}, [NOT]),  # both spike
        ({"fa": 0.8, "mean": 0.1, "fa_one": 0.1, "any": 0.5}, [NOT]),  # no spike
        ({"fa": 0.4, "mean": 0.1, "fa_one": 0.1, "any": 0.5}, [NOT]),
    ],
)
def test_verdicts_follow_from_the_honest_workers_values(values, verdicts):
    assert [claim.verdict for claim in fig03.claims(table(values))] == verdicts
    few = table(values).query("iteration < 3")
    assert {claim.verdict for claim in fig03.claims(few)} == {UNTESTABLE}


def test_a_spike_for_one_of_the_numbers_of_byzantine_workers_is_one_in_part():
    rows = table({"fa": 0.95, "mean": 0.1, "fa_one": 0.1, "any": 0.5})
    rows.loc[(rows["basis"] == "fa") & (rows["f"] == 3), "value"] = 0.4
    assert [claim.verdict for claim in fig03.claims(rows)] == [IN_PART]


def test_what_is_written_is_the_same_each_time(watched, tmp_path):
    study, rows, results = watched
    digests = []
    for _ in range(2):
        results = replace(results, study=replace(study, folder=tmp_path))
        path = save(fig03.draw(rows, study.title()), rows, results, fig03.claims(rows))
        digests.append([hashlib.sha256(path.with_suffix(end).read_bytes()).hexdigest() for end in (".png", ".pdf")])
    assert digests[0] == digests[1]
    pd.testing.assert_frame_equal(pd.read_csv(path.with_suffix(".csv")), rows)
    about = json.loads(path.with_suffix(".json").read_text())
    assert [run["device"] for run in about["hardware"]] == ["cpu"]


def test_there_is_nothing_to_sweep():
    assert fig03.study("smoke").sweep() == []
