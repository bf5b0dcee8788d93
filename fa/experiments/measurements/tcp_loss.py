"""Training between processes whose links lose packets: the cost of TCP's retransmissions."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fa.experiments.measurements.lossy_links import SERVER, Links, star_network, unsupported_reason
from fa.experiments.runs.profiles import PROFILES, for_profile
from fa.experiments.runs.variants import PAPER_RULES_AND_MEAN, VARIANTS
from fa.training.records import CurvePoint

if TYPE_CHECKING:
    from pandas import DataFrame

WORKERS, LOSSY = 4, 3
LOSSES = (0.0, 0.1)
ITERATIONS = {"smoke": 0, "quick": 20, "cpu": 60, "paper": 60}
RULES_BY_PROFILE = {"smoke": (), "quick": ("fa",), "cpu": PAPER_RULES_AND_MEAN, "paper": PAPER_RULES_AND_MEAN}
POINTS = 10  # Points of a curve.
_ABOUT = ("variant", "label", "loss", "workers", "lossy", "means", "resent")
_PORT = 7000  # The namespace has no other listener.
_LIMIT = 600.0  # Timeout of a run, in seconds.


def load_or_measure(path: Path, profile: str) -> DataFrame:
    """Return curves of runs over lossy links, from a file or measured now.

    The rules use f = 0, since TCP delivers every gradient complete. The model, the data and the learning rate are those
    of quick at every profile.

    Args:
        path: File of earlier results, used if it has rows.
        profile: Name of the profile.

    Returns:
        Points by rule and loss, with the number of retransmitted segments. Empty if the profile has no such runs, or
        namespaces are unavailable.
    """
    import pandas

    if path.is_file() and len(rows := pandas.read_csv(path)):
        return rows
    losses = LOSSES if for_profile(ITERATIONS, profile) and not unsupported_reason() else ()
    runs = [_curve(variant, loss, profile) for loss in losses for variant in for_profile(RULES_BY_PROFILE, profile)]
    return pandas.concat(runs, ignore_index=True) if runs else pandas.DataFrame(columns=[*_ABOUT, *CurvePoint._fields])


def _curve(variant: str, loss: float, profile: str) -> DataFrame:
    import pandas

    look, iterations, usual = VARIANTS[variant], for_profile(ITERATIONS, profile), PROFILES["quick"]
    settings = {"iterations": iterations, "evaluate-every": iterations // POINTS}
    settings |= {name: usual[name] for name in ("dataset", "model", "batch", "lr", "momentum")}
    options = [f"--{name}={value}" for name, value in {**settings, **dict(look.options)}.items()]
    with star_network(WORKERS, LOSSY if loss else 0, loss) as links, tempfile.TemporaryDirectory() as folder:
        train_over(links, Path(folder) / "run", [f"--rule={look.rule}", "--byzantine=0", "--attack=none", *options])
        curve = pandas.read_csv(Path(folder) / "run" / "curve.csv")
        about = (variant, look.label, loss, WORKERS, LOSSY, links.means, links.retransmitted_segments())
    return curve.assign(**dict(zip(_ABOUT, about, strict=True)))[[*_ABOUT, *curve.columns]]


def train_over(links: Links, out: Path, arguments: Sequence[str]) -> None:
    """Run `fa train` with its server and each worker as processes in the namespaces.

    Args:
        links: The namespaces.
        out: Folder of the records.
        arguments: Arguments of `fa train`.

    Raises:
        RuntimeError: The run failed, or took too long.
    """
    where = f"{SERVER}:{_PORT}"
    run = ["train", "--backend=rpc", f"--workers={len(links.workers)}", f"--listen={where}", f"--out={out}"]
    commands = [_fa(links.server, "hub", [*run, *arguments])]
    for rank, name in enumerate(links.workers):
        commands.append(_fa(name, "eth0", ["worker", "--backend=rpc", "--rank", str(rank), "--server", where]))
    with ExitStack() as stack:
        processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        try:
            failed = processes[0].wait(_LIMIT)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"the run over links has taken longer than {_LIMIT:g} s") from None
        if failed:
            raise RuntimeError("the run over links has failed; its message is above")


def _fa(namespace: str, device: str, arguments: list[str]) -> list[str]:
    """Return the command in a namespace, with TensorPipe restricted to the device that others can reach."""
    start = "import sys; from fa.cli import main; sys.exit(main())"
    return Links.command_in(namespace, ["env", f"TP_SOCKET_IFNAME={device}", sys.executable, "-c", start, *arguments])
