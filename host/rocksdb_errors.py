"""What RocksDB raises, as one error that says what to tell the enclave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from enclave_os.wire.rpc import Status


class StoreError(Exception):
    """The store cannot do it: `status` is for the enclave, the text for the operator."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


@contextmanager
def rocksdb(what: str) -> Iterator[None]:
    """Turn what RocksDB raises into a StoreError: rocksdict has one class, Exception itself, for all of it."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # nothing narrower is raised
        text = f"the store could not {what}: {error}"
        raise StoreError(_status(what, str(error)), text) from error


def _status(what: str, text: str) -> Status:
    if "Write stall" in text or "Incomplete" in text:
        return Status.BUSY
    if "No space left" in text or "Disk quota exceeded" in text:
        return Status.NO_SPACE
    # A log that could not be written is closed to writes by RocksDB too, until it is opened anew.
    return Status.NOT_WRITABLE if what.startswith("write") else Status.FAILED
