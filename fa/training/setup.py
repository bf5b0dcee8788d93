"""Set-up of a run from its configuration: data set, model, attack and workers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from fa import models
from fa.attacks import Attack, make_attack
from fa.augment.recipes import MANIFEST, Recipe, augmented_dataset, load_augmented
from fa.data import Dataset, load
from fa.data.batches import check_batch
from fa.data.dataset import hold_out
from fa.data.splits import by_class, dirichlet, gamma_similarity
from fa.layers import accelerate
from fa.rules import make_rule
from fa.training.config import TrainConfig
from fa.training.parameter_vector import flatten
from fa.training.worker import Worker
from fa.utils import seeds
from fa.utils.devices import with_index
from fa.utils.validation import check


def configured_attack(config: TrainConfig) -> Attack:
    """Create a run's attack with its options, and with the run's rule if the attack uses it.

    Args:
        config: The run's configuration.

    Returns:
        The attack.

    Raises:
        ValueError: The attack, the rule, or an option is invalid.
    """
    rule = make_rule(config.rule, f=config.rule_f, **config.options)
    return make_attack(config.attack, rule, **dict(config.attack_options))


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
    dataset = load_augmented(config.dataset) if written else load(config.dataset)
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
    return Recipe.from_options(config.augmentation)


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
        ValueError: A rank does not exist, the recipe of augmentation does not fit the attack, or a backward pass would
            have a single image, with which the model's batch normalisation cannot compute.
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
    computing = [rank for rank in rows if rank >= config.byzantine or attack.uses_own_gradient]
    if any(_fewest_images(config, dataset, rank, parts.get(rank)) == 1 for rank in computing):
        _check_single_image(config, dataset, model)
    return workers


def _fewest_images(config: TrainConfig, dataset: Dataset, rank: int, own: Int64[np.ndarray, " k"] | None) -> int:
    """Return the number of images in the smallest backward pass of a worker in this run."""
    batch = config.batches[rank]
    if config.sampling != "sequential":
        return batch
    images = len(dataset.train_labels) // config.workers if own is None else len(own)
    minibatch = batch * config.accumulate
    if config.iterations * config.local_steps < -(-images // minibatch):  # The run ends before the pass.
        return batch
    return (images % minibatch or minibatch) % batch or batch


def _check_single_image(config: TrainConfig, dataset: Dataset, model: nn.Module) -> None:
    """Raise ValueError if the model cannot compute the gradient of one image, as with batch normalisation."""
    device = next(model.parameters()).device
    try:
        with torch.no_grad(), seeds.fork_global_rng(0, device):
            copy.deepcopy(model).train()(torch.zeros(1, *dataset.shape, device=device))
    except ValueError as error:
        requirement = "a number that leaves no single image in a backward pass"
        raise ValueError(f"batch must be {requirement}, got {config.batch}: {error}") from error
