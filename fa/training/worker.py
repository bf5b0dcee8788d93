"""One worker: a minibatch, a forward and a backward pass, and a gradient in its row of G."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn

from fa import models
from fa.attacks import Attack
from fa.augment.recipes import MANIFEST, Recipe, augmented_dataset, load_built
from fa.data import Dataset, load
from fa.data.batches import check_batch, minibatch
from fa.data.dataset import hold_out
from fa.data.splits import by_class, dirichlet, gamma_similarity
from fa.layers import accelerate
from fa.training.config import TrainConfig
from fa.training.parameter_vector import Buffers, flatten, views
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
        loss = sum(self._backward(*part, len(images) / len(part[0])) for part in parts)
        for parameter, _ in self._gradients:
            parameter.grad = None
        return torch.as_tensor(loss)

    def _apply_momentum(self) -> None:
        """Update the momentum by the gradient in the row, and replace the gradient by it; only with worker momentum."""
        if self.momentum is not None:
            beta = self._config.worker_momentum
            self._row.copy_(self.momentum.mul_(beta).add_(self._row, alpha=1 - beta))

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


def make_workers(
    rows: Mapping[int, Tensor], model: nn.Module, dataset: Dataset, config: TrainConfig, attack: Attack
) -> list[Worker]:
    """Create workers of a run, which share the model and the data.

    The data are augmented and moved to the run's device once.

    Args:
        rows: Row of G (n,) by rank.
        model: Model at whose parameters gradients are computed.
        dataset: The run's data set.
        config: The run's configuration.
        attack: The run's attack.

    Returns:
        The workers, in the order of `rows`.

    Raises:
        ValueError: A rank does not exist, or the recipe of augmentation does not fit the attack.
    """
    parts, recipe = worker_partitions(config, dataset), parse_recipe(config, attack)
    device = with_index(torch.device(config.device))
    datasets: dict[bool, Dataset] = {}  # on the device, plain and augmented, if a worker draws from it
    workers = []
    for rank, row in rows.items():
        byzantine = rank < config.byzantine
        augments = recipe is not None and (byzantine or config.augmented == "all")
        if augments not in datasets:
            images = augmented_dataset(dataset, recipe, config.seed) if recipe is not None and augments else dataset
            datasets[augments] = images.to(device)
        flips_labels = byzantine and attack.flips_labels
        workers.append(Worker(rank, model, datasets[augments], config, row, parts.get(rank), flips_labels))
    return workers


def build_model(config: TrainConfig, dataset: Dataset, device: torch.device | str = "cpu") -> tuple[nn.Module, Tensor]:
    """Build a run's model.

    Args:
        config: The run's configuration.
        dataset: The run's data set.
        device: Device of the parameters.

    Returns:
        The model, and the vector (n,) of which its parameters are views.

    Raises:
        ValueError: Unknown model, or images that it does not accept.
    """
    model = models.build(config.model, dataset.shape, dataset.classes, seed=config.seed).to(device)
    if config.layers == "fast":
        accelerate(model)
    return model, flatten(model)


def load_dataset(config: TrainConfig) -> Dataset:
    """Load the data set of a run, by its name or from a folder that `fa augment` wrote.

    With `config.validation`, that share of the training images replaces the test images.

    Args:
        config: The run's configuration.

    Returns:
        The data set.

    Raises:
        MissingDataError: The data set is missing or damaged.
    """
    written = (Path(config.dataset) / MANIFEST).is_file()
    dataset = load_built(config.dataset) if written else load(config.dataset)
    return hold_out(dataset, config.validation) if config.validation else dataset


def worker_partitions(config: TrainConfig, dataset: Dataset) -> dict[int, Int64[np.ndarray, " k"]]:
    """Partition the training images among the honest workers, as `config.split` says.

    Args:
        config: The run's configuration.
        dataset: The run's data set.

    Returns:
        Indices of a worker's training images, by rank. Ranks that it does not have draw from all images.

    Raises:
        ValueError: An honest worker has fewer images than a minibatch.
    """
    labels, honest, batch = dataset.train_labels, config.workers - config.byzantine, config.max_images
    if config.split == "iid":
        check_batch(batch, len(labels), config.workers, config.sampling)
        return {}
    if config.alpha is not None:
        parts = dirichlet(labels, honest, config.alpha, batch, config.seed)
    else:
        check_batch(batch, len(labels), honest, "cycled")
        if config.gamma is not None:
            parts = gamma_similarity(labels, honest, config.gamma, config.seed)
            check_batch(batch, min(part.size for part in parts), 1, "cycled")
        else:
            parts = by_class(labels, honest)
    return dict(enumerate(parts, config.byzantine))


def parse_recipe(config: TrainConfig, attack: Attack) -> Recipe | None:
    """Parse the recipe that augments a run's training images.

    Args:
        config: The run's configuration.
        attack: The run's attack.

    Returns:
        The recipe; None without augmentation.

    Raises:
        ValueError: The recipe is invalid, or only Byzantine workers augment and their attack ignores their gradients.
    """
    if not config.augmentation:
        return None
    idle = config.augmented == "faulty" and not attack.uses_own_gradient
    check("attack", config.attack, not idle, "one that reads the gradients of the augmented images, such as none")
    return Recipe.of(config.augmentation)
