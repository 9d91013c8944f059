"""The development CA: made once, read again, refused when it is damaged."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from enclave_os_host.ca import open_development_ca
from enclave_os_host.state import StateError


def request(key: ec.EllipticCurvePrivateKey) -> x509.CertificateSigningRequest:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "whatever it asks to be called")])
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())


def test_a_root_is_made_found_again_and_signs_an_intermediary(tmp_path: Path) -> None:
    made = open_development_ca(tmp_path)
    assert made.created
    root = x509.load_pem_x509_certificate(made.root_file.read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    intermediary, chained = x509.load_pem_x509_certificates(made.sign(request(key)))
    assert chained == root
    root.verify_directly_issued_by(root)
    intermediary.verify_directly_issued_by(root)
    assert intermediary.public_key() == key.public_key()
    assert "whatever" not in intermediary.subject.rfc4514_string()
    for certificate, length in ((root, None), (intermediary, 0)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert (constraints.value.ca, constraints.value.path_length) == (True, length)
        assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert "development" in root.subject.rfc4514_string()
    again = open_development_ca(tmp_path)
    assert (again.created, again.root) == (False, root)


def test_only_ec_keys_are_signed(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    asked = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    with pytest.raises(ValueError, match="EC key"):
        open_development_ca(tmp_path).sign(asked)


def test_keys_are_for_nobody_else(tmp_path: Path) -> None:
    folder = open_development_ca(tmp_path).root_file.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(list(folder.glob("*.key"))) == 1
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize("name", ["root.pem", "root.key"])
def test_a_missing_part_is_named_and_nothing_is_replaced(tmp_path: Path, name: str) -> None:
    folder = open_development_ca(tmp_path).root_file.parent
    (folder / name).unlink()
    left = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(StateError, match=f"lacks {name}"):
        open_development_ca(tmp_path)
    assert {path: path.read_bytes() for path in folder.iterdir()} == left


@pytest.mark.parametrize("name", ["root.pem", "root.key"])
@pytest.mark.parametrize("damage", ["garbage", "another"])
def test_a_part_that_does_not_belong_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    folder = open_development_ca(tmp_path / "one").root_file.parent
    other = open_development_ca(tmp_path / "two").root_file.parent
    (folder / name).write_text("garbage" if damage == "garbage" else (other / name).read_text())
    with pytest.raises(StateError, match="cannot be used"):
        open_development_ca(tmp_path / "one")


def test_an_expired_one_is_refused(tmp_path: Path) -> None:
    open_development_ca(tmp_path)
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3651)
    with pytest.raises(StateError, match="expired"):
        open_development_ca(tmp_path, lambda: later)
