"""The rounds of the parameter server as a state machine: no sockets, threads or waiting."""

import math
from collections.abc import Callable

import pytest
import torch

from fa.training.transports.rounds import NEW, GradientMessage, Reply, Rounds, WorkerPhase

N = 3
P = 3


def message(rank: int, iteration: int = 0, **changes: object) -> GradientMessage:
    return GradientMessage(rank, iteration, torch.ones(N), torch.tensor(0.5), [torch.zeros(2)])._replace(**changes)


def rounds(quorum: int | None = None, joined: int = P) -> Rounds[str]:
    """Rounds of P workers, the first of which have joined."""
    state = Rounds[str](P, torch.zeros(N), [torch.zeros(2)], quorum, deadline=7.0)
    for rank in range(joined):
        assert join(state, rank) == []
    return state


def join(state: Rounds[str], rank: int, name: str = "first") -> list[Reply[str]]:
    assert not state.offer(message(rank, NEW))
    return state.request(rank, name)


def send(state: Rounds[str], rank: int, iteration: int = 0, **changes: object) -> list[Reply[str]]:
    """Offer a gradient, deliver it if it is accepted, and request the next iteration."""
    sent = message(rank, iteration, **changes)
    if state.offer(sent):
        state.deliver(sent)
    return state.request(rank, f"after {iteration}")


def finish(state: Rounds[str]) -> dict[int, str]:
    """End a round as the transport does; the deadline has passed if the round is not complete."""
    state.end()
    if not state.complete:
        state.pass_deadline()
    return state.outcome(math.inf).missing


def phases(state: Rounds[str]) -> list[WorkerPhase]:
    return [slot.phase for slot in state.slots]


def test_the_reason_of_a_worker_outlives_the_end_of_its_process() -> None:
    state = rounds()
    state.newest_process_ended(0, "batch must be smaller")
    state.first_process_ended(0, "its process has ended")
    assert state.slots[0].reason == "batch must be smaller"
    state.newest_process_ended(1, "")
    assert state.excluded == [0, 1]
    absent = rounds(joined=0)
    absent.refuse(2, "refused: no data")
    absent.first_process_ended(2, "its process has ended")
    assert absent.slots[2].reason == "refused: no data"


def test_a_run_of_two_rounds_and_its_end() -> None:
    state = rounds()
    assert state.joined
    assert state.begin(0) == [Reply(rank, "first", 0, with_carried=True) for rank in range(P)]
    for rank in (2, 0, 1):
        assert not state.complete
        assert send(state, rank, loss=torch.tensor(float(rank)), seconds=rank / 10) == []
    assert state.complete
    assert finish(state) == {}
    assert state.delivered == [0, 1, 2]
    assert [(slot.loss, slot.seconds) for slot in state.slots] == [(torch.tensor(float(r)), r / 10) for r in range(P)]
    assert state.begin(1) == [Reply(rank, "after 0", 1) for rank in range(P)]
    assert state.delivered == []
    for rank in range(P):
        send(state, rank, 1)
    assert finish(state) == {}
    assert state.close() == [Reply(rank, "after 1", None) for rank in range(P)]
    assert state.excluded == []


def test_workers_that_do_not_join_are_excluded_until_they_do() -> None:
    state = rounds(joined=1)
    assert not state.joined
    state.pass_joining_deadline(120.0)
    assert state.joined
    assert "120 s" in state.slots[1].reason
    state.begin(0)
    assert send(state, 0) == []
    assert state.complete  # nobody else is awaited
    assert join(state, 1) == [Reply(1, "first", 0, with_carried=True)]  # in the open round
    assert not state.complete
    send(state, 1)
    assert list(finish(state)) == [2]


def test_a_second_process_of_a_rank_replaces_the_first() -> None:
    state = rounds()
    assert join(state, 0, "second") == [Reply(0, "first", None)]
    state.first_process_ended(0, "ended")  # only first processes are watched
    assert state.slots[0].phase is WorkerPhase.WAITING
    assert state.begin(0)[0] == Reply(0, "second", 0, with_carried=True)


def test_a_second_process_during_a_copy_works_on_the_open_round() -> None:
    state = rounds()
    state.begin(0)
    first = message(0)
    assert state.offer(first)
    assert join(state, 0, "second") == [Reply(0, "second", 0, with_carried=True)]
    state.deliver(first)
    assert state.request(0, "first again") == []
    assert send(state, 0) == [Reply(0, "first again", None)]  # its gradient is the rank's second one: discarded
    assert state.delivered == [0]


def test_a_late_gradient_is_discarded() -> None:
    state = rounds()
    state.begin(0)
    send(state, 0)
    send(state, 1)
    finish(state)
    state.begin(1)
    assert send(state, 2, 0) == [Reply(2, "after 0", 1)]
    assert phases(state) == [WorkerPhase.COMPUTING] * P
    assert not state.delivered


def test_no_round_waits_for_gradients_of_iterations_that_the_worker_was_not_asked_for() -> None:
    state = rounds()
    state.begin(0)
    assert send(state, 2, 7) == []
    send(state, 0)
    send(state, 1)
    assert state.complete
    missing = finish(state)
    assert list(missing) == [2]
    assert "7" in missing[2]
    assert state.begin(1)[2] == Reply(2, "after 7", 1)  # it may do better
    assert send(state, 2, 1) == []
    assert state.slots[2].phase is WorkerPhase.DELIVERED


def test_a_gradient_between_two_rounds_is_discarded() -> None:
    state = rounds()
    state.begin(0)
    state.end()
    assert send(state, 0) == []
    assert state.slots[0].phase is WorkerPhase.WAITING
    assert state.begin(1)[0] == Reply(0, "after 0", 1)


def test_one_gradient_of_a_rank_counts() -> None:
    state = rounds(quorum=2)
    state.begin(0)
    send(state, 0)
    assert send(state, 0) == [Reply(0, "after 0", None)]
    assert not state.complete


INVALID: dict[str, tuple[dict[str, object], list[str]]] = {
    "length": ({"gradient": torch.ones(N - 1)}, [f"({N - 1},)", f"({N},)"]),
    "shape": ({"gradient": torch.ones(1, N)}, [f"(1, {N})", f"({N},)"]),
    "dtype": ({"gradient": torch.ones(N).double()}, ["torch.float64", "torch.float32"]),
    "layout": ({"gradient": torch.ones(N).to_sparse()}, ["torch.sparse_coo"]),
    "loss shape": ({"loss": torch.ones(2)}, ["(2,)"]),
    "loss dtype": ({"loss": torch.tensor(1)}, ["torch.int64"]),
    "statistics": ({"statistics": [torch.zeros(3)]}, ["batch-norm"]),
    "statistics of NaN": ({"statistics": [torch.full((2,), torch.nan)]}, ["batch-norm"]),
    "statistics of another type": ({"statistics": 7}, ["batch-norm"]),
    "text as statistics": ({"statistics": ["a"]}, ["batch-norm"]),
    "fewer statistics": ({"statistics": []}, ["batch-norm"]),
    "integer statistics": ({"statistics": [torch.zeros(2, dtype=torch.int64)]}, ["batch-norm"]),
    "no gradient": ({"gradient": None}, ["NoneType"]),
    "float8 loss": ({"loss": torch.tensor(0.5).to(torch.float8_e4m3fn)}, ["float8"]),
    "sparse loss": ({"loss": torch.tensor(0.5).to_sparse()}, ["torch.sparse_coo"]),
    "loss without tensor": ({"loss": 0.5}, ["float"]),
    "meta device": ({"gradient": torch.ones(N, device="meta")}, ["torch.float32"]),
    "no seconds": ({"seconds": None}, ["None"]),
    "seconds as text": ({"seconds": "a" * 10_000}, ["aaa"]),
    "seconds of NaN": ({"seconds": math.nan}, ["nan"]),
    "endless seconds": ({"seconds": math.inf}, ["inf"]),
    "negative seconds": ({"seconds": -1.0}, ["-1.0"]),
    "graph of autograd": ({"gradient": torch.ones(N, requires_grad=True)}, ["requires_grad"]),
    "graph of the loss": ({"loss": torch.tensor(0.5, requires_grad=True)}, ["requires_grad"]),
    "graph of the statistics": ({"statistics": [torch.zeros(2, requires_grad=True)]}, ["batch-norm"]),
}


@pytest.mark.parametrize(("changes", "parts"), INVALID.values(), ids=INVALID)
def test_an_invalid_message_excludes_its_worker_in_its_round_alone(changes: dict, parts: list[str]) -> None:
    state = rounds()
    state.begin(0)
    assert send(state, 0, **changes) == []  # no answer in this round
    assert all(part in state.slots[0].reason for part in parts)
    assert len(state.slots[0].reason) <= 200
    send(state, 1)
    send(state, 2)
    assert state.complete
    assert list(finish(state)) == [0]
    assert state.begin(1)[0] == Reply(0, "after 0", 1)  # it may do better
    assert phases(state) == [WorkerPhase.COMPUTING] * 3
    send(state, 1, 1)
    send(state, 2, 1)
    assert not state.complete  # it is awaited
    send(state, 0, 1)
    assert state.slots[0].phase is WorkerPhase.DELIVERED
    assert state.slots[0].reason == ""


def test_a_gradient_that_cannot_be_copied_is_not_awaited() -> None:
    state = rounds()
    state.begin(0)
    assert state.offer(message(0))
    state.withdraw(0, "out of memory")
    send(state, 1)
    send(state, 2)
    assert state.complete
    assert not state.receiving
    assert finish(state) == {0: "out of memory"}


def test_an_invalid_message_after_a_gradient_leaves_the_gradient_in_its_round() -> None:
    state = rounds()
    state.begin(0)
    send(state, 0)
    send(state, 0, gradient=torch.ones(N - 1))
    send(state, 1)
    send(state, 2)
    assert finish(state) == {}
    state.begin(1)
    assert state.slots[0].phase is WorkerPhase.EXCLUDED


def test_a_quorum_completes_a_round_and_awaits_the_others_in_the_next() -> None:
    state = rounds(quorum=2)
    state.begin(0)
    send(state, 0)
    assert not state.complete
    send(state, 2)
    assert state.complete
    missing = finish(state)
    assert list(missing) == [1]
    assert "2" in missing[1]
    assert state.slots[1].phase is WorkerPhase.COMPUTING
    assert [reply.rank for reply in state.begin(1)] == [0, 2]


def test_a_gradient_in_transfer_when_the_quorum_is_reached_is_used() -> None:
    state = rounds(quorum=1)
    state.begin(0)
    late = message(1)
    assert state.offer(late)
    send(state, 0)
    state.end()
    assert state.receiving
    state.deliver(late)
    assert not state.receiving
    assert list(state.outcome(math.inf).missing) == [2]


def test_the_deadline_excludes_silent_workers_until_their_return() -> None:
    state = rounds()
    state.begin(0)
    send(state, 0)
    missing = finish(state)
    assert list(missing) == [1, 2]
    assert all("7 s" in reason for reason in missing.values())
    state.begin(1)
    send(state, 0, 1)
    assert state.complete  # the others are not awaited
    assert finish(state) == missing
    state.begin(2)
    assert send(state, 1, 0) == [Reply(1, "after 0", 2)]  # the old gradient is discarded
    send(state, 0, 2)
    assert not state.complete
    send(state, 1, 2)
    assert list(finish(state)) == [2]


def test_a_lost_process_is_not_awaited_and_a_new_one_of_its_rank_is() -> None:
    state = rounds()
    state.begin(0)
    send(state, 0)
    send(state, 1)
    state.first_process_ended(2, "ended")
    assert state.complete
    assert finish(state) == {2: "ended"}
    assert [reply.rank for reply in state.begin(1)] == [0, 1]
    assert join(state, 2, "second") == [Reply(2, "second", 1, with_carried=True)]
    send(state, 0, 1)
    send(state, 1, 1)
    assert not state.complete
    send(state, 2, 1)
    assert finish(state) == {}


def test_a_connection_that_ends_excludes_its_rank_whichever_process_it_belongs_to() -> None:
    state = rounds()
    join(state, 0, "second")
    state.begin(0)
    state.newest_process_ended(0, "ended")
    send(state, 1)
    send(state, 2)
    assert finish(state) == {0: "ended"}


def test_a_refused_process_excludes_its_rank_only_if_nobody_has_joined() -> None:
    state = rounds(joined=2)
    for rank in range(P):
        state.refuse(rank, "another release")
    assert state.joined
    assert [slot.reason for slot in state.slots] == ["", "", "another release"]


@pytest.mark.parametrize("copied", [True, False])
def test_the_last_gradient_of_a_lost_process_is_used_once(copied: bool) -> None:
    state = rounds()
    state.begin(0)
    last = message(0)
    assert state.offer(last)
    if copied:
        state.deliver(last)
        state.request(0, "never answered")
    state.first_process_ended(0, "ended")
    if not copied:
        state.deliver(last)
    send(state, 1)
    send(state, 2)
    assert finish(state) == {}
    assert [reply.rank for reply in state.begin(1)] == [1, 2]
    assert state.slots[0].phase is WorkerPhase.EXCLUDED


def without_honest(state: Rounds[str]) -> None:
    for rank in range(P):
        state.first_process_ended(rank, "ended")


def silent(state: Rounds[str]) -> None:
    state.begin(0)
    finish(state)


@pytest.mark.parametrize("happens", [without_honest, silent])
def test_the_end_of_a_run_waits_for_no_excluded_worker(happens: Callable[[Rounds[str]], None]) -> None:
    state = rounds()
    happens(state)
    assert state.close() == []
    assert state.excluded == [0, 1, 2]
    assert send(state, 0) == [Reply(0, "after 0", None)]  # it returns when all is over
    assert state.excluded == [1, 2]
