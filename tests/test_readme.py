"""The numbers in README and docs are those of the committed figures, and the Python in them runs."""

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
from fa.experiments.report import STATEMENTS
from fa.experiments.study import last_points

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}


@pytest.mark.parametrize("profile", ["quick", "cpu"])
def test_the_table_is_the_figures(profile: str) -> None:
    path = f"figures/{profile}/fig04_byzantine_workers.csv"
    last = last_points(pd.read_csv(ROOT / path)).groupby(["label", "f"])["test_accuracy"].mean()
    measured = {key: f"{accuracy:.3f}" for key, accuracy in last.items()}
    section = DOCS["findings"].partition(f"## At profile {profile}")[2].partition("\n## ")[0]
    rows = [cells for cells in table(section) if re.fullmatch(r"0\.\d{3}", cells[-1])]
    stated = {(label, f): row[f - 1] for label, *row in rows for f in (1, 2, 3)}
    if not redrawn(path):
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
    aggregation, _ = blocks(README)
    [processes] = blocks(DOCS["rules"])
    [theory] = blocks(DOCS["theory"])
    G = np.random.default_rng(0).standard_normal((15, 100))
    names: dict = {"G": G, "models": [models.build("resnet18", 3, 10, 32, seed=worker) for worker in range(3)]}
    exec(aggregation, names)
    exec(theory, names)
    names |= {"torch": torch, "g": torch.from_numpy(G[0]), "model": models.build("convnet", 1, 10, 28, seed=0)}
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    exec(processes, names)
    dist.destroy_process_group()
    np.testing.assert_allclose(names["d"], G[0])
    assert names["certificate"].bound <= names["relaxation"].bound + 1e-6
    np.testing.assert_allclose(names["result"].decision.weights @ G, names["result"].direction)


def test_its_loop_steps_along_the_direction() -> None:
    names = of_three_workers({"fa": fa})
    before = torch.nn.utils.parameters_to_vector(names["model"].parameters()).detach().clone()
    exec(blocks(README)[1], names)
    after = torch.nn.utils.parameters_to_vector(names["model"].parameters()).detach()
    torch.testing.assert_close(after, before - 0.05 * fa.aggregate(names["G"], f=1))
    images, labels = names["batches"][2]
    names["model"].zero_grad()
    torch.nn.utils.vector_to_parameters(before, names["model"].parameters())
    torch.nn.functional.cross_entropy(names["model"](images), labels).backward()
    its = torch.cat([parameter.grad.flatten() for parameter in names["model"].parameters()])
    torch.testing.assert_close(names["G"][2], its)


def of_three_workers(names: dict) -> dict:
    """What the README's loop over a model finds: the model, and a minibatch of each worker."""
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.rand(4, 1, 28, 28, generator=generator), torch.arange(4) + worker) for worker in range(3)]
    model = models.build("convnet", 1, 10, 28, seed=0).eval()  # dropout would draw from the global state
    return {**names, "torch": torch, "model": model, "batches": batches}


def blocks(text: str) -> list[str]:
    """The Python in a page."""
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_every_rule_step_and_attack_is_named() -> None:
    from fa.attacks import ATTACKS
    from fa.mixing import STEPS

    told = "".join([README, *DOCS.values()])
    for name in (*fa.RULES, *STEPS, *ATTACKS):
        assert f"`{name}`" in told


def test_every_file_it_shows_is_there() -> None:
    for folder, text in [(ROOT, README), *((ROOT / "docs", page) for page in DOCS.values())]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)|(?:src|href)=\"([^\"]+)\"", text):
            assert (folder / "".join(target)).is_file(), target


@pytest.mark.parametrize("column", ["quick", "cpu"])
def test_its_verdicts_are_those_of_the_figures(column: str) -> None:
    folder = ROOT / "figures" / column
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.claims.csv")):
        if redrawn(str(path.relative_to(ROOT))):
            pytest.skip(f"{path.name} was drawn again here, and margins near a limit may have moved")
        for row in pd.read_csv(path).itertuples():
            found.setdefault(row.number, []).append(row.verdict)
    columns = ["quick", "cpu"]
    stated = {cells[0]: cells[2 + columns.index(column)] for cells in table(README) if cells[0] in STATEMENTS}
    assert stated == {number: "; ".join(found.get(number, [])) for number in STATEMENTS}


def table(text: str) -> list[list[str]]:
    """The cells of every row of every table."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", text, re.MULTILINE)
    ]
