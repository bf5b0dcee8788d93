"""What `import fa` leaves alone: heavy packages, the random states, the number of threads."""

import importlib
import subprocess
import sys

import pytest

HEAVY = (
    "IPython", "cvxpy", "ipykernel", "jupyter_client", "jupyter_core", "jupyterlab", "matplotlib", "nbformat",
    "pandas", "papermill", "rich", "scipy", "seaborn", "torchvision",
)  # fmt: skip

IMPORTS = f"""
import sys
import numpy
import fa
fa.irls, fa.rules  # imported when they are first used
print(*(name for name in {HEAVY} if name in sys.modules))
assert fa.aggregate(numpy.ones((15, 1000)), rule="fa").shape == (1000,)
fa.models.build("convnet", (1, 28, 28), 10, seed=0)
assert "torchvision" not in sys.modules
"""

STATES = """
import random
import numpy, torch

def states():
    return (random.getstate(), repr(numpy.random.get_state()), torch.get_rng_state().tolist(),
            torch.get_num_threads(), torch.get_default_dtype())

before = states()
import fa
fa.aggregate, fa.irls, fa.training, fa.data, fa.models
assert states() == before
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_heavy_is_imported() -> None:
    assert run(IMPORTS) == ""


def test_no_global_state_is_changed() -> None:
    assert run(STATES) == ""


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("fa", {"aggregate", "irls", "training", "__version__"}),
        ("fa.data", {"load", "fetch"}),
        ("fa.training", {"train", "TrainConfig", "ddp"}),
        ("fa.augment", {"recipes", "warp"}),
        ("fa.theory", {"breakdown"}),
        ("fa.interop", {"byzfl"}),
    ],
)
def test_names_that_are_imported_on_first_access_are_listed(package: str, names: set[str]) -> None:
    module = importlib.import_module(package)
    assert names <= set(dir(module))
    assert not {"lazy_names", "lazy_modules", "TYPE_CHECKING"} & set(dir(module))
    for name in names:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name
