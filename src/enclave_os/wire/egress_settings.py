"""The section `[egress]`: whom modules may call, whom calls trust, and what a call may cost.

Part of the table in `setting_table.py`; a file of its own because its values have a kind of their own. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from enclave_os.wire.setting_kinds import (
    KIB,
    MIB,
    Choice,
    Integer,
    Json,
    Kind,
    ListOf,
    Seconds,
    ServerName,
    Size,
    Tables,
    Text,
    host_port,
    key,
    shown,
)
from enclave_os.wire.tcp_targets import PORT, TcpTarget, TcpTargetKind, pattern

BUNDLE_SIZE_MAX: Final = 512 * KIB
"""Mozilla's list has 230 KiB; the whole document of a worker has 1 MiB."""
HTTPS_PORT: Final = 443
TCP: Final = "tcp://"
TLS_VERSIONS: Final = ("1.3", "1.2")
CERTIFICATE_LINE: Final = "-----BEGIN CERTIFICATE-----"
EGRESS_CONNECTIONS_MAX: Final = 4096
"""Of one worker. wire.frames has slots for more; the host's table of them grows up to this."""


class Target(NamedTuple):
    """Whom an entry of an allow-list means.

    Attributes:
        host: a DNS name or IP address in its one form; with `wildcard`, the name below which everything is meant, empty
            for every DNS name.
        wildcard: it began with `*`.
    """

    host: str
    port: int
    wildcard: bool

    def __str__(self) -> str:
        return host_port(pattern(self.host, wildcard=self.wildcard), self.port)


class EgressTarget(Kind):
    """`host`, `host:port`, `*.host:port` or `*:port`; the port is 443 where none is named."""

    def read(self, value: object) -> Target:
        if isinstance(value, Target):
            return value
        if not isinstance(value, str):
            raise ValueError(f"{shown(value)} is not text; give {self.describe()}")
        host, port = _split(value)
        if not PORT.fullmatch(port) or int(port) > 65535:
            raise ValueError(f"{shown(value)} has no port from 1 to 65535")
        if host == "*":
            return Target("", int(port), True)
        wildcard = host.startswith("*.")
        name = str(ServerName().read(host.removeprefix("*.")))
        if wildcard and (":" in name or name.replace(".", "").isdecimal()):
            raise ValueError(f"{shown(value)}: a wildcard stands before a DNS name, not an address")
        if value.startswith("[") != (":" in name):
            raise ValueError(f"{shown(value)}: brackets are for IPv6 addresses, and those need them")
        return Target(name, int(port), wildcard)

    def dump(self, value: object) -> Json:
        return str(value)

    def describe(self) -> str:
        return '"host", "host:port", "*.host:port" or "*:port"'


class EgressEntry(Kind):
    """Whom an entry means: an `EgressTarget` for HTTPS, or behind `tcp://` a `TcpTargetKind` for plain TCP."""

    def read(self, value: object) -> Target | TcpTarget:
        if isinstance(value, str) and value.startswith(TCP):
            return TcpTargetKind().read(value.removeprefix(TCP))
        return value if isinstance(value, TcpTarget) else EgressTarget().read(value)

    def dump(self, value: object) -> Json:
        return f"{TCP}{value}" if isinstance(value, TcpTarget) else str(value)

    def describe(self) -> str:
        return f'{EgressTarget().describe()}; "{TCP}host:port" or "{TCP}network/bits:port" for plain TCP'


def _split(text: str) -> tuple[str, str]:
    if text.startswith("["):
        inner, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{shown(text)} is not [address] or [address]:port")
        return inner, rest.removeprefix(":") if rest else str(HTTPS_PORT)
    host, colon, port = text.rpartition(":")
    return (host, port) if colon else (text, str(HTTPS_PORT))


def bundle_problem(pem: str, file: str, file_key: str) -> str | None:
    """What is wrong with CA certificates that are given as text, or as a file under the key `file_key`."""
    if pem and file:
        return f"give either this or {file_key}"
    if "PRIVATE KEY" in pem:
        return "holds a private key; give certificates alone"
    if pem and CERTIFICATE_LINE not in pem:
        return f"holds no {CERTIFICATE_LINE}"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressAllowance:
    """One `[[egress.allow]]` table: what one module may call."""

    module: str = key(Text("a module's name", 64), ..., "enclave", "The module, as `modules.enabled` names it.")
    hosts: tuple[Target | TcpTarget, ...] = key(
        ListOf(EgressEntry(), 1, 256),
        ...,
        "enclave",
        "Hosts and ports. Addresses, `localhost` and names that are no public DNS name count only where they are named "
        "themselves, never by a wildcard. Plain TCP, which the host can read and change, is an entry of its own; its "
        "names lead to public addresses and to those that are entries too.",
    )

    @property
    def https(self) -> tuple[Target, ...]:
        """The entries for HTTPS."""
        return tuple(target for target in self.hosts if isinstance(target, Target))

    @property
    def tcp(self) -> tuple[TcpTarget, ...]:
        """The entries for plain TCP."""
        return tuple(target for target in self.hosts if isinstance(target, TcpTarget))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveEgress:
    """What modules call out with: HTTPS, and plain TCP (docs/egress.md)."""

    allow: tuple[EgressAllowance, ...] = key(
        Tables("whom a module may call", 64, EgressAllowance),
        [],
        "enclave",
        "Which module may call whom. Without a table for it, a module calls nobody.",
    )
    ca_pem: str = key(
        Text("CA certificates in PEM", BUNDLE_SIZE_MAX, empty=True, lines=True),
        "",
        "enclave",
        "The CAs that every outgoing call trusts, and no other; this or `ca_file`.",
    )
    tls_min: str = key(
        Choice(TLS_VERSIONS), "1.3", "enclave", "The oldest TLS that a server may speak. Attested calls always use 1.3."
    )
    connections: int = key(
        Integer(1, EGRESS_CONNECTIONS_MAX), 256, "both", "Outgoing connections of one worker at once; more wait."
    )
    requests_per_module: int = key(
        Integer(1, EGRESS_CONNECTIONS_MAX), 64, "enclave", "Requests of one module at once; more wait for their turn."
    )
    redirects: int = key(
        Integer(0, 20), 5, "enclave", "Redirects that a call may ask to be followed, each checked like the call itself."
    )
    connect: float = key(Seconds(0.05, 300), 10, "enclave", "From the call to a TCP connection, name lookup included.")
    handshake: float = key(Seconds(0.05, 300), 10, "enclave", "For the TLS handshake, and a server's evidence.")
    head: float = key(
        Seconds(0.05, 3600), 30, "enclave", "From the request's last byte to the end of the reply's head."
    )
    idle: float = key(Seconds(0.05, 3600), 30, "enclave", "Between two pieces of a reply's body, or of the request's.")
    total: float = key(
        Seconds(0.05, 3600), 60, "enclave", "For one call with all its redirects, unless it asks for less."
    )
    keep: float = key(Seconds(0, 3600), 60, "enclave", "How long an idle connection is kept for the next request.")
    head_bytes: int = key(Size(KIB, MIB), "64KiB", "enclave", "Status line and header fields of a reply together.")
    body_bytes: int = key(
        Size(KIB, 1 << 30), "16MiB", "enclave", "A reply's body, after decompression, unless the call asks for less."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress(EnclaveEgress):
    """What modules call out with: HTTPS, and plain TCP (docs/egress.md). Who may be called, and the CAs, are sealed at
    first boot: `config accept` changes them."""

    ca_file: str = key(
        Text("a file", 4096, empty=True),
        "",
        "host",
        "File with the CAs, relative to the configuration file; the host reads it at start. Empty: certifi's list.",
    )
