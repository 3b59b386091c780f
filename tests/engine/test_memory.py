"""What the process does with memory that a step has freed."""

import os
import subprocess
import sys

import pytest

from cssoftmax.engine import memory

# Takes and frees eight blocks of 16 MiB, again and again; prints the pages that the last time had to find.
AGAIN = """
import resource
import torch
from cssoftmax.engine import memory
{keep}
def step():
    for block in [torch.empty(2**22) for _ in range(8)]:
        block.zero_()
for _ in range(4):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


# glibc's own thresholds, which rise by themselves only where no one sets them: by chance large blocks stay.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


@pytest.mark.skipif(not memory.keep_freed(), reason="the C library is not glibc")
def test_a_step_finds_the_pages_of_those_before() -> None:
    def faults(keep: str) -> int:
        command = [sys.executable, "-c", AGAIN.format(keep=keep)]
        told = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | GIVES_BACK)
        return int(told.stdout)

    assert faults("") > 8 * 2**24 / 2**16  # pages are of 64 KiB or less
    assert faults("memory.keep_freed()") < 100
