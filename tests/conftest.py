"""What every test runs under: checked shapes and types, one random state left as it was, hypothesis' profiles."""

import os
import pkgutil
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Shapes and types are checked while the tests run, and only then: in every room but the compiled loops, which numba
# takes as they are written, and the command line. The hook must be there before fa is imported. (An option of
# jaxtyping's pytest plugin does the same, but cannot hand options to beartype: here, that an int serves where a float
# is asked for, as for a type checker.)
UNCHECKED = {"cli", "kernels"}
ROOMS = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parents[1] / "fa")])}
install_import_hook(
    [f"fa.{room}" for room in sorted(ROOMS - UNCHECKED)],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# A shell has its background jobs ignore Ctrl-C, and they hand that down to the processes that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored

# A test never depends on how fast the machine is, nor on what an earlier run found.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
settings.register_profile(
    "long", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def global_random_state(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed the global random states, and fail the test in which numpy's or torch's has changed.

    Nothing in fa draws from them; a test that does so on purpose is marked `draws_globally`. Python's own state is not
    compared: beartype draws from it to pick the items that it checks.
    """
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (the state is seeded so that it can be compared, not drawn from)
    torch.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.init()
    before = _states()
    yield
    if request.node.get_closest_marker("draws_globally") is None:
        changed = [name for name, state in _states().items() if state != before[name]]
        assert not changed, f"the global random state has changed: {', '.join(changed)}"


@pytest.fixture(autouse=True)
def warnings_of_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget which rules have warned, so that a test's warnings do not depend on the tests before it."""
    monkeypatch.setattr("fa.rules._warned", set())


def _states() -> dict[str, object]:
    generators = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        generators += torch.cuda.get_rng_state_all()
    return {
        "numpy": repr(np.random.get_state()),  # noqa: NPY002
        "torch": [generator.numpy().tobytes() for generator in generators],
    }


def pytest_report_header() -> str:
    return f"fa: device {os.environ.get('FA_TEST_DEVICE', 'cpu')}, {torch.get_num_threads()} thread(s)"
