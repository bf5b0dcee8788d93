"""What was recorded is what the workers sent."""

from dataclasses import replace

import pytest
import torch

from fa.experiments.runs.recording import record, watch
from fa.training import TrainConfig, train

CONFIG = TrainConfig(rule="mean", workers=3, byzantine=1, iterations=9, batch=4, lr=0.05, evaluate_every=0)


def test_the_recorded_gradients_are_those_of_the_run():
    kept = record(CONFIG, at=(1, 3))
    sent = []
    train(replace(CONFIG, iterations=3), progress=lambda progress: sent.append(progress.G.clone()))
    assert list(kept) == [1, 3]
    assert torch.equal(kept[1], sent[0])
    assert torch.equal(kept[3], sent[2])
    assert not torch.equal(kept[1], kept[3])


def test_watched_rows_are_those_of_every_interval():
    rows, run = watch(CONFIG, lambda progress: [{"iteration": progress.iteration}] * 2, every=3)
    assert [row["iteration"] for row in rows] == [3, 3, 6, 6, 9, 9]
    assert run.config == CONFIG


def test_wrong_iterations_are_named():
    with pytest.raises(ValueError, match=r"^at must be .*\(\)"):
        record(CONFIG, at=())
    with pytest.raises(ValueError, match=r"^every must be .*\b0\b"):
        watch(CONFIG, lambda progress: [], every=0)
