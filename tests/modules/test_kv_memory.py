"""When memory ends while the table of what is latest changes, nothing is known any more, and nothing is served.

A process of its own, whose address space the test bounds; on the fast build only, since sanitizers need theirs whole.
"""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource, sys
from enclave_os.errors import InternalError
from enclave_os.kv.freshness import Freshness

table = bytes(16)
fresh = Freshness(bytes(32), bytes(range(32)))
first = (table, bytes(15) + b"\\1")
fresh.change({first: (1, bytes(16))})
batches = [
    {(table, number.to_bytes(16, "little")): (number, bytes(16)) for number in range(start, start + 5000)}
    for start in range(2, 400_002, 5000)
]
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 20), resource.RLIM_INFINITY))
try:
    for batch in batches:
        fresh.change(batch)
except MemoryError:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
else:
    sys.exit("memory did not end")
for ask in (lambda: fresh.find(first), lambda: fresh.tokens(table), lambda: fresh.root(2), lambda: fresh.change({})):
    try:
        ask()
    except InternalError:
        continue
    sys.exit("something is still known")
"""


def test_half_a_change_is_no_knowledge() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
