"""Writes on their way into a batch. Docstrings are in `_writes.pyx`."""

from asyncio import Future
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Any, Final, final

from enclave_os.kv.batch import Batch
from enclave_os.kv.change import Change
from enclave_os.kv.freshness import Place
from enclave_os.kv.namespace import Namespace, Parts
from enclave_os.wire.kv import Operation, OperationKind

ACCEPT: Final[int]
DROP: Final[int]
STOP: Final[int]

def limits() -> dict[str, int]: ...

@final
class Waiting:
    @property
    def changes(self) -> Sequence[Change]: ...
    @property
    def places(self) -> list[Place]: ...
    @property
    def size(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def large(self) -> bool: ...
    @property
    def conditional(self) -> bool: ...
    @property
    def future(self) -> Future[int]: ...
    parts: dict[int, Parts] | None

def checked(changes: Sequence[Change], make_future: Callable[[], Future[Any]]) -> Waiting: ...
def pick(
    queue: deque[Waiting],
    in_flight: dict[Place, int],
    share: int,
    left: int,
    judge: Callable[[Waiting, int, bool], int],
    accepted: list[Waiting],
) -> None: ...
def seal_changes(
    batch: Batch,
    entered: Container[bytes],
    enter: Callable[[Batch, Namespace], None],
    former: dict[Place, int],
    make: type[Operation],
    kinds: tuple[OperationKind, ...],
    parts_range: Callable[[bytes, int], tuple[bytes, bytes]],
) -> None: ...
