"""What a client remembers of a server's sealed store, so that a host cannot put an older one in its place unseen.

Within one run the enclave itself notices every old value. Across restarts nothing inside it can: the host may start it
on a copy of yesterday's disk, or two of it on copies of one. A client that has seen (boot, boot_nonce, version, root)
once refuses every answer that is older or that comes from the other branch of a fork:

    boot lower                               rolled back to an earlier start
    boot equal, boot_nonce another           forked: two starts from one copy of the sealed state
    version lower                            rolled back to earlier contents
    version equal, root another              forked: other contents under the same version

The state that a server alleges is believed as far as its channel is: only over a session-bound connection.

The file holds one entry a server, is replaced atomically (written beside, fsync, rename), and is never made anew over
one that cannot be read: a memory that is lost silently protects nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from enclave_os.errors import AttestationError
from enclave_os.evidence.exchange import BOOT_NONCE_SIZE, ROOT_SIZE, STATE_NUMBER_MAX
from enclave_os.evidence.store_state import StoreState
from enclave_os.evidence.strict_json import load_object

FORMAT: Final = 1
FILE_SIZE_MAX: Final = 4 << 20
SERVERS_MAX: Final = 10_000  # some 300 bytes each
NAME_SIZE_MAX: Final = 300  # a DNS name, brackets, a port
LOCK_SECONDS: Final = 10.0  # another process holds the lock for one small write
LOCK_PAUSE: Final = 0.01


class MemoryFileError(Exception):
    """The file cannot be read, or is none of ours. Nothing was changed; the text says what to do."""


def refuse_older(before: StoreState, now: StoreState) -> None:
    """Compare what was remembered with what is alleged now.

    Raises: AttestationError: `rolled_back` or `forked`.
    """
    if now.boot < before.boot:
        raise AttestationError(f"its boot count is {now.boot}, and was {before.boot}: an older state was put back",
                               "rolled_back")  # fmt: skip
    if now.boot == before.boot and now.boot_nonce != before.boot_nonce:
        raise AttestationError(f"another start with boot count {now.boot}: two enclaves run on copies of one state",
                               "forked")  # fmt: skip
    if now.version < before.version:
        raise AttestationError(
            f"its store is at version {now.version}, and was at {before.version}: older contents were put back",
            "rolled_back",
        )
    if now.version == before.version and now.root != before.root:
        raise AttestationError(f"its store has other contents under the same version {now.version}", "forked")


class StateMemory:
    """The memory in one file, shared by any number of processes.

    Args:
        path: made at the first `check`, mode 0600; its folder must exist.
        monotonic: seconds, for the deadline of the lock.
        sleep: between two looks at the lock.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = Path(path)
        self._monotonic = monotonic
        self._sleep = sleep

    def check(self, server: str, state: StoreState | None) -> bool:
        """Refuse a state older than the one remembered for `server` (host:port); else remember this one.

        Returns: whether the server was known before.
        Raises:
            AttestationError: `rolled_back`, `forked`, or `no_state`: the server says none.
            MemoryFileError: the file is damaged, full, or locked by somebody who does not let go.
            OSError: it cannot be read or written.
        """
        with self._locked():
            entries = self._read()
            before = entries.get(server)
            if state is None:
                raise AttestationError(
                    "it does not say where its store stands" + (", and once did" if before else ""), "no_state"
                )
            if before is not None:
                refuse_older(before, state)
            if before == state:
                return True
            if before is None and (len(entries) >= SERVERS_MAX or len(server) > NAME_SIZE_MAX):
                raise MemoryFileError(f"{self.path} is full: {SERVERS_MAX} servers; remove entries, or use another")
            self._write({**entries, server: state})
            return before is not None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # A file of its own: the memory itself is replaced, and a lock on what was replaced holds nobody.
        descriptor = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            due = self._monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if self._monotonic() >= due:
                        raise MemoryFileError(f"another process holds {self.path}.lock") from error
                    self._sleep(LOCK_PAUSE)
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> dict[str, StoreState]:
        try:
            with self.path.open("rb") as stream:
                data = stream.read(FILE_SIZE_MAX + 1)
        except FileNotFoundError:
            return {}
        if len(data) > FILE_SIZE_MAX:
            raise self._damaged("it is too big")
        try:
            document = load_object(data)
        except ValueError as error:
            raise self._damaged("it is not JSON") from error
        if set(document) != {"format", "servers"} or document["format"] != FORMAT:
            raise self._damaged("it is not of format 1")
        if not isinstance(document["servers"], dict):
            raise self._damaged("its servers are no table")
        return {server: self._read_entry(entry) for server, entry in document["servers"].items()}

    def _read_entry(self, entry: object) -> StoreState:
        if not isinstance(entry, dict) or set(entry) != {"boot", "boot_nonce", "version", "root"}:
            raise self._damaged("an entry has other members")
        for name in ("boot", "version"):
            if type(entry[name]) is not int or not 0 <= entry[name] <= STATE_NUMBER_MAX:
                raise self._damaged(f"a {name} is not a number of 64 bits")
        boot_nonce = self._read_hex(entry, "boot_nonce", BOOT_NONCE_SIZE)
        root = None if entry["root"] is None else self._read_hex(entry, "root", ROOT_SIZE)
        return StoreState(entry["boot"], boot_nonce, entry["version"], root)

    def _read_hex(self, entry: dict[str, object], name: str, size: int) -> bytes:
        text = entry[name]
        try:
            value = bytes.fromhex(text) if isinstance(text, str) else b""
        except ValueError:
            value = b""
        if len(value) != size or value.hex() != text:  # fromhex passes over white space and capitals
            raise self._damaged(f"a {name} is not {size} bytes in hex")
        return value

    def _write(self, entries: dict[str, StoreState]) -> None:
        servers = {server: state.to_document() for server, state in sorted(entries.items())}
        data = json.dumps({"format": FORMAT, "servers": servers}, indent=1).encode("ascii") + b"\n"
        beside = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(self.path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _damaged(self, why: str) -> MemoryFileError:
        return MemoryFileError(
            f"{self.path} is damaged: {why}. Restore it, or remove it and accept whatever state the servers show next"
        )
