"""Draw docs/one_iteration.png, the explorer's first setting: `python docs/draw_one_iteration.py`."""

from pathlib import Path

import torch

from fa.experiments.explorer import scene, widget


def main() -> None:
    """Draw one iteration at profile `quick`."""
    torch.set_num_threads(1)
    figure = widget.draw(scene.scene(scene.gradients("quick"), scene.Setting()))
    figure.savefig(Path(__file__).with_name("one_iteration.png"), dpi=110)


if __name__ == "__main__":
    main()
