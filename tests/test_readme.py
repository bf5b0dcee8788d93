"""The numbers in README and docs are those of the committed figures, and the Python in them runs."""

import json
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist

import fa
from fa import models
from fa.experiments.report import STATEMENTS
from fa.experiments.study import last_points
from fa.experiments.style import RIVALS

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


def ends(name: str, by: str = "f") -> dict[tuple[str, Any], float]:
    """Final test accuracy of each variant at each value of a column, the mean over seeds."""
    last = last_points(pd.read_csv(ROOT / "figures" / f"{name}.csv"))
    return last.groupby(["variant", by])["test_accuracy"].mean().to_dict()


def behind(name: str, by: str) -> list[float]:
    """By how much FA ends below the best other rule, at each value of a column."""
    final = ends(name, by)
    places = [place for variant, place in final if variant == "fa"]
    return [max(final[key, at] for key in RIVALS if (key, at) in final) - final["fa", at] for at in places]


def with_three(name: str, *variants: str) -> list[float]:
    """Where some variants end with three faulty workers."""
    return [ends(name)[variant, 3] for variant in variants]


def reach(values: Iterable[float]) -> list[float]:
    """From the least to the largest."""
    found = list(values)
    return [min(found), max(found)]


def of_extra5(attack: str) -> dict[str, float]:
    last = last_points(pd.read_csv(ROOT / "figures/quick/extra05_combined.csv"))
    means: dict[str, float] = last[last["attack"] == attack].groupby("label")["test_accuracy"].mean().to_dict()
    return means


SAID: dict[str, Callable[[], list[float]]] = {
    "the less FA is behind the best other rule (0.18, 0.09, 0.05)": lambda: behind("quick/fig05_batch_size", "batch"),
    "FA is behind the best other rule at every size of minibatch (0.05, 0.17, 0.15)": lambda: behind(
        "cpu/fig05_batch_size", "batch"
    ),
    "and ends behind them (0.89 for 0.91)": lambda: with_three("quick/fig06a_packet_loss", "fa", "mean"),
    "FA gains with more workers and f fixed (0.21, 0.22, 0.26)": lambda: [
        value for (key, _), value in ends("cpu/fig06bcd_more_workers", "workers").items() if key == "fa"
    ],
    "FA is among the others (0.76 to 0.79)": lambda: reach(
        value for (key, _), value in ends("quick/fig07_augmented_data", "scheme").items() if key == "fa_default"
    ),
    "it has 0.28 to 0.33 and is among the others": lambda: reach(
        value for (key, _), value in ends("cpu/fig07_augmented_data", "scheme").items() if key == "fa_default"
    ),
    "the rules that are ruined (0.20; Multi-Krum 0.37)": lambda: with_three("cpu/fig10_wall_clock", "fa", "multi_krum"),
    "FA ends at 0.561 and Multi-Krum at 0.509": lambda: with_three("paper/fig04_byzantine_workers", "fa", "multi_krum"),
    "where workers collude (0.84 behind mixing, 0.75 alone)": lambda: [
        of_extra5("collude")[key] for key in ("mixing, FA", "FA")
    ],
}
"""Sentences of the findings, and what their numbers are; those of the profile quick on one kind of processor."""


@pytest.mark.parametrize("sentence", SAID)
def test_what_the_findings_say_is_in_the_tables(sentence: str) -> None:
    assert sentence in " ".join(DOCS["findings"].split())
    numbers = re.findall(r"\d\.\d+", sentence)
    for stated, measured in zip(numbers, SAID[sentence](), strict=True):
        rounded = 0.501 * 10.0 ** -len(stated.partition(".")[2])
        assert float(stated) == pytest.approx(measured, abs=0.05 if redrawn("figures/quick") else rounded)


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
