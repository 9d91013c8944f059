"""Whom a module may call, and what a request may look like: checked before a byte leaves, for every hop.

The host looks names up and says what it reached, and may lie: so for HTTPS addresses are never judged, names are. That
a name was led to another machine is harmless, since that machine cannot show a certificate for it (threat-model.md
EG2). Plain TCP has no certificates: there the address is judged too, see `tcp`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple, NoReturn

import httpx

from enclave_os.errors import EgressError
from enclave_os.wire.addresses import is_disguised, is_public_name, read_address
from enclave_os.wire.egress_settings import HTTPS_PORT, TCP, Target
from enclave_os.wire.setting_kinds import ServerName, host_port, shown
from enclave_os.wire.tcp_targets import TcpRules, TcpTarget

TARGET_SIZE_MAX: Final = 8 << 10  # path and query, as our own server takes them
HEAD_SIZE_MAX: Final = 64 << 10
METHOD: Final = re.compile(r"[A-Z][A-Z-]{0,31}", re.ASCII)  # RFC 9110 9.1, and those that are registered look like this
NOT_CALLED: Final = frozenset({"CONNECT", "TRACE"})  # a tunnel past every rule here; a mirror of credentials
NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
VALUE: Final = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
TARGET: Final = re.compile(rb"[\x21-\x7e]+")
ONCE: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})
# They say how the message or the connection is made, which is not the caller's.
HOP: Final = frozenset({b"upgrade", b"keep-alive", b"te", b"trailer", b"http2-settings", b"expect"})


class Origin(NamedTuple):
    """A server as it is connected to: the name in its one form, and the port."""

    host: str
    port: int

    def __str__(self) -> str:
        return host_port(self.host, self.port)


class Rules:
    """Whom one module may call."""

    def __init__(self, module: str, targets: Iterable[Target], tcp: Iterable[TcpTarget] = ()) -> None:
        self._module = module
        self.tcp = TcpRules(tcp)
        targets = tuple(targets)
        self._exact = frozenset((target.host, target.port) for target in targets if not target.wildcard)
        self._below = tuple((target.host, target.port) for target in targets if target.wildcard)

    def check(self, request: httpx.Request) -> Origin:
        """Where a request goes. Raises: EgressError: stage `policy`: it may not, or cannot be sent as it is."""
        origin = self.check_url(request.url)
        check_head(request)
        return origin

    def check_url(self, url: httpx.URL) -> Origin:
        """Where a URL leads. Raises: EgressError: stage `policy`."""
        if url.scheme != "https":
            refuse(f"{shown(str(url.scheme))}: only https:// is called")
        if url.userinfo:
            refuse("a URL with a user name or password: put credentials into a header")
        host = host_of(url.raw_host)
        origin = Origin(host, HTTPS_PORT if url.port is None else url.port)
        if not TARGET.fullmatch(url.raw_path) or len(url.raw_path) > TARGET_SIZE_MAX:
            refuse("a path or query that is no request target, or too long")
        if not self.allows(origin):
            raise self._not_allowed(str(origin))
        return origin

    def check_tcp(self, host: str, port: int) -> Origin:
        """Where plain TCP goes. Raises: EgressError: stage `policy`."""
        if type(port) is not int or not 1 <= port <= 65535:
            refuse(f"{shown(port)} is no port")
        address = read_address(host)
        origin = Origin(host_of(host.encode("ascii", "replace")) if address is None else str(address), port)
        if not self.tcp.allows(origin.host, port):
            raise self._not_allowed(f"{TCP}{origin}")
        return origin

    def allows(self, origin: Origin) -> bool:
        """Whether the operator names it: itself, or by a wildcard where it is a name that means the same everywhere."""
        if origin in self._exact:
            return True
        if not is_public_name(origin.host):
            return False
        return any(
            origin.port == port and (not below or origin.host.endswith(f".{below}")) for below, port in self._below
        )

    def _not_allowed(self, whom: str) -> EgressError:
        return EgressError(
            f"{whom}: the operator does not let module {self._module!r} call it ([[egress.allow]])",
            "policy",
            "operator",
            "not_allowed",
        )


def host_of(raw: bytes) -> str:
    """A URL's host in its one form. Raises: EgressError: it is none, or an address in disguise."""
    text = raw.decode("ascii", "replace").lower()
    if is_disguised(text):
        refuse(f"{shown(text)} looks like an address, in a form that is read in different ways")
    try:
        return str(ServerName().read(text))
    except ValueError as error:
        refuse(f"the host of the URL: {error}")


def check_head(request: httpx.Request) -> None:
    """What would break the message apart, or say something else than the URL does. Raises: EgressError."""
    if not METHOD.fullmatch(request.method) or request.method in NOT_CALLED:
        refuse(f"the method {shown(request.method)}")
    seen: set[bytes] = set()
    size = 0
    for name, value in request.headers.raw:
        lower = name.lower()
        size += len(name) + len(value) + 4
        if not NAME.fullmatch(name) or not VALUE.fullmatch(value):
            refuse(f"the header {shown(name.decode('latin-1'))}: a name or value with characters that no header has")
        if lower in HOP or lower.startswith(b"proxy-") or (lower in ONCE and lower in seen):
            refuse(f"the header {shown(name.decode('latin-1'))} is not the caller's to set")
        if lower == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            refuse("the header Connection is not the caller's to set")
        seen.add(lower)
    if size > HEAD_SIZE_MAX:
        refuse(f"headers of more than {HEAD_SIZE_MAX} bytes")
    if request.headers.get("host", "").lower() != request.url.netloc.decode("ascii").lower():
        refuse("a Host other than the URL's: the server would take the request for another one")
    if b"content-length" in seen and b"transfer-encoding" in seen:
        refuse("a request with two lengths")


def refuse(what: str) -> NoReturn:
    """Raises: EgressError: the caller's mistake, found before anything left."""
    raise EgressError(f"not sent: {what}", "policy", "caller")
