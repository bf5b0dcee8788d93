"""Simulate eight Flower clients with their own digits, one of which sends noise instead of its model.

pip install 'flwr[simulation]>=1.42'
python examples/flower_app.py --rule fa        # or median, multi_krum, ...; fedavg: Flower's own mean
"""

import argparse
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor, nn

from fa import RULES, make_rule, models
from fa.data import load
from fa.data.batches import evaluation_batches, minibatch
from fa.data.splits import dirichlet
from fa.interop.flower import Strategy

CLIENTS = 8
STEPS = 20  # Number of steps of a client in a round.


def build() -> nn.Module:
    """Build the CNN for the embedded digits."""
    return models.build("convnet", shape=(1, 28, 28), classes=10, seed=0)


def minibatches(client: int, server_round: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a client's minibatches in a round, from its own images with unequal shares of each digit.

    Args:
        client: Index of the client.
        server_round: Number of the round.

    Yields:
        Normalised images (32, 1, 28, 28) and labels (32,).
    """
    data = load("mnist-mini")
    own = dirichlet(data.train_labels, CLIENTS, alpha=1.0, least=32, seed=0)[client]
    for step in range(STEPS):
        yield minibatch(data, 32, client, CLIENTS, STEPS * server_round + step, seed=0, own=own)


client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client for a round. The last client sends noise.

    Args:
        message: The server's message, with the model and the number of the round.
        context: Context of the client, with its index.

    Returns:
        The reply, with the new model and the number of examples.
    """
    client = int(context.node_config["partition-id"])
    server_round = message.content["config"]["server-round"]
    model = build()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    torch.manual_seed(CLIENTS * server_round + client)  # Each client seeds its dropout and its noise in each round.
    for images, labels in minibatches(client, server_round):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    arrays = model.state_dict()
    if client == CLIENTS - 1:
        arrays = {name: torch.rand_like(tensor) for name, tensor in arrays.items()}
    records = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 32 * STEPS})}
    return Message(RecordDict(records), reply_to=message)


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Return the test accuracy of the server's model.

    Args:
        server_round: Number of the round, which Flower passes.
        arrays: The model.
    """
    data, model = load("mnist-mini"), build()
    model.load_state_dict(arrays.to_torch_state_dict())
    model.eval()
    with torch.no_grad():
        right = sum(int((model(images).argmax(dim=1) == labels).sum()) for images, labels in evaluation_batches(data))
    return MetricRecord({"accuracy": right / len(data.test_labels)})


def serve(rule: str, f: int, rounds: int) -> ServerApp:
    """Return the server, which prints its accuracy at the end.

    Args:
        rule: "fedavg", or a name in `fa.RULES`.
        f: Number of Byzantine clients to tolerate.
        rounds: Number of rounds.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        """Run the rounds and print the accuracy."""
        nodes = {"fraction_evaluate": 0.0, "min_train_nodes": CLIENTS, "min_available_nodes": CLIENTS}
        strategy = FedAvg(**nodes) if rule == "fedavg" else Strategy(make_rule(rule, f=f), **nodes)
        result = strategy.start(grid, ArrayRecord(build().state_dict()), num_rounds=rounds, evaluate_fn=evaluate)
        accuracy = result.evaluate_metrics_serverapp[rounds]["accuracy"]
        print(f"{rule}: test accuracy {accuracy:.3f} after {rounds} rounds of {CLIENTS} clients")

    return app


def main() -> None:
    """Run the simulation.

    `run_simulation` is deprecated, but `flwr run` would leave a server process behind.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", choices=("fedavg", *RULES), default="fa")
    parser.add_argument("--f", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    run_simulation(serve(given.rule, given.f, given.rounds), client_app, num_supernodes=CLIENTS)


if __name__ == "__main__":
    main()
