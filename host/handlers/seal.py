"""Where sealed configurations lie: opaque to us, one folder a measurement, replaced whole and durable or not at all.

<state folder>/sealed/<measurement>/config.sealed     what the enclave sealed
                                   /ca.csr            its request for a CA certificate, PEM
                                   /ca.pem            the chain that was installed for it
                                   /imported-from     whose rows are to be copied at the next start (imported_rows.py)
                                   /store             the key-value store (`kv_store`)
                                   /backups/<version>-<root> both as they were, for who asked (`store_desk`)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from enclave_os.wire.rpc import MEASUREMENT_SIZE, SEALED_SIZE_MAX, SealLoadFlag, Status

from ..certificates import write_whole
from ..rocksdb_options import store_exists
from ..state import StateError, make_private_folder
from . import Later, Refused

FOLDER: Final = "sealed"
STORE_FOLDER: Final = "store"
BLOB_FILE: Final = "config.sealed"
NOTE_FILE: Final = "imported-from"


class SealStore:
    """The sealed configurations of one state folder.

    Args:
        folder: the state folder.
        say: a line for the operator. Any thread.
        before_write: called in the writer's thread before a blob is written: what the blob knows of must be durable
            first. OSError keeps it from being written.
        imports_from: the enclave is there to take over what this measurement has sealed, and seals over nothing of its
            own; empty: it is not.
    """

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None],
        before_write: Callable[[], None] = lambda: None,
        *,
        imports_from: str = "",
    ) -> None:
        self._folder = folder / FOLDER
        self._say = say
        self._before_write = before_write
        self._imports_from = imports_from
        # One thread: it begins with the first write, and a late write never lands on a newer one.
        self._writer = ThreadPoolExecutor(1, "seal-store")

    def folder_of(self, measurement: bytes) -> Path:
        """Where the files of a measurement lie; made if needed.

        Raises: Refused: the folder is a link, a file or somebody else's; the operator is told. OSError.
        """
        folder = self._folder / measurement.hex()
        try:
            make_private_folder(self._folder)
            make_private_folder(folder)
        except StateError as error:
            self._say(str(error))
            raise Refused(Status.FAILED) from error
        return folder

    def load(self, payload: bytes) -> bytes:
        """SEAL_LOAD."""
        folder = self.folder_of(payload)
        flags = SealLoadFlag.STORE if store_exists(folder / STORE_FOLDER) else SealLoadFlag(0)
        try:
            with (folder / BLOB_FILE).open("rb") as stream:
                data = stream.read(SEALED_SIZE_MAX + 1)
        except FileNotFoundError:
            if not self._imports_from:
                self._tell_of_others(folder)
            return bytes([flags])
        if len(data) > SEALED_SIZE_MAX:
            raise Refused(Status.TOO_BIG)
        return bytes([flags | SealLoadFlag.BLOB]) + data

    def store(self, payload: bytes) -> Later:
        """SEAL_STORE: answered when it is on the disk, by a thread of its own, since a disk may be slow. In the order
        of the calls."""
        later = Later()
        measurement, data = payload[:MEASUREMENT_SIZE], payload[MEASUREMENT_SIZE:]
        if self._imports_from and (self.folder_of(measurement) / BLOB_FILE).exists():
            self._say("this measurement has made a first boot meanwhile: nothing is written over what it has sealed")
            raise Refused(Status.FAILED)
        self._writer.submit(self._write, measurement, data, later)
        return later

    def _write(self, measurement: bytes, data: bytes, later: Later) -> None:
        try:
            self._before_write()
            folder = self.folder_of(measurement)
            if self._imports_from:
                write_whole(folder / NOTE_FILE, self._imports_from.encode("ascii"), 0o600)
            write_whole(folder / BLOB_FILE, data, 0o600)
            sync_folder(folder)
        except (OSError, Refused):
            later.refuse(Status.FAILED)
        else:
            later.answer(b"")

    def _tell_of_others(self, folder: Path) -> None:
        others = [path for path in sorted(self._folder.iterdir()) if path != folder and (path / BLOB_FILE).is_file()]
        if others:
            former = ", ".join(path.name[:16] + "..." for path in others)
            self._say(
                f"the enclave's code changed (measurement {folder.name[:16]}...), so it starts without data; the "
                f"former state lies untouched in {former} of {self._folder}"
            )


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
