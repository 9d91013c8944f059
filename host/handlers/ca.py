"""The enclave's request for a CA certificate: kept for the operator, and answered with what is installed or signed at
once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_os.wire.rpc import CHAIN_SIZE_MAX, MEASUREMENT_SIZE, Status

from ..certificates import write_whole
from . import Refused

REQUEST_FILE: Final = "ca.csr"
CHAIN_FILE: Final = "ca.pem"


class CertificateDesk:
    """Answers CA_REQUEST.

    Args:
        folder_of: where a measurement's files lie.
        sign: signs a request with the development root, as PEM chain; None: the operator installs one.
        root: that root; a chain of another, or for another key, is signed anew.
    """

    def __init__(
        self,
        folder_of: Callable[[bytes], Path],
        sign: Callable[[x509.CertificateSigningRequest], bytes] | None,
        root: x509.Certificate | None = None,
    ) -> None:
        self._folder_of = folder_of
        self._sign = sign
        self._root = root

    def answer(self, payload: bytes) -> bytes:
        """CA_REQUEST: the chain for this key, or nothing."""
        folder = self._folder_of(payload[:MEASUREMENT_SIZE])
        try:
            request = x509.load_der_x509_csr(payload[MEASUREMENT_SIZE:])
            if not request.is_signature_valid:
                raise Refused(Status.BAD_REQUEST)
        except ValueError as error:
            raise Refused(Status.BAD_REQUEST) from error
        text = request.public_bytes(Encoding.PEM)
        if not (folder / REQUEST_FILE).exists() or (folder / REQUEST_FILE).read_bytes() != text:
            write_whole(folder / REQUEST_FILE, text, 0o644)
        chain = folder / CHAIN_FILE
        if chain.exists():
            data = chain.read_bytes()
            if self._sign is None or self._is_ours(data, request):
                return data if len(data) <= CHAIN_SIZE_MAX else b""
        if self._sign is None:
            return b""
        signed = self._sign(request)
        write_whole(chain, signed, 0o644)
        return signed

    def _is_ours(self, data: bytes, request: x509.CertificateSigningRequest) -> bool:
        """Development: whether the chain at hand is for this key and under the root that clients are told of."""
        try:
            first, *above = x509.load_pem_x509_certificates(data)
        except ValueError:
            return False
        return first.public_key() == request.public_key() and above == [self._root]
