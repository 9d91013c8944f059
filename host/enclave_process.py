"""One enclave process: fixed command line, minimal environment, three descriptors of the doorbell, watched by pidfd.

Its standard input is a pipe whose other end only we hold: it ends when we do, however we end, and the enclave with it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .doorbell import ENCLAVE_NUMBERS, SPEC, Doorbell

COMMAND: Final = (sys.executable, "-I", "-B", "-m", "enclave_os")


class EnclaveProcess:
    """A started process, to be reaped exactly once.

    Args:
        command: program by its path, and arguments. Measured under SGX, so nothing in it depends on the start.
        region: the region's name.
        mode: simulated, direct or sgx.
        platform: folder of the simulated platform; None on SGX.
    Attributes:
        pid, pidfd: of the process; the pidfd is readable when it has ended.
    Raises: OSError: no such program, or no memory for a process.
    """

    def __init__(
        self, command: Sequence[str], *, region: str, doorbell: Doorbell, mode: str, platform: Path | None = None
    ) -> None:
        environment = {
            "ENCLAVE_OS_REGION": region,
            "ENCLAVE_OS_DOORBELL": SPEC,
            "ENCLAVE_OS_MODE": mode,
            "LANG": "C.UTF-8",
        }
        if platform is not None:
            environment["ENCLAVE_OS_PLATFORM"] = str(platform)
        low, self._lifeline = os.pipe2(os.O_CLOEXEC)
        # Above the numbers that the child is given, so that no dup2 there closes what the next one copies.
        lifeline_end = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, max(ENCLAVE_NUMBERS) + 1)
        os.close(low)
        moves = [(lifeline_end, 0), *zip(doorbell.descriptors, ENCLAVE_NUMBERS, strict=True)]
        try:
            self.pid = os.posix_spawn(
                command[0],
                list(command),
                environment,
                file_actions=[(os.POSIX_SPAWN_DUP2, ours, theirs) for ours, theirs in moves],
                # A terminal sends ^C to its foreground group: only the host decides what that means.
                setpgroup=0,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM],
            )
        except OSError:
            os.close(self._lifeline)
            raise
        finally:
            os.close(lifeline_end)
        self.pidfd = os.pidfd_open(self.pid)

    def kill(self) -> None:
        """End it at once. By pidfd, so never another process; one that has ended is fine."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for its end and close what is ours; its exit code, or minus the signal that ended it."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        os.close(self._lifeline)
        return os.waitstatus_to_exitcode(status)


def describe_exit(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
