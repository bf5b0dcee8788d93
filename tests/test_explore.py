"""The explorer: what it shows of a setting is what the rules and the certificate say."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import fa
from fa.attacks import ATTACKS
from fa.experiments.explorer import widget
from fa.experiments.explorer.scene import (
    FORMULATIONS,
    MEANS,
    PRINCIPAL,
    Setting,
    default_setting,
    gradients,
    load_gradients,
    scene,
)
from fa.experiments.explorer.widget import SETTINGS, draw, show, static
from fa.experiments.runs.user_rules import label
from fa.experiments.runs.variants import VARIANTS
from tests import reference

RULE = f"{Path(__file__).parents[1] / 'examples' / 'geometric_median.py'}:GeometricMedian"
SMALL = Setting(p=9, f=2, m=4, attack="random_honest_norm")


@pytest.fixture(scope="module")
def pool() -> torch.Tensor:
    """Gradients that agree in a direction, and are noisy otherwise."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, 200, generator=generator) + 2 * torch.randn(200, generator=generator)


def sent(pool: torch.Tensor, setting: Setting) -> torch.Tensor:
    G = pool[: setting.p].clone()
    ATTACKS[setting.attack].apply(G, range(setting.f), setting.seed, 0)
    return G


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_scene_is_what_the_rules_say(pool: torch.Tensor, formulation: str) -> None:
    setting = replace(SMALL, formulation=formulation, a=1.5, lam=2.0)
    G, shown = sent(pool, setting), scene(pool, setting)
    options = {"m": 4, "a": 1.5, "lam": 2.0, **dict(VARIANTS[FORMULATIONS[formulation]].options)}
    d, honest = fa.aggregate(G, "fa", **options).double(), G[2:].double().mean(dim=0)
    ours = shown.landings[0]
    assert ours.variant == FORMULATIONS[formulation]
    assert ours.cosine == pytest.approx(float(d @ honest / d.norm() / honest.norm()), abs=1e-6)
    assert ours.inside == pytest.approx(float(np.square(ours.point).sum() / d.norm() ** 2), abs=1e-6)
    decision = fa.make_rule("fa", **options).aggregate(G).decision
    np.testing.assert_allclose(shown.values, decision.values)
    counted = decision.weights * G.norm(dim=1).numpy()
    np.testing.assert_allclose(shown.shares, counted / np.abs(counted).sum(), rtol=1e-5)
    assert shown.bound <= shown.history[-1] + 1e-9 <= shown.objective + 2e-3
    assert 0 <= shown.gap < 1
    assert shown.steps == (1 if formulation == "released" else 5)
    assert [landing.variant for landing in shown.landings[1:]] == [
        "multi_krum", "median", "meamed", "phocas", "trimmed_mean", "mean", "mean_unit"
    ]  # fmt: skip
    assert list(shown.refused) == [VARIANTS["bulyan"].label]


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("lam", [0.0, 16.0])
def test_the_objective_is_that_of_the_basis_that_this_reading_finds(
    pool: torch.Tensor, formulation: str, lam: float
) -> None:
    setting = replace(SMALL, formulation=formulation, lam=lam)
    shown = scene(pool, setting)
    G = sent(pool, setting).double().numpy()
    norms = np.linalg.norm(G, axis=1, keepdims=True)
    seen = {"released": G / norms, "default": G / norms * np.median(norms), "printed": G}[formulation]
    Y = reference.flag_median(seen, 4, lam, 2.0, 5)
    if formulation == "released":
        Y = reference.released_basis(seen.T, 4, lam)
    assert shown.objective == pytest.approx(reference.eq5(seen, Y, lam), rel=1e-5)
    assert shown.bound <= shown.objective
    if formulation == "released" and lam:
        assert shown.objective > shown.history[0] + 0.1  # it weighs pairs in another way


def test_the_plane_holds_both_means_and_keeps_lengths(pool: torch.Tensor) -> None:
    G, shown = sent(pool, SMALL), scene(pool, SMALL)
    assert shown.points[2:].mean(axis=0) == pytest.approx([float(G[2:].mean(dim=0).norm()), 0.0], abs=1e-4)
    faulty = shown.points[:2].mean(axis=0)
    assert np.linalg.norm(faulty) == pytest.approx(float(G[:2].mean(dim=0).norm()), rel=1e-5)
    mean = next(landing for landing in shown.landings if landing.variant == "mean")
    assert mean.inside == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(mean.point, shown.points.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("setting", [replace(SMALL, f=0), replace(SMALL, attack="ipm"), replace(SMALL, attack="zero")])
def test_where_the_faulty_mean_adds_nothing_the_plane_says_what_it_took(pool: torch.Tensor, setting: Setting) -> None:
    shown, usual = scene(pool, setting), scene(pool, SMALL)
    assert shown.axes[0] == usual.axes[0]
    assert shown.axes[1] != usual.axes[1]
    assert np.isfinite(shown.points).all()
    assert shown.points[:, 1].std() > 0.1


def test_principal_directions_are_those_of_an_svd(pool: torch.Tensor) -> None:
    setting = replace(SMALL, plane=PRINCIPAL)
    G = sent(pool, setting).double()
    rows = torch.linalg.svd(G / G.norm(dim=1, keepdim=True), full_matrices=False)[2][:2]
    np.testing.assert_allclose(np.abs(scene(pool, setting).points), (G @ rows.T).abs().numpy(), atol=1e-8)


@pytest.mark.parametrize("plane", [MEANS, PRINCIPAL])
def test_gradients_of_one_direction_or_of_none_have_a_plane(pool: torch.Tensor, plane: str) -> None:
    opposite = torch.cat([pool[:1], -pool[:1]])  # whose mean is 0
    for G, p in ((pool, 1), (pool[:1].repeat(3, 1), 3), (opposite, 2)):
        shown = scene(G, Setting(p=p, f=0, attack="none", m=1, plane=plane))
        lengths = G[:p].double().norm(dim=1).numpy()
        np.testing.assert_allclose(np.linalg.norm(shown.points, axis=1), lengths, rtol=1e-6)


def test_every_attack_and_a_rule_of_ones_own_are_drawn(pool: torch.Tensor) -> None:
    for attack in ATTACKS.keys() - {"nan"}:
        shown = scene(pool, replace(SMALL, attack=attack, lam=0.5), [RULE])
        assert shown.landings[-1].variant == RULE
        assert shown.bound <= shown.objective + 1e-6
    figure = draw(shown)
    whole, near, names, values, shares, _ = figure.axes
    assert whole.get_aspect() == near.get_aspect() == 1
    texts = [text.get_text() for text in names.get_legend().get_texts()]
    for text, variant in ((texts[0], "fa_default"), (texts[-1], RULE)):
        assert any(one.startswith(label(variant)) for one in texts), text
    np.testing.assert_allclose([bar.get_height() for bar in values.patches], shown.values)
    assert [bar.get_hatch() is not None for bar in shares.patches] == [True] * 2 + [False] * 7
    assert shown.refused[VARIANTS["bulyan"].label] in figure.get_suptitle()


def test_what_cannot_be_is_refused(pool: torch.Tensor) -> None:
    for bad, pattern in (
        ({"f": 15}, r"^p must be .*\b16\b.*\b15\b"),
        ({"formulation": "written"}, r"^formulation must be .*'written'"),
        ({"plane": "flat"}, rf"^plane must be .*{MEANS}.*{PRINCIPAL}.*'flat'"),
    ):
        with pytest.raises(ValueError, match=pattern):
            Setting(**bad)
    for plane in (MEANS, PRINCIPAL):
        with pytest.raises(ValueError, match=r"^gradients must be .*\b1 coordinate\b"):
            scene(pool[:, :1], replace(SMALL, plane=plane))
    with pytest.raises(ValueError, match=r"\bpool must be .*\b31\b.*\b30\b"):
        scene(pool, Setting(p=31))
    with pytest.raises(ValueError, match=r"^m must be .*\b3\b.*\b8\b"):
        scene(pool, Setting(p=3, f=1))
    with pytest.raises(ValueError, match=r"^interactive must be .*'false'"):
        show(pool, "false")


def test_real_gradients_are_reproducible() -> None:
    pool = gradients("smoke")
    assert pool.shape == (30, 21840)
    assert torch.equal(pool, gradients("smoke"))


def fake_widgets() -> ModuleType:
    """ipywidgets as far as the explorer uses it: what a control holds, and whom a change tells."""

    class Control(SimpleNamespace):
        def __init__(self, value: object = None, min: object = None, max: object = None, **more: object) -> None:
            super().__init__(value=value, min=min, max=max, told=[], **more)

        def observe(self, tell: object, names: str) -> None:
            self.told.append(tell)

        def set(self, value: object) -> None:
            self.value = value
            for tell in self.told:
                tell({"new": value})

    module = ModuleType("ipywidgets")
    for name in ("IntSlider", "Dropdown", "SelectionSlider", "Image", "HTML", "Layout"):
        setattr(module, name, Control)
    module.HBox = module.VBox = lambda children: SimpleNamespace(children=children)
    return module


def test_a_slider_moves_the_picture(pool: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Setting] = []
    monkeypatch.setattr(widget, "scene", lambda pool, setting, rules: chosen.append(setting) or setting)
    monkeypatch.setattr(widget, "draw", lambda setting: setting)
    monkeypatch.setattr(widget, "picture", lambda setting: str(setting).encode())
    monkeypatch.setitem(sys.modules, "ipywidgets", fake_widgets())
    box = show(pool)
    *rows, message, image = box.children
    controls = {control.description: control for row in rows for control in row.children}
    assert chosen == [Setting()]
    controls["attack"].set("alie")
    controls["attack"].set("alie")  # no change is drawn once more
    assert chosen == [Setting(), Setting(attack="alie")]
    controls["p"].set(21)
    assert (controls["f"].max, controls["m"].max) == (10, 21)
    assert image.value == str(Setting(p=21, attack="alie")).encode()

    def refuse(*_: object) -> None:
        raise ValueError("m < p")

    monkeypatch.setattr(widget, "scene", refuse)
    controls["m"].set(2)
    assert message.value == "m &lt; p"


@pytest.mark.parametrize("kind", ["file", "array", "tensor"])
def test_the_users_gradients_are_explored(pool: torch.Tensor, tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "G.npy", pool[:5].numpy())
    source = {"file": str(tmp_path / "G.npy"), "array": pool[:5].numpy(), "tensor": pool[:5]}[kind]
    G = load_gradients(source)
    torch.testing.assert_close(G, pool[:5].double())
    shown = scene(G, default_setting(len(G)))
    assert (shown.setting.p, shown.setting.f) == (5, 0)
    np.testing.assert_allclose(shown.values, fa.irls.solve(G.numpy(), m=shown.setting.m).values)
    G[2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"^gradients must be finite"):
        load_gradients(G)


def test_few_gradients_have_one_static_picture(pool: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    displayed: list[object] = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    static(pool[:4])
    assert len(displayed) == 1


def test_a_negligible_objective_has_no_gap(pool: torch.Tensor) -> None:
    shown = scene(pool[:1].repeat(5, 1), Setting(p=5, f=0, attack="none", m=2))
    assert (shown.bound, shown.gap) == (0, 0)


def test_without_ipywidgets_there_are_pictures(
    pool: torch.Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    displayed: list[object] = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    monkeypatch.setattr(widget, "SETTINGS", SETTINGS[:1])
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert show(pool) is None
    assert "ipywidgets" in capsys.readouterr().out
    static(pool)
    assert [image.data[:4] for image in displayed] == [b"\x89PNG"] * 2


def test_its_sliders_are_widgets(pool: torch.Tensor) -> None:
    widgets = pytest.importorskip("ipywidgets", reason="pip install ipywidgets")
    box = show(pool)
    assert isinstance(box, widgets.VBox)
    p, f, m = box.children[0].children[:3]
    image = box.children[-1]
    before = bytes(image.value)
    p.value = 5
    assert (f.max, f.value, m.max, m.value) == (2, 2, 5, 5)
    assert bytes(image.value) != before
    assert bytes(image.value)[:4] == b"\x89PNG"
