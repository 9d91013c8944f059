"""What modules call out with, as `services.egress` gives it: HTTPS, and plain TCP where the operator says so.

Part of `modules.api`, which has its names.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self

from enclave_os.errors import EgressError
from enclave_os.evidence.policy import Policy


class EgressResponse(Protocol):
    """What a server answered, whole and within the limits; an `httpx.Response`."""

    @property
    def content(self) -> bytes:
        """The body, decompressed."""

    @property
    def text(self) -> str:
        """The body, decoded as its Content-Type says."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Header fields; names in any case."""

    @property
    def url(self) -> object:
        """Where it came from in the end; `str()` of it is the text."""

    status_code: int

    def json(self) -> Any:
        """The body as JSON. Raises: ValueError."""


class EgressStream(Protocol):
    """One plain TCP connection. The host can read and change what goes over it: a protocol that is to be secret, or to
    be believed, brings its own protection. Close it, by `async with` or by `close`.

    Attributes: address: `ip:port` that the host says it reached.
    """

    address: str

    async def read(self, size_max: int, *, timeout: float | None = None) -> bytes:
        """Bytes that came, one at least; empty: the server sends no more, or the host says so.

        Args: timeout: seconds to wait; by default `egress.idle`.
        Raises: EgressError: `truncated`: the connection was cut; `time`.
        """

    async def write(self, data: bytes, *, timeout: float | None = None) -> None:
        """Send all of `data`. Up to 64 KiB go whole or not at all, also where the wait is cancelled.

        Raises: EgressError: `truncated`, `time`. UsageError: after `end`.
        """

    def end(self) -> None:
        """Nothing more will be written: the server reads to the end what was. Reading goes on."""

    def close(self, last: bytes = b"", *, cut: bool = False) -> None:
        """End the connection at once. What was written still goes out, and `last`, at most 64 KiB, behind it.

        Args: cut: nothing goes out any more, and the server sees that the connection was cut.
        """

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Egress(Protocol):
    """HTTPS to whom the operator lets this module call (docs/egress.md), and plain TCP; made for it alone.

    TLS ends in the enclave, so the host learns addresses, sizes and times, nothing else. Every call is checked against
    `[[egress.allow]]` before a byte leaves, and every server's certificate against the operator's CAs, its name and the
    enclave's clock. Whatever goes wrong is an EgressError, which says how far it came and who can mend it.
    """

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        content: bytes | AsyncIterable[bytes] | None = None,
        timeout: float | None = None,
        redirects: int = 0,
        size_max: int | None = None,
        attested: Policy | None = None,
        present: bool = True,
    ) -> EgressResponse:
        """Call once, and return the whole answer, whatever its status. Connections are kept for the next call.

        Args:
            url: https://host[:port]/path?query, of an allowed host and port.
            timeout: seconds for all of it; at most, and by default, `egress.total`.
            redirects: how many to follow, at most `egress.redirects`; each is checked like the call itself. To another
                origin goes nothing that the caller put into `headers`, but for Accept, Accept-Language and User-Agent.
            size_max: bytes of the body after decompression; at most, and by default, `egress.body_bytes`.
            attested: the server must prove over this TLS session that it is such an enclave, before a byte of the
                request leaves. We prove what we are, if it asks.
            present: False: not so. For a call that is made for somebody else, who must not be given by that server
                what is this enclave's.
        Raises: EgressError. ClockUntrusted is one too: stage `tls`, fault `host`.
        """

    def client(self, *, attested: Policy | None = None) -> Any:
        """An `httpx.AsyncClient` under the same rules, for streams and for many calls to one server; close it.

        It keeps no cookies and follows no redirects; its timeouts and limits are those of `[egress]`, and what it
        raises is EgressError.
        """

    async def connect(self, host: str, port: int, *, timeout: float | None = None) -> EgressStream:
        """Plain TCP to a host that the list names with `tcp://`. A name leads to public addresses only, and to those
        that the list names as well: before a byte is sent, the address that the host says it reached is looked at.

        Args: timeout: seconds for it; at most, and by default, `egress.connect`.
        Raises: EgressError.
        """


class NoEgress:
    """The egress of a module that may call nobody. Nothing of httpx is loaded for it."""

    async def request(self, method: str, url: str, **_: Any) -> NoReturn:
        """Raises: EgressError: always, stage `policy`."""
        self._refuse()

    def client(self, **_: Any) -> NoReturn:
        """Raises: EgressError: always, stage `policy`."""
        self._refuse()

    async def connect(self, host: str, port: int, **_: Any) -> NoReturn:
        """Raises: EgressError: always, stage `policy`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise EgressError(
            "the operator lets this module call nobody: name its hosts in an [[egress.allow]] table",
            "policy",
            "operator",
        )
