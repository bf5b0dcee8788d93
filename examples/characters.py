"""Train a language model of characters in plain PyTorch with p workers, one of which sends noise.

python examples/characters.py                     # The text is Python's own language reference.
python examples/characters.py --rules mean median fa --byzantine 2
"""

import argparse
from collections.abc import Sequence
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import fa

CONTEXT = 32  # Largest number of characters from which the next one is predicted.


class Model(nn.Module):
    """A GRU that predicts the next character.

    Args:
        characters: Number of different characters.
        width: Size of the embedding and of the hidden state; default 64.
    """

    def __init__(self, characters: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.output = nn.Linear(width, characters)

    def forward(self, text: Tensor) -> Tensor:
        """Return the logits (B, T, characters) of the next character, after each character of the text (B, T)."""
        logits: Tensor = self.output(self.recurrent(self.embedding(text))[0])
        return logits


def aggregate(
    model: nn.Module, batches: Sequence[Tensor], byzantine: int, rule: fa.Rule, noise: torch.Generator
) -> Tensor:
    """Return the rule's direction (n,) for the workers' gradients.

    Args:
        model: The model, with n parameters.
        batches: One batch of text per worker, each (B, T).
        byzantine: Number of Byzantine workers. The first ones send noise instead of their gradients.
        rule: The rule.
        noise: Generator of the noise.
    """
    gradients = []
    for batch in batches:
        gradients.append(torch.autograd.grad(loss_of(model, batch), list(model.parameters())))
    G = torch.stack([parameters_to_vector(own) for own in gradients])
    G[:byzantine] = torch.rand(byzantine, G.shape[1], generator=noise)
    return rule(G)


def loss_of(model: nn.Module, text: Tensor) -> Tensor:
    """Return the mean cross entropy of each character except the first, given those before it.

    Args:
        model: The model.
        text: Indices of characters (B, T).
    """
    return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def train(rule: fa.Rule, workers: int, byzantine: int, iterations: int, seed: int) -> float:
    """Train a model and return its perplexity on held-out text.

    Args:
        rule: The rule.
        workers: Number of workers.
        byzantine: Number of Byzantine workers.
        iterations: Number of iterations.
        seed: Seed of parameters, batches and noise.
    """
    text, characters = read()
    train_text, test_text = text[: -len(text) // 10], text[-len(text) // 10 :]
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Model(characters)
    for iteration in range(iterations):
        batches = [pieces(train_text, 16, draw) for _ in range(workers)]
        direction = aggregate(model, batches, byzantine, rule, draw)
        rate = 4.0 * min(1.0, 2 * (1 - iteration / iterations))  # The gradients' norm is about 0.1.
        vector_to_parameters(parameters_to_vector(model.parameters()) - rate * direction, model.parameters())
    with torch.no_grad():
        return float(loss_of(model, pieces(test_text, 500, draw)).exp())


def read() -> tuple[Tensor, int]:
    """Return Python's language reference as indices of characters (T,), and the number of different characters."""
    text = "".join(topics[name] for name in sorted(topics)).lower()[:400_000]
    known = sorted(set(text))
    number = {character: i for i, character in enumerate(known)}
    return torch.tensor([number[character] for character in text]), len(known)


def pieces(text: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Draw pieces of the text at random.

    Args:
        text: Indices of characters (T,).
        count: Number of pieces.
        draw: Generator of the draws.

    Returns:
        Pieces (count, CONTEXT + 1).
    """
    starts = torch.randint(len(text) - CONTEXT, (count, 1), generator=draw)
    return text[starts + torch.arange(CONTEXT + 1)]


def run(rules: Sequence[str], workers: int, byzantine: int, iterations: int, seed: int = 0) -> dict[str, float]:
    """Train with each rule and print the perplexities.

    Args:
        rules: Names of the rules.
        workers: Number of workers.
        byzantine: Number of Byzantine workers.
        iterations: Number of iterations.
        seed: Seed of the runs; default 0.

    Returns:
        Perplexity by rule.
    """
    found = {}
    for name in rules:
        rule = fa.make_rule(name, f=0 if name in ("fa", "mean") else byzantine)
        found[name] = train(rule, workers, byzantine, iterations, seed)
        print(f"{name}: perplexity {found[name]:.1f} with {byzantine} of {workers} workers Byzantine", flush=True)
    return found


def main() -> None:
    """Compare the rules given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", choices=fa.RULES, default=["mean", "fa"])
    parser.add_argument("--workers", type=int, default=7)
    parser.add_argument("--byzantine", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=300)
    given = parser.parse_args()
    if not 0 <= given.byzantine < given.workers or given.iterations < 1:
        parser.error("there must be more workers than Byzantine ones, and an iteration or more")
    run(given.rules, given.workers, given.byzantine, given.iterations)


if __name__ == "__main__":
    main()
