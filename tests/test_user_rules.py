"""Rules and attacks of the user's own, from a file or an installed package, wherever a name is taken."""

import re
import sys
from dataclasses import replace
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch

import fa
from fa.attacks import ATTACKS, make_attack
from fa.cli import main
from fa.experiments.runs.store import RunStore
from fa.rules import Mean
from fa.training import TrainConfig, train
from fa.training.checkpoint import Checkpoint
from fa.training.records import USED
from fa.utils import plugins
from tests.processes import refusals
from tests.texts import check_refusal

EXAMPLES = Path(__file__).parents[1] / "examples"
RULE = f"{EXAMPLES / 'geometric_median.py'}:GeometricMedian"
ATTACK = f"{EXAMPLES / 'shifted_mean.py'}:SHIFTED"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_rule.py"
    path.write_text("from fa.rules import Mean\n\nclass MyRule(Mean):\n    name = 'mine'\n")
    return path


def test_a_rule_in_a_file_is_a_rule(file: Path) -> None:
    G = np.random.default_rng(0).standard_normal((5, 20))
    rule = fa.make_rule(f"{file}:MyRule", f=1, preaggregators=("unit",))
    assert rule.name == "mine"
    np.testing.assert_allclose(rule(G), fa.aggregate(G, "mean", preaggregators=("unit",)))
    np.testing.assert_allclose(fa.aggregate(G, f"{file}:MyRule"), G.mean(axis=0), atol=1e-12)


def test_the_geometric_median_is_that() -> None:
    """Against a search over R^n, which knows nothing of K."""
    G = np.random.default_rng(1).standard_normal((9, 4)) + 5
    G[:3] += 100
    cost = lambda x: np.linalg.norm(G - x, axis=1).sum()  # noqa: E731
    best = scipy.optimize.minimize(cost, G.mean(axis=0), method="BFGS").x
    found = fa.aggregate(G, RULE, f=3, iterations=500)
    np.testing.assert_allclose(found, best, atol=1e-3)
    with pytest.raises(ValueError, match=r"^geometric_median\b.*\b2f\b.*\b9\b.*\b5\b"):
        fa.aggregate(G, RULE, f=5)


def test_an_attack_in_a_file_acts() -> None:
    attack = make_attack(ATTACK)
    G = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    before = G.clone()
    attack.apply(G, range(2), seed=1, iteration=3)
    assert torch.equal(G[2:], before[2:])
    mean = before[2:].mean(dim=0)
    torch.testing.assert_close((G[:2] - mean).norm(dim=1), mean.norm().expand(2))
    again = before.clone()
    attack.apply(again, range(2), seed=1, iteration=3)
    assert torch.equal(G, again)


OWN = """\
import numpy as np
import fa
from fa.rules import ColumnDecision

class MyRule(fa.Rule):
    name = 'mine'

    def decide(self, gram):
        return ColumnDecision(weights=np.full(gram.p, WEIGHT))
"""


def test_weights_that_are_not_finite_are_refused(file: Path) -> None:
    file.write_text(OWN.replace("WEIGHT", "np.nan"))
    with pytest.raises(ValueError, match=r"\bweights\b.*\bmine\b.*\bnan\b"):
        fa.make_rule(f"{file}:MyRule")(torch.eye(4))


def test_an_attack_that_writes_into_honest_rows_is_refused(file: Path) -> None:
    for write in ("G.zero_()", "G[3].fill_(float('nan'))", "G[:, 2].neg_()"):
        file.write_text(f"from fa.attacks import Attack\nMINE = Attack('mine', False, lambda G, *_: {write})\n")
        with pytest.raises(ValueError, match=r"^attack must be .*'mine'"):
            make_attack(f"{file}:MINE").apply(torch.ones(4, 3), range(1), seed=0, iteration=0)


def test_a_name_that_is_none_tells_of_files_and_libraries() -> None:
    for make in (fa.make_rule, make_attack):
        with pytest.raises(ValueError, match=r"FILE\.py:NAME.*byzfl:NAME.*'my_rule\.py'"):
            make("my_rule.py")


@pytest.mark.parametrize(
    ("text", "name", "pattern"),
    [
        ("x = 1\n", "MyRule", r"my_rule\.py\b.*'MyRule'"),
        ("class Other: pass\n", "MyRule", r"my_rule\.py\b.*'MyRule'.*\bOther\b"),
        ("class MyRule: pass\n", "MyRule", r"^rule must be .*my_rule\.py:MyRule'"),
        ("x = 1\ny = 1 / 0\n", "x", r"my_rule\.py\b.*\b2\b.*ZeroDivisionError"),
        ("x = (\n", "x", r"my_rule\.py\b.*\b1\b.*SyntaxError"),
        (OWN.replace("    name = 'mine'\n", ""), "MyRule", r"^rule must be .*my_rule\.py:MyRule'"),
        (OWN.replace("decide", "decode"), "MyRule", r"^rule must be .*\bdecide\b.*my_rule\.py:MyRule'"),
        ("import no_such_module\n", "x", r"my_rule\.py\b.*\b1\b.*ModuleNotFoundError.*'no_such_module'"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(file: Path, text: str, name: str, pattern: str) -> None:
    file.write_text(text)
    before = set(sys.modules)
    with pytest.raises(ValueError, match=pattern):
        fa.make_rule(f"{file}:{name}")
    if "Error" in pattern:  # a file that fails while it runs is no module
        assert not {module for module in set(sys.modules) - before if "my_rule" in module}


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"^no/rule\.py must be "):
        fa.make_rule("no/rule.py:MyRule")
    with pytest.raises(ValueError, match=r"^attack must be .*shifted_mean\.py:write"):
        make_attack(f"{EXAMPLES / 'shifted_mean.py'}:write")


def test_installed_packages_bring_rules_and_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    brought = {"fa.rules": EntryPoint("theirs", "fa.rules:Mean", "fa.rules"), "fa.attacks": None}
    monkeypatch.setattr(
        plugins, "entry_points", lambda group, name: [p for p in [brought[group]] if p and p.name == name]
    )
    assert type(fa.make_rule("theirs")) is Mean
    with pytest.raises(ValueError, match=r"^rule must be .*'nobodys'"):
        fa.make_rule("nobodys")
    with pytest.raises(ValueError, match=r"^attack must be .*'theirs'"):
        make_attack("theirs")


def test_a_changed_file_is_another_run(file: Path, tmp_path: Path) -> None:
    store, config = RunStore(tmp_path), TrainConfig(rule=f"{file}:MyRule")
    before = store.key(config)
    assert store.key(replace(config, rule="mean")) != before == store.key(config)
    checkpoint = Checkpoint(tmp_path / "kept")
    identities = []
    for text in ("", "# changed\n"):
        file.write_text(file.read_text() + text)
        checkpoint.set_identity(config, "data", 1, {"name": "simulate"})
        identities.append(checkpoint._identity)
    assert store.key(config) != before
    assert identities[0] != identities[1]
    assert fa.make_rule(config.rule).name == "mine"


def test_a_run_with_both(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    short = {"workers": 5, "byzantine": 1, "iterations": 2, "batch": 4}
    run = train(TrainConfig(rule=RULE, attack=ATTACK, **short))
    assert {row.status for row in run.workers} == {USED}
    assert run.curve != train(TrainConfig(rule="mean", attack=ATTACK, **short)).curve
    with pytest.raises(SystemExit) as ended:
        main(["train", "--rule", str(tmp_path / "none.py:Rule"), "--iterations", "1"])
    check_refusal(ended.value.code, capsys.readouterr().err, re.escape(str(tmp_path / "none.py")))
    assert ATTACK not in ATTACKS


MISTAKES = {
    "a statistic that is a name": (
        "rule",
        "from fa.rules import ColumnDecision\nclass MINE(fa.Rule):\n    name = 'mine'\n"
        "    def decide(self, gram):\n        decided = ColumnDecision()\n"
        "        object.__setattr__(decided, 'statistic', 'median')\n        return decided\n",  # past the type checker
        r"^the statistic of mine must be .*'median'",
    ),
    **{
        f"decides {decision}": (
            "rule",
            "import numpy as np, torch\nfrom fa.rules import ColumnDecision, OrderStatistic\nclass MINE(fa.Rule):\n"
            f"    name = 'mine'\n    def decide(self, gram):\n        return ColumnDecision({decision})\n",
            message,
        )
        for decision, message in {
            "statistic=OrderStatistic(0, 4)": r"^the statistic of mine must be .*\b3\b.*stop=4",
            "statistic=OrderStatistic(-1, 1)": r"^the statistic of mine must be .*first=-1",
            "statistic=OrderStatistic(1, 1)": r"^the statistic of mine must be .*first=1, stop=1",
            "statistic=OrderStatistic(0, 1, 4)": r"^the statistic of mine must be .*nearest=4",
            "statistic=OrderStatistic(0, 3), columns=(0, 1)": r"^the statistic of mine must be .*\b2\b.*stop=3",
            "statistic=OrderStatistic(0, 1), columns=()": r"^the columns of mine must be .*\(\)",
            "weights=np.ones(3), columns=(0, 3)": r"^the columns of mine must be .*\b2\b.*\(0, 3\)",
            "statistic=OrderStatistic(0, 1), combinations=np.ones((2, 1))": r"^the combinations of .*\b3\b.*\(2, 1\)",
            "weights=np.ones(3), columns=(0, 1)": r"^the weights of mine must be 0 outside .*\[1., 1., 1.\]",
            "direction=torch.ones(3, requires_grad=True)": r"^the direction of mine must be ",
            "direction=torch.ones(2)": r"^the direction of mine must be .*\(2,\)",
            "direction=torch.ones(10**6)": r"^the direction of mine must be .*\(1000000,\)",
        }.items()
    },
    "a number of workers that is one integer": (
        "rule",
        "from fa.rules import Mean\nclass MINE(Mean):\n    name = 'mine'\n    min_workers = 3\n",
        r"^min_workers must be .*\b3\b",
    ),
    "a function with too few arguments": (
        "attack",
        "from fa.attacks import Attack\nMINE = Attack('mine', False, lambda G, byzantine: None)\n",
        r"^write must be .*streams.*\(G, byzantine\)",
    ),
    "a function without an option": (
        "attack",
        "from fa.attacks import Attack\nMINE = Attack('mine', False, lambda G, b, s: None, {'scale': 2.0})\n",
        r"^write must be .*\bscale\b",
    ),
    "a file that exits": (
        "rule",
        "import sys\nsys.exit(0)\n",
        r"^rule cannot be loaded: .*mine\.py, line 3: SystemExit",
    ),
}


@pytest.mark.parametrize(("kind", "text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_users_file_is_named(
    kind: str, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import fa\n" + text)
    call = (
        partial(fa.aggregate, rule=f"{file}:MINE") if kind == "rule" else partial(fa.attack, name=f"{file}:MINE", f=1)
    )
    with pytest.raises(ValueError, match=message):
        call(np.eye(3))
    command = ["train", "--workers", "3", "--byzantine", "1", "--iterations", "1", "--batch", "4", "--threads", "1"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, f"--{kind}", f"{file}:MINE"])
    check_refusal(stopped.value.code, capsys.readouterr().err, rf"^fa: {message.removeprefix('^')}")


def test_an_attack_with_options_and_the_rule_is_called_with_them(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from fa.attacks import Attack\n"
        "def write(G, ranks, streams, *, scale, rule, iteration):\n    G[list(ranks)] = scale + iteration\n"
        "MINE = Attack('mine', False, write, {'scale': 2.0}, uses_rule=True)\n"
    )
    assert fa.attack(np.eye(3), f"{file}:MINE", f=1, iteration=5, rule=fa.make_rule("mean"))[0].tolist() == [7, 7, 7]


def test_parts_of_a_decision_of_a_wrong_type_are_named(tmp_path: Path) -> None:
    parts = {
        "statistic=OrderStatistic(0.5, 1.5)": r"the statistic of mine must be .*first=0\.5",
        "statistic=OrderStatistic(0, 1), columns=2": r"the columns of mine must be .*\b2$",
        "statistic=OrderStatistic(0, 1), columns=(0.0, 1.0)": r"the columns of mine must be .*\(0\.0, 1\.0\)",
        "statistic=OrderStatistic(0, 1), combinations=[[1.0]]": r"the combinations of mine must be .*\[\[1\.0\]\]",
        "weights=np.array(1.0)": r"the weights of mine must be .*\b3\b",
        "weights=np.ones(3) * 1j": r"the weights of mine must be .*1j",
        "weights=np.ones(3), coefficients=np.ones((2, 1))": r"the coefficients of mine must be .*\b3\b",
        "direction=np.ones(3)": r"the direction of mine must be .*ndarray",
    }
    setup = """
import numpy as np, torch, fa
from fa.rules import ColumnDecision, OrderStatistic
def decide(**parts):
    class Mine(fa.Rule):
        name = "mine"
        def decide(self, gram):
            return ColumnDecision(**parts)
    return Mine()(np.eye(3))
"""
    lines = refusals([f"decide({part})" for part in parts], setup, tmp_path)
    for pattern, line in zip(parts.values(), lines, strict=True):
        assert re.match(pattern, line), line
