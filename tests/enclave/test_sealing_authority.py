"""The enclave's CA: a key that stays, a request, and what counts of what the host brings."""

from __future__ import annotations

import datetime
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key

from enclave_os.errors import ConfigError
from enclave_os.ratls.certificate import pem_from_der
from enclave_os.sealing.authority import DAY_S, authority_of, expiry, new_key, signing_request, warning
from enclave_os_host.certificates import authority as make_certificate
from enclave_os_host.certificates import builder, name

NOW = int(time.time())


def public(key_der: bytes) -> ec.EllipticCurvePublicKey:
    key = load_der_private_key(key_der, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.public_key()


class Operator:
    """A root that signs."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = name("Operator's root")
        self.root = make_certificate(self.name, self.key.public_key(), self.name, self.key, None, self.now())

    @staticmethod
    def now() -> datetime.datetime:
        return datetime.datetime.fromtimestamp(NOW, datetime.UTC)

    def sign(self, key: ec.EllipticCurvePublicKey) -> bytes:
        made = make_certificate(name("Intermediary"), key, self.name, self.key, 0, self.now())
        return made.public_bytes(Encoding.PEM) + self.root.public_bytes(Encoding.PEM)


@pytest.fixture(scope="module")
def operator() -> Operator:
    return Operator()


def test_the_request_proves_the_key_and_nothing_secret_is_in_it() -> None:
    key = new_key()
    request = x509.load_der_x509_csr(signing_request(key))
    assert request.is_signature_valid
    assert request.public_key() == public(key)
    assert key not in signing_request(key)


def test_a_chain_for_our_key_is_taken(operator: Operator) -> None:
    key = new_key()
    made = authority_of(key, operator.sign(public(key)), NOW)
    assert (made.key_der, made.key_origin, len(made.chain_der)) == (key, "generated", 2)
    assert warning(made, NOW) == ""
    assert "days" in warning(made, expiry(made) - 3 * DAY_S)
    assert "expired" in warning(made, expiry(made) + 1)


def test_what_the_host_brings_instead_is_refused(operator: Operator) -> None:
    key = new_key()
    chain = operator.sign(public(key))
    blocks = chain.split(b"-----END CERTIFICATE-----\n")
    swapped = blocks[1] + b"-----END CERTIFICATE-----\n" + blocks[0] + b"-----END CERTIFICATE-----\n"
    other_root = Operator().root.public_bytes(Encoding.PEM)
    leaf = no_ca(key, operator)
    for bad, words in (
        (operator.sign(public(new_key())), "another key"),
        (b"", "PEM"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "PEM"),
        (swapped, "another key"),
        (blocks[0] + b"-----END CERTIFICATE-----\n" + other_root, "in order"),
        (chain + blocks[0] + b"-----END CERTIFICATE-----\n", "in order"),
        (leaf, "not a CA"),
        (chain * 5, "at most"),
    ):
        with pytest.raises(ConfigError, match=words):
            authority_of(key, bad, NOW)
    for when in (NOW - 2 * DAY_S, NOW + 4000 * DAY_S):
        with pytest.raises(ConfigError, match="in force"):
            authority_of(key, chain, when)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_each_byte_of_what_the_host_brings(operator: Operator) -> None:
    """A version, a name or an extension that cannot be read is refused by name, like everything else."""
    key = new_key()
    honest = operator.sign(public(key))
    certificate, root = x509.load_pem_x509_certificates(honest)
    first, above = certificate.public_bytes(Encoding.DER), root.public_bytes(Encoding.PEM)
    refused = 0
    for index in range(len(first)):
        for value in (0, 1, 3, 0x80, 0xA3, 0xFF):
            spoiled = first[:index] + bytes([value]) + first[index + 1 :]
            try:
                authority_of(key, pem_from_der(spoiled).encode("ascii") + above, NOW)
            except ConfigError:
                refused += 1
    # Not always all: a signature that ends in a zero bit says the same with that bit declared unused.
    assert refused > 6 * len(first) * 0.9


def no_ca(key: bytes, operator: Operator) -> bytes:
    """A certificate of the operator's for our key that is an ordinary leaf's."""
    made = builder(name("Leaf"), public(key), name("Operator's root"), operator.key, operator.now(), ca=False)
    return made.sign(operator.key, hashes.SHA256()).public_bytes(Encoding.PEM)
