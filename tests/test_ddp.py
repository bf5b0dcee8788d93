"""DDP under the hook, over four real processes: plain DDP where the rule is the mean, one decision for all buckets."""

import copy
import gc
import os
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fa import make_rule
from fa.training import ddp
from fa.training.transports.server_config import LOOPBACK
from tests.groups import in_processes
from tests.processes import free_port
from tests.texts import numbers

P = 4
EXAMPLE = Path(__file__).parents[1] / "examples" / "ddp.py"


class Net(nn.Module):
    """Layers of some kB each; with `more` there is also one that takes no part, and one that does in every other
    iteration.
    """

    def __init__(self, more: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 30), nn.Tanh(), nn.Linear(30, 3))
        if more:
            self.unused, self.rare = nn.Linear(7, 5), nn.Linear(3, 3)
        self.more = more

    def forward(self, x: Tensor, often: bool) -> Tensor:
        y = self.layers(x)
        return y if often or not self.more else self.rare(y)


def parallel(more: bool = True) -> DistributedDataParallel:
    """Buckets of about 4 kB, which DDP cuts anew after the first iteration unless there may be unused parameters."""
    torch.manual_seed(0)
    return DistributedDataParallel(Net(more), bucket_cap_mb=0.004, find_unused_parameters=more)


def loss(model: nn.Module, rank: int, iteration: int) -> Tensor:
    x = torch.randn(8, 20, generator=torch.Generator().manual_seed(100 * iteration + rank))
    return model(x, iteration % 2 == 0).square().sum()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()])


def trained(model: DistributedDataParallel, rank: int) -> np.ndarray:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for iteration in range(6):
        optimizer.zero_grad()
        loss(model, rank, iteration).backward()
        optimizer.step()
    return parameters(model)


def parameters(model: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


def work(rank: int, p: int, folder: Path) -> None:
    """Do all that is measured in one set of processes: each of them imports DDP for two seconds."""
    save_gradients(rank, folder)
    refuses(rank)
    gives_nan_if_too_few_gradients_are_finite(rank)
    run_example(rank, p, folder)


def save_gradients(rank: int, folder: Path) -> None:
    found = {}
    for more in (False, True):
        plain, mean = parallel(more), parallel(more)
        found[f"start/{more}"] = parameters(plain)
        ddp.register(mean, "mean")
        found[f"plain/{more}"], found[f"mean/{more}"] = trained(plain, rank), trained(mean, rank)
        told = mean._get_ddp_logging_data()
        assert told["num_buckets_reduced"] > 1
        assert told["has_rebuilt_buckets"] == (not more)
    for name, f in (("krum", 0), ("fa", 0), ("median", 1), ("multi_krum", 0)):
        for faulty in (False, True):
            wrapped = parallel()
            if faulty and rank == 1:
                wrapped.module.layers[0].bias.register_hook(lambda g: torch.full_like(g, torch.nan))
            aggregation = ddp.register(wrapped, make_rule(name, f=f))
            for iteration in range(3):
                wrapped.zero_grad()
                own = copy.deepcopy(wrapped.module)
                loss(own, rank, iteration).backward()
                loss(wrapped, rank, iteration).backward()
            found[f"{name}/{faulty}/g"], found[f"{name}/{faulty}/d"] = flat(own).numpy(), flat(wrapped).numpy()
            assert aggregation.decision is not None
            found[f"{name}/{faulty}/left out"] = np.array(repr(aggregation.decision.excluded))
    np.savez(folder / f"{rank}.npz", **found)


def refuses(rank: int) -> None:
    with pytest.raises(ValueError, match=r"^model must be .*'Net'"):
        ddp.register(Net(False), "fa")
    with pytest.raises(ValueError, match=rf"^bulyan\b.*\b4f\b.*\b{P}\b.*\b1\b"):
        ddp.register(parallel(), make_rule("bulyan", f=1))
    with pytest.raises(ValueError, match=r"^regularizer must be .*'l1'"):
        ddp.register(parallel(), make_rule("fa", lam=1.0, regularizer="l1"))
    sparse = parallel()
    sparse.module.add_module("words", nn.Embedding(2, 2, sparse=True))
    with pytest.raises(ValueError, match=r"^sparse of words must be .*False"):
        ddp.register(sparse, "mean")
    sparse.module.words.requires_grad_(False)
    sparse.module.sparse = nn.Linear(1, 1)  # an attribute of this name alone
    ddp.register(sparse, "mean")


def gives_nan_if_too_few_gradients_are_finite(rank: int) -> None:
    """As plain DDP does, so that a GradScaler skips the step, and the next backward pass is as usual."""
    model = parallel()
    aggregation = ddp.register(model, make_rule("multi_krum", f=0))
    hook = model.module.layers[0].bias.register_hook(lambda g: torch.full_like(g, torch.inf) if rank > 1 else g)
    loss(model, rank, 0).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert aggregation.decision is None
    assert all(bool(gradient.isnan().all()) for gradient in gradients)
    hook.remove()
    model.zero_grad()
    loss(model, rank, 1).backward()
    assert aggregation.decision is not None
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def run_example(rank: int, p: int, folder: Path) -> None:
    """Run the example as torchrun starts it: without a group, and with the rank in the environment."""
    gc.collect()  # Models end before their group does: see fa/training/ddp.py.
    dist.barrier()
    dist.destroy_process_group()
    port = int((folder / "port").read_text())
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(p), "MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port)}
    sys.argv = ["ddp.py", "--rule", "multi_krum", "--iterations", "30"]
    with (folder / f"{rank}.txt").open("w") as out, redirect_stdout(out):
        runpy.run_path(str(EXAMPLE), run_name="__main__")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "port").write_text(str(free_port()))
    in_processes(work, P, folder)
    printed = [(folder / f"{rank}.txt").read_text() for rank in range(P)]
    return [dict(np.load(folder / f"{rank}.npz")) | {"example": np.array(printed[rank])} for rank in range(P)]


@pytest.mark.parametrize("more", [False, True])
def test_the_mean_trains_as_plain_ddp_does(more: bool, found: list[dict[str, np.ndarray]]) -> None:
    plain, mean = found[0][f"plain/{more}"], found[0][f"mean/{more}"]
    assert np.abs(plain - found[0][f"start/{more}"]).max() > 0.03
    np.testing.assert_allclose(mean, plain, rtol=0, atol=2e-6)
    for other in found[1:]:
        np.testing.assert_array_equal(other[f"mean/{more}"], mean)


@pytest.mark.parametrize("faulty", [False, True])
@pytest.mark.parametrize("name", ["krum", "multi_krum", "fa", "median"])
def test_the_gradient_is_the_rules_of_whole_gradients(
    name: str, faulty: bool, found: list[dict[str, np.ndarray]]
) -> None:
    G = np.stack([rank[f"{name}/{faulty}/g"] for rank in found])
    if faulty:
        G[1, 0] = np.nan
    expected = make_rule(name, f=int(name == "median")).aggregate(G)
    for rank in found:
        np.testing.assert_allclose(rank[f"{name}/{faulty}/d"], expected.direction, rtol=1e-5, atol=1e-5)
        assert str(rank[f"{name}/{faulty}/left out"]) == repr(expected.decision.excluded)
    assert (1 in expected.decision.excluded) >= faulty


def test_the_example_runs_in_the_environment_of_torchrun(found: list[dict[str, np.ndarray]]) -> None:
    (line,) = str(found[0]["example"]).splitlines()
    assert line.startswith("multi_krum")
    accuracy, iterations = numbers(line)
    assert iterations == 30
    assert 0.2 < accuracy <= 1
    assert [str(rank["example"]) for rank in found[1:]] == [""] * (P - 1)
