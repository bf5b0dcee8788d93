"""Measure time and memory of `fa aggregate` on gradient files larger than memory.

    python benchmarks/aggregate_files.py --parameters 100000000 --folder DIR

The script writes one file per worker into DIR (15 of 400 MB) unless they exist, and reads them once. For each rule it
prints the time of the aggregation, beside the time of one plain pass over the same bytes. It also prints the peak of
anonymous memory above that of an interpreter that has imported torch and fa.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

FA = "from fa.cli import main; main()"
IDLE = "import time, fa.rules, fa.gradients.memory_map, fa.kernels.cpu; time.sleep(1)"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rules", nargs="+", default=["mean", "fa", "multi_krum", "median", "meamed", "bulyan"])
    given = parser.parse_args()
    paths = files(given.folder, given.workers, given.parameters)
    total = sum(path.stat().st_size for path in paths)
    print(f"{given.workers} files, {total / 1e9:.1f} GB; one plain pass: {min(plain(paths) for _ in range(3)):.1f} s")
    idle, _ = most_anonymous([IDLE])
    for rule in given.rules:
        options = ["--rule", rule, *(["--f", "3"] if rule != "fa" else []), "--out", str(given.folder / "d.npy")]
        memory, told = most_anonymous([FA, "aggregate", *map(str, paths), *options])
        print(f"{told.splitlines()[-1]}; {memory - idle:.0f} MB of memory")


def files(folder: Path, workers: int, parameters: int) -> list[Path]:
    """Write missing gradient files, float32: a common direction, and noise for each worker.

    Args:
        folder: Folder of the files.
        workers: Number of files.
        parameters: Number of coordinates of a gradient.

    Returns:
        Paths of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"worker{i:02d}.npy" for i in range(workers)]
    rng = np.random.default_rng(0)
    common = rng.standard_normal(parameters, dtype=np.float32)
    for path in paths:
        if not path.exists():
            np.save(path, common + rng.standard_normal(parameters, dtype=np.float32))
    return paths


def plain(paths: list[Path]) -> float:
    """Return the time to sum all coordinates, file after file, in seconds."""
    started = time.perf_counter()
    for path in paths:
        np.load(path, mmap_mode="r").sum()
    return time.perf_counter() - started


def most_anonymous(arguments: list[str]) -> tuple[float, str]:
    """Run a Python process and return its peak of anonymous memory, in MB, and its output."""
    process = subprocess.Popen([sys.executable, "-c", *arguments], stdout=subprocess.PIPE, text=True)
    most = 0
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
        most = max([most, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
        time.sleep(0.005)
    assert process.stdout is not None
    if process.returncode:
        sys.exit(process.returncode)
    return most / 1024, process.stdout.read()


if __name__ == "__main__":
    main()
