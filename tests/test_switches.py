"""Results do not depend on debugging switches and settings of torch, numpy, numba and Python."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import fa
from fa import attacks
from fa.augment import warp
from fa.training import TrainConfig, train
from tests.test_fuzz import SOLVERS

ROOT = Path(__file__).parents[1]
PLAIN = np.random.default_rng(0).standard_normal((9, 20))


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SWITCHES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "float errors raise": lambda: np.errstate(all="raise"),
    "without gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True, check_nan=True),
    "deterministic algorithms": deterministic,
    "default dtype": default_dtype,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
}


EXTREME = PLAIN * np.array([1e200, 1.0, 1e-310, *[1.0] * 6])[:, None]
EXTREME[1, 3] = np.nan


def aggregated() -> list[np.ndarray]:
    return [np.asarray(fa.make_rule(name, f=1)(EXTREME)) for name in fa.RULES]


def attacked() -> list[np.ndarray]:
    return [
        fa.attack(PLAIN, name, f=2, rule=fa.make_rule("median"))
        for name, known in attacks.ATTACKS.items()
        if not known.flips_labels
    ]


def solved() -> list[np.ndarray]:
    return [np.asarray(solve(np.abs(PLAIN[:5, :4]) + 1)) for solve in SOLVERS.values()]


def trained() -> list[np.ndarray]:
    config = TrainConfig(workers=4, byzantine=1, iterations=3, batch=4, evaluate_every=1, layers="fast")
    return [np.array([(p.train_loss, p.test_accuracy) for p in train(config, threads=1).curve])]


def moved() -> list[np.ndarray]:
    image = np.arange(192, dtype=np.uint8).reshape(1, 3, 8, 8)
    return [warp(image, system, 1.0) for system in ("cat", "lotka_volterra", "rotation")]


@cache
def usual(compute: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    """Return what is computed with the settings that a process begins with."""
    return compute()


@pytest.mark.parametrize("compute", [aggregated, attacked, solved, trained, moved])
@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.filterwarnings("ignore:f must be set")
def test_a_setting_of_the_process_changes_no_result(name: str, compute: Callable[[], list[np.ndarray]]) -> None:
    expected = usual(compute)
    with SWITCHES[name]():
        found = compute()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert torch.get_default_dtype() == torch.float32


PROGRAM = """
import json, sys
import numpy as np
import fa
from fa.training import TrainConfig, train

G = np.random.default_rng(0).standard_normal((9, 20))
curve = train(TrainConfig(workers=4, byzantine=1, iterations=3, batch=4), threads=1).curve
print(json.dumps([fa.aggregate(G, name).tolist() for name in ("fa", "median")] + [curve[-1].train_loss]))
"""


def run(**settings: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | settings
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def plain() -> list[object]:
    return json.loads(run().stdout)


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONOPTIMIZE": "1"},
        {"PYTHONOPTIMIZE": "2"},
        {"PYTHONWARNINGS": "error"},
        {"PYTHONDEVMODE": "1"},
        {"PYTHONMALLOC": "debug"},
        {  # numba reads /proc/cpuinfo without an encoding
            "PYTHONWARNDEFAULTENCODING": "1",
            "PYTHONWARNINGS": "error::EncodingWarning,ignore::EncodingWarning:numba.core.config",
        },
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"CUDA_LAUNCH_BLOCKING": "1"},
        {"TORCHDYNAMO_DISABLE": "1"},
        {"TORCH_SHOW_CPP_STACKTRACES": "1"},
        {"NUMBA_DEVELOPER_MODE": "1"},
        {"NUMBA_DEBUG_CACHE": "0", "NUMBA_FULL_TRACEBACKS": "1"},
        {"JAXTYPING_DISABLE": "1"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_a_switch_of_the_environment_changes_no_result(settings: dict[str, str], plain: list[object]) -> None:
    done = run(**settings)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == plain


def test_without_compilation_one_sentence_names_the_variable() -> None:
    done = run(NUMBA_DISABLE_JIT="1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ValueError: NUMBA_DISABLE_JIT must be ")
