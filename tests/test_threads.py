"""What is p x p has one thread of numpy's BLAS, whatever the process has, and gives them back."""

import os
import subprocess
import sys

SCRIPT = """
import threading
from dataclasses import dataclass

import numpy as np
from threadpoolctl import ThreadpoolController

import fa
from fa.rules import ColumnDecision
from fa.utils.blas import single_threaded


def threads():
    return {library.num_threads for library in ThreadpoolController().select(user_api="blas").lib_controllers}


@dataclass(frozen=True, kw_only=True)
class Watching(fa.Rule):
    name = "watching"

    def decide(self, gram):
        print("rule", threads())
        return ColumnDecision(weights=np.ones(gram.p))


@single_threaded
def fail():
    raise ValueError


print("outside", threads())
Watching()(np.eye(4))
try:
    fail()
except ValueError:
    print("error", threads())
seen, eigh = set(), np.linalg.eigh
np.linalg.eigh = lambda A: seen.update(threads()) or eigh(A)
G = np.random.default_rng(0).standard_normal((6, 20))
fa.sdp.certify(G, fa.irls.solve(G))
fa.flags.solve(G, dims=(1, 3))
print("solvers", seen)


@single_threaded
def meet():
    barrier.wait()


barrier = threading.Barrier(2)
together = [threading.Thread(target=meet) for _ in range(2)]
for thread in together:
    thread.start()
for thread in together:
    thread.join()
print("two", threads())
"""


def test_rules_and_solvers_decide_on_one_thread() -> None:
    """In a process of its own: the tests' own has one thread from the beginning."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    expected = ["outside {2}", "rule {1}", "error {2}", "solvers {1}", "two {2}"]
    assert done.stdout.splitlines() == expected, done.stderr
