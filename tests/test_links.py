"""Packet loss: chunks that never arrive, in the simulator and over links that lose packets for real."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from fa.attacks import CHUNK, DROPPED, make_attack

N = 60 * CHUNK + 7  # the last chunk is short
CHUNKS = 61


def lost_chunks(row: Tensor, sent: Tensor) -> list[bool]:
    """Which chunks of `row` are zero; each of the others must be what was sent."""
    lost = []
    for got, whole in zip(row.split(CHUNK), sent.split(CHUNK), strict=True):
        lost.append(not got.any())
        assert lost[-1] or torch.equal(got, whole)
    return lost


def emulated(iterations: int, faulty: int = 3) -> list[list[bool]]:
    """The lost chunks of each faulty worker in each iteration of the simulation."""
    sent = torch.rand(faulty + 2, N, generator=torch.Generator().manual_seed(1)) + 1
    rows = []
    for iteration in range(iterations):
        G = sent.clone()
        make_attack("chunk_loss").apply(G, range(faulty), 2021, iteration)
        assert torch.equal(G[faulty:], sent[faulty:])
        rows += [lost_chunks(G[worker], sent[worker]) for worker in range(faulty)]
    return rows


def is_binomial(hits: int, trials: int, probability: float) -> bool:
    """Within 6 standard deviations: outside by chance about twice in 10^9."""
    return abs(hits - trials * probability) < 6 * math.sqrt(trials * probability * (1 - probability))


def look_independent(rows: list[list[bool]]) -> None:
    """A tenth of the chunks are lost, and what follows a lost one is lost no more often."""
    assert is_binomial(sum(map(sum, rows)), len(rows) * CHUNKS, DROPPED)
    pairs = [(a, b) for row in rows for a, b in pairwise(row)]
    assert is_binomial(sum(a and b for a, b in pairs), len(pairs), DROPPED**2)


def test_the_emulation_loses_whole_chunks_a_tenth_of_them_each_by_itself() -> None:
    rows = emulated(200)
    look_independent(rows)
    assert is_binomial(sum(row[-1] for row in rows), len(rows), DROPPED)  # the short one as well
    assert len(set(map(tuple, rows))) == len(rows)
