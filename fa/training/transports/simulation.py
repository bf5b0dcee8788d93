"""All workers in one process, one after another: the reference for every other transport."""

from __future__ import annotations

from torch import Tensor, nn

from fa.attacks import Attack
from fa.data import Dataset
from fa.training.config import TrainConfig
from fa.training.cuda_graph import GraphedWorkers
from fa.training.parameter_vector import Buffers, zero_gradients
from fa.training.setup import configured_attack, make_workers
from fa.training.transports.base import GatheredGradients
from fa.training.transports.completion import complete


class SimulatedTransport:
    """p workers that share one model, whose parameters are the server's vector itself, and one (p, n) buffer.

    A Byzantine worker computes a gradient only if its attack reads it.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        config: TrainConfig,
        parameters: Tensor,
        attack: Attack | None = None,
    ) -> None:
        """Create the workers.

        Args:
            model: The run's model.
            dataset: The run's data set.
            config: The run's configuration.
            parameters: Vector (n,) of which the model's parameters are views.
            attack: The run's attack; by default it is created from the configuration.

        Raises:
            ValueError: The gradients do not fit in memory.
        """
        self._config = config
        self._attack = attack or configured_attack(config)
        self._G = zero_gradients(config.workers, parameters)
        self.workers = make_workers(dict(enumerate(self._G)), model, dataset, config, self._attack)
        idle = 0 if self._attack.uses_own_gradient else config.byzantine
        self._computing = self.workers[idle:]
        on_gpu = parameters.device.type == "cuda" and config.local_steps == 1  # A graph has one pass of each worker.
        self._graphs = GraphedWorkers(self._computing) if on_gpu else None

    def gradients(self, iteration: int) -> GatheredGradients:
        """Compute each worker's gradient in its row, and write the attack.

        Args:
            iteration: Iteration, from 0.

        Returns:
            The gradients. The row of a worker whose loss is not finite is NaN, unless no loss is finite.

        Raises:
            TooFewWorkersError: No honest worker has a gradient.
        """
        if self._graphs is not None:
            losses = self._graphs.write_gradients(iteration)
        else:
            losses = [worker.write_gradient(iteration) for worker in self._computing]
        by_rank = {worker.rank: loss for worker, loss in zip(self._computing, losses, strict=True)}
        loss, missing = complete(self._G, self._attack, self._config, iteration, by_rank, {})
        return GatheredGradients(self._G, loss, missing)

    def statistics(self) -> list[Buffers]:
        """Return each worker's batch-norm statistics, which the caller may write to."""
        return [worker.buffers for worker in self.workers]

    def momenta(self) -> list[Tensor]:
        """Return each worker's momentum, if the run has worker momentum."""
        return [worker.momentum for worker in self.workers if worker.momentum is not None]
