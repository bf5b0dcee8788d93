"""One worker: a minibatch, a forward and a backward pass, and a gradient that lands in its row of G."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn

from fa.attacks import make_attack
from fa.augment.recipes import MANIFEST, Recipe, augmented, load_built
from fa.data import Dataset, load
from fa.data.batches import check_batch, minibatch
from fa.data.dataset import hold_out
from fa.data.splits import by_class, dirichlet
from fa.training.config import TrainConfig
from fa.training.parameter_vector import Buffers, views
from fa.utils import seeds
from fa.utils.validation import check


class Worker:
    """Worker `rank` of a run, which writes its gradients into `row` (n,).

    Its model may be shared with others: only the batch-norm statistics are its own.

    Everything random in a gradient (the minibatch, its augmentation, dropout) depends on (seed, rank, iteration) alone,
    so that a worker in another process computes the same numbers. So do the augmented images that it may have in place
    of the data set's: on the seed alone, and the recipe.
    """

    def __init__(
        self,
        rank: int,
        model: nn.Module,
        dataset: Dataset,
        config: TrainConfig,
        row: Tensor,
        own: Int64[np.ndarray, " k"] | None = None,
    ) -> None:
        """`own`: which training images are its own, if not all."""
        self.rank = rank
        self.momentum = torch.zeros_like(row) if config.worker_momentum else None  # what it has sent last
        self.buffers = Buffers(model)
        self._model = model
        self._row = row
        self._gradients = list(zip(model.parameters(), views(row, model), strict=True))
        recipe = recipe_of(config) if config.augmented == "all" or rank < config.byzantine else None
        self._own = own
        self._dataset = dataset if recipe is None else augmented(dataset, recipe, config.seed)
        self._config = config
        self._device = torch.device(config.device)

    def gradient(self, iteration: int) -> Tensor:
        """Write the gradient of iteration's minibatch, or the momentum with it, into the row and return the minibatch's
        loss, a scalar tensor.

        The backward passes add to p.grad in place, and p.grad is a view of the zeroed row: nothing is copied.
        """
        images, labels = self.minibatch(iteration)
        self.buffers.install()
        self._row.zero_()
        for parameter, view in self._gradients:
            parameter.grad = view
        if not self._model.training:  # going through all the modules takes a hundredth of a small model's passes
            self._model.train()
        with seeds.fork_global_rng(seeds.derive_seed("dropout", self._config.seed, self.rank, iteration), self._device):
            loss = sum(map(self._backward, images.split(self._config.batch), labels.split(self._config.batch)))
        for parameter, _ in self._gradients:
            parameter.grad = None
        if self.momentum is not None:
            beta = self._config.worker_momentum
            self._row.copy_(self.momentum.mul_(beta).add_(self._row, alpha=1 - beta))
        return torch.as_tensor(loss)

    def _backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """One backward pass: its share of the minibatch's loss."""
        mixed = torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.precision == "bfloat16")
        with mixed:
            loss = F.cross_entropy(self._model(images), labels) / self._config.accumulate
        loss.backward()
        return loss.detach()

    @property
    def state(self) -> list[Tensor]:
        """What of it depends on earlier iterations: batch-norm statistics, and its momentum if it has one."""
        return self.buffers.tensors + ([] if self.momentum is None else [self.momentum])

    def minibatch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """The images, normalised float32 (B, C, H, W), and labels (B,) of an iteration, on the run's device."""
        config = self._config
        return minibatch(
            self._dataset,
            batch=config.images,
            worker=self.rank,
            workers=config.workers,
            iteration=iteration,
            seed=config.seed,
            sampling=config.sampling,
            device=self._device,
            own=self._own,
        )


def data_of(config: TrainConfig) -> Dataset:
    """The data set of a run, by its name or a folder that `fa augment` wrote; with a validation share, the training
    images kept for it are the test images.
    """
    written = (Path(config.dataset) / MANIFEST).is_file()
    dataset = load_built(config.dataset) if written else load(config.dataset)
    return hold_out(dataset, config.validation) if config.validation else dataset


def own_images(config: TrainConfig, dataset: Dataset) -> dict[int, Int64[np.ndarray, " k"]]:
    """Training images that are one worker's own, by its rank; those who are not there draw from all. ValueError where
    an honest one has fewer than a minibatch.
    """
    labels, honest, batch = dataset.train_labels, config.workers - config.byzantine, config.images
    if config.split == "iid":
        check_batch(batch, len(labels), config.workers, config.sampling)
        return {}
    if config.alpha is not None:
        dealt = dirichlet(labels, honest, config.alpha, batch, config.seed)
    else:
        check_batch(batch, len(labels), honest, "cycled")
        dealt = by_class(labels, honest)
    return dict(enumerate(dealt, config.byzantine))


def recipe_of(config: TrainConfig) -> Recipe | None:
    """What a run's training images are augmented by, if any worker's are; ValueError for a recipe that is none, and for
    faulty workers who would compute no gradient of their augmented images.
    """
    if not config.augmentation:
        return None
    idle = config.augmented == "faulty" and not make_attack(config.attack).uses_own_gradient
    needed = "none, as the faulty workers' augmented images are all that is wrong, or one made of their own gradients"
    check("attack", config.attack, not idle, needed)
    return Recipe.of(config.augmentation)
