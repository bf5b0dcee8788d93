"""The README's numbers are those of the committed figures, and its Python runs."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist

import fa
from fa import models
from fa.experiments.study import last_points

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_table_is_the_figures() -> None:
    last = last_points(pd.read_csv(ROOT / "figures" / "quick" / "fig04_byzantine_workers.csv"))
    measured = {(row.label, row.f): f"{row.test_accuracy:.3f}" for row in last.itertuples()}
    rows = re.findall(r"^\| ([^|`]+) \| (0\.\d{3}) \| (0\.\d{3}) \| (0\.\d{3}) \|$", README, flags=re.MULTILINE)
    stated = {(label, f): row[f] for label, *_ in rows for f in (1, 2, 3) for row in rows if row[0] == label}
    if not redrawn("figures/quick/fig04_byzantine_workers.csv"):
        assert stated == measured
    else:  # on a processor of another kind, as the README says
        assert {key: float(text) for key, text in stated.items()} == pytest.approx(
            {key: float(text) for key, text in measured.items()}, abs=0.05
        )


def redrawn(path: str) -> bool:
    """Whether a committed file was written anew here, as `make reproduce` does."""
    command = ["git", "diff", "--quiet", "HEAD", "--", path]
    return (ROOT / ".git").exists() and subprocess.run(command, cwd=ROOT, check=False).returncode == 1


def test_the_number_of_models_is_that_of_the_figures_runs() -> None:
    provenance = [json.loads(path.read_text()) for path in (ROOT / "figures" / "quick").glob("fig*.json")]
    runs = {run for figure in provenance for run in figure["runs"]}
    assert f"trains {len(runs)} models" in README


def test_its_python_runs(tmp_path: Path) -> None:
    first, processes, theory = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    G = np.random.default_rng(0).standard_normal((15, 100))
    names: dict = {"G": G, "models": [models.build("resnet18", 3, 10, 32, seed=worker) for worker in range(3)]}
    exec(first, names)
    exec(theory, names)
    names |= {"torch": torch, "g": torch.from_numpy(G[0]), "model": models.build("convnet", 1, 10, 28, seed=0)}
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    exec(processes, names)
    dist.destroy_process_group()
    np.testing.assert_allclose(names["d"], G[0])
    assert names["certificate"].bound <= names["relaxation"].bound + 1e-6
    np.testing.assert_allclose(names["result"].decision.weights @ G, names["result"].direction)


def test_every_rule_step_and_attack_is_named() -> None:
    from fa.attacks import ATTACKS
    from fa.mixing import STEPS

    for name in (*fa.RULES, *STEPS, *ATTACKS):
        assert f"`{name}`" in README


def test_every_file_it_shows_is_there() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).is_file(), target
