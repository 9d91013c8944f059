"""What the host does for the enclave, one module a service.

A handler is a callable that takes the request's payload and returns the reply's. It runs in the dispatcher's thread, so
it must not wait. Sizes both ways are checked by the dispatcher against `wire.rpc.METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable

from enclave_os.wire.rpc import Status

Handler = Callable[[bytes], bytes]


class Refused(Exception):
    """The handler will not, or cannot: the reply carries `status` and no payload."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status
