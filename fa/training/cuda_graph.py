"""The workers' forward and backward passes as one CUDA graph.

A worker's step is a few hundred small kernels. Launched from Python one after another, they leave a GPU idle most of
the time. A graph launches those of all workers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fa.layers.worker_batch import WorkerBatch, supports
from fa.training.config import TrainConfig
from fa.training.worker import Worker

_STREAMS = 8  # workers at a time, if each has its own kernels

Minibatches = Sequence[tuple[Tensor, Tensor]]
"""Each worker's images and labels."""

Passes = Callable[[Minibatches], Sequence[Tensor]]
"""Writes the workers' gradients, and returns their losses."""


class GraphedWorkers:
    """Workers on one GPU, whose gradients are computed by graphs.

    With the setting `layers` "torch", gradients have the bits that they have without a graph. With "fast", the workers
    share each kernel where the model allows it, and gradients are equal up to rounding.

    There is one graph for each combination of minibatch shapes. The first iteration of a combination runs without a
    graph: libraries initialise, and a model that draws random numbers shows. Such a model never runs as a graph, since
    each worker's draws have a seed of their own.
    """

    def __init__(self, workers: Sequence[Worker], model: nn.Module, G: Tensor, config: TrainConfig) -> None:
        """Prepare graphs.

        Args:
            workers: The workers that compute gradients.
            model: Their model.
            G: Their rows (W, n).
            config: The run's configuration.
        """
        self._workers, self._model, self._G, self._config = workers, model, G, config
        self._batch: WorkerBatch | None = None
        self._graphs: dict[tuple[torch.Size, ...], _Graph | None] = {}
        self._draws = False

    def write_gradients(self, iteration: int) -> Sequence[Tensor]:
        """Write each worker's gradient into its row.

        Args:
            iteration: Iteration, from 0.

        Returns:
            Loss of each worker's minibatch, scalar tensors, which the next iteration may overwrite.
        """
        minibatches = [worker.minibatch(iteration) for worker in self._workers]
        shapes = tuple(images.shape for images, _ in minibatches)
        if self._draws or shapes not in self._graphs:
            self._graphs[shapes] = None
            return self._one_by_one(minibatches, iteration)
        graph = self._graphs[shapes]
        if graph is None:
            graph = self._graphs[shapes] = _Graph(self._passes(shapes), minibatches)
        return graph.replay(minibatches)

    def _one_by_one(self, minibatches: Minibatches, iteration: int) -> list[Tensor]:
        losses = []
        for worker, (images, labels) in zip(self._workers, minibatches, strict=True):
            with worker.random_numbers(iteration):
                before = _random_states(images.device)
                losses.append(worker.compute(images, labels))
                after = _random_states(images.device)
            self._draws |= any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
        return losses

    def _passes(self, shapes: tuple[torch.Size, ...]) -> Passes:
        config = self._config
        together = config.layers == "fast" and config.precision == "float32" and len(set(shapes)) == 1
        if not (together and supports(self._model)):
            return self._on_streams
        if self._batch is None:
            self._batch = WorkerBatch(self._model, self._G, [worker.buffers.tensors for worker in self._workers])
        return self._together

    def _on_streams(self, minibatches: Minibatches) -> list[Tensor]:
        first = torch.cuda.current_stream()
        streams = [torch.cuda.Stream(self._G.device) for _ in range(min(_STREAMS, len(self._workers)))]
        losses = []
        for stream in streams:
            stream.wait_stream(first)
        for k, (worker, pair) in enumerate(zip(self._workers, minibatches, strict=True)):
            with torch.cuda.stream(streams[k % len(streams)]):
                losses.append(worker.compute(*pair))
        for stream in streams:
            first.wait_stream(stream)
        return losses

    def _together(self, minibatches: Minibatches) -> list[Tensor]:
        assert self._batch is not None
        images, labels = (torch.stack(tensors) for tensors in zip(*minibatches, strict=True))
        self._G.zero_()
        pieces = zip(images.split(self._config.batch, 1), labels.split(self._config.batch, 1), strict=True)
        losses = sum(self._batch.backward(*piece, self._config.accumulate) for piece in pieces)
        for worker in self._workers:
            worker.apply_momentum()
        return list(torch.as_tensor(losses).unbind())


class _Graph:
    """The passes of all workers on minibatches of given shapes."""

    def __init__(self, passes: Passes, minibatches: Minibatches) -> None:
        self._inputs = [(images.clone(), labels.clone()) for images, labels in minibatches]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._losses = passes(self._inputs)

    def replay(self, minibatches: Minibatches) -> Sequence[Tensor]:
        for inputs, pair in zip(self._inputs, minibatches, strict=True):
            for static, tensor in zip(inputs, pair, strict=True):
                static.copy_(tensor)
        self._graph.replay()
        return self._losses


def _random_states(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device)
