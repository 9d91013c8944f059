"""`python -m enclave_os_client` is `enclave-os`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
