"""The enclave process: `python -I -B -m enclave_os`, started by the host with a fixed command line.

Everything that may differ between starts reaches it through the region, whose name, like the doorbell's descriptors, is
in the environment and is treated as hostile input.
"""

import os
import sys

from enclave_os.runtime.boot import run_enclave

if __name__ == "__main__":
    sys.exit(run_enclave(os.environ))
