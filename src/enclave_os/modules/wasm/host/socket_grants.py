"""Whom an app may reach by TCP, and the sockets of one call: opened within its grants, counted, ended with the call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from enclave_os.errors import EgressError
from enclave_os.modules.api import Egress, EgressStream
from enclave_os.modules.wasm.host.connection import Connection
from enclave_os.modules.wasm.permissions import NAMES
from enclave_os.wire.addresses import read_address
from enclave_os.wire.setting_kinds import host_port, split_host_port
from enclave_os.wire.tcp_targets import TcpRules, TcpTarget

if TYPE_CHECKING:
    from enclave_os.modules.wasm.host.sockets import TcpSocket

NAMES_MAX: Final = 64
"""Different names that one call looks up."""

REFUSALS_LOGGED_MAX: Final = 8
"""Lines of one call about what did not come to be; a program that tries a thousand addresses says the same in eight."""


class SocketGrants:
    """What one app may, over all its calls on this worker.

    Args: most: sockets at once.
    """

    def __init__(self, targets: Iterable[TcpTarget], most: int) -> None:
        targets = tuple(targets)
        self.any = bool(targets)
        self.rules = TcpRules(targets)
        self._most = most
        self._open = 0
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Count one more socket, if there is room for it."""
        with self._lock:
            if self._open >= self._most:
                return False
            self._open += 1
            return True

    def give_back(self) -> None:
        """One less."""
        with self._lock:
            self._open -= 1

    @property
    def open(self) -> int:
        """Sockets that are open now."""
        return self._open


class CallSockets:
    """Those of one call; on its thread."""

    def __init__(
        self,
        grants: SocketGrants,
        egress: Egress,
        log: Callable[[str], None],
        post: Callable[[Callable[[], None]], None],
        changed: Callable[[], None],
        remaining: Callable[[], float],
    ) -> None:
        self.grants = grants
        self._egress = egress
        self._log = log
        self._post = post
        self._changed = changed
        self._remaining = remaining
        self._names: dict[str, str] = {}  # address -> name
        self._logged = 0
        self._open: set[TcpSocket] = set()

    def name(self, host: str) -> str | None:
        """An address that stands for a name in this call; None: there are too many."""
        for address, known in self._names.items():
            if known == host:
                return address
        if len(self._names) >= NAMES_MAX:
            return None
        address = str(NAMES[len(self._names) + 1])
        self._names[address] = host
        return address

    def allows(self, address: str, port: int) -> bool:
        """Whether the app may connect there; a refusal is in its log."""
        host = self._names.get(address, address)
        if self.grants.rules.allows(host, port):
            return True
        self.note(f"{host_port(host, port)} is not among permissions.sockets")
        return False

    def connect(self, address: str, port: int) -> Connection:
        """Begin a connection that `allows` let pass."""
        host = self._names.get(address, address)
        connection = Connection(self._post, self._changed, self.grants.give_back, self._remaining)

        async def opened() -> EgressStream:
            try:
                stream = await self._egress.connect(host, port, timeout=self._remaining() + 1)
                self._check(stream, host, port)
            except EgressError as error:
                self.note(str(error))
                raise
            return stream

        connection.connect(opened)
        return connection

    def note(self, what: str) -> None:
        """Tell the app's owner, within reason."""
        self._logged += 1
        if self._logged <= REFUSALS_LOGGED_MAX:
            self._log(f"sockets: {what}")

    def opened(self, socket: TcpSocket) -> None:
        """One is open, and is ended with the call at the latest."""
        self._open.add(socket)

    def close(self, *, cut: bool) -> None:
        """The call is over."""
        for socket in list(self._open):
            self.ended(socket, cut=cut)

    def ended(self, socket: TcpSocket, *, cut: bool) -> None:
        """It is not any more; what it had is given back when nothing of it is left on the loop."""
        if socket not in self._open:
            return
        self._open.discard(socket)
        if socket.connection is None:
            self.grants.give_back()
        else:
            socket.connection.close(cut=cut)

    def _check(self, stream: EgressStream, host: str, port: int) -> None:
        reached, _ = split_host_port(stream.address)
        if read_address(host) is None and not self.grants.rules.may_lead_to(reached, port):
            stream.close(cut=True)
            raise EgressError(
                f"{host_port(host, port)} leads to {reached}, which is not public: permissions.sockets has to name the "
                "address too, if that is meant",
                "policy",
                "caller",
                "not_public",
            )
