"""Rules and attacks of the user's own in sweeps, figures and the benchmark."""

import re
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

import fa
from fa.bench import draw as bench_draw
from fa.cli import cli, main
from fa.experiments import ALL, SUPPLEMENT, figure_module
from fa.experiments.figures import extra02, extra03, fig04, fig05, fig06a, fig07, fig10
from fa.experiments.reporting import style
from fa.experiments.reporting.artifacts import provenance
from fa.experiments.reporting.heatmap import draw_heat
from fa.experiments.runs import user_rules
from fa.experiments.runs.results import Results
from fa.experiments.runs.store import RunStore
from fa.experiments.runs.study import Case, Study, make_study
from fa.experiments.runs.variants import VARIANTS
from fa.training import TrainConfig, train
from fa.utils.plugins import display_name

EXAMPLES = Path(__file__).parents[1] / "examples"
RULE = f"{EXAMPLES / 'geometric_median.py'}:GeometricMedian"
ATTACK = f"{EXAMPLES / 'shifted_mean.py'}:SHIFTED"
SHORT = {"workers": 5, "byzantine": 1, "iterations": 2, "batch": 4}


def table(study: Study, reached: float = 0.5) -> pd.DataFrame:
    """Two points a curve, ending a little above `reached` by the place of the variant; the user's rule at 0.99."""
    columns = list(dict.fromkeys(name for cell in study.cells for name in cell.case.columns))
    rows = []
    for place, cell in enumerate(study.cells):
        last = 0.99 if cell.variant not in VARIANTS else reached + 0.001 * (place % 7)
        about = {"variant": cell.variant, "label": cell.case.label, "f": cell.config.byzantine}
        about |= {name: cell.case.columns.get(name) for name in columns} | {"seed": cell.config.seed}
        for iteration, accuracy in ((1, 0.1), (2, last)):
            point = {"iteration": iteration, "epoch": 1, "seconds": 1.0, "train_loss": 1.0, "test_accuracy": accuracy}
            rows.append(about | point)
    return pd.DataFrame(rows)


# Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency, 2009: the
# severest of each kind, on linear RGB.
SEEN = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no L": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no M": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no S": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(color: str, eye: str) -> np.ndarray:
    """CIELAB, as that eye sees the color."""
    coded = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(np.array(SEEN[eye]) @ linear, 1e-3, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_their_looks_are_told_apart_by_every_eye() -> None:
    known = [*style.LOOKS.values(), *bench_draw._OTHERS.values()]
    colors = {variant.color for variant in known}
    pairs = [(mine, other) for mine, _ in style.USER_LOOKS for other in (*colors, "#ffffff")]
    pairs += combinations([color for color, _ in style.USER_LOOKS], 2)
    for mine, other in pairs:
        assert min(np.linalg.norm(lab(mine, eye) - lab(other, eye)) for eye in SEEN) > 20, (mine, other)
    markers = [marker for _, marker in style.USER_LOOKS]
    assert len({*markers, *(look.marker for look in style.LOOKS.values())}) == len(markers) + len(style.LOOKS)


@pytest.mark.parametrize("name", ALL)
def test_a_rule_enters_every_figure_that_compares_rules(name: str) -> None:
    """Beside each case of Median, with its settings; or there is a reason why not."""
    module = figure_module(name)
    if hasattr(module, "NO_RULES"):
        with pytest.raises(ValueError, match=r"\bsetting\b.*'rules'"):
            module.study("smoke", rules=[RULE])
        return
    usual, study = module.study("smoke"), module.study("smoke", rules=[RULE])
    assert study.folder.name == "smoke-custom" != usual.folder.name
    entered = [cell.config for cell in study.cells if cell.variant == RULE]
    assert [cell for cell in study.cells if cell.variant != RULE] == list(usual.cells)
    like = {"rule": RULE, "rule_options": ()}
    median = [cell for cell in usual.cells if cell.variant == "median" and not cell.case.label_override]
    assert [vars(config) for config in entered] == [vars(cell.config) | like for cell in median]
    if name not in SUPPLEMENT:  # whose data need not be here
        command = provenance(Results(study, {}, 1.0, ()))["command"]
        assert command == f"fa reproduce --profile smoke {name} --rule {RULE}"


@pytest.mark.parametrize("name", ["fig04", "fig05", "fig06a", "fig06bcd", "extra02", "extra03", "extra05"])
def test_no_claim_is_judged_by_it_and_every_panel_draws_it(name: str) -> None:
    module = figure_module(name)
    study = module.study("smoke", rules=[RULE])
    if name == "extra02":
        study = extra02.tested(study, table(study))
    numbers = table(study)
    assert (numbers["test_accuracy"] == 0.99).any()
    without = numbers[numbers["variant"] != RULE]
    size = {"profile": "smoke"} if name == "fig05" else {}
    assert module.claims(numbers, 0.05, **size) == module.claims(without, 0.05, **size)
    figure = module.draw(numbers, "title")
    if name not in ("extra03", "extra05"):
        drawn = {line.get_color() for axes in figure.axes for line in axes.get_lines()}
        assert style.USER_LOOKS[0][0] in drawn
    words = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        words += [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []
        words += [text.get_text() for text in axes.get_yticklabels()]
    assert any(word.startswith("Geometric median") for word in words)


def test_figures_7_and_10_too() -> None:
    seven = fig07.study("smoke", rules=[RULE])
    curves = table(seven).assign(scheme=lambda rows: rows["augmentation"].map(fig07._augmentations()))
    worth = [{"scheme": s, "augmented": a, "value": 0.5, "iteration": i} for s in fig07.SCHEMES for a in (True, False)
             for i in (1, 2)]  # fmt: skip
    values = pd.DataFrame(worth)
    assert fig07.claims(curves, values, 0.05) == fig07.claims(user_rules.builtin_rows(curves), values, 0.05)
    assert style.USER_LOOKS[0][0] in {line.get_color() for line in fig07.draw(curves, values, "").axes[0].get_lines()}
    ten = fig10.study("smoke", rules=[RULE])
    numbers, parts = table(ten), dict.fromkeys([*fig10.PHASES, "epoch"], 0.1)
    spent = pd.DataFrame([{"variant": cell.variant, "seed": 1, **parts} for cell in ten.cells])
    costs = pd.DataFrame([{"method": "FA", "milliseconds": 1.0, "workers": 7, "n": 100}])
    claims = fig10.claims(numbers, spent, costs, 0.05)
    assert claims == fig10.claims(user_rules.builtin_rows(numbers), user_rules.builtin_rows(spent), costs, 0.05)
    drawn = fig10.draw(numbers, spent, costs, "", 0.1)
    assert style.USER_LOOKS[0][0] in {line.get_color() for line in drawn.axes[0].get_lines()}
    assert "Geometric median" in [text.get_text() for text in drawn.axes[1].get_yticklabels()]


def test_names_looks_and_refusals(tmp_path: Path) -> None:
    file = tmp_path / "median.py"
    file.write_text("from fa.rules import Mean\nclass A(Mean):\n    name = 'Median'\nclass B(A):\n    pass\n")
    keys = user_rules.register_rules([f"{file}:A", f"{file}:B", "krum", f"{file}:A"])
    assert keys == (f"{file}:A", f"{file}:B", "krum")
    looks = style.looks(keys)
    assert [looks[key].label for key in keys] == ["A (median.py)", "B (median.py)", "Krum"]
    assert [looks[key].color for key in keys] == [color for color, _ in style.USER_LOOKS[:3]]
    with pytest.raises(ValueError, match=r"\brule must be .*'median'"):
        user_rules.register_rules(["median"])
    with pytest.raises(ValueError, match=r"\brule must be .*\b4\b.*'byzfl:CAF'"):
        user_rules.register_rules([*keys, RULE, "byzfl:CAF"])
    shutil.copy(EXAMPLES / "geometric_median.py", tmp_path)
    with pytest.raises(ValueError, match=r"\brules must be .*Geometric median"):
        user_rules.register_rules([RULE, f"{tmp_path / 'geometric_median.py'}:GeometricMedian"])
    with pytest.raises(ValueError, match=r"^rules must be .*'krum'"):
        fig04.study("smoke", rules="krum")


def test_an_attack_replaces_the_figures_and_the_figure_says_so() -> None:
    study = fig05.study("smoke", attack=ATTACK)
    assert {config.attack for config in study.configs} == {ATTACK}
    assert study.folder.name == "smoke-custom"
    assert display_name(ATTACK) == "SHIFTED (shifted_mean.py)"
    assert display_name(ATTACK) in study.title()
    numbers = table(study)
    assert set(numbers["attack"]) == {ATTACK}
    heading = fig05.draw(numbers, study.title()).get_suptitle()
    usual = fig05.draw(table(fig05.study("smoke")), "").get_suptitle()
    assert user_rules.attack_heading(numbers) in heading
    assert user_rules.attack_heading(table(fig05.study("smoke"))) in usual
    assert user_rules.attack_heading(numbers) not in usual
    assert "f = 3" in heading
    assert fig05.study("smoke", attack="random") == fig05.study("smoke")
    command = provenance(Results(study, {}, 1.0, ()))["command"]
    assert command == f"fa reproduce --profile smoke fig05_batch_size --attack {ATTACK}"
    rated = extra02.study("smoke", attack="alie")
    tested = extra02.tested(rated, table(rated))
    assert {cell.case.columns["attack"] for cell in tested.cells} == {"alie"}


def test_extra_3_has_one_more_attack() -> None:
    study = extra03.study("smoke", attack=ATTACK, rules=[RULE])
    assert study.folder.name == "smoke-custom"
    numbers = table(study)
    cells = extra03.cells(numbers, 4)
    assert list(cells.columns) == [*extra03.ATTACKS.values(), display_name(ATTACK)]
    assert list(cells.index)[-2:] == ["Geometric median", extra03.SAME_LENGTH]
    plain = numbers[numbers["attack"] != ATTACK]
    assert extra03.claims(numbers, 0.05) == extra03.claims(plain, 0.05)
    assert f"--attack {ATTACK}" in provenance(Results(study, {}, 1.0, ()))["command"]


def test_runs_of_the_profile_serve_and_are_not_written_to(tmp_path: Path) -> None:
    config = TrainConfig(**SHORT)
    profile, custom = RunStore(tmp_path / "quick"), RunStore(tmp_path / "custom", tmp_path / "quick")
    assert custom.find(config) is None
    kept = profile.save(train(config))
    assert custom.find(config) == kept
    assert custom.explain(config) == profile.explain(config)
    assert not custom.root.exists()
    study = fig04.study("quick", rules=[RULE])
    assert study.store._fallback is not None
    assert study.store._fallback.root == fig04.study("quick").store.root
    assert fig06a.study("quick", out=tmp_path, rules=[RULE]).store._fallback is None
    assert fig10.study("quick", rules=[RULE]).store._fallback is None  # times of another machine, perhaps


FAILS = """from fa.rules import Mean
class Fails(Mean):
    name = 'faulty_rule'
    def decide(self, gram):
        return {}
"""
BAD = """from fa.attacks import Attack
def write(G, faulty, streams):
    G[99] = 0
BAD = Attack('bad', False, write)
"""


@pytest.mark.parametrize(
    ("decides", "message"),
    [
        ("1 / 0", r"\bmy_rule\.py\b.*\b5\b.*\bZeroDivisionError\b"),
        ("fa.rules.ColumnDecision()", r"\bfaulty_rule\b.*\bColumnDecision\("),
        ("fa.rules.ColumnDecision(weights=gram.norms[1:])", r"\bweights\b.*\bfaulty_rule\b.*\b5\b.*\barray\("),
    ],
)
def test_what_fails_in_their_file_is_one_line_with_its_place(tmp_path: Path, decides: str, message: str) -> None:
    file = tmp_path / "my_rule.py"
    file.write_text(("import fa;" + FAILS).format(decides))
    with pytest.raises(ValueError, match=message):
        fa.aggregate(np.eye(5), f"{file}:Fails")
    attack = tmp_path / "my_attack.py"
    attack.write_text(BAD)
    with pytest.raises(ValueError, match=r"\bmy_attack\.py\b.*\b3: IndexError\b.*\b99\b"):
        train(TrainConfig(attack=f"{attack}:BAD", **SHORT))


def test_a_sweep_names_the_line_too(tmp_path: Path) -> None:
    file = tmp_path / "my_rule.py"
    file.write_text(FAILS.format("1 / 0"))
    (key,) = user_rules.register_rules([f"{file}:Fails"])
    (outcome,) = make_study("fig04", "smoke", [Case(key, 1)], tmp_path).sweep(progress=False)
    assert outcome.record is None
    assert str(outcome).startswith(f"{display_name(key)}, f = 1, seed 2021: ")
    assert re.search(r"\bmy_rule\.py\b.*\b5: ZeroDivisionError\b", str(outcome))


def test_names_are_no_markup(tmp_path: Path) -> None:
    """Neither of rich, which reads [red], nor of matplotlib, which reads dollar signs."""
    file = tmp_path / "we$ird_[red].py"
    file.write_text(Path(RULE.rpartition(":")[0]).read_text())
    rule = f"{file}:{RULE.rpartition(':')[2]}"
    runner, out = CliRunner(env={"COLUMNS": "200"}), ["--profile", "smoke", "--out", str(tmp_path)]
    why = runner.invoke(cli, ["sweep", "fig05", "--rule", rule, "--why", *out], catch_exceptions=False)
    (key,) = user_rules.register_rules([rule])
    assert display_name(key) in why.stdout
    train(TrainConfig(rule=rule, workers=4, byzantine=1, iterations=2, batch=4), tmp_path / "run", threads=1)
    done = runner.invoke(cli, ["plot", str(tmp_path / "run")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    figure = draw_heat_of(display_name(key))
    figure.savefig(tmp_path / "heat.png")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [style.literal(display_name(key))]


def draw_heat_of(name: str) -> Figure:
    figure = style.new_figure(4, 4)
    draw_heat(figure.subplots(), pd.DataFrame([[0.5]], index=[name], columns=[name]), name)
    return figure


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--profile", "smoke", "--out", str(tmp_path)]
    explain = ["sweep", "fig02", "fig05", "--rule", RULE, "--why", *out]
    why = CliRunner(env={"COLUMNS": "200"}).invoke(cli, explain, catch_exceptions=False)
    (line,) = why.stderr.splitlines()
    assert line.startswith("fig02_mean_tolerance: --rule ")
    assert why.stdout.count(display_name(RULE)) == 3
    for arguments, message in (
        (["sweep", "fig02", "--rule", RULE], r"--rule\b.*\bfig02_mean_tolerance\b"),
        (["reproduce", "theory01", "fig07", "--attack", "zero"], r"--attack\b.*\bfig07_augmented_data\b"),
        (["sweep", "fig04", "--rule", f"{tmp_path}/no.py:R"], rf"{tmp_path}/no\.py\b"),
        (["bench", "--n", "10", "--p", "2", "--rule", "krum"], r"\brule must be .*'krum'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *(out if arguments[0] != "bench" else [])])
        assert ended.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("fa: ")
        assert re.search(message, last), last


@pytest.mark.long
def test_a_figure_is_drawn_with_both(tmp_path: Path) -> None:
    own_options = ["--rule", RULE, "--attack", ATTACK, "--profile", "smoke", "--out", str(tmp_path)]
    done = CliRunner().invoke(cli, ["reproduce", "fig06bcd", *own_options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = pd.read_csv(tmp_path / "fig06bcd_more_workers.csv")
    assert "Geometric median" in set(rows["label"])
    assert set(rows["attack"]) == {ATTACK}
