"""`python -m enclave_os_host`: what `enclave-os serve` and `enclave-os config` execute."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
