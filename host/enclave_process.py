"""One enclave process: fixed command line, minimal environment, the doorbell's descriptors, watched by pidfd.

Its standard input is a pipe whose other end only we hold: it ends when we do, however we end, and the enclave with it.
Under Gramine that pipe is the doorbell's too, and the process is Gramine's loader: its own environment is Gramine's
business, and of it the enclave sees the region's name alone (gramine/enclave_os.manifest.template).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .doorbell import Doorbell

COMMAND: Final = (sys.executable, "-I", "-B", "-m", "enclave_os")
STANDARD_INPUT: Final = 0
NUMBERS_END: Final = 10
"""Above the numbers that a child is given, so that no dup2 there closes what the next one copies."""
GRAMINE_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
"""For the shell script that starts Gramine's loader."""


class EnclaveProcess:
    """A started process, to be reaped exactly once.

    Args:
        command: program by its path, and arguments. Measured under SGX, so nothing in it depends on the start.
        region: the region's name.
        gramine: the command is Gramine's loader.
        platform: folder of the simulated platform, for a plain process.
    Attributes:
        pid, pidfd: of the process; the pidfd is readable when it has ended.
    Raises: OSError: no such program, or no memory for a process.
    """

    def __init__(
        self, command: Sequence[str], *, region: str, doorbell: Doorbell, gramine: bool, platform: Path | None = None
    ) -> None:
        environment = {"ENCLAVE_OS_REGION": region}
        if gramine:
            environment["PATH"] = GRAMINE_PATH
        else:
            environment |= {"ENCLAVE_OS_DOORBELL": doorbell.spec, "ENCLAVE_OS_MODE": "simulated", "LANG": "C.UTF-8"}
        if platform is not None:
            environment["ENCLAVE_OS_PLATFORM"] = str(platform)
        moves = list(doorbell.inherited)
        self._lifeline, end = -1, -1
        if STANDARD_INPUT not in [theirs for _, theirs in moves]:
            low, self._lifeline = os.pipe2(os.O_CLOEXEC)
            end = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, NUMBERS_END)
            os.close(low)
            moves.append((end, STANDARD_INPUT))
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
            _close(self._lifeline)
            raise
        finally:
            _close(end)
        self.pidfd = os.pidfd_open(self.pid)
        if gramine:
            # The enclave forbids core files itself, but to Gramine's own kernel: the loader is a process of ours.
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                resource.prlimit(self.pid, resource.RLIMIT_CORE, (0, 0))

    def kill(self) -> None:
        """End it at once. By pidfd, so never another process; one that has ended is fine."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for its end and close what is ours; its exit code, or minus the signal that ended it."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        _close(self._lifeline)
        return os.waitstatus_to_exitcode(status)


def describe_exit(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)
