"""Reads that are under way. Docstrings are in `_reads.pyx`."""

from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Any, final

from enclave_os.kv.anchoring import Anchoring
from enclave_os.kv.change import Item
from enclave_os.kv.freshness import Freshness, Place
from enclave_os.kv.namespace import Namespace
from enclave_os.wire import Wanted

@final
class Reads:
    def __new__(
        cls,
        fresh: Freshness,
        in_flight: dict[Place, int],
        anchoring: Anchoring,
        ask: Callable[[bytes, list[Wanted]], None],
        make_future: Callable[[], Future[Any]],
        trusted_ns: Callable[[], int],
        again: Callable[[Namespace, bytes, Future[Item | None]], None],
        item: type[Item],
        unread: bytes,
    ) -> Reads: ...
    def get(self, namespace: Namespace, name: bytes) -> Future[Item | None]: ...
    def read(self, namespace: Namespace, token: bytes) -> Future[Item | None]: ...
    def read_many(self, namespace: Namespace, tokens: Sequence[bytes], names: Sequence[bytes] | None) -> ReadMany: ...

@final
class Read(Wanted):
    pass

@final
class ReadMany:
    @property
    def items(self) -> list[Item | None]: ...
    @property
    def moved(self) -> list[int]: ...
    @property
    def future(self) -> Future[None]: ...
