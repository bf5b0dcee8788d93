"""Packet loss: chunks that never arrive, in the simulator and over links that lose packets for real."""

import ctypes
import math
import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from fa.attacks import CHUNK, DROPPED, make_attack
from fa.experiments.figures import fig06a
from fa.experiments.measurements import tcp_loss
from fa.experiments.measurements.lossy_links import SERVER, Links, star_network, unsupported_reason
from fa.experiments.reporting import time_to_accuracy
from fa.experiments.reporting.claims import HOLDS, IN_PART, MISSING, NOT
from fa.experiments.runs.variants import PAPER_RULES_AND_MEAN
from fa.training import TrainConfig, train
from fa.training.records import USED
from fa.training.transports.udp import Inbox, create_sender, send
from fa.utils.addresses import create_listener
from tests.processes import wait_until

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
    rows = emulated(100)
    look_independent(rows)
    assert is_binomial(sum(row[-1] for row in rows), len(rows), DROPPED)  # the short one as well
    assert len(set(map(tuple, rows))) == len(rows)


REFUSAL = unsupported_reason()
CLONE_NEWNET = 0x40000000
needs_namespaces = pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)


def udp_socket(namespace: str) -> socket.socket:
    """Create a UDP socket in a network namespace, usable from any thread of this process."""

    def create() -> socket.socket:
        with Path("/run/netns", namespace).open("rb") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"entering the namespace {namespace}")
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    with ThreadPoolExecutor(1) as thread:  # Only this thread enters the namespace.
        return thread.submit(create).result()


def received(links: Links, iterations: int, previous: bool = False) -> list[tuple[int, int, Tensor, Tensor]]:
    """(worker, chunks lost, what came, what was sent) of every gradient that the workers send over their links."""
    workers = len(links.workers)
    receiver = udp_socket(links.server)
    receiver.bind((SERVER, 0))
    inbox = Inbox(receiver, workers, N, previous)
    senders = [udp_socket(name) for name in links.workers]
    stream = torch.Generator().manual_seed(2)
    found = []
    for iteration in range(iterations):
        G = torch.rand(workers, N, generator=stream) + 1
        inbox.begin(iteration)
        for worker, sender in enumerate(senders):
            sender.connect((SERVER, inbox.port))
            send(sender, worker, iteration, G[worker], inbox.keys[worker])
        came = torch.empty(workers, N)
        lost = inbox.collect(range(workers), came)
        found += [(worker, lost.get(worker, 0), came[worker], G[worker]) for worker in range(workers)]
    inbox.close()
    for sender in senders:
        sender.close()
    return found


@needs_namespaces
def test_real_links_lose_as_the_emulation_does() -> None:
    with star_network(3, lossy=2) as links:
        found = received(links, 50)
    rows = []
    for worker, count, row, sent in found:
        lost = lost_chunks(row, sent)
        assert sum(lost) == count
        if worker < 2:
            rows.append(lost)
        else:
            assert count == 0  # a link that loses nothing
    look_independent(rows)
    both = rows, emulated(50)
    numbers = [[sum(row) for row in of] for of in both]
    runs = [[sum(b and not a for a, b in pairwise(row)) for row in of] for of in both]
    for real, seeded in (numbers, runs):
        assert ks_2samp(real, seeded).pvalue > 1e-7  # discrete, so that it is seldomer still


@needs_namespaces
def test_what_is_lost_may_stay_as_it_was() -> None:
    with star_network(1, lossy=1, loss=0.3) as links:
        found = received(links, 5, previous=True)
    before = torch.zeros(N)
    for _, count, row, sent in found:
        kept = [torch.equal(*pair) for pair in zip(row.split(CHUNK), before.split(CHUNK), strict=True)]
        came = [torch.equal(*pair) for pair in zip(row.split(CHUNK), sent.split(CHUNK), strict=True)]
        assert [not old for old in kept] == came
        assert sum(kept) == count
        before = row


def trained_over(folder: Path, lossy: int, *arguments: str) -> tuple[pd.DataFrame, int]:
    """workers.csv of a short run of four workers over links, and what TCP sent again."""
    with star_network(4, lossy) as links:
        tcp_loss.train_over(links, folder, ["--rule=median", "--iterations=3", "--batch=4", "--threads=1", *arguments])
        return pd.read_csv(folder / "workers.csv"), links.retransmitted_segments()


@pytest.mark.parametrize("command", [["sleep", "60"], ["false"]])
def test_a_run_over_links_that_fails_or_takes_too_long_is_a_runtime_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setattr(tcp_loss, "_LIMIT", 0.2 if command[0] == "sleep" else 60.0)
    monkeypatch.setattr(tcp_loss, "_fa", lambda *_: command)
    with pytest.raises(RuntimeError):
        tcp_loss.train_over(Links("hub", ("one", "two"), "nothing"), tmp_path / "run", [])


@pytest.mark.slow
@needs_namespaces
def test_what_tcp_sends_again_comes_whole(tmp_path: Path) -> None:
    """Links that lose a tenth of their packets, of parameters and of gradients, change no bit of the simulation."""
    rows, resent = trained_over(tmp_path / "links", 3, "--rule=fa", "--byzantine=0")
    assert resent > 20  # a gradient or its parameters have 61 segments: about 6 of each are lost
    config = TrainConfig(rule="fa", workers=4, byzantine=0, iterations=3, batch=4)
    train(config, threads=1, out=tmp_path / "simulation")
    pd.testing.assert_frame_equal(rows, pd.read_csv(tmp_path / "simulation" / "workers.csv"))


@pytest.mark.slow
@needs_namespaces
def test_a_training_run_counts_the_datagrams_that_its_links_lose(tmp_path: Path) -> None:
    rows, _ = trained_over(tmp_path / "links", 2, "--gradients=udp", "--byzantine=0")
    sent = len(list(torch.zeros(21_840).split(CHUNK)))
    lost = rows["status"].str.extract(rf"^{USED}; (\d+) of {sent}\b")[0].astype(float)
    assert set(rows.loc[rows["worker"] >= 2, "status"]) == {USED}
    assert is_binomial(int(lost.sum()), 2 * 3 * sent, DROPPED)
    assert lost.sum() > 0


@needs_namespaces
def test_namespaces_go_when_something_fails_inside() -> None:
    def fail() -> None:
        with star_network(2, 1) as links:
            assert all((Path("/run/netns") / name).exists() for name in (links.server, *links.workers))
            assert links.means in ("netem", "nftables")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not list(Path("/run/netns").glob(f"fa-{os.getpid()}-*"))


def test_forged_repeated_and_invalid_datagrams_change_no_gradient_and_are_counted() -> None:
    """Each gradient is read before the next one is sent, since a full receive buffer would lose datagrams."""
    receiver = create_listener("127.0.0.1", 0, socket.SOCK_DGRAM)
    inbox = Inbox(receiver, 2, N)
    inbox.begin(3)
    ones, sent = torch.ones(N), torch.arange(1.0, N + 1)
    invalid = [(1, 2, inbox.keys[1]), (1, 4, inbox.keys[1]), (2, 3, inbox.keys[1])]  # before, after, unknown rank
    invalid += [(1, 3, key) for key in (b"", bytes(32), inbox.keys[0])]  # none, a guess, and another rank's
    with create_sender("127.0.0.1", inbox.port) as sender:
        for count, (worker, iteration, key) in enumerate(invalid, 1):
            send(sender, worker, iteration, ones, key)
            wait_until(lambda count=count: inbox.discarded == count * CHUNKS)
        junk = (b"x" * 12, b"\0" * 15, b"\0" * 16, b"\xff" * (28 + 4 * CHUNK), b"\0" * 2000)
        for data in junk:
            sender.send(data)
        wait_until(lambda: inbox.discarded == len(invalid) * CHUNKS + len(junk))
        G = torch.full((3, N), 7.0)
        send(sender, 1, 3, sent, inbox.keys[1])
        assert inbox.collect([0, 1], G) == {0: CHUNKS}
        send(sender, 1, 3, 2 * sent, inbox.keys[1])  # a second gradient of the iteration
        wait_until(lambda: inbox.discarded == (len(invalid) + 1) * CHUNKS + len(junk))
    again = G.clone()
    assert inbox.collect([0, 1], again) == {0: CHUNKS}
    assert torch.equal(again, G)
    inbox.close()
    assert not G[0].any()
    assert torch.equal(G[1], sent)
    assert bool((G[2] == 7).all())  # nobody asked for it


class Recorder(socket.socket):
    """A socket that keeps datagrams instead of sending them."""

    datagrams: list[bytes]

    def send(self, data: bytes, flags: int = 0) -> int:
        self.__dict__.setdefault("datagrams", []).append(data)
        return len(data)


def test_a_datagram_that_is_read_twice_at_once_is_repeated() -> None:
    with (
        create_listener("127.0.0.1", 0, socket.SOCK_DGRAM) as receiver,
        Recorder(socket.AF_INET, socket.SOCK_DGRAM) as recorder,
    ):
        inbox = Inbox(receiver, 1, 10)
        inbox.close()
        inbox.begin(0)
        send(recorder, 0, 0, torch.ones(10), inbox.keys[0])
        (datagram,) = recorder.datagrams
        slots = np.zeros((2, len(datagram)), dtype=np.uint8)
        slots[:] = np.frombuffer(datagram, dtype=np.uint8)
        lengths = np.full(2, len(datagram))
        assert inbox._store(slots, lengths)
        assert inbox.discarded == 1
        assert not inbox._store(slots, lengths)
        assert inbox.discarded == 3


def test_a_trickle_of_datagrams_ends_at_the_deadline() -> None:
    """Each datagram breaks the silence; those that are missing at the deadline count as lost."""
    receiver = create_listener("127.0.0.1", 0, socket.SOCK_DGRAM)
    n = 200 * CHUNK
    inbox = Inbox(receiver, 1, n)
    inbox.begin(0)
    G, stop = torch.zeros(1, n), threading.Event()
    with Recorder(socket.AF_INET, socket.SOCK_DGRAM) as recorder:
        send(recorder, 0, 0, torch.zeros(n), inbox.keys[0])
        datagrams = recorder.datagrams

    def trickle() -> None:
        with create_sender("127.0.0.1", inbox.port) as sender:
            for datagram in datagrams:
                if stop.wait(0.05):
                    return
                sender.send(datagram)

    sending = threading.Thread(target=trickle)
    sending.start()
    lost = inbox.collect([0], G, time.monotonic() + 0.5)
    stop.set()
    sending.join()
    inbox.close()
    assert lost[0] > 0


def test_a_star_of_other_numbers_is_refused() -> None:
    for given, message in (
        ({"workers": 2, "lossy": 3}, r"^lossy must be .*\bworkers=2\b.*\b3\b"),
        ({"workers": 2, "loss": 1.0}, r"^loss must be .*\b1\.0\b"),
    ):
        with pytest.raises(ValueError, match=message), star_network(**given):
            pass


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ((0.8, 0.9), [HOLDS, HOLDS]),
        ((0.8, 0.705), [NOT, HOLDS]),
        ((0.63, 0.9), [HOLDS, IN_PART]),  # at 0.64 together with the others
        ((0.3, 0.9), [HOLDS, NOT]),  # at all three
        ((0.2, 0.6), [NOT, NOT]),
    ],
)
def test_the_verdict_on_packet_loss(way: tuple[float, ...], expected: list[str]) -> None:
    numbers = pd.DataFrame(
        {"variant": key, "label": key, "f": 3, "seed": 1, "iteration": 20 * (i + 1), "test_accuracy": accuracy}
        for key in PAPER_RULES_AND_MEAN
        for i, accuracy in enumerate(way if key == "fa" else (0.3, 0.7))
    )
    ours = {"variant": "fa", "label": "FA", "workers": 4, "lossy": 3}
    links = pd.DataFrame(
        ours | {"loss": loss, "iteration": i, "seconds": i * (0.1 + loss), "test_accuracy": i / 20}
        for loss in (0.0, 0.1)
        for i in (5, 10)
    )
    claims = fig06a.claims(numbers, 0.1, links)
    assert [claim.verdict for claim in claims] == expected
    assert re.search(r"\b100 ms\b.*\b0%.*\b200 ms\b.*\b10%", claims[1].measured)
    chunks, whole, lossy = fig06a.draw(numbers, "title", links).axes
    assert len(chunks.lines) == 8
    assert [list(line.get_xdata()) for line in whole.lines] == [pytest.approx([0.5, 1])]
    assert [list(line.get_xdata()) for line in lossy.lines] == [pytest.approx([1, 2])]
    assert len(fig06a.draw(numbers, "title").axes) == 1, "without measured links"


@pytest.mark.parametrize(
    ("finals", "expected"),
    [
        ({"fa": 0.9, "median": 0.7}, [MISSING, MISSING]),
        ({"fa": 0.7, "median": 0.9}, [NOT, MISSING]),  # the other five could not change that
        ({"fa": 0.2, "median": 0.1}, [MISSING, MISSING]),  # they may learn
        ({"fa": 0.9}, []),
        ({"median": 0.9}, []),
    ],
)
def test_packet_loss_is_judged_as_far_as_the_finished_rules_decide(
    finals: dict[str, float], expected: list[str]
) -> None:
    numbers = pd.DataFrame(
        {"variant": key, "label": key, "f": 3, "seed": 1, "iteration": 20, "test_accuracy": accuracy}
        for key, accuracy in finals.items()
    )
    assert [claim.verdict for claim in fig06a.claims(numbers, 0.1)] == expected
    assert len(fig06a.draw(numbers, "title").axes[0].lines) == len(finals)


def test_packet_loss_is_judged_by_the_seeds_that_all_rules_have() -> None:
    """In the second seed FA, which alone has it, learns nothing."""
    ours = [(1, (0.2, 0.7, 0.9)), (2, (0.1, 0.1, 0.1))]
    curves = {key: [(1, (0.2, 0.2, 0.7))] for key in PAPER_RULES_AND_MEAN} | {"fa": ours}
    numbers = pd.DataFrame(
        {"variant": key, "label": key, "f": 3, "seed": seed, "iteration": 20 * (i + 1), "test_accuracy": accuracy}
        for key, runs in curves.items()
        for seed, way in runs
        for i, accuracy in enumerate(way)
    )
    assert [claim.verdict for claim in fig06a.claims(numbers, 0.1)] == [HOLDS, HOLDS]


def test_the_accuracies_to_reach_are_shares_of_what_fa_and_the_best_other_both_have() -> None:
    curves = {"fa": (0.2, 0.8), "median": (0.5, 0.7), "bulyan": (0.45, 0.9), "mean": (0.1, 0.1)}
    numbers = pd.DataFrame(
        {
            "variant": key,
            "seed": seed,
            "iteration": 10 * (i + 1),
            "seconds": 1.0 + i,
            "test_accuracy": accuracy + more,
        }
        for key, curve in curves.items()
        for i, accuracy in enumerate(curve)
        for seed, more in ((1, -0.05), (2, 0.05))
    )
    assert time_to_accuracy.targets(numbers, 0.0) == pytest.approx([0.4, 0.6, 0.72])
    assert time_to_accuracy.targets(numbers, 0.2) == pytest.approx([0.65, 0.74])  # 0.5 is below three times chance
    assert time_to_accuracy.times_to(numbers, 0.72) == {"fa": 20, "bulyan": 20}
    assert time_to_accuracy.times_to(numbers, 0.72, "seconds") == {"fa": 2, "bulyan": 2}
    half, _, most = time_to_accuracy.races(numbers, 0.0)
    assert time_to_accuracy.fa_first([half, most]) == [False, False]  # behind another, and together with one
    assert re.fullmatch(r"0\.400: FA 20 it, \D*Bulyan 10 it", time_to_accuracy.describe_races([half], "{:.0f} it"))
    assert re.fullmatch(r"0\.720: FA 50\.0, \D*Bulyan 50\.0", time_to_accuracy.describe_races([most], "{:.1f}", 2.5))
    alone = numbers[numbers["variant"].isin(["fa", "median"])]
    assert [race.accuracy for race in time_to_accuracy.races(alone, 0.0)] == pytest.approx([0.35, 0.525, 0.63])
    slower = numbers.assign(iteration=numbers["iteration"] + (numbers["variant"] != "fa"))
    assert time_to_accuracy.fa_first(time_to_accuracy.races(slower, 0.0)) == [False, True, True]
    assert time_to_accuracy.fa_first(time_to_accuracy.races(slower, 0.0), factor=1.1) == [
        False,
        False,
        False,
    ]  # 21 for 20


def test_the_same_accuracy_is_required_of_all_rules() -> None:
    short = {"fa": (0.5, 0.8), "bulyan": (0.385, 0.8), "mean": (0.1, 0.1)}
    numbers = pd.DataFrame(
        {"variant": key, "seed": 1, "iteration": i, "test_accuracy": accuracy}
        for key, curve in short.items()
        for i, accuracy in enumerate(curve, start=1)
    )
    assert time_to_accuracy.times_to(numbers, 0.4) == {"fa": 1, "bulyan": 2}
    assert time_to_accuracy.races(numbers, 0.0)[0] == time_to_accuracy.Race(pytest.approx(0.4), 1, "bulyan", 2)


def test_there_is_no_race_to_an_accuracy_at_which_nothing_is_learned() -> None:
    numbers = pd.DataFrame({"variant": key, "seed": 1, "iteration": 1, "test_accuracy": 0.32} for key in ("fa", "mean"))
    assert time_to_accuracy.targets(numbers, 0.1) == []  # 0.3 is three times chance, and 0.9 of the way is 0.298
    assert time_to_accuracy.targets(numbers, 0.09) == pytest.approx([0.297])
    assert time_to_accuracy.races(numbers, 0.1) == []
    assert re.findall(r"\d+", time_to_accuracy.describe_races([], "{:.0f}")) == ["3"]  # times chance


def test_a_race_that_nobody_else_ends() -> None:
    assert time_to_accuracy.fa_first([time_to_accuracy.Race(0.5, 3.0, None, None)]) == [True]
    assert re.fullmatch(
        r"0\.500: FA 3\b\D*", time_to_accuracy.describe_races([time_to_accuracy.Race(0.5, 3.0, None, None)], "{:.0f}")
    )
    assert time_to_accuracy.fa_first([time_to_accuracy.Race(0.5, None, "median", 3.0)]) == [False]
    never = time_to_accuracy.Race(0.5, None, "median", 3.0)
    assert re.fullmatch(r"0\.500: FA\b\D*\bMedian 3", time_to_accuracy.describe_races([never], "{:.0f}"))


def test_curves_that_are_kept_need_no_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_loss, "unsupported_reason", lambda: "no namespaces")
    kept = tmp_path / "links.csv"
    none = tcp_loss.load_or_measure(kept, "quick")
    assert none.empty
    none.to_csv(kept, index=False)
    assert tcp_loss.load_or_measure(kept, "quick").empty
    pd.DataFrame([{"loss": 0.1, "seconds": 2.0}]).to_csv(kept, index=False)
    assert list(tcp_loss.load_or_measure(kept, "quick")["seconds"]) == [2.0]
