"""Plain TCP for who speaks something else than HTTPS: the same ring, the same list, and nothing that protects bytes.

The host carries them, so it may read, change and answer them. What stays is whom it is asked for: names and addresses
are held against the operator's list before the host hears of them, and the address that the host says it reached before
a byte is sent, so that a name is not led into the operator's network by whoever keeps it (DNS rebinding). A host that
lies about the address gains nothing by it: it could have changed the bytes as well.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from enclave_os.egress.failures import TRANSLATED, translated
from enclave_os.egress.rules import Origin
from enclave_os.egress.stream import PIECE_SIZE, RingStream
from enclave_os.errors import EgressError
from enclave_os.wire.addresses import read_address
from enclave_os.wire.egress_settings import TCP
from enclave_os.wire.errors import UsageError
from enclave_os.wire.setting_kinds import split_host_port
from enclave_os.wire.tcp_targets import TcpRules

LAST_SIZE_MAX: Final = PIECE_SIZE


class TCPStream:
    """One connection; see `modules.api.EgressStream`.

    Args: seconds: how long a wait may take where the caller says nothing.
    """

    def __init__(self, plain: RingStream, address: str, seconds: float) -> None:
        self.target = plain.target
        self.address = address
        self._plain = plain
        self._seconds = seconds
        self._finished = False

    @property
    def ended(self) -> bool:
        """Whether it has ended, whoever ended it."""
        return self._plain.ended

    async def read(self, size_max: int, *, timeout: float | None = None) -> bytes:
        """See `modules.api.EgressStream.read`."""
        if size_max < 1:
            raise UsageError("reads at least one byte")
        try:
            return await self._plain.read(size_max, self._seconds if timeout is None else timeout)
        except TRANSLATED as error:
            raise translated(self.target, error) from None

    async def write(self, data: bytes, *, timeout: float | None = None) -> None:
        """See `modules.api.EgressStream.write`."""
        if self._finished:
            raise UsageError("written to after its end")
        try:
            await self._plain.write(data, self._seconds if timeout is None else timeout)
        except TRANSLATED as error:
            raise translated(self.target, error) from None

    def end(self) -> None:
        """See `modules.api.EgressStream.end`."""
        if not self._finished:
            self._finished = True
            self._plain.end()

    def close(self, last: bytes = b"", *, cut: bool = False) -> None:
        """See `modules.api.EgressStream.close`."""
        if len(last) > LAST_SIZE_MAX:
            raise UsageError(f"at most {LAST_SIZE_MAX} bytes go out with the end")
        self._plain.finish(b"" if self._finished else last, cut=cut)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cut=error is not None)

    def __repr__(self) -> str:
        return f"<TCPStream to {self.target} at {self.address}>"


def checked_address(plain: RingStream, origin: Origin, rules: TcpRules) -> str:
    """Where the host says it connected to, as `ip:port`, if that may be. Raises: EgressError."""
    alleged = plain.get_extra_info("server_addr") or ""
    host, port = split_host_port(alleged)
    address = read_address(host)
    asked = read_address(origin.host)
    if address is None or port != str(origin.port) or (asked is not None and asked != address):
        raise EgressError(f"{origin}: the host says that it reached something else", "connect", "host")
    if asked is None and not rules.may_lead_to(str(address), origin.port):
        raise EgressError(
            f"{origin}: its name leads to {address}, which is not public; nothing was sent. If it is meant, "
            f"[[egress.allow]] names the address as well: {TCP}{Origin(str(address), origin.port)}",
            "policy",
            "network",
            "not_public",
        )
    return str(Origin(str(address), origin.port))
