"""One worker: a minibatch, a forward and a backward pass, and a gradient in its row of G."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn

from fa.data import Dataset
from fa.data.batches import minibatch
from fa.training.config import TrainConfig
from fa.training.parameter_vector import Buffers, views
from fa.utils import seeds
from fa.utils.devices import with_index
from fa.utils.memory import attribute_out_of_memory
from fa.utils.validation import check


class Worker:
    """Computes the gradients of one rank, and writes them into its row of G.

    Workers may share a model; each has its batch-norm statistics.

    All random numbers of a gradient (minibatch, augmentation, dropout) depend on (seed, rank, iteration) alone. A
    worker in another process therefore computes the same bits. Augmented images, which may replace the data set's,
    depend on the seed and the recipe alone.
    """

    def __init__(
        self,
        rank: int,
        model: nn.Module,
        dataset: Dataset,
        config: TrainConfig,
        row: Tensor,
        indices: Int64[np.ndarray, " k"] | None = None,
        flips_labels: bool = False,
    ) -> None:
        """Prepare a worker; `make_workers` prepares those of a run.

        Args:
            rank: Rank of the worker; ranks below `config.byzantine` are Byzantine.
            model: Model at whose parameters gradients are computed.
            dataset: Data set from which the worker draws, on the run's device.
            config: The run's configuration.
            row: The worker's row of G (n,), to which gradients are written.
            indices: Training images that the worker draws from; None for all.
            flips_labels: True for an attack on the labels.
        """
        p = config.workers
        check("rank", rank, 0 <= rank < p, f"at least 0 and less than the run's {p} workers")
        self.rank = rank
        self.momentum = torch.zeros_like(row) if config.worker_momentum else None  # of the last gradient
        self.buffers = Buffers(model)
        self._model = model
        self._row = row
        self._gradients = list(zip(model.parameters(), views(row, model), strict=True))
        self._indices = indices
        self._config = config
        self._batch = config.batches[rank]
        self._device = with_index(torch.device(config.device))
        self._flips_labels = flips_labels
        self._dataset = dataset

    def write_gradient(self, iteration: int) -> Tensor:
        """Write the gradient of the iteration's minibatch into the row; with worker momentum, write the momentum.

        Args:
            iteration: Iteration, from 0.

        Returns:
            Loss of the minibatch, a scalar tensor.

        Raises:
            ValueError: A minibatch does not fit in memory.
        """
        with attribute_out_of_memory("batch", self._config.batch, "Or take fewer workers, or a smaller model."):
            if self._config.local_steps > 1:
                return self._write_local_steps(iteration)
            images, labels = self.minibatch(iteration)
            with self.random_numbers(iteration):
                return self.compute(images, labels)

    def _write_local_steps(self, iteration: int) -> Tensor:
        """Write the sum of the gradients of K steps of SGD, each at the parameters that the steps before gave.

        It is the change of the parameters over -lr, up to rounding. The local rate is `config.lr` throughout, and local
        steps have neither momentum nor weight decay. The parameters are restored afterwards. Step k of an iteration t
        draws what iteration t K + k draws without local steps.
        """
        steps, rate = self._config.local_steps, self._config.lr
        before = [parameter.detach().clone() for parameter, _ in self._gradients]
        total, losses = torch.zeros_like(self._row), []
        with torch.no_grad():
            for step in range(iteration * steps, (iteration + 1) * steps):
                images, labels = self.minibatch(step)
                with torch.enable_grad(), self.random_numbers(step):
                    losses.append(self._write_plain_gradient(images, labels))
                total += self._row
                for parameter, gradient in self._gradients:
                    parameter.sub_(gradient, alpha=rate)
            for (parameter, _), value in zip(self._gradients, before, strict=True):
                parameter.copy_(value)
        self._row.copy_(total)
        self._apply_momentum()
        return torch.stack(losses).mean()

    def random_numbers(self, iteration: int) -> AbstractContextManager[None]:
        """Seed the global generators for what the model draws in this iteration, such as dropout.

        Args:
            iteration: Iteration, from 0.

        Returns:
            A context, which restores the generators' states.
        """
        return seeds.fork_global_rng(
            seeds.derive_seed("dropout", self._config.seed, self.rank, iteration), self._device
        )

    def compute(self, images: Tensor, labels: Tensor) -> Tensor:
        """Write the gradient of a minibatch into the row; with worker momentum, write the momentum.

        Args:
            images: Normalised images, float32 (B, C, H, W).
            labels: Labels, int64 (B,).

        Returns:
            Loss of the minibatch, a scalar tensor.
        """
        loss = self._write_plain_gradient(images, labels)
        self._apply_momentum()
        return loss

    def _write_plain_gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        """Write the gradient of a minibatch into the row, and return its loss.

        The backward passes add to p.grad in place, and p.grad is a view of the zeroed row: nothing is copied.
        """
        self.buffers.install()
        self._row.zero_()
        for parameter, view in self._gradients:
            parameter.grad = view
        if not self._model.training:  # train() visits all modules, which costs 1% of a small model's passes
            self._model.train()
        parts = zip(images.split(self._batch), labels.split(self._batch), strict=True)
        losses = [self._backward(*part, len(images) / len(part[0])) for part in parts]
        for parameter, _ in self._gradients:
            parameter.grad = None
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _apply_momentum(self) -> None:
        """Update the momentum by the gradient in the row, and replace the gradient by it; only with worker momentum.

        A gradient that is not finite is sent, and does not remain in the momentum.
        """
        if self.momentum is not None:
            beta = self._config.worker_momentum
            self._row.copy_(self.momentum.mul(beta).add_(self._row, alpha=1 - beta))
            self.momentum.copy_(torch.where(self._row.isfinite().all(), self._row, self.momentum))

    def _backward(self, images: Tensor, labels: Tensor, parts: float) -> Tensor:
        """Run one backward pass over one of so many parts of the minibatch; return its share of the loss."""
        mixed = torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.precision == "bfloat16")
        with mixed:
            loss = F.cross_entropy(self._model(images), labels) / parts
        loss.backward()
        return loss.detach()

    @property
    def carried(self) -> list[Tensor]:
        """Tensors that depend on earlier iterations: batch-norm statistics, and the momentum if there is one."""
        return self.buffers.tensors + ([] if self.momentum is None else [self.momentum])

    def minibatch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Return the iteration's images, normalised float32 (B, C, H, W), and labels (B,), on the run's device.

        With an attack that flips labels, those of a Byzantine worker are flipped.

        Args:
            iteration: Iteration, from 0.

        Returns:
            The images and the labels.
        """
        config = self._config
        images, labels = minibatch(
            self._dataset,
            batch=self._batch * config.accumulate,
            worker=self.rank,
            workers=config.workers,
            iteration=iteration,
            seed=config.seed,
            sampling=config.sampling,
            device=self._device,
            own=self._indices,
        )
        return images, self._dataset.classes - 1 - labels if self._flips_labels else labels
