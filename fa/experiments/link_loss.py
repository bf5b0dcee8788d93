"""What packet loss costs where TCP sends again: real worker processes behind lossy links, timed."""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fa.experiments.profiles import sized
from fa.network.links import SERVER, Links, refusal, star

if TYPE_CHECKING:
    from pandas import DataFrame

WORKERS, LOSSY = 4, 3
ITERATIONS = {"smoke": 0, "quick": 10, "cpu": 60, "paper": 60}
LOSSES = (0.0, 0.1)
_PORT = 7000  # of a namespace in which nobody else listens
_LIMIT = 600.0  # seconds for a run


def measured(kept: Path, profile: str) -> DataFrame:
    """Seconds of an iteration by share of packets lost: as in the file `kept`, or else measured now. No rows where the
    profile asks for none, or namespaces are refused.
    """
    import pandas

    if kept.is_file() and len(rows := pandas.read_csv(kept)):
        return rows
    iterations = sized(ITERATIONS, profile)
    losses = LOSSES if iterations and not refusal() else ()
    found = [_row(loss, iterations) for loss in losses]
    return pandas.DataFrame(found, columns=["loss", "workers", "lossy", "iterations", "means", "seconds"])


def _row(loss: float, iterations: int) -> dict[str, float | int | str]:
    with star(WORKERS, LOSSY if loss else 0, loss) as links, tempfile.TemporaryDirectory() as folder:
        seconds = _seconds(links, iterations, Path(folder) / "run")
    return {
        "loss": loss,
        "workers": WORKERS,
        "lossy": LOSSY,
        "iterations": iterations,
        "means": links.means,
        "seconds": seconds / iterations,
    }


def _seconds(links: Links, iterations: int, out: Path) -> float:
    """The time that a run's iterations take, between processes in the namespaces of `links`."""
    where = f"{SERVER}:{_PORT}"
    run = f"train --backend rpc --workers {WORKERS} --byzantine 0 --attack none --iterations {iterations} --batch 8"
    commands = [_fa(links.server, "hub", [*run.split(), "--listen", where, "--out", str(out)])]
    for rank, name in enumerate(links.workers):
        commands.append(_fa(name, "eth0", ["worker", "--rank", str(rank), "--master", where]))
    with ExitStack() as stack:
        processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        if processes[0].wait(_LIMIT):
            raise RuntimeError("the run over links has failed; its message is above")
    with (out / "curve.csv").open(newline="") as file:
        return float(list(csv.DictReader(file))[-1]["seconds"])


def _fa(namespace: str, device: str, arguments: list[str]) -> list[str]:
    """The command line in a namespace, where TensorPipe is told the one device that others can reach."""
    start = "import sys; from fa.cli import main; sys.exit(main())"
    return Links.inside(namespace, ["env", f"TP_SOCKET_IFNAME={device}", sys.executable, "-c", start, *arguments])
