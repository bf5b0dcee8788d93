"""A process that keeps what it frees touches no page twice."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import sys

from fa.utils.malloc import retain_freed_memory

if sys.argv[1] == "keep":
    assert retain_freed_memory()


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def step():
    layers = [bytearray(2**24) for _ in range(4)]
    del layers


step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


UNSET = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_what_is_freed_is_kept() -> None:
    told = {}
    for whether in ("keep", "leave"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, whether], capture_output=True, text=True, check=True, env=UNSET
        )
        told[whether] = int(done.stdout)
    pages = 5 * 4 * 2**24 // 2**12
    assert told["keep"] < 0.01 * pages
    assert told["leave"] > 0.5 * pages
