"""Which certificate a connection shows, and what evidence it carries.

    ClientHello          leaf                                             evidence binds
    with a challenge     fresh, for this connection, 5 minutes, never kept    the client's 32 bytes
    without one          per-connection: fresh; cached: kept per known name   NotBefore, the minute in the certificate

Known names are the applications' host names; an unknown, odd or absent server name gets the enclave-wide leaf, so that
no name a client invents ever reaches a certificate, and nothing is cached under it (RT8).

NotBefore is a whole minute, CLOCK_SLACK_S ago, and the deterministic evidence binds that minute as the certificate has
it: a verifier reads it there.
"""

import base64
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from enclave_os._tls import ClientHello
from enclave_os._x509 import Identity, LeafMinter
from enclave_os.errors import AttestationError, ClockUntrusted, ConfigError, UsageError
from enclave_os.evidence.binding import certificate_challenge, certificate_deterministic, minute_text
from enclave_os.ratls.token_bucket import TokenBucket

LEAF_LIFETIME_S = 24 * 60 * 60
"""A leaf without a challenge; 24 h let it outlive its connection, and a client's clock be ahead by hours."""

CHALLENGE_LIFETIME_S = 5 * 60
"""From now. It was made for one connection, whose handshake has seconds."""

CACHE_S = 12 * 60 * 60
"""How long a kept leaf is shown: half its life, so that whoever gets it last can still check it at leisure."""

CLOCK_SLACK_S = 5 * 60
"""How far a client's clock may be behind ours. Without it one whose clock is a second behind (or coarse: time(2) is
milliseconds behind clock_gettime(2)) refuses every leaf of a minute's first second as not yet valid."""

MINUTE_S = 60

FAST_QUOTE_S: Final = 0.005
"""Where a quote takes less, `auto` makes a fresh one for each connection."""

_PEM_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----\s+([A-Za-z0-9+/=\s]+?)\s*-----END \1-----")

LeafPolicy = Literal["per-connection", "cached"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafEvidenceSource:
    """What evidence in certificates is made of.

    Attributes:
        quote: 64 bytes of report data to a quote; raises AttestationError.
        quotes: bounds how many certificates may ask for one.
        policy: for connections without a challenge.
        extensions: (dotted OID, raw value) pairs of every leaf, as the configuration stands.
        passing: those that change without the configuration (the store's state), asked for at each leaf.
        generation: of the configuration; what was encoded or kept under another is made anew.
    """

    quote: Callable[[bytes], bytes]
    quotes: TokenBucket
    policy: LeafPolicy
    extensions: Callable[[], Iterable[tuple[str, bytes]]]
    passing: Callable[[], tuple[tuple[str, bytes], ...]]
    generation: Callable[[], int]


@dataclass(slots=True)
class _Kept:
    identity: Identity
    until_s: float


def choose_policy(wanted: str, quote_seconds: float) -> tuple[LeafPolicy, str]:
    """The policy that is in force, and why, for a log line and `/status`.

    Args:
        wanted: `attestation.certificates`.
        quote_seconds: what one quote took at the start.
    """
    if wanted == "per-connection":
        return "per-connection", "the configuration says so"
    if wanted == "cached":
        return "cached", "the configuration says so"
    took = f"a quote takes {quote_seconds * 1000:.2f} ms here"
    return ("per-connection", took) if quote_seconds < FAST_QUOTE_S else ("cached", took)


def der_from_pem(pem: str, *labels: str) -> list[bytes]:
    """All blocks of `pem` whose label is one of `labels`, as DER, in order; at least one.

    Raises:
        ConfigError: there is no such block, or its content is not base64.
    """
    blocks = [found[2] for found in _PEM_BLOCK.finditer(pem) if found[1] in labels]
    if not blocks:
        raise ConfigError(f"no {' or '.join(labels)} block in the PEM text")
    try:
        return [base64.b64decode("".join(block.split()), validate=True) for block in blocks]
    except ValueError as error:
        raise ConfigError(f"a {' or '.join(labels)} block is not base64") from error


def pem_from_der(der: bytes, label: str = "CERTIFICATE") -> str:
    """A PEM block."""
    text = base64.b64encode(der).decode("ascii")
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""))


def hostname_of(sni: bytes | None) -> str | None:
    """The host name that a client asked for, case-folded and without its final dot; None when it is none.

    An IP address, NUL, a byte outside ASCII or more than a name's 253 characters name nobody (RFC 6066 3, RFC 1035).
    """
    if sni is None or not 0 < len(sni) <= 254 or not sni.isascii() or b"\0" in sni:
        return None
    name = sni.decode("ascii").lower().removesuffix(".")
    return None if not 0 < len(name) <= 253 or _is_address(name) else name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class CertificateStore:
    """Owns the enclave's CA key and answers each ClientHello with an identity. Event loop's thread only.

    Args:
        certificate_pem: the CA certificate that signs leaves, then those above it, which are sent as well.
        key_pem: its private key, PKCS#8 or SEC 1, without a password, on P-256 or P-384.
        names: DNS names and IP addresses that the enclave answers to, at least one.
        clock: seconds since the Unix epoch, in the enclave's own reckoning.
        extensions: (dotted OID, raw value) pairs that every leaf carries.
        evidence: what makes the leaves prove something; None: they are ordinary ones.
        alleged: seconds as the host alleges them, for while `clock` is in doubt (ClockUntrusted); None: then there is
            no certificate.

    Raises:
        ConfigError: certificate and key are not a CA that can sign leaves.
        UsageError: a name or OID that is none.
    """

    def __init__(
        self,
        certificate_pem: str,
        key_pem: str,
        names: Iterable[str],
        clock: Callable[[], float],
        extensions: Iterable[tuple[str, bytes]] = (),
        evidence: LeafEvidenceSource | None = None,
        alleged: Callable[[], float] | None = None,
    ) -> None:
        issuer, *above = der_from_pem(certificate_pem, "CERTIFICATE")
        key, *_ = der_from_pem(key_pem, "PRIVATE KEY", "EC PRIVATE KEY")
        self.chain_der: Sequence[bytes] = (issuer, *above)
        self._clock = clock
        self._alleged = alleged
        self._evidence = evidence
        self._minter = LeafMinter(issuer, key, list(names), list(extensions), chain_der=above)
        self._apps: dict[str, Mapping[str, bytes]] = {}
        self._encoded: dict[str | None, tuple[int, bytes]] = {}
        self._kept: dict[str | None, _Kept] = {}
        self._passing_encoded: tuple[tuple[tuple[str, bytes], ...], bytes] = ((), b"")
        self._not_before = -1
        self._minute_text = ""
        self._counts = dict.fromkeys(("minted", "reused", "rate_limited"), 0)

    def set_apps(self, apps: Mapping[str, Mapping[str, bytes]]) -> None:
        """Host names with certificates of their own, as `hostname_of` gives them, and the extensions of each.

        What was encoded or kept is forgotten: call it as well when a module's own extensions have changed.

        Raises:
            ConfigError: no certificate could be made for one of them; nothing has changed then.
        """
        evidence = self._evidence
        for hostname, pairs in apps.items():
            if hostname_of(hostname.encode("ascii", "replace")) != hostname:
                raise ConfigError(f"not a host name in lower case without a final dot: {hostname!r}")
            try:
                self._minter.encode([*(evidence.extensions() if evidence else ()), *pairs.items()])
            except UsageError as error:
                raise ConfigError(f"no certificate can be made for {hostname!r}: {error}") from error
        try:
            self._minter.prepare(apps)
        except UsageError as error:
            raise ConfigError(f"no certificate can be made for an application: {error}") from error
        self._apps = dict(apps)
        self._encoded.clear()
        self._kept.clear()

    def choose(self, hello: ClientHello) -> Identity:
        """The identity for the connection that said `hello`.

        Raises:
            AttestationError: no quote could be made, or too many were asked for. Which of the two a client cannot tell:
                it reads internal_error, and comes back later.
            ClockUntrusted: no certificate while the time is unknown.
        """
        app = hostname_of(hello.sni) if self._apps else None
        if app not in self._apps:
            app = None
        if self._evidence is None:
            self._counts["minted"] += 1
            return self._minter.mint(self._minute(self._clock()), LEAF_LIFETIME_S, name=app)
        if hello.challenge is not None:
            if self._evidence.quotes.take():
                self._counts["rate_limited"] += 1
                raise AttestationError("more quotes are asked for than attestation.quotes_per_second allows", "busy")
            return self._mint(app, self._evidence, hello.challenge, self._time()[0])
        return self._deterministic(app, self._evidence)

    def counters(self) -> dict[str, int]:
        """Leaves made, leaves shown again, and quotes that were not made for the rate's sake."""
        return {f"certificates_{name}_total": count for name, count in self._counts.items()}

    def _time(self) -> tuple[float, bool]:
        """Now, and whether a decision may rest on it. Raises: ClockUntrusted: there is no time at all."""
        try:
            return self._clock(), True
        except ClockUntrusted:
            if self._alleged is None:
                raise
            return self._alleged(), False

    def _deterministic(self, app: str | None, evidence: LeafEvidenceSource) -> Identity:
        now, trusted = self._time()
        if not trusted:
            return self._mint(app, evidence, None, now, dated=False)
        kept = self._kept.get(app)
        if kept is not None and (kept.until_s <= now or kept.identity.generation != evidence.generation()):
            kept = None
        # Out of quotes, a client without a challenge loses nothing that it could have checked: what it gets was made
        # within CACHE_S, under this configuration. A challenge is refused: only a quote of its own answers it.
        if kept is None or evidence.policy == "per-connection":
            # With nothing to show again a leaf is made whatever the rate: at most one a name and configuration.
            if not evidence.quotes.take() or kept is None:
                identity = self._mint(app, evidence, None, now)
                self._kept[app] = _Kept(identity, now + CACHE_S)
                return identity
            self._counts["rate_limited"] += 1
        self._counts["reused"] += 1
        return kept.identity

    def _mint(
        self, app: str | None, source: LeafEvidenceSource, challenge: bytes | None, now: float, *, dated: bool = True
    ) -> Identity:
        not_before = self._minute(now)
        generation = source.generation()
        self._counts["minted"] += 1

        def quote(spki_sha256: bytes) -> bytes:
            if challenge is not None:
                return source.quote(certificate_challenge(spki_sha256, challenge))
            return source.quote(certificate_deterministic(spki_sha256, self._minute_text))

        identity = self._minter.mint(
            not_before,
            LEAF_LIFETIME_S if challenge is None else int(now) - not_before + CHALLENGE_LIFETIME_S,
            None,
            app,
            self._extensions(app, source, generation) + self._passing(source),
            # With the clock in doubt no evidence is dated: a host could collect it for a day to come. A manager has to
            # get in to settle the doubt, so there is a certificate; a challenge's quote binds no date and is made.
            quote if dated or challenge is not None else None,
        )
        identity.generation = generation
        return identity

    def _minute(self, now: float) -> int:
        """NotBefore of a leaf made now; `_minute_text` says it, and is written once a minute, not once a leaf."""
        not_before = (int(now) - CLOCK_SLACK_S) // MINUTE_S * MINUTE_S
        if not_before != self._not_before:
            self._minute_text = minute_text(not_before)
            self._not_before = not_before
        return not_before

    def _extensions(self, app: str | None, source: LeafEvidenceSource, generation: int) -> bytes:
        """The extensions of one app's leaves (or the enclave's), encoded once a configuration."""
        found = self._encoded.get(app)
        if found is None or found[0] != generation:
            pairs = [*source.extensions(), *(() if app is None else self._apps[app].items())]
            found = self._encoded[app] = (generation, self._minter.encode(pairs))
        return found[1]

    def _passing(self, source: LeafEvidenceSource) -> bytes:
        """The extensions that change without the configuration, encoded once for each value."""
        pairs = source.passing()
        if pairs != self._passing_encoded[0]:
            self._passing_encoded = (pairs, self._minter.encode(pairs))
        return self._passing_encoded[1]
