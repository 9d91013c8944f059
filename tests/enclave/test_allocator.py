"""Big blocks stay with the process: freed and taken again they cost no new page."""

from __future__ import annotations

import os
import subprocess
import sys

# In a process of its own: the thresholds are for good. Counts page faults of taking and freeing 8 blocks of 1 MiB.
PROGRAM = """
import resource, sys
from enclave_os.runtime.allocator import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def round():
    blocks = [bytearray(1 << 20) for _ in range(8)]
round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    # What is under test is glibc's malloc, not that of a sanitizer (nor its build) with which the suite may run.
    others = ("LD_PRELOAD", "PYTHONMALLOC", "PYTHONPATH")
    own = {name: value for name, value in os.environ.items() if name not in others}
    command = [sys.executable, "-c", PROGRAM, how]
    run = subprocess.run(command, env=own, capture_output=True, text=True, check=True, timeout=60)
    return int(run.stdout)


def test_blocks_taken_again_are_not_faulted_in_again() -> None:
    pages = 20 * 8 * 256
    assert faults("keep") < pages // 100
    assert faults("leave") > pages // 10, "without it the system is asked each time: the test can fail"
