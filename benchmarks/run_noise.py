"""Measure how far equal runs end apart: the noise that the margin of docs/claims.md rests on.

    python benchmarks/run_noise.py quick
    python benchmarks/run_noise.py cpu --few
    python benchmarks/run_noise.py paper

FA, Multi-Krum and Bulyan (Figure 4, f = 3) are trained with two instruction sets, one and two threads, and three seeds.
With `--few`, instruction sets and threads vary at the first seed only. At the paper's size nothing is trained: the
repetitions are the finished runs, on a CPU and on a GPU. The final accuracies go to figures/PROFILE/noise.csv. The
script prints the standard deviation, pooled over the rules, and the margin.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path

from fa.experiments.figures import fig04
from fa.experiments.runs.profiles import MARGIN
from fa.experiments.runs.study import Study

RULES = ("fa", "multi_krum", "bulyan")
SEEDS = (2021, 2022, 2023)
INSTRUCTIONS = {
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "native": {},
}
THREADS = (1, 2)
NAMES = ("rule", "instructions", "threads", "seed", "test_accuracy")
TRAIN = """
import sys
from fa.training import TrainConfig, train
run = train(TrainConfig.from_json(sys.argv[1]), threads=int(sys.argv[2]))
print(run.curve[-1].test_accuracy)
"""


def settings(few: bool) -> list[tuple[str, int, int]]:
    """Return the (instruction set, threads, seed) of all repetitions of a run."""
    everything = list(product(INSTRUCTIONS, THREADS, SEEDS))
    return [one for one in everything if not few or one[2] == SEEDS[0] or one[:2] == ("native", 1)]


def accuracy(config: str, instructions: str, threads: int) -> float:
    """Train a configuration in a process of its own and return its final test accuracy."""
    environment = {**os.environ, **INSTRUCTIONS[instructions]}
    command = [sys.executable, "-c", TRAIN, config, str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def pooled_deviation(rows: list[dict[str, str]]) -> float:
    """Return the square root of the mean variance of the rules that have repetitions."""
    by_rule = [[float(row["test_accuracy"]) for row in rows if row["rule"] == rule] for rule in RULES]
    return statistics.mean(statistics.variance(values) for values in by_rule if len(values) > 1) ** 0.5


def finished(study: Study) -> list[dict[str, str]]:
    """Return the finished runs of a study, on a CPU and on a GPU."""
    rows = []
    for cell, device in product(study.cells, ("cpu", "cuda")):
        config = dataclasses.replace(cell.config, device=device)
        record = study.store.find(config)
        if record is not None and record.description["config"]["device"] == device:
            hardware, reached = record.description["hardware"], record.curve[-1]["test_accuracy"]
            where = hardware["instructions"] if device == "cpu" else hardware["device"]
            rows.append(row(cell.variant, where, record.description["threads"], cell.config.seed, reached))
    return rows


def row(rule: str, instructions: str, threads: int, seed: int, reached: float) -> dict[str, str]:
    """Return a row of the table."""
    return dict(zip(NAMES, (rule, instructions, str(threads), str(seed), f"{reached:.4f}"), strict=True))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Write the table."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, NAMES, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Train the missing runs, write them and print the margin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("--few", action="store_true")
    options = parser.parse_args()
    study = fig04.study(options.profile, seeds=SEEDS, variants=RULES, byzantine=[3])
    path = Path("figures") / options.profile / "noise.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    if options.profile == "paper":
        rows = finished(study)
        write(path, rows)
    else:
        known = {(one["rule"], one["instructions"], int(one["threads"]), int(one["seed"])) for one in rows}
        for cell in study.cells:
            for instructions, threads, seed in settings(options.few):
                if seed == cell.config.seed and (cell.variant, instructions, threads, seed) not in known:
                    reached = accuracy(cell.config.to_json(), instructions, threads)
                    rows.append(row(cell.variant, instructions, threads, seed, reached))
                    write(path, rows)
                    print(json.dumps(rows[-1]), flush=True)
    deviation = pooled_deviation(rows)
    print(f"{options.profile}: standard deviation {deviation:.4f}, margin {max(MARGIN, 2 * deviation):.3f}")


if __name__ == "__main__":
    main()
