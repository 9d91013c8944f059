"""Reads that are under way. Docstrings are in `_reads.pyx`."""

from asyncio import Future
from collections.abc import Callable, Sequence
from typing import final

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
        trusted_ns: Callable[[], int],
        unknown: Callable[[], bool] | None,
        again: Callable[[Namespace, bytes, Future[Item | None]], None],
        item: type[Item],
        unread: bytes,
    ) -> Reads: ...
    def begin(
        self, namespace: Namespace, token: bytes, name: bytes | None, future: Future[Item | None]
    ) -> Read | None: ...
    def begin_many(
        self,
        namespace: Namespace,
        tokens: Sequence[bytes],
        names: Sequence[bytes] | None,
        future: Future[None],
    ) -> ReadMany: ...

@final
class Read(Wanted):
    pass

@final
class ReadMany:
    @property
    def items(self) -> list[Item | None]: ...
    @property
    def reads(self) -> list[Read]: ...
    @property
    def moved(self) -> list[int]: ...
    @property
    def future(self) -> Future[None]: ...
