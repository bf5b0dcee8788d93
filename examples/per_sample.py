"""Aggregate per-sample gradients, one row of G for each image of a minibatch, from torch.func.

python examples/per_sample.py --rule fa --bad 3    # Three images of each minibatch are 100 times too bright.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import fa
from fa.data import load
from fa.data.batches import evaluation_batches, minibatch

BATCH = 24


def per_sample_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradients G (B, n), with the coordinates in the order of the model's parameters.

    Args:
        model: The model, with n parameters.
        images: Images (B, channels, height, width).
        labels: Labels (B,).
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, image[None]), label[None])

    layers = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)
    return torch.cat([layer.flatten(start_dim=1) for layer in layers.values()], dim=1)


def train(rule: fa.Rule, bad: int, iterations: int, seed: int = 0) -> float:
    """Train a small network on the embedded digits, and return the test accuracy.

    Args:
        rule: The rule.
        bad: Number of images in each minibatch of 24 whose brightness is 100 times too large.
        iterations: Number of steps of Adam.
        seed: Seed of the parameters and minibatches; default 0.
    """
    dataset = load("mnist-mini")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for iteration in range(iterations):
        images, labels = minibatch(dataset, BATCH, 0, 1, iteration, seed)
        images[:bad] *= 100
        fa.set_grad(model.parameters(), rule(per_sample_gradients(model, images, labels), iteration))
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        right = sum(
            int((model(images).argmax(dim=1) == labels).sum()) for images, labels in evaluation_batches(dataset)
        )
    return right / len(dataset.test_labels)


def main() -> None:
    """Print the test accuracy of the rule that is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", choices=fa.RULES, default="fa")
    parser.add_argument("--bad", type=int, default=3, choices=range(BATCH // 2))
    parser.add_argument("--iterations", type=int, default=300)
    given = parser.parse_args()
    accuracy = train(fa.make_rule(given.rule, f=given.bad), given.bad, given.iterations)
    print(f"{given.rule}: test accuracy {accuracy:.3f} with {given.bad} of {BATCH} images too bright")


if __name__ == "__main__":
    main()
