"""The state folder: what outlives a start, and the lock that keeps two servers apart."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Final, Self

LOCK_FILE: Final = "lock"
FOLDER_MODE: Final = 0o700
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_PID_SIZE_MAX: Final = 20


class StateError(Exception):
    """The state folder cannot be used; the message says why and what to do."""


class StateTaken(StateError):
    """Another server lives on this state folder."""


class StateFolder:
    """A folder of ours (0700) and its lock, held from the constructor until `close` or the process's end.

    The lock is flock(2) on a file that is never removed, so it goes with its owner however that one ends; the file
    holds the owner's process id for people.

    Args:
        path: absolute; made if it does not exist.
        lock: whose lock: a server's, or that of something else which may be done beside one.
    Attributes:
        path: the folder.
    Raises: StateTaken: another live process holds it. StateError: not a folder of ours. OSError.
    """

    def __init__(self, path: Path, lock: str = LOCK_FILE) -> None:
        self.path = path
        make_private_folder(path)
        self._lock = os.open(path / lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, _PID_SIZE_MAX, 0).decode("ascii", "replace").strip()
            os.close(self._lock)
            who = f"process {owner}" if owner.isdigit() else "another process"
            raise StateTaken(
                f"{who} serves with the state folder {path}; stop it, or choose another with --state-dir"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Give the lock back."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make_private_folder(path: Path) -> None:
    """Make `path` (and its parents) unless it is there; it must be a folder of this user that nobody else can enter.

    Raises: StateError: a link, a file, or somebody else's. OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(FOLDER_MODE)
    except FileExistsError:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise StateError(f"{path} is not a folder") from None
        if status.st_uid != os.geteuid():
            raise StateError(f"{path} belongs to user {status.st_uid}, not to user {os.geteuid()}") from None
        if status.st_mode & _OTHERS:
            path.chmod(FOLDER_MODE)
