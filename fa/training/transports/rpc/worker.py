"""A worker's end: ask for parameters, compute the gradient, hand it over with the next question."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import torch

from fa import models
from fa.attacks import make_attack
from fa.layers import accelerate
from fa.training.config import TrainConfig
from fa.training.parameter_vector import flatten
from fa.training.transports.rpc import connection, server
from fa.training.transports.udp import send
from fa.training.worker import Worker, data_of, own_images


def work(rank: int, host: str, port: int) -> None:
    """Worker `rank` of the run that is served at host:port, until that is over.

    What it computes, it draws by (seed, rank, iteration): it is sent nothing but the parameters. Raises ConnectionError
    where no server is found, or once it is gone.
    """
    with (
        connection.agent(connection.reach(host, port), host, server=False),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        _work(rank, host, sender)


def _work(rank: int, host: str, sender: socket.socket) -> None:
    config = TrainConfig.from_json(connection.ask(server.describe))
    dataset = data_of(config)
    model = models.build(config.model, *dataset.shape, seed=config.seed)
    if config.layers == "fast":
        accelerate(model)
    parameters = flatten(model)
    gradient = torch.zeros_like(parameters)
    worker = Worker(rank, model, dataset, config, gradient, own_images(config, dataset).get(rank))
    computes = rank >= config.byzantine or make_attack(config.attack).uses_own_gradient
    iteration, loss, seconds = server.NEW, torch.zeros(()), 0.0
    port = connection.ask(server.datagrams)  # of another socket, if there is one
    address = None if port is None else (socket.gethostbyname(host), port)
    handed = gradient if address is None else torch.zeros(0)
    while True:
        answer = connection.ask(server.exchange, rank, iteration, handed, loss, worker.buffers.tensors, seconds)
        if answer is None:
            with suppress(ConnectionError):  # the server may be gone before it answers
                connection.ask(server.leave, rank)
            return
        iteration, sent, state = answer
        parameters.copy_(sent)
        for own, theirs in zip(worker.state, state, strict=bool(state)):
            own.copy_(theirs)
        if computes:
            started = time.perf_counter()
            loss = worker.gradient(iteration)
            seconds = time.perf_counter() - started
        if address is not None:
            send(sender, address, rank, iteration, gradient, config.workers)
