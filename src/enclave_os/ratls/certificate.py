"""Which certificate a connection shows: a fresh leaf under the enclave's CA, made when its ClientHello is read.

One leaf for the whole enclave's names is all there is today: an unknown, odd or absent server name gets it as well, so
that no name a client invents ever reaches a certificate, and nothing is cached under it.
"""

import base64
import re
from collections.abc import Callable, Iterable

from enclave_os._tls import ClientHello
from enclave_os._x509 import Identity, LeafMinter
from enclave_os.errors import ConfigError

LEAF_LIFETIME_S = 24 * 60 * 60
"""A leaf serves one connection; 24 h let it outlive that, and a client's clock be ahead by hours."""

CLOCK_SLACK_S = 5 * 60
"""How far a client's clock may be behind ours. Without it one whose clock is a second behind (or coarse: time(2) is
milliseconds behind clock_gettime(2)) refuses every leaf of a minute's first second as not yet valid."""

MINUTE_S = 60

_PEM_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----\s+([A-Za-z0-9+/=\s]+?)\s*-----END \1-----")


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


class CertificateStore:
    """Owns the enclave's CA key and answers each ClientHello with an identity.

    Args:
        certificate_pem: the CA certificate that signs leaves, then those above it, which are sent as well.
        key_pem: its private key, PKCS#8 or SEC 1, without a password, on P-256 or P-384.
        names: DNS names and IP addresses that the enclave answers to, at least one.
        clock: seconds since the Unix epoch, in the enclave's own reckoning.
        extensions: (dotted OID, raw value) pairs that every leaf carries.

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
    ) -> None:
        issuer, *above = der_from_pem(certificate_pem, "CERTIFICATE")
        key, *_ = der_from_pem(key_pem, "PRIVATE KEY", "EC PRIVATE KEY")
        self._clock = clock
        self._minter = LeafMinter(issuer, key, list(names), list(extensions), chain_der=above)

    def choose(self, hello: ClientHello) -> Identity:
        """A fresh key and leaf for the connection that said `hello`; NotBefore is a whole minute, CLOCK_SLACK_S ago."""
        not_before = (int(self._clock()) - CLOCK_SLACK_S) // MINUTE_S * MINUTE_S
        return self._minter.mint(not_before, LEAF_LIFETIME_S)
