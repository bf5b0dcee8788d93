"""The explorer's figure of a scene, and the widget whose sliders select the setting."""

from __future__ import annotations

import html
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fa.attacks import ATTACKS
from fa.experiments.explorer.scene import FORMULATIONS, MAX_WORKERS, PLANES, Scene, Setting, default_setting, scene
from fa.experiments.reporting import style
from fa.experiments.reporting.style import looks
from fa.utils.validation import check

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAMBDAS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
POWERS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0)


def draw(shown: Scene) -> Figure:
    """Draw the plane, whole and near the honest gradients (above), and v_i, shares and eq. 5 by step (below).

    Args:
        shown: The result of a setting; see `scene`.

    Returns:
        The figure, with five panels and a legend.
    """
    figure = style.new_figure(13, 8.6)
    grid = figure.add_gridspec(2, 13, height_ratios=(1.5, 1))
    whole, near, names = (figure.add_subplot(grid[0, lo:hi]) for lo, hi in ((0, 5), (5, 10), (10, 13)))
    _draw_plane(whole, shown, "all gradients")
    _draw_plane(near, shown, "near the honest gradients", _near(shown))
    names.set_axis_off()
    handles, labels = near.get_legend_handles_labels()
    title = "cosine with the honest mean,\nshare of squared length in the plane"
    names.legend(handles[::-1], labels[::-1], title=title, loc="upper left", fontsize=8, borderaxespad=0)
    values, shares, course = (figure.add_subplot(grid[1, lo:hi]) for lo, hi in ((0, 4), (4, 8), (8, 13)))
    _draw_workers(values, shown.values, shown.setting.f, "explained variance $v_i$")
    values.set_ylim(0, 1.02)
    _draw_workers(shares, shown.shares, shown.setting.f, "share in FA's direction (weight times norm)")
    _draw_course(course, shown)
    style.set_heading(figure, _title(shown))
    return figure


def _title(shown: Scene) -> str:
    setting = shown.setting
    heading = (
        f"p = {setting.p}, f = {setting.f} ({setting.attack}); {setting.formulation} formulation of FA, "
        f"m = {setting.m}, lambda = {setting.lam:g}, a = {setting.a:g}"
    )
    return "\n".join([heading, *(f"excluded: {reason}" for reason in shown.refused.values())])


def _near(shown: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of a square around the origin, the honest gradients, and the directions close to them."""
    inside = np.vstack([shown.points[shown.setting.f :], np.zeros(2)])
    far = 2 * float(np.linalg.norm(inside, axis=1).max())
    inside = np.vstack([inside, *(landing.point for landing in shown.landings if np.linalg.norm(landing.point) <= far)])
    low, high = inside.min(axis=0), inside.max(axis=0)
    middle, half = (low + high) / 2, 0.6 * max(float((high - low).max()), 1e-12)
    return middle - half, middle + half


def _draw_plane(axes: Axes, shown: Scene, title: str, corners: tuple[np.ndarray, np.ndarray] | None = None) -> None:
    f, points = shown.setting.f, shown.points
    axes.plot(points[f:, 0], points[f:, 1], "o", color=style.HONEST, markersize=4, label="honest gradients")
    axes.plot(points[:f, 0], points[:f, 1], "x", color=style.BYZANTINE, markersize=6, label="Byzantine gradients")
    variants = looks(landing.variant for landing in shown.landings)
    for landing in reversed(shown.landings):  # FA is drawn last, on top.
        look = variants[landing.variant]
        axes.plot(*np.array([[0, 0], landing.point]).T, color=look.color, linewidth=1, alpha=0.7)
        label = f"{look.label}: {landing.cosine:.2f}, {landing.inside:.0%}"
        size = 12 if look.marker == "*" else 8
        edge = look.color if look.marker == "x" else "white"
        axes.plot(*landing.point, look.marker, color=look.color, markersize=size, markeredgecolor=edge, label=label)
    axes.plot(0, 0, "+", color="black", markersize=10)
    axes.set(title=title, xlabel=shown.axes[0], ylabel=shown.axes[1], aspect="equal", adjustable="datalim")
    if corners is not None:
        axes.set(adjustable="box", xlim=(corners[0][0], corners[1][0]), ylim=(corners[0][1], corners[1][1]))


def _draw_workers(axes: Axes, numbers: np.ndarray, f: int, title: str) -> None:
    axes.bar(range(f), numbers[:f], color=style.BYZANTINE, hatch="//", edgecolor="white")
    axes.bar(range(f, len(numbers)), numbers[f:], color=style.HONEST)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(title=title, xlabel="worker (hatched: Byzantine)")
    axes.set_xticks(range(0, len(numbers), 1 + len(numbers) // 16))


def _draw_course(axes: Axes, shown: Scene) -> None:
    ours, steps = style.LOOKS["fa"].color, range(1, len(shown.history) + 1)
    axes.plot(steps, shown.history, color=ours, marker=".", label="IRLS, smoothed eq. 5")
    axes.plot(min(shown.steps, len(shown.history)), shown.objective, "o", color=ours, label="where FA stops")
    axes.axhline(shown.bound, color="#222222", linestyle="--", label="lower bound for every Y")
    axes.set(title=f"objective {shown.objective:.4g}, bound {shown.bound:.4g}: gap {shown.gap:.1%}", xlabel="step")
    axes.set_xscale("log")
    axes.legend(fontsize=8)


def show(pool: Float[Tensor, "p n"], interactive: Any = True, rules: Sequence[str] = ()) -> Any:
    """Return the explorer as a widget for the notebook.

    Without ipywidgets, or with `interactive=False`, display the figures of `SETTINGS` instead.

    Args:
        pool: Honest gradients (p, n).
        interactive: True for the widget.
        rules: The user's rules, in addition to the paper's.
    """
    check("interactive", interactive, isinstance(interactive, bool), "True or False, written so for papermill too")
    if not interactive:
        return static(pool, rules)
    try:
        import ipywidgets
    except ModuleNotFoundError:
        print("sliders need ipywidgets (pip install ipywidgets); in their place, some settings:")
        return static(pool, rules)
    return _widget(ipywidgets, pool, rules)


SETTINGS = (
    Setting(),
    Setting(formulation="printed"),
    Setting(attack="collude", f=4),
    Setting(attack="ipm", f=5, formulation="released"),
    Setting(p=30, f=6, m=16, lam=8.0),
)
"""Settings that are displayed without sliders."""


def static(pool: Float[Tensor, "p n"], rules: Sequence[str] = ()) -> None:
    """Display the figure of each setting in `SETTINGS`.

    Args:
        pool: Honest gradients (p, n).
        rules: The user's rules, in addition to the paper's.
    """
    from IPython.display import Image, display

    for setting in [setting for setting in SETTINGS if setting.p <= len(pool)] or [default_setting(len(pool))]:
        display(Image(picture(draw(scene(pool, setting, rules))), width=1100))


def picture(figure: Figure) -> bytes:
    """Render a figure.

    Args:
        figure: A figure of matplotlib.

    Returns:
        A PNG file with 100 pixels per inch, as bytes.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _widget(widgets: Any, pool: Float[Tensor, "p n"], rules: Sequence[str]) -> Any:
    """Create the controls with their figure."""
    usual = default_setting(len(pool))
    # Gradients that are NaN cannot be drawn, and there are no labels to flip.
    attacks = [name for name, attack in ATTACKS.items() if name != "nan" and not attack.flips_labels]
    controls = {
        "p": widgets.IntSlider(usual.p, min(3, len(pool)), min(MAX_WORKERS, len(pool)), description="p"),
        "f": widgets.IntSlider(usual.f, 0, (usual.p - 1) // 2, description="f"),
        "m": widgets.IntSlider(usual.m, 1, usual.p, description="m"),
        "lam": widgets.SelectionSlider(options=LAMBDAS, value=usual.lam, description="lambda"),
        "a": widgets.SelectionSlider(options=POWERS, value=usual.a, description="a"),
        "attack": widgets.Dropdown(options=attacks, value=usual.attack, description="attack"),
        "formulation": widgets.Dropdown(options=list(FORMULATIONS), value=usual.formulation, description="formulation"),
        "plane": widgets.Dropdown(options=PLANES, value=usual.plane, description="plane"),
    }
    for control in controls.values():
        control.continuous_update = False
    image = widgets.Image(format="png", layout=widgets.Layout(width="100%", max_width="1300px"))
    message = widgets.HTML()
    drawn: list[Setting] = []  # The last setting: a new limit that moves another slider must not draw twice.

    def update(_: object = None) -> None:
        controls["f"].max = (controls["p"].value - 1) // 2
        controls["m"].max = controls["p"].value
        chosen = Setting(**{name: control.value for name, control in controls.items()})
        if drawn != [chosen]:
            drawn[:] = [chosen]
            message.value = "computing ..."
            try:
                image.value, message.value = picture(draw(scene(pool, chosen, rules))), ""
            except ValueError as error:
                message.value = html.escape(str(error))

    update()
    for control in controls.values():
        control.observe(update, names="value")
    rows = [list(controls.values())[k : k + 4] for k in (0, 4)]
    return widgets.VBox([*(widgets.HBox(row) for row in rows), message, image])
