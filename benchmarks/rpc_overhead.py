"""Compare an iteration over RPC with gloo, which moves the same bytes between the same processes.

The two take turns. Workers compute nothing. An RPC iteration distributes the parameters, collects the gradients,
computes the Gram matrix, applies the rule and takes a step. gloo only distributes the parameters and collects the
gradients.
"""

from __future__ import annotations

import argparse
import socket
import threading
from datetime import timedelta
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore

from fa.rules import make_rule
from fa.training import TrainConfig
from fa.training.optimizer import SGD
from fa.training.parameter_vector import flatten
from fa.training.transports.base import LOOPBACK, RpcConfig
from fa.training.transports.rounds import NEW
from fa.training.transports.rpc import connection, server
from fa.utils.forkserver import exit_when_parent_dies, forkserver_context
from fa.utils.timing import PhaseTimer, elapsed


def gloo(port: int, rank: int, workers: int) -> dist.ProcessGroup:
    """Create a process's end of the gloo group."""
    store = TCPStore(LOOPBACK, port, is_master=rank == 0, wait_for_workers=False, use_libuv=False)
    return dist.ProcessGroupGloo(store, rank, workers + 1, timedelta(seconds=300))


def sender(rank: int, workers: int, n: int, rounds: int, ports: tuple[int, int]) -> None:
    """Run a worker, which serves gloo in a thread and RPC in the process."""
    exit_when_parent_dies()
    torch.set_num_threads(1)
    gradient = torch.randn(n, generator=torch.Generator().manual_seed(rank))
    group = gloo(ports[1], rank + 1, workers)

    def serve_gloo() -> None:
        """Receive parameters and send a gradient in each round."""
        parameters = torch.empty(n)
        for _ in range(rounds):
            group.recv([parameters], 0, 0).wait()
            group.send([gradient], 0, 1).wait()

    thread = threading.Thread(target=serve_gloo)
    thread.start()
    parameters = torch.empty(n)
    with connection.rpc_agent(connection.connect_store(LOOPBACK, ports[0]), LOOPBACK, server=False):
        iteration = NEW
        loss: torch.Tensor = torch.zeros(())
        while (answer := connection.call_server(server.exchange, rank, iteration, gradient, loss, [])) is not None:
            iteration, sent, _ = answer
            parameters.copy_(sent)
        connection.call_server(server.acknowledge, rank)
    thread.join()


def exchange_by_gloo(group: dist.ProcessGroup, parameters: Tensor, G: Tensor) -> None:
    """Send the parameters to all workers and receive their gradients."""
    out = [group.send([parameters], rank + 1, 0) for rank in range(len(G))]
    back = [group.recv([row], rank + 1, 1) for rank, row in enumerate(G)]
    for work in out + back:
        work.wait()


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.create_server((LOOPBACK, 0)) as free:
        return int(free.getsockname()[1])


def main() -> None:
    """Print medians, ratios and the parts of an iteration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=11_181_642)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rule", default="fa")
    given = parser.parse_args()
    model = nn.Linear(given.n, 1, bias=False)
    parameters = flatten(model)
    config = TrainConfig(workers=given.workers, byzantine=0, attack="none", rule=given.rule, lr=1e-6)
    rule, timer, optimizer = make_rule(given.rule, f=0), PhaseTimer(), SGD(parameters, config, epoch_length=1000)
    transport = server.RpcTransport(model, config, parameters, RpcConfig(), rule.needs_gram, timer)
    server.set_active(transport)
    store, port = connection.create_store(LOOPBACK, 0)
    ports, seconds, by_gloo, deciding = (port, free_port()), [], [], []
    G = torch.empty(given.workers, given.n)

    def iterate(iteration: int) -> None:
        """Run one iteration over RPC."""
        with timer.phase("gather"):
            gathered = transport.gradients(iteration, parameters)
        with timer.phase("aggregate"):
            direction = rule.aggregate(gathered.G, iteration, inner_products=gathered.inner_products).direction
        with timer.phase("update"):
            optimizer.step(direction, iteration)
        deciding.append(
            elapsed(lambda: rule.aggregate(gathered.G[:, :64], iteration, inner_products=gathered.inner_products))
        )

    with connection.rpc_agent(store, LOOPBACK, server=True):
        context = forkserver_context("fa.training.transports.rpc.worker")
        shape = (given.workers, given.n, given.rounds + 1, ports)
        processes = [context.Process(target=sender, args=(rank, *shape), daemon=True) for rank in range(given.workers)]
        for process in processes:
            process.start()
        group = gloo(ports[1], 0, given.workers)
        transport.join()
        for iteration in range(given.rounds + 1):  # The first iteration compiles and connects.
            if iteration == 1:
                timer.seconds.clear()
                deciding.clear()
            seconds.append(elapsed(lambda: iterate(iteration)))  # noqa: B023
            by_gloo.append(elapsed(lambda: exchange_by_gloo(group, parameters, G)))
        transport.close()
        for process in processes:
            process.join()
    ratios = sorted(one / other for one, other in zip(seconds[1:], by_gloo[1:], strict=True))
    print(f"{given.workers} workers, n = {given.n:,}, {given.rule}, {given.rounds} rounds, medians:")
    print(f"  RPC {1e3 * median(seconds[1:]):.0f} ms, gloo {1e3 * median(by_gloo[1:]):.0f} ms")
    print(f"  ratio {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    each = {part: 1e3 * its / given.rounds for part, its in timer.seconds.items()}
    decide = 1e3 * median(deciding)
    gram = each.get("gram", 0.0)
    print(
        f"  of which, in ms: send and receive {each['gather'] - gram:.0f}, Gram {gram:.0f}, decide {decide:.1f}, "
        f"apply {each['aggregate'] - decide:.0f}, update {each['update']:.0f}"
    )


if __name__ == "__main__":
    main()
