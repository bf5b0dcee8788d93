"""The numbers in README and docs are those of the committed figures, and the Python in them runs."""

import json
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import fa
from fa import models

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}


def redrawn() -> bool:
    """Return True if a committed figure was drawn anew here, as `make reproduce` does."""
    command = ["git", "diff", "--quiet", "HEAD", "--", "figures"]
    return (ROOT / ".git").exists() and subprocess.run(command, cwd=ROOT, check=False).returncode == 1


@pytest.fixture(scope="module")
def generate() -> dict[str, Any]:
    """The names of docs/generate.py."""
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))


@pytest.mark.skipif(redrawn(), reason="needs the committed figures")
def test_documents_hold_what_the_figures_say(generate: dict[str, Any]) -> None:
    """Else run `python docs/generate.py`."""
    for path in generate["pages"]():
        text = path.read_text()
        assert generate["generated"](text) == text, path.name


def test_stale_text_is_written_anew(generate: dict[str, Any]) -> None:
    name = "cpu/fig02_mean_tolerance"
    accuracies = generate["ends"](name).query("f == 3")["test_accuracy"]
    stale = f"a\n\n<!-- table: accuracy {name} f -->\n| 1 |\n<!-- /table -->\nb\n"
    table = generate["generated"](stale)
    assert (table[:2], table[-2:], "| 1 |" in table) == ("a\n", "b\n", False)
    assert all(f" {value:.3f} " in table for value in accuracies)
    marked = "a <!-- = final {} f == 3 -->{}<!-- /= --> b"
    expected = marked.format(name, ", ".join(f"{value:.2f}" for value in accuracies))
    assert generate["generated"](marked.format(name, "9.99")) == expected
    with pytest.raises(ValueError, match=r"^condition must be .*f == 9"):
        generate["generated"](f"<!-- = range {name} f == 9 --><!-- /= -->")


def test_accuracies_are_averaged_over_seeds_only(generate: dict[str, Any]) -> None:
    """Extra 3 has six values of f, whose mean would hide the rules that refuse some of them."""
    last = generate["last_points"](generate["pd"].read_csv(ROOT / "figures" / "quick" / "extra03_attacks.csv"))
    ipm = last[(last["label"] == "FA") & (last["attack"] == "ipm") & (last["f"] == 3)]["test_accuracy"]
    table = generate["accuracy"]("quick/extra03_attacks", "attack", "f", "==", "3")
    row = next(line for line in table.splitlines() if line.startswith("| FA |"))
    column = table.splitlines()[0].split(" | ").index("attack = ipm")
    assert float(row.split(" | ")[column]) == pytest.approx(ipm.mean(), abs=6e-4)
    with pytest.raises(ValueError, match=r"^condition must .*'f'.*'FA'"):
        generate["accuracy"]("quick/extra03_attacks", "attack")


def test_measured_numbers_are_those_of_the_claim(generate: dict[str, Any]) -> None:
    claims = generate["pd"].read_csv(ROOT / "figures" / "cpu" / "fig10_wall_clock.claims.csv")
    text = claims[claims["number"] == "C11"]["measured"].iloc[0]
    written = generate["measured"]("cpu", r"C11 1 Median ([\d.]+) ms")
    assert f"Median {float(written):.0f}" in re.sub(r"(\d+)\.\d", lambda number: f"{float(number[0]):.0f}", text)
    with pytest.raises(ValueError, match=r"^pattern must .*nothing"):
        generate["measured"]("cpu", "C11 1 (nothing)")


def test_multiples_of_the_mean_are_those_of_the_benchmark(generate: dict[str, Any]) -> None:
    rows = json.loads((ROOT / "benchmarks" / "bench.json").read_text())["rows"]
    ratios = [row["over_mean"] for row in rows if row["by"] == "fa" and row["rule"] == "fa" and row["n"] >= 10**6]
    low, high = (float(number) for number in generate["multiple"]("fa", "1000000").split(" to "))
    assert (low, high) == pytest.approx((min(ratios), max(ratios)), abs=0.06)


def test_the_rule_and_the_attack_of_the_page_work(tmp_path: Path) -> None:
    *_, rule, attack = blocks(DOCS["rules"])
    for name, code in (("my_rule.py", rule), ("my_attack.py", attack)):
        (tmp_path / name).write_text(code)
    G = np.random.default_rng(0).standard_normal((7, 20))
    attacked = fa.attack(G, f"{tmp_path / 'my_attack.py'}:MINE", f=2)
    np.testing.assert_array_equal(attacked, np.concatenate([-G[:2], G[2:]]))
    G[:2] += 100
    d = fa.aggregate(G, f"{tmp_path / 'my_rule.py'}:MyRule", f=2)
    np.testing.assert_allclose(d, G[2:].mean(axis=0))


def test_its_python_runs(tmp_path: Path) -> None:
    first, aggregation, _ = blocks(README)
    several, weighted, processes, _, _ = blocks(DOCS["rules"])
    [theory] = blocks(DOCS["theory"])
    G = np.random.default_rng(0).standard_normal((15, 100))
    names: dict = {
        "fa": fa,
        "G": G,
        "models": [models.build("resnet18", (3, 32, 32), 10, seed=worker) for worker in range(3)],
    }
    exec(first, {})
    exec(aggregation, names)
    exec(theory, names)
    exec(several, names)
    assert names["solution"].values.shape == (12,)
    exec(weighted, names)
    assert names["d"].shape == (100,)
    names |= {"torch": torch, "g": torch.from_numpy(G[0]), "model": models.build("convnet", (1, 28, 28), 10, seed=0)}
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    exec(processes, names)
    dist.destroy_process_group()
    np.testing.assert_allclose(names["d"], G[0])
    assert names["certificate"].bound <= names["relaxation"].bound + 1e-6
    np.testing.assert_allclose(names["result"].decision.weights @ G, names["result"].direction)


def test_its_loop_steps_along_the_direction() -> None:
    names = three_workers({"fa": fa})
    before = torch.nn.utils.parameters_to_vector(names["model"].parameters()).detach().clone()
    G = []
    for images, labels in names["batches"]:
        names["model"].zero_grad()
        torch.nn.functional.cross_entropy(names["model"](images), labels).backward()
        G.append(torch.cat([parameter.grad.flatten() for parameter in names["model"].parameters()]))
    exec(blocks(README)[2], names)
    after = torch.nn.utils.parameters_to_vector(names["model"].parameters()).detach()
    torch.testing.assert_close(after, before - 0.05 * fa.aggregate(torch.stack(G)))


def test_the_tutorial_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict = {}
    first, *others = blocks(DOCS["tutorial"])
    exec(first, names)
    assert capsys.readouterr().out in DOCS["tutorial"]
    for block in others:
        exec(block, names)
    excluded = fa.make_rule("multi_krum", f=3).aggregate(names["G"]).decision.excluded
    assert ({0, 1, 2} <= set(excluded), len(excluded)) == (True, 5)
    assert names["accuracy"]["mean"] < 0.2
    assert min(names["accuracy"]["fa"], names["accuracy"]["multi_krum"]) > 0.75


def three_workers(names: dict) -> dict:
    """Return the names that README's training loop uses: the model, and a minibatch of each worker."""
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.rand(4, 1, 28, 28, generator=generator), torch.arange(4) + worker) for worker in range(3)]
    model = models.build("convnet", (1, 28, 28), 10, seed=0).eval()  # dropout would draw from the global state
    return {**names, "torch": torch, "model": model, "batches": batches}


def blocks(text: str) -> list[str]:
    """The Python in a page."""
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_every_rule_step_and_attack_is_named() -> None:
    from fa.attacks import ATTACKS
    from fa.rules.preaggregators import PREAGGREGATORS

    documents = "".join([README, *DOCS.values()])
    for name in (*fa.RULES, *PREAGGREGATORS, *ATTACKS):
        assert f"`{name}`" in documents


def test_every_file_it_shows_is_there() -> None:
    for folder, text in [(ROOT, README), *((ROOT / "docs", page) for page in DOCS.values())]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)|(?:src|href)=\"([^\"]+)\"", text):
            path = "".join(target)
            assert path.startswith("https://") or (folder / path).is_file(), path
