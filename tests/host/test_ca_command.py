"""`enclave-os ca`: what is installed, what is refused and why, with nothing written then."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_os.wire.rpc import CHAIN_LENGTH_MAX, CHAIN_SIZE_MAX
from enclave_os_host import cli
from enclave_os_host.certificates import VALIDITY, authority, name

NOW = datetime.datetime.now(datetime.UTC)
ROOT_KEY = ec.generate_private_key(ec.SECP256R1())
ROOT_NAME = name("root")
ROOT = authority(ROOT_NAME, ROOT_KEY.public_key(), ROOT_NAME, ROOT_KEY, None, NOW)
KEY = ec.generate_private_key(ec.SECP256R1())
MEASUREMENT = "4f" * 32


def signed(key: ec.EllipticCurvePrivateKey = KEY, now: datetime.datetime = NOW) -> x509.Certificate:
    return authority(name("intermediary"), key.public_key(), ROOT_NAME, ROOT_KEY, 0, now)


def leaf(*, ca: bool | None, usage: bool | None) -> x509.Certificate:
    """What another CA might have made of the request."""
    made = (
        x509.CertificateBuilder()
        .subject_name(name("leaf")).issuer_name(ROOT_NAME).public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(hours=1)).not_valid_after(NOW + datetime.timedelta(days=1))
    )  # fmt: skip
    if ca is not None:
        made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if usage is not None:
        keys = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "crl_sign", "encipher_only", "decipher_only"), False,
        )  # fmt: skip
        made = made.add_extension(x509.KeyUsage(key_cert_sign=usage, **keys), critical=True)
    return made.sign(ROOT_KEY, hashes.SHA256())


def pem(*chain: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in chain)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of an enclave that has asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for variable in [variable for variable in os.environ if variable.startswith("ENCLAVE_OS_")]:
        monkeypatch.delenv(variable)
    folder = tmp_path / "state" / "sealed" / MEASUREMENT
    folder.mkdir(parents=True)
    request(folder, KEY)
    return tmp_path / "state"


def request(folder: Path, key: ec.EllipticCurvePrivateKey) -> None:
    made = x509.CertificateSigningRequestBuilder().subject_name(name("enclave")).sign(key, hashes.SHA256())
    (folder / "ca.csr").write_bytes(made.public_bytes(Encoding.PEM))


def install(state: Path, data: bytes) -> int:
    file = state.parent / "chain.pem"
    file.write_bytes(data)
    return cli.main(["ca", "install", str(file), "--state-dir", str(state)])


def test_installed_whole_and_without_what_stood_around_it(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain = pem(signed(), ROOT)
    assert install(state, b"from: the CA department\n\n" + chain + b"\nregards\n") == os.EX_OK
    assert (state / "sealed" / MEASUREMENT / "ca.pem").read_bytes() == chain
    assert "after the next start" in capsys.readouterr().out
    assert install(state, pem(signed())) == os.EX_OK  # over the former one; a root need not be among it


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no certificates in PEM"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no certificates in PEM"),
        (pem(signed(ec.generate_private_key(ec.SECP256R1())), ROOT), "another key"),
        (pem(ROOT, signed()), "not signed by the one after it"),
        (pem(signed(), signed()), "not signed by the one after it"),
        (pem(signed(now=NOW - VALIDITY - datetime.timedelta(days=1)), ROOT), "not in force"),
        (pem(signed(now=NOW + datetime.timedelta(days=1)), ROOT), "not in force"),
        (pem(leaf(ca=False, usage=True), ROOT), "no CA's"),
        (pem(leaf(ca=None, usage=None), ROOT), "no CA's"),
        (pem(leaf(ca=True, usage=False), ROOT), "no CA's"),
        (pem(signed(), *[ROOT] * CHAIN_LENGTH_MAX), f"{CHAIN_LENGTH_MAX + 1} certificates"),
        (bytes(CHAIN_SIZE_MAX + 1), "bigger than"),
    ],
)
def test_what_the_enclave_would_refuse_is_refused_here(
    state: Path, capsys: pytest.CaptureFixture[str], data: bytes, reason: str
) -> None:
    assert install(state, data) == os.EX_DATAERR
    assert reason in capsys.readouterr().err
    assert not (state / "sealed" / MEASUREMENT / "ca.pem").exists()


def test_a_ca_without_key_usage_will_do(state: Path) -> None:
    assert install(state, pem(leaf(ca=True, usage=None), ROOT)) == os.EX_OK


def test_the_request_of_one_enclave_among_several(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = state / "sealed" / ("77" * 32)
    other.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    request(other, key)
    (state / "sealed" / "former").mkdir()  # without a request
    asked = ["ca", "csr", "--state-dir", str(state)]
    assert cli.main(asked) == os.EX_USAGE
    shown = capsys.readouterr()
    assert (MEASUREMENT in shown.err, other.name in shown.err, shown.out) == (True, True, "")
    assert cli.main([*asked, "--measurement", "4F4f"]) == os.EX_OK
    printed = x509.load_pem_x509_csr(capsys.readouterr().out.encode())
    assert printed.public_key() == KEY.public_key()
    assert cli.main([*asked, "--measurement", "00"]) == os.EX_NOINPUT
    assert install(state, pem(signed(key), ROOT)) == os.EX_OK  # the key says for which
    assert (other / "ca.pem").exists()
    assert not (state / "sealed" / MEASUREMENT / "ca.pem").exists()


def test_what_is_missing_or_damaged_is_named(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ca", "install", "no.pem", "--state-dir", str(state)]) == os.EX_NOINPUT
    assert "no.pem" in capsys.readouterr().err
    (state / "sealed" / MEASUREMENT / "ca.csr").write_text("damaged")
    assert cli.main(["ca", "csr", "--state-dir", str(state)]) == os.EX_CONFIG
    assert "the next start writes it anew" in capsys.readouterr().err


def test_init_in_operator_mode_says_that_its_root_signs_nothing(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ca", "init", "--state-dir", str(state), "--set", "ca.mode=operator"]) == os.EX_OK
    assert "signs nothing" in capsys.readouterr().err
    assert (state / "ca" / "root.key").stat().st_mode & 0o077 == 0


def test_the_policy_as_it_would_be_sealed(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "policy", "--set", "seal.export=none"]) == os.EX_OK
    assert '"export":"none"' in capsys.readouterr().out
