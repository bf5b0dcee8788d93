"""Who a process is: what torchrun says in the environment, and commands that take it from there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fa import cli
from fa.cli.torchrun import TorchrunEnv, torchrun_env
from tests.processes import beside

ROOT = Path(__file__).parents[1]
SAID = {"RANK": "3", "WORLD_SIZE": "5", "MASTER_ADDR": "node0", "MASTER_PORT": "4711"}
RUN = ["--rule", "median", "--byzantine", "1", "--iterations", "3", "--batch", "4", "--threads", "1"]


def say(monkeypatch: pytest.MonkeyPatch, **change: str) -> None:
    for name, value in (SAID | {"TORCHELASTIC_USE_AGENT_STORE": "False"} | change).items():
        monkeypatch.setenv(name, value)


def test_the_environment_says_who_a_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch)
    assert torchrun_env() == TorchrunEnv(3, 5, "node0", 4711, external_store=False)
    say(monkeypatch, TORCHELASTIC_USE_AGENT_STORE="True")
    assert torchrun_env().external_store


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": ""}, r"^RANK must be .*''"),
        ({"RANK": "5"}, r"^RANK must be .*\bWORLD_SIZE=5\b.*\b5\b"),
        ({"WORLD_SIZE": "1"}, r"^WORLD_SIZE must be .*\b2\b.*\b1\b"),
        ({"MASTER_PORT": "70000"}, r"^MASTER_ADDR:MASTER_PORT must be .*'node0:70000'"),
        ({"MASTER_ADDR": ""}, r"^MASTER_ADDR:MASTER_PORT must be .*':4711'"),
    ],
)
def test_an_environment_that_is_not_whole_is_named(
    change: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, **change)
    with pytest.raises(ValueError, match=message):
        torchrun_env()


def test_workers_that_the_world_has_not_are_refused(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    say(monkeypatch)
    for arguments, named in (
        (["train", "--backend", "torchrun", "--workers", "7"], ("workers must be 4", "WORLD_SIZE=5", "7")),
        (["server", "--rule", "median"], ("--listen",)),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert all(name in last for name in named), last


def test_torchrun_starts_a_server_and_its_workers(tmp_path: Path) -> None:
    script = tmp_path / "fa"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from fa.cli import main; main()" "$@"\n')
    script.chmod(0o755)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "--no-python"]
    out = [*RUN, "--out"]
    subprocess.run([*torchrun, script, "train", "--backend", "torchrun", *out, tmp_path / "torchrun"], check=True)
    with pytest.raises(SystemExit) as done:
        cli.main(["train", "--workers", "3", *out, str(tmp_path / "simulate")])
    assert done.value.code == 0
    one, other = (tmp_path / name / "workers.csv" for name in ("torchrun", "simulate"))
    assert one.read_text() == other.read_text()
    assert json.loads((tmp_path / "torchrun" / "config.json").read_text())["backend"]["name"] == "rpc"


def command_line(environment: dict[str, str], folder: Path, words: list[str]) -> None:
    """Run `fa WORDS`, in a process of its own, in this environment and folder."""
    os.environ |= environment
    os.chdir(folder)
    cli.main(words)


def test_the_slurm_script_starts_one_server_and_the_workers(tmp_path: Path) -> None:
    """By stand-ins for srun, scontrol and fa, which write down the two commands that Slurm would start."""
    stand_ins = {
        "scontrol": "echo localhost",
        "srun": 'while [ "$1" != bash ]; do shift; done\nSLURM_PROCID=1 "$@" &\nSLURM_PROCID=0 "$@" && wait $!',
        "fa": f'echo $RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT "$@" >> {tmp_path}/said',
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_ID": "7", "JOB_NODELIST": "node[0-3]", "NTASKS": "2", "CPUS_PER_TASK": "1"}
    environment = os.environ | {f"SLURM_{name}": value for name, value in slurm.items()}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    subprocess.run(["bash", ROOT / "examples" / "slurm.sh"], cwd=tmp_path, env=environment, check=True)
    said = sorted((tmp_path / "said").read_text().splitlines())
    assert [line.split()[:4] for line in said] == [[rank, "2", "localhost", "20007"] for rank in "01"]
    smaller = [*RUN[:2], "--byzantine", "0", *RUN[4:], "--dataset", "mnist-mini", "--model", "convnet"]
    processes = []
    for rank, size, address, port, *words in map(str.split, said):
        where = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": address, "MASTER_PORT": port}
        processes.append(beside(command_line, where, tmp_path, [*words, *smaller]))
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "runs" / "7" / "curve.csv").is_file()
