"""Minted leaves, read back by `cryptography`; and what is no identity, no issuer and no name."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_os._tls import TLSContext, TLSEngine
from enclave_os._x509 import LIFETIME_S_MAX, Identity, LeafMinter
from enclave_os.errors import ConfigError, UsageError
from tests.enclave import tls_peers as peers
from tests.enclave.certificates import Authority

SGX_QUOTE = "1.2.840.113741.1.13.1.0"
CONFIG_ROOT = "1.3.6.1.4.1.65230.1.1"
PROFILE = "1.3.6.1.4.1.65230.2.8"


@pytest.fixture(scope="module")
def minter(development_ca: Authority) -> LeafMinter:
    return LeafMinter(
        development_ca.certificate_der,
        development_ca.key_der,
        ["localhost", "*.example.org", "127.0.0.1", "::1", "localhost"],
        [(PROFILE, b"dev")],
    )


def parse(identity: Identity) -> x509.Certificate:
    return x509.load_der_x509_certificate(identity.leaf_der)


def extension(leaf: x509.Certificate, kind: type[Any]) -> Any:
    return leaf.extensions.get_extension_for_class(kind)


def test_a_leaf_is_what_it_should_be(minter: LeafMinter, development_ca: Authority, now: int) -> None:
    identity = minter.mint(now, 86400)
    leaf = parse(identity)
    leaf.verify_directly_issued_by(development_ca.certificate)
    assert leaf.version == x509.Version.v3
    assert leaf.subject.rfc4514_string() == "CN=Enclave OS RA-TLS"
    assert leaf.issuer == development_ca.certificate.subject
    assert isinstance(leaf.signature_hash_algorithm, hashes.SHA256)
    assert leaf.not_valid_before_utc == datetime.datetime.fromtimestamp(now, tz=datetime.UTC)
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == datetime.timedelta(days=1)
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert identity.spki_sha256 == hashlib.sha256(spki).digest()
    assert identity.chain_der == [development_ca.certificate_der]
    assert repr(identity) == f"<Identity spki_sha256={identity.spki_sha256.hex()}>"


def test_its_extensions(minter: LeafMinter, development_ca: Authority, now: int) -> None:
    leaf = parse(minter.mint(now, 86400, extensions=[(SGX_QUOTE, b"\3\0quote" * 800), (CONFIG_ROOT, bytes(32))]))
    assert [(found.oid.dotted_string, found.critical) for found in leaf.extensions] == [
        (ExtensionOID.BASIC_CONSTRAINTS.dotted_string, True),
        (ExtensionOID.KEY_USAGE.dotted_string, True),
        (ExtensionOID.EXTENDED_KEY_USAGE.dotted_string, False),
        (ExtensionOID.SUBJECT_KEY_IDENTIFIER.dotted_string, False),
        (ExtensionOID.AUTHORITY_KEY_IDENTIFIER.dotted_string, False),
        (ExtensionOID.SUBJECT_ALTERNATIVE_NAME.dotted_string, False),
        (PROFILE, False),
        (SGX_QUOTE, False),
        (CONFIG_ROOT, False),
    ]
    assert extension(leaf, x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
    usage = extension(leaf, x509.KeyUsage).value
    assert usage == x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    assert list(extension(leaf, x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    ]
    point = leaf.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert extension(leaf, x509.SubjectKeyIdentifier).value.digest == hashlib.sha256(point).digest()[:20]
    issuer = development_ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert extension(leaf, x509.AuthorityKeyIdentifier).value.key_identifier == issuer.digest
    assert list(extension(leaf, x509.SubjectAlternativeName).value) == [
        x509.DNSName("localhost"),
        x509.DNSName("*.example.org"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    raw = {found.oid.dotted_string: found.value for found in leaf.extensions}
    assert raw[PROFILE].public_bytes() == b"dev"
    assert raw[SGX_QUOTE].public_bytes() == b"\3\0quote" * 800
    assert raw[CONFIG_ROOT].public_bytes() == bytes(32)


def test_an_app_has_its_own_name(minter: LeafMinter, now: int) -> None:
    leaf = parse(minter.mint(now, 86400, name="app.example"))
    assert leaf.subject.rfc4514_string() == "CN=app.example"
    assert list(extension(leaf, x509.SubjectAlternativeName).value) == [x509.DNSName("app.example")]
    long = ".".join(["a" * 60] * 4)
    leaf = parse(minter.mint(now, 86400, name=long))
    assert leaf.subject.rfc4514_string() == "CN=Enclave OS RA-TLS", "a common name has at most 64 characters"
    assert list(extension(leaf, x509.SubjectAlternativeName).value) == [x509.DNSName(long)]


def test_serials_are_random_positive_and_of_one_size(minter: LeafMinter, now: int) -> None:
    leaves = [parse(minter.mint(now, 60)) for _ in range(100)]
    assert len({leaf.serial_number for leaf in leaves}) == 100
    assert len({leaf.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint) for leaf in leaves}) == 100
    assert all(2**158 <= leaf.serial_number < 2**159 for leaf in leaves)
    high_bits = {leaf.serial_number >> 150 for leaf in leaves}
    assert len(high_bits) > 50


@settings(max_examples=60, deadline=None)
@given(not_before=st.integers(0, 253402300799 - LIFETIME_S_MAX), lifetime_s=st.integers(1, LIFETIME_S_MAX))
def test_any_time_is_written_as_it_is(development_ca: Authority, not_before: int, lifetime_s: int) -> None:
    minter = LeafMinter(development_ca.certificate_der, development_ca.key_der, ["localhost"])
    leaf = parse(minter.mint(not_before, lifetime_s))
    assert int(leaf.not_valid_before_utc.timestamp()) == not_before
    assert int(leaf.not_valid_after_utc.timestamp()) == not_before + lifetime_s


@pytest.mark.parametrize("instant", [0, 2524607999, 2524608000, 951782400, 1709164800, 4107542399])
def test_times_at_the_edges(minter: LeafMinter, instant: int) -> None:
    # The last second of UTCTime, the first of GeneralizedTime (RFC 5280 4.1.2.5), leap days, the end of a century.
    leaf = parse(minter.mint(instant, 1))
    assert int(leaf.not_valid_before_utc.timestamp()) == instant


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 70_000), max_size=4))
def test_extensions_of_any_size(development_ca: Authority, sizes: list[int]) -> None:
    values = [(f"1.3.6.1.4.1.65230.9.{index}", bytes(size)) for index, size in enumerate(sizes)]
    minter = LeafMinter(development_ca.certificate_der, development_ca.key_der, ["localhost"], values[:1])
    leaf = parse(minter.mint(0, 60, extensions=values[1:]))
    leaf.verify_directly_issued_by(development_ca.certificate)
    found = {one.oid.dotted_string: one.value for one in leaf.extensions}
    assert [found[oid].public_bytes() for oid, _ in values] == [value for _, value in values]


@pytest.mark.parametrize(
    "oid", ["", "1", "1.", ".1", "3.1", "0.40", "1.40", "1.a", "1.-1", "1.2.\u0663", "1.2." + "9" * 30, "2 .5"]
)
def test_what_is_no_oid(minter: LeafMinter, oid: str) -> None:
    with pytest.raises(UsageError, match="object identifier"):
        minter.mint(0, 60, extensions=[(oid, b"")])


@pytest.mark.parametrize("oid", ["2.999.1", "0.39", "1.39.127", "1.2.128.16384.2097151.268435456", "2.100000.3"])
def test_oids_of_any_shape(minter: LeafMinter, oid: str) -> None:
    leaf = parse(minter.mint(0, 60, extensions=[(oid, b"x")]))
    assert oid in [found.oid.dotted_string for found in leaf.extensions]


@pytest.mark.parametrize("oids", [[PROFILE], [CONFIG_ROOT, CONFIG_ROOT], ["2.5.29.17"], ["2.5.29.19"]])
def test_no_extension_comes_twice(minter: LeafMinter, oids: list[str]) -> None:
    with pytest.raises(UsageError, match="already there"):
        minter.mint(0, 60, extensions=[(oid, b"") for oid in oids])


@pytest.mark.parametrize(
    ("not_before", "lifetime_s"), [(-1, 60), (0, 0), (0, -5), (0, LIFETIME_S_MAX + 1), (1 << 40, 1)]
)
def test_times_out_of_range(minter: LeafMinter, not_before: int, lifetime_s: int) -> None:
    with pytest.raises(UsageError, match="out of range"):
        minter.mint(not_before, lifetime_s)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a..b",
        "a b",
        "-a",
        "a-",
        "caf\u00e9",
        "a\0b",
        "a" * 64,
        ".".join(["a" * 60] * 5),
        "127.0.0.1/8",
        "a,b",
        "*.",
    ],
)
def test_what_is_no_name(minter: LeafMinter, development_ca: Authority, name: str) -> None:
    with pytest.raises(UsageError, match=r"DNS name|common name"):
        minter.mint(0, 60, name=name)
    with pytest.raises(UsageError, match="DNS name"):
        LeafMinter(development_ca.certificate_der, development_ca.key_der, ["localhost", name])


def test_a_leaf_needs_a_name(development_ca: Authority) -> None:
    with pytest.raises(UsageError, match="at least one name"):
        LeafMinter(development_ca.certificate_der, development_ca.key_der, [])
    for common_name in ("", "x" * 65, "a\nb"):
        with pytest.raises(UsageError, match="common name"):
            LeafMinter(development_ca.certificate_der, development_ca.key_der, ["localhost"], common_name=common_name)


# -- issuers -----------------------------------------------------------------------------------------------------------


def test_an_intermediary_under_a_root(now: int) -> None:
    root = Authority.make("Root")
    middle = Authority.make("Middle", issuer=root)
    minter = LeafMinter(middle.certificate_der, middle.key_der, ["localhost"], chain_der=[root.certificate_der])
    identity = minter.mint(now, 86400)
    assert identity.chain_der == [middle.certificate_der, root.certificate_der]
    client = TLSContext.client(ca_pem=root.certificate_pem)
    ours, theirs = peers.pair(TLSContext.server(lambda hello: identity), client)
    assert theirs.peer_chain_der == [identity.leaf_der, middle.certificate_der, root.certificate_der]
    assert isinstance(ours, TLSEngine)


def test_an_issuer_on_p_384_and_one_without_a_key_id(now: int) -> None:
    for issuer in (
        Authority.make("P-384", key=ec.generate_private_key(ec.SECP384R1())),
        Authority.make("No key id", with_key_id=False),
    ):
        leaf = parse(LeafMinter(issuer.certificate_der, issuer.key_der, ["localhost"]).mint(now, 60))
        leaf.verify_directly_issued_by(issuer.certificate)
        assert len(extension(leaf, x509.AuthorityKeyIdentifier).value.key_identifier) == 20


def test_issuers_that_cannot_sign(development_ca: Authority) -> None:
    other = Authority.make("Other")
    leaf = Authority.make("Leaf", is_ca=False)
    by_rsa = Authority.make("RSA", key=rsa.generate_private_key(public_exponent=65537, key_size=2048))
    p521 = Authority.make("P-521", key=ec.generate_private_key(ec.SECP521R1()))
    wrong = {
        "does not belong": (development_ca.certificate_der, other.key_der),
        "not that of a CA": (leaf.certificate_der, leaf.key_der),
        "not an ECDSA key": (by_rsa.certificate_der, by_rsa.key_der),
        "on P-256 or P-384": (p521.certificate_der, p521.key_der),
        "not a certificate": (b"trash", other.key_der),
        "not a private key": (other.certificate_der, b"trash"),
        "follow the certificate": (other.certificate_der + b"\0", other.key_der),
        "follow the private key": (other.certificate_der, other.key_der + b"\0"),
    }
    for text, (certificate, key) in wrong.items():
        with pytest.raises(ConfigError, match=text):
            LeafMinter(certificate, key, ["localhost"])


# -- identities from DER -----------------------------------------------------------------------------------------------


def test_an_identity_from_der(development_ca: Authority) -> None:
    leaf = Authority.make("Leaf", issuer=development_ca, is_ca=False)
    identity = Identity.from_der(leaf.certificate_der, leaf.key_der, [development_ca.certificate_der])
    spki = leaf.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert identity.leaf_der == leaf.certificate_der
    assert identity.spki_sha256 == hashlib.sha256(spki).digest()
    assert identity.chain_der == [development_ca.certificate_der]


def test_what_is_no_identity(development_ca: Authority) -> None:
    leaf = Authority.make("Leaf", is_ca=False)
    with pytest.raises(ConfigError, match="does not belong"):
        Identity.from_der(leaf.certificate_der, development_ca.key_der)
    with pytest.raises(ConfigError, match="not a certificate"):
        Identity.from_der(leaf.key_der, leaf.key_der)
    with pytest.raises(ConfigError, match="not a private key"):
        Identity.from_der(leaf.certificate_der, leaf.certificate_der)
    with pytest.raises(ConfigError, match="not a certificate"):
        Identity.from_der(leaf.certificate_der, leaf.key_der, [b"trash"])


def test_a_key_never_comes_out(minter: LeafMinter) -> None:
    for owner in (minter.mint(0, 60), minter):
        public = {name for name in dir(owner) if not name.startswith("__")}
        assert public <= {
            *("leaf_der", "chain_der", "spki_sha256", "app", "generation", "from_der"),
            *("mint", "encode", "prepare"),
        }
