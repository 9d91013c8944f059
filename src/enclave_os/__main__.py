"""The enclave process: `python -I -B -m enclave_os`, started by the host with a fixed command line.

Everything that may differ between starts reaches it through the region, whose name, like the doorbell's descriptors, is
in the environment and is treated as hostile input.
"""

import os
import sys

from enclave_os._tls import ignore_openssl_configuration


def main() -> int:
    """The enclave's life; returns the process's exit code."""
    # Before the imports below, which bring libcrypto to life: its configuration file is the host's, and can load code.
    ignore_openssl_configuration()
    from enclave_os.runtime.boot import run_enclave

    return run_enclave(os.environ)


if __name__ == "__main__":
    sys.exit(main())
