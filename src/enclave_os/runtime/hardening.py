"""What the process does to itself before it sees a secret: no core file, no debugger's memory view, no surprises.

Under Gramine prctl does not exist (ENOSYS) and the enclave's memory is out of reach anyway; there, and only there, its
absence is accepted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from typing import Final

from enclave_os.errors import InternalError

PR_SET_DUMPABLE: Final = 4


def harden() -> None:
    """Forbid core files and ptrace by other processes of the user (threat-model.md SE1).

    Raises: InternalError: the system knows the call and refused it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 and ctypes.get_errno() != errno.ENOSYS:
        raise InternalError(f"prctl(PR_SET_DUMPABLE): {os.strerror(ctypes.get_errno())}")
