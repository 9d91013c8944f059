"""What a module sees of the TLS connection that a request came by: `request.connection`."""

from typing import Any, Literal, Protocol

AttestationTag = Literal["none", "deterministic", "challenge", "mutual"]


class Connection(Protocol):
    """One client connection, alive. `runtime._connection.Connection` is the one there is; tests may bring their own.

    It may be kept for as long as one likes: once the connection has ended, whatever is asked of it raises
    `ConnectionGone`, also when the host gives its number to another client. Two requests came by one connection if
    and only if their `connection` is the same object. One thread only.

    Attributes:
        app: host name of the application whose certificate this connection shows; None: the enclave-wide one.
        challenged: whether the client sent a nonce (extension 0xFFBB), to which the certificate's evidence is bound.
        leaf_spki_sha256: SHA-256 of the SubjectPublicKeyInfo that this connection shows, 32 bytes.
        leaf_generation: of the configuration that the leaf states, as the config tree counts them.
        peer_spki_sha256: SHA-256 of the SubjectPublicKeyInfo of the client's own leaf, 32 bytes; None when it showed
            none. It has proved that it holds that key (CertificateVerify).
        evidence: what is known of an attested caller, an `evidence.PeerIdentity`, or None: what the judge of the
            handshake found, until who judges the session's evidence writes more. Ends with the connection, as does
            `attested`.
        attested: what has been attested to this client, and when: a slot of the attestation routes.
        stale: what was attested on it is true no more: its next request is answered 421, and it ends.
        tag: what every reply says in `X-Privasys-Attestation`. Information: no client of ours trusts it.
    """

    @property
    def app(self) -> str | None: ...
    @property
    def challenged(self) -> bool: ...
    @property
    def leaf_spki_sha256(self) -> bytes: ...
    @property
    def leaf_generation(self) -> int: ...
    @property
    def peer_spki_sha256(self) -> bytes | None: ...

    evidence: Any
    attested: Any
    stale: bool
    tag: AttestationTag

    def export(self, label: bytes, context: bytes, size: int) -> bytes:
        """TLS exporter (RFC 8446 7.5): equal on both ends of this connection, and of no other.

        Args:
            label: ASCII, 1 to 249 bytes; one that names its purpose, since who knows the value knows that use of it.
            context: may be empty.
            size: bytes wanted, 1 to 255.
        Raises:
            UsageError: a size out of these ranges.
            ConnectionGone: the connection has ended.
        """
        ...
