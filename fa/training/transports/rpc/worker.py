"""The worker's end of RPC: request parameters, compute the gradient, send it with the next request."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import torch

from fa import models
from fa.layers import accelerate
from fa.training.attack import configured_attack
from fa.training.config import TrainConfig
from fa.training.parameter_vector import flatten
from fa.training.transports.rounds import NEW
from fa.training.transports.rpc import connection, server
from fa.training.transports.udp import send
from fa.training.worker import Worker, load_dataset, worker_partitions


def work(rank: int, host: str, port: int) -> None:
    """Compute the gradients of one worker until the run is over.

    Random numbers depend on (seed, rank, iteration) alone, so that a worker receives nothing but parameters.

    Args:
        rank: Rank of the worker, from 0.
        host: Host of the server.
        port: Port of the server's store.

    Raises:
        ConnectionError: No server is found, or the server is gone.
    """
    with (
        connection.rpc_agent(connection.connect_store(host, port), host, server=False),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        _work(rank, host, sender)


def _work(rank: int, host: str, sender: socket.socket) -> None:
    config = TrainConfig.from_json(connection.call_server(server.describe))
    dataset = load_dataset(config)
    model = models.build(config.model, *dataset.shape, seed=config.seed)
    if config.layers == "fast":
        accelerate(model)
    parameters = flatten(model)
    gradient = torch.zeros_like(parameters)
    worker = Worker(rank, model, dataset, config, gradient, worker_partitions(config, dataset).get(rank))
    computes = rank >= config.byzantine or configured_attack(config).uses_own_gradient
    iteration, loss, seconds = NEW, torch.zeros(()), 0.0
    port = connection.call_server(server.datagram_port)
    address = None if port is None else (socket.gethostbyname(host), port)
    payload = gradient if address is None else torch.zeros(0)
    while True:
        message = rank, iteration, payload, loss, worker.buffers.tensors, seconds
        answer = connection.call_server(server.exchange, *message)
        if answer is None:
            with suppress(ConnectionError):  # the server may exit before it answers
                connection.call_server(server.acknowledge, rank)
            return
        iteration, received, state = answer
        parameters.copy_(received)
        for tensor, value in zip(worker.state, state, strict=bool(state)):
            tensor.copy_(value)
        if computes:
            started = time.perf_counter()
            loss = worker.write_gradient(iteration)
            seconds = time.perf_counter() - started
        if address is not None:
            send(sender, address, rank, iteration, gradient, config.workers)
