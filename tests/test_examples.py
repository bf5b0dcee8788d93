"""Examples that are programs of their own; those of a rule and an attack are in tests/test_user_rules.py, DDP's in
tests/test_ddp.py.
"""

import runpy
from pathlib import Path

import pytest
import torch

import fa
from tests.texts import numbers

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_language_model_learns_with_a_faulty_worker_under_fa_and_not_under_the_mean(
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = runpy.run_path(str(EXAMPLES / "characters.py"))
    threads = torch.get_num_threads()
    found = example["run"](["mean", "fa"], workers=7, byzantine=1, iterations=40)
    assert torch.get_num_threads() == threads
    text, characters = example["read"]()
    counts = torch.bincount(text).double()
    by_frequency = float(torch.distributions.Categorical(counts).entropy().exp())
    assert found["fa"] < 0.75 * by_frequency < found["mean"] < 10 * characters
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("fa"))
    assert sorted(numbers(line)) == sorted([round(found["fa"], 1), 1, 7])


def test_per_sample_gradients_are_those_of_single_images_and_resist_bad_ones() -> None:
    example = runpy.run_path(str(EXAMPLES / "per_sample.py"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 4))
        images, labels = torch.randn(5, 1, 3, 3), torch.arange(5) % 4
    G = example["per_sample_gradients"](model, images, labels)
    for row, image, label in zip(G, images, labels, strict=True):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(image[None]), label[None]).backward()
        torch.testing.assert_close(row, torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    found = {name: example["train"](fa.make_rule(name, f=3), bad=3, iterations=60) for name in ("mean", "fa")}
    assert found["fa"] > 2 * found["mean"]
