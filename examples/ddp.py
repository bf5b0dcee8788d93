"""Train with DistributedDataParallel and a robust rule, while the last process sends noise instead of its gradients.

torchrun --nproc-per-node 4 examples/ddp.py --rule fa        # or median, meamed, ...; ddp: its own mean
"""

import argparse
import gc

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from fa import RULES, make_rule, models
from fa.data import load
from fa.data.batches import evaluation_batches, minibatch
from fa.training import ddp


def main() -> None:
    """Train the CNN on the embedded digits, 32 images per process, and print the test accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", choices=("ddp", *RULES), default="fa")
    parser.add_argument("--f", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=200)
    given = parser.parse_args()
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    dataset = load("mnist-mini")
    model = DistributedDataParallel(models.build("convnet", shape=(1, 28, 28), classes=10, seed=0))
    if given.rule != "ddp":
        ddp.register(model, make_rule(given.rule, f=given.f))  # This line is the only difference from plain DDP.
    if rank == size - 1:
        for parameter in model.parameters():
            parameter.register_hook(torch.rand_like)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(rank)  # Each rank seeds its dropout and its noise.
    for iteration in range(given.iterations):
        images, labels = minibatch(dataset, 32, rank, size, iteration, seed=0)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    if rank == 0:
        model.eval()
        with torch.no_grad():
            right = sum(int((model.module(x).argmax(dim=1) == y).sum()) for x, y in evaluation_batches(dataset))
        print(f"{given.rule}: test accuracy {right / len(dataset.test_labels):.3f} after {given.iterations} iterations")
    del model, optimizer  # fa/training/ddp.py explains why this order is necessary.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
