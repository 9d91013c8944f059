"""What a module is, and what it is given. docs/modules.md writes one from an empty folder.

A module answers requests. It reaches for nothing: whatever it may use is handed to `start`. It is trusted code,
measured with the rest; a mistake in it costs its own request (500), never the enclave.
"""

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, NoReturn, Protocol

from enclave_os.errors import ConfigError
from enclave_os.evidence.identity import PeerIdentity
from enclave_os.http import Connection, Request, Response
from enclave_os.modules.outside import Egress, EgressResponse, EgressStream, NoEgress
from enclave_os.modules.peers import NoPeers, Peers, WorkerReport, no_reports
from enclave_os.modules.tokens import Token, Tokens

__all__ = [
    "DATA_PATH",
    "MANAGER",
    "METHODS",
    "MONITORING",
    "NAME_PATTERN",
    "NO_STORE",
    "AppIdentity",
    "Clock",
    "Connection",
    "Egress",
    "EgressResponse",
    "EgressStream",
    "Handler",
    "Item",
    "Module",
    "NoEgress",
    "NoPeers",
    "NoStorage",
    "PeerAttestation",
    "PeerIdentity",
    "Peers",
    "Route",
    "Services",
    "Status",
    "Storage",
    "Table",
    "Token",
    "Tokens",
    "WorkerReport",
    "Write",
]

MANAGER: Final = "manager"
MONITORING: Final = "monitoring"

DATA_PATH: Final = "/data"
"""POST here goes to every module's `handle` in turn; the first answer wins."""

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}\Z", re.ASCII)
NO_STORE: Final = ("Cache-Control", "no-store")
"""The field of an answer that is true only now."""

_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@-]*\Z", re.ASCII)
_PARAMETER: Final = re.compile(r"\{([a-z_][a-z0-9_]*(?:\.\.\.)?)\}\Z", re.ASCII)

Handler = Callable[[Request], Response | Awaitable[Response]]


class Clock(Protocol):
    """Time as a module may ask for it; `runtime.clock.Clock` is the one there is."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, for deadlines."""

    def trusted_ns(self) -> int:
        """Nanoseconds since the Unix epoch that a decision may rest on. Raises: ClockUntrusted: deny."""

    def http_date(self) -> bytes:
        """Date as IMF-fixdate, for information."""


class PeerAttestation(Protocol):
    """Who calls, as proved by evidence and not by a token; `runtime.attestation.Attestation` is the one there is."""

    def peer(self, request: Request) -> PeerIdentity | None:
        """The attested caller, or None.

        Only an identity of tier `session` may authorise anything: it was bound to this TLS session at most five minutes
        ago, under the configuration that is in force. One of tier `handshake` says who, to whom that is enough.
        """

    def require_session(self, request: Request, policy: Callable[[PeerIdentity], bool] | None = None) -> PeerIdentity:
        """The caller as proven for this session, for what only an attested enclave may have.

        Args: policy: a narrower choice among those whom `[attestation]` lets in; False refuses.
        Raises: HTTPError: 403, and the text says what the caller has to do.
        """


class Item(Protocol):
    """What a read found."""

    @property
    def name(self) -> bytes: ...
    @property
    def value(self) -> bytes: ...
    @property
    def version(self) -> int:
        """Of the write that put it there: never 0, and greater than that of any write before."""


class Table(Protocol):
    """A map of one module, kept sealed by the host: names of 1 to 1024 bytes, values to 16 MiB. docs/kv.md.

    Every read and write may raise:
        SealBroken: the host tampers. Never answered as "not found".
        HostRefused: the host does not do it, or not in time. After a write: it may be there or not, never by halves.
        StoreBusy: no room now; nothing was written.
        UsageError: a name, a value or a batch that is too large.
        ClockUntrusted: whether an entry that expires is expired cannot be known.
    """

    async def get(self, name: bytes) -> Item | None:
        """The latest value; None: absent, or expired."""

    async def multi_get(self, names: Sequence[bytes]) -> list[Item | None]:
        """`get` of each, the latest at some moment between call and return. Raises: UsageError: more than 64 MiB."""

    async def put(self, name: bytes, value: bytes, expected: int | None = None, expires_ns: int = 0) -> int:
        """Write one entry, durable when this returns; returns its version. `expected` and `expires_ns`: see `Write`.

        Raises: VersionConflict: nothing was written.
        """

    async def delete(self, name: bytes, expected: int | None = None) -> int:
        """Delete one entry, whether it is there or not; returns the store's version. Raises: VersionConflict."""

    async def scan(self, start: bytes = b"", end: bytes = b"", limit: int = 256) -> list[Item]:
        """The first entries by name from `start`, inclusive, to `end`, exclusive (empty: to the last).

        Its cost grows with the whole table: the host sees no order of names. Raises: UsageError: more than 64 MiB.
        """

    async def names(self, start: bytes = b"", end: bytes = b"", limit: int = 256) -> list[tuple[bytes, int]]:
        """Names and versions of what `scan` would find, also where all their values would be too much to hold."""

    def iterate(self) -> AsyncIterator[Item]:
        """All entries, in no order. One that is written meanwhile comes once or not at all."""


@dataclass(frozen=True, slots=True)
class Write:
    """One entry of an atomic batch.

    Attributes:
        value: None deletes.
        expected: the version that the entry must have, 0: absent; None: any. An expired entry keeps its version.
        expires_ns: trusted time, nanoseconds since the Unix epoch, from which on it counts as absent; 0: never.
    """

    table: Table
    name: bytes
    value: bytes | None
    expected: int | None = None
    expires_ns: int = 0


class Storage(Protocol):
    """What one module keeps from start to start. No module can name another's tables."""

    def table(self, name: str, *, app: str = "", brought_key: bytes | None = None, alone: bool = False) -> Table:
        """A table, which exists from its first entry on. Cheap; the same arguments give the same table.

        Args:
            name: 1 to 128 bytes of UTF-8 without NUL.
            app: the application that it belongs to; "" for none. At most 255 bytes of UTF-8 without NUL.
            brought_key: at least 32 secret bytes of the application's: whoever has ours alone reads nothing. The same
                each time, or what was written with the other is SealBroken.
            alone: it shares no batch with another table, so it may be kept by another worker than the module's other
                tables of this application (`kv.ranges`). The same each time: where a table lies follows from it.
        Raises: UsageError. ConfigError: there is no store for this worker.
        """

    async def write(self, writes: Sequence[Write]) -> int:
        """All or none, over tables of this module; at most 1,024 entries and 1 MiB, each once. Returns their version.

        The tables are of one application, or of none; or it is one that is alone.
        Raises: VersionConflict: nothing was written. What a `Table` raises.
        """


class NoStorage:
    """The storage of who has none: refuses where a table is asked for, at start, not at the first request."""

    def __init__(self, reason: str = "there is no key-value store here") -> None:
        self._reason = reason

    def table(self, name: str, *, app: str = "", brought_key: bytes | None = None, alone: bool = False) -> NoReturn:
        """Raises: ConfigError."""
        raise ConfigError(self._reason)

    async def write(self, writes: Sequence[Write]) -> int:
        """Raises: ConfigError."""
        raise ConfigError(self._reason)


@dataclass(frozen=True, slots=True)
class Status:
    """How this worker runs, for the routes that say so.

    Attributes:
        mode: how the enclave was started; only sgx keeps anything from the host.
        evidence: what the certificate carries: the kind of quote.
        ca: where the key that signs leaves comes from: "generated" (inside) or "imported" (the host has seen it).
        ready: serving; False while starting and draining.
        uptime_s: seconds since the worker began to serve.
        warnings: what the operator should do something about, in words.
    """

    mode: Literal["simulated", "direct", "sgx"]
    evidence: str
    ca: str
    worker_index: int
    worker_count: int
    ready: bool
    uptime_s: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What a module may use, made for it alone.

    Attributes:
        clock: the enclave's clock.
        random: that many random bytes from the enclave's own source.
        logger: lines go to the host, which may read, change and drop them: never log a secret or a plaintext.
        config: the module's own section `[module.<name>]`, as the operator (and so the host) wrote it: check it.
        modules: names of all modules, in the order in which they are asked.
        status: how this worker runs, now.
        counters: counters and gauges of this worker, now; names as in Prometheus, those of counters end in `_total`.
        request_stop: begin a drain of the whole server; returns at once.
        attestation: who calls, by evidence.
        tokens: who calls, by bearer token, where a route's role does not say enough.
        config_changed: what `config_leaves`, `custom_oids` or `app_identities` say has changed: takes them anew, at
            once. The config root changes with them, and so do the certificates; connections that were attested under
            the old root end with their next request.
        storage: the module's own part of the sealed key-value store.
        workers: how every worker of the server does, by index; waits a second at most for those that do not answer.
        peers: the same module in the other workers.
        egress: HTTPS and plain TCP to the outside, for whom `[[egress.allow]]` names this module; else every call is
            refused.
    """

    clock: Clock
    random: Callable[[int], bytes]
    logger: logging.Logger
    config: Mapping[str, Any]
    modules: tuple[str, ...]
    status: Callable[[], Status]
    counters: Callable[[], Mapping[str, int | float]]
    request_stop: Callable[[], None]
    attestation: PeerAttestation
    tokens: Tokens
    config_changed: Callable[[], None]
    storage: Storage = field(default_factory=NoStorage)
    egress: Egress = field(default_factory=NoEgress)
    workers: Callable[[], Awaitable[Sequence[WorkerReport]]] = no_reports
    peers: Peers = field(default_factory=NoPeers)


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path.

    Attributes:
        method: upper case. GET answers HEAD as well; OPTIONS is answered from the table.
        path: begins with "/", as it reads after percent-decoding; a segment `{name}` takes any one non-empty segment,
            which the handler finds in `request.params["name"]`; one `{name...}` takes one segment or more, none empty,
            joined by "/" as they stand in the path. Of two routes that match, an exact one answers before one of single
            segments, and this before one with `...`, of which the one with more given segments answers.
        handler: called with the request; returns a Response, or is a coroutine function that does. Runs on the one
            thread that serves everybody: what takes long must `await`.
        role: who may call it; None is everybody. Checked before the handler is called.
        first: worker 0 answers it for all workers, wherever the client landed: what one alone may write, or knows. The
            request goes there whole, but for its connection: evidence of the caller's session is not to be had there.

    Raises:
        ConfigError: no such method, or a path that no request could match.
    """

    method: str
    path: str
    handler: Handler
    role: str | None = None
    first: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"route {self.path!r}: {self.method!r} is not one of {', '.join(METHODS)}")
        if not self.path.startswith("/"):
            raise ConfigError(f"route {self.path!r} does not begin with /")
        names = []
        for segment in self.path.split("/")[1:]:
            parameter = _PARAMETER.match(segment)
            if parameter:
                names.append(parameter[1])
            elif not _SEGMENT.match(segment) or segment in (".", ".."):
                raise ConfigError(f"route {self.path!r}: no request can have the segment {segment!r}")
        if len({name.removesuffix("...") for name in names}) != len(names):
            raise ConfigError(f"route {self.path!r} names one parameter twice")
        if sum(name.endswith("...") for name in names) > 1:
            raise ConfigError(f"route {self.path!r}: which segments are whose, with two parameters of several?")

    @property
    def parameters(self) -> tuple[tuple[int, str], ...]:
        """(index of the segment in `path.split("/")`, name) of each parameter; that of several ends in `...`."""
        found = ((index, _PARAMETER.match(segment)) for index, segment in enumerate(self.path.split("/")))
        return tuple((index, match[1]) for index, match in found if match)


@dataclass(frozen=True, slots=True)
class AppIdentity:
    """One application with a name of its own in the certificate.

    Attributes:
        hostname: what clients connect to; the leaf for it carries the extensions below.
        oids: extension OID in dotted form, and its raw value.
    """

    hostname: str
    oids: Mapping[str, bytes]


class Module:
    """Base of all modules: override what you need.

    The class is made by its entry point without arguments, `start` is called once before the first request and `stop`
    once after the last. All calls come from one thread.

    Attributes:
        name: as the operator writes it in `modules.enabled`; equals the entry point's name.
        routes: what it answers, read once after `start`.
    """

    name: ClassVar[str] = ""
    routes: Sequence[Route] = ()

    def start(self, services: Services) -> Awaitable[None] | None:
        """Take what the module may use. May be a coroutine function. Raise ConfigError for a section that cannot be."""

    def stop(self) -> Awaitable[None] | None:
        """Let go of what `start` took. May be a coroutine function."""

    def handle(self, request: Request) -> Response | Awaitable[Response | None] | None:
        """Answer what no route answers, `POST /data` above all; None leaves it to the next module. May be async."""

    def peer(self, what: bytes) -> Awaitable[bytes] | bytes:
        """Answer what this module says to itself from another worker, by `Peers.ask_first` or `Peers.tell_others`.

        b"" means: look again at what the workers share. It is said in every other worker than 0 after the start, and
        whenever worker 0 is heard again. May be async; what it raises is logged, and the other end is told so.
        """
        return b""

    def config_leaves(self) -> Mapping[str, bytes]:
        """Name and data of what the operator chose for this module and clients must be able to see attested."""
        return {}

    def custom_oids(self) -> Mapping[str, bytes]:
        """Certificate extensions of this module: OID in dotted form, and its raw value."""
        return {}

    def counters(self) -> Mapping[str, int | float]:
        """Counters and gauges of this module on this worker, now, for `/metrics`; names begin with the module's."""
        return {}

    def app_identities(self) -> Sequence[AppIdentity]:
        """Applications of this module that have certificates of their own."""
        return ()
