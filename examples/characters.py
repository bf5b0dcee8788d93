"""A language model of characters, trained in plain PyTorch by p workers, one of which sends noise.

python examples/characters.py                     # the text: Python's own reference, which comes with it
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

CONTEXT = 32  # characters that the next one is predicted from, at the most


class Model(nn.Module):
    """A GRU that gives the logits of the next character, (B, T, characters), after each of (B, T)."""

    def __init__(self, characters: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.output = nn.Linear(width, characters)

    def forward(self, text: Tensor) -> Tensor:
        """The logits after each character."""
        logits: Tensor = self.output(self.recurrent(self.embedding(text))[0])
        return logits


def aggregate(
    model: nn.Module, batches: Sequence[Tensor], byzantine: int, rule: fa.Rule, noise: torch.Generator
) -> Tensor:
    """The rule's direction (n,) of the workers' gradients, the first of which are noise in place of their own."""
    gradients = []
    for batch in batches:
        gradients.append(torch.autograd.grad(loss_of(model, batch), list(model.parameters())))
    G = torch.stack([parameters_to_vector(own) for own in gradients])
    G[:byzantine] = torch.rand(byzantine, G.shape[1], generator=noise)
    return rule(G)


def loss_of(model: nn.Module, text: Tensor) -> Tensor:
    """The mean cross entropy of each character (B, T) but the first, given those before it."""
    return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def train(rule: fa.Rule, workers: int, byzantine: int, iterations: int, seed: int) -> float:
    """Train from the seed; the perplexity on text that nobody trained on: as if so many characters were as likely."""
    text, characters = read()
    train_text, test_text = text[: -len(text) // 10], text[-len(text) // 10 :]
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Model(characters)
    for iteration in range(iterations):
        batches = [pieces(train_text, 16, draw) for _ in range(workers)]
        direction = aggregate(model, batches, byzantine, rule, draw)
        rate = 4.0 * min(1.0, 2 * (1 - iteration / iterations))  # the gradients' common length is about 0.1
        vector_to_parameters(parameters_to_vector(model.parameters()) - rate * direction, model.parameters())
    with torch.no_grad():
        return float(loss_of(model, pieces(test_text, 500, draw)).exp())


def read() -> tuple[Tensor, int]:
    """Python's language reference as numbers of characters, and how many different ones there are."""
    text = "".join(topics[name] for name in sorted(topics)).lower()[:400_000]
    known = sorted(set(text))
    number = {character: i for i, character in enumerate(known)}
    return torch.tensor([number[character] for character in text]), len(known)


def pieces(text: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """So many pieces of the text, drawn at random."""
    starts = torch.randint(len(text) - CONTEXT, (count, 1), generator=draw)
    return text[starts + torch.arange(CONTEXT + 1)]


def run(rules: Sequence[str], workers: int, byzantine: int, iterations: int, seed: int = 0) -> dict[str, float]:
    """The perplexity with each rule, printed as it comes."""
    found = {}
    for name in rules:
        rule = fa.make_rule(name, f=0 if name in ("fa", "mean") else byzantine)
        found[name] = train(rule, workers, byzantine, iterations, seed)
        print(f"{name}: perplexity {found[name]:.1f} with {byzantine} of {workers} workers faulty", flush=True)
    return found


def main() -> None:
    """Compare rules."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", choices=fa.RULES, default=["mean", "fa"])
    parser.add_argument("--workers", type=int, default=7)
    parser.add_argument("--byzantine", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=300)
    given = parser.parse_args()
    if not 0 <= given.byzantine < given.workers or given.iterations < 1:
        parser.error("there must be more workers than faulty ones, and an iteration or more")
    run(given.rules, given.workers, given.byzantine, given.iterations)


if __name__ == "__main__":
    main()
