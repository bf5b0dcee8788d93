"""Compare an iteration over TCP and over RPC with gloo, which moves the same bytes between the same processes.

The three take turns. Workers compute nothing. An iteration over TCP or RPC distributes the parameters, collects the
gradients, computes the Gram matrix, applies the rule and takes a step. gloo only moves parameters and gradients.
"""

from __future__ import annotations

import argparse
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore

import fa
from fa.rules import make_rule
from fa.training import TrainConfig
from fa.training.optimizer import SGD
from fa.training.parameter_vector import flatten
from fa.training.transports.base import LOOPBACK, RpcConfig, ServedRun, TcpConfig, Transport
from fa.training.transports.gathering import Gathering
from fa.training.transports.rounds import NEW
from fa.training.transports.rpc import connection
from fa.training.transports.rpc import server as rpc
from fa.training.transports.tcp.link import connect
from fa.training.transports.tcp.messages import TOKEN_SIZE, Header, Kind, byte_views, digest
from fa.training.transports.tcp.server import RoundServer
from fa.training.transports.tcp.transport import TcpTransport
from fa.utils.addresses import create_listener
from fa.utils.forkserver import exit_when_parent_dies, forkserver_context
from fa.utils.timing import PhaseTimer, elapsed

CHECKSUM = "benchmark"


def gloo(port: int, rank: int, workers: int) -> dist.ProcessGroup:
    """Create a process's end of the gloo group."""
    store = TCPStore(LOOPBACK, port, is_master=rank == 0, wait_for_workers=False, use_libuv=False)
    return dist.ProcessGroupGloo(store, rank, workers + 1, timedelta(seconds=300))


def serve_gloo(group: dist.ProcessGroup, gradient: Tensor, rounds: int) -> None:
    """Receive parameters and send a gradient in each round."""
    parameters = torch.empty_like(gradient)
    for _ in range(rounds):
        group.recv([parameters], 0, 0).wait()
        group.send([gradient], 0, 1).wait()


def serve_tcp(port: int, rank: int, gradient: Tensor) -> None:
    """Receive parameters and send a gradient in each round."""
    n, parameters = len(gradient), torch.empty_like(gradient)
    link, configuration = connect(LOOPBACK, port, rank, None, bytes(TOKEN_SIZE) + fa.__version__.encode(), 60.0)
    link.send(Header(Kind.JOIN, link.run, n=n), [digest(configuration.decode()) + CHECKSUM.encode()])
    while (header := link.receive(Kind.WORK, Kind.END)).kind is Kind.WORK:
        link.read_into(byte_views([parameters]))
        link.send(Header(Kind.GRADIENT, link.run, rank, header.iteration, n), byte_views([gradient]))
    link.close()


def serve_rpc(port: int, rank: int, gradient: Tensor) -> None:
    """Receive parameters and send a gradient in each round."""
    parameters = torch.empty_like(gradient)
    with connection.rpc_agent(connection.connect_store(LOOPBACK, port), LOOPBACK, server=False):
        iteration, loss = NEW, torch.zeros(())
        while (answer := connection.call_server(rpc.exchange, rank, iteration, gradient, loss, [])) is not None:
            iteration, sent, _ = answer
            parameters.copy_(sent)
        connection.call_server(rpc.acknowledge, rank)


def sender(rank: int, workers: int, n: int, rounds: int, ports: tuple[int, int, int]) -> None:
    """Run a worker, which serves gloo and TCP in threads and RPC in the process."""
    exit_when_parent_dies()
    torch.set_num_threads(1)
    gradient = torch.randn(n, generator=torch.Generator().manual_seed(rank))
    group = gloo(ports[2], rank + 1, workers)
    threads = [
        threading.Thread(target=serve_gloo, args=(group, gradient, rounds)),
        threading.Thread(target=serve_tcp, args=(ports[0], rank, gradient)),
    ]
    for thread in threads:
        thread.start()
    serve_rpc(ports[1], rank, gradient)
    for thread in threads:
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


class Iterations:
    """Iterations over one transport, and their times."""

    def __init__(self, name: str, config: TrainConfig, parameters: Tensor) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.timer = PhaseTimer()
        self._deciding: list[float] = []
        self._rule = make_rule(config.rule, f=0)
        self._optimizer = SGD(parameters, config, decay_every=10_000)

    def run(self, transport: Transport, iteration: int) -> None:
        """Run and time one iteration."""
        self.seconds.append(elapsed(lambda: self._run(transport, iteration)))

    def _run(self, transport: Transport, iteration: int) -> None:
        timer, rule = self.timer, self._rule
        with timer.phase("gather"):
            gathered = transport.gradients(iteration)
        K = gathered.inner_products
        with timer.phase("aggregate"):
            direction = rule.aggregate(gathered.G, iteration, inner_products=K).direction
        with timer.phase("update"):
            self._optimizer.step(direction, iteration)
        self._deciding.append(elapsed(lambda: rule.aggregate(gathered.G[:, :64], iteration, inner_products=K)))

    def warmed_up(self) -> None:
        """Forget the first iteration, which compiles and connects."""
        for times in (self.seconds, self._deciding, self.timer.seconds):
            times.clear()

    def report(self, by_gloo: list[float]) -> None:
        """Print medians, ratios and the parts of an iteration."""
        rounds = len(self.seconds)
        ratios = sorted(one / other for one, other in zip(self.seconds, by_gloo, strict=True))
        each = {part: 1e3 * total / rounds for part, total in self.timer.seconds.items()}
        decide, gram = 1e3 * median(self._deciding), each.get("gram", 0.0)
        print(
            f"  {self.name} {1e3 * median(self.seconds):.0f} ms, "
            f"ratio to gloo {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
        print(
            f"    in ms: send and receive {each['gather'] - gram:.0f}, Gram {gram:.0f}, decide {decide:.1f}, "
            f"apply {each['aggregate'] - decide:.0f}, update {each['update']:.0f}"
        )


def main() -> None:
    """Print the times of all transports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=11_181_642)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rule", default="fa")
    given = parser.parse_args()
    model = nn.Linear(given.n, 1, bias=False)
    parameters = flatten(model)
    config = TrainConfig(workers=given.workers, byzantine=0, attack="none", rule=given.rule, lr=1e-6)
    over_tcp, over_rpc = (Iterations(name, config, parameters) for name in ("TCP", "RPC"))
    needs_gram = make_rule(given.rule, f=0).needs_gram
    runs = [ServedRun(model, config, parameters, CHECKSUM, needs_gram, over.timer) for over in (over_tcp, over_rpc)]
    gathering = Gathering(runs[0])
    listener = create_listener(LOOPBACK, 0)
    tcp = TcpTransport(RoundServer(runs[0], gathering, TcpConfig(), None), gathering, listener, None, over_tcp.timer)
    by_rpc = rpc.RpcTransport(runs[1], RpcConfig())
    rpc.set_active(by_rpc)
    store, port = connection.create_store(LOOPBACK, 0)
    ports = listener.getsockname()[1], port, free_port()
    G, by_gloo = torch.empty(given.workers, given.n), list[float]()
    turns: list[Callable[[int], None]] = [lambda k: over_tcp.run(tcp, k), lambda k: over_rpc.run(by_rpc, k)]
    with connection.rpc_agent(store, LOOPBACK, server=True):
        context = forkserver_context("fa.training.transports.rpc.worker")
        shape = (given.workers, given.n, given.rounds + 1, ports)
        processes = [context.Process(target=sender, args=(rank, *shape), daemon=True) for rank in range(given.workers)]
        for process in processes:
            process.start()
        group = gloo(ports[2], 0, given.workers)
        tcp.join()
        by_rpc.join()
        for iteration in range(given.rounds + 1):
            for turn in turns:
                turn(iteration)
            by_gloo.append(elapsed(lambda: exchange_by_gloo(group, parameters, G)))
            if iteration == 0:
                for each in (over_tcp, over_rpc):
                    each.warmed_up()
                by_gloo.clear()
        tcp.close()
        by_rpc.close()
        tcp.stop()
        for process in processes:
            process.join()
    print(f"{given.workers} workers, n = {given.n:,}, {given.rule}, {given.rounds} rounds, medians:")
    print(f"  gloo {1e3 * median(by_gloo):.0f} ms")
    over_tcp.report(by_gloo)
    over_rpc.report(by_gloo)


if __name__ == "__main__":
    main()
