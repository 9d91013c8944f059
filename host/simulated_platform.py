"""The simulated platform: what CPU, Quoting Enclave, Intel's CA and its collateral service are on real hardware.

A folder, made once and shared by every server that names it. Its quotes and collateral have Intel's form to the byte,
so that every parser, check and client runs for real; they lead to a root that was made here and says so in its name, so
that nothing which trusts Intel's root takes them.

    root.pem, root.key     "Enclave OS simulated SGX root"            what Intel's root CA is
    platform.json          attestation key, QE report, PCK chain      what the Quoting Enclave holds
    collateral.json        TCB info, QE identity, CRLs                what Intel's PCS serves; renewed before it ends
    seal.key               32 random bytes                            what the CPU's fuses are to sealing keys

Whoever reads the folder can forge evidence of this platform and open what is sealed on it: the mode's name says so.
(Intel SGX PCK certificate specification 1.5; PCS API 4, TCB info V3 and QE identity V2.)
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from enclave_os.wire.gramine import PlatformFiles

from .certificates import authority, builder, key_pem, name, write_whole
from .state import StateError, make_private_folder

FOLDER: Final = "platform"
ROOT_FILE: Final = "root.pem"
ROOT_KEY_FILE: Final = "root.key"
PLATFORM_FILE: Final = "platform.json"
COLLATERAL_FILE: Final = "collateral.json"
SEAL_KEY_FILE: Final = "seal.key"
LOCK_FILE: Final = "lock"
FORMAT: Final = 1

ROOT_NAME: Final = "Enclave OS simulated SGX root"
PCK_CA_NAME: Final = "Enclave OS simulated SGX PCK Platform CA"
PCK_NAME: Final = "Enclave OS simulated SGX PCK Certificate"
TCB_SIGNER_NAME: Final = "Enclave OS simulated SGX TCB Signing"

COLLATERAL_DAYS: Final = 30
RENEW_DAYS: Final = 7  # left of them, at a start
SEAL_KEY_SIZE: Final = 32

SGX_OID: Final = "1.2.840.113741.1.13.1"
QE_SVN: Final = 8
PCE_SVN: Final = 13
TCB_COMPONENTS: Final = (5,) * 16
CPU_SVN: Final = bytes(TCB_COMPONENTS)
FMSPC: Final = bytes.fromhex("53494d000001")  # "SIM", 0, 0, 1: no model of Intel's
PCE_ID: Final = bytes(2)
QE_MR_SIGNER: Final = hashlib.sha256(b"Enclave OS simulated quoting enclave").digest()
QE_ATTRIBUTES: Final = bytes.fromhex("11000000000000000000000000000000")
QE_PROD_ID: Final = 1
TCB_DATE: Final = "2026-01-01T00:00:00Z"

Now = Callable[[], datetime.datetime]


@dataclass(frozen=True, slots=True)
class SimulatedPlatform:
    """A platform that is ready to be used.

    Attributes:
        folder: what the enclave is told.
        root_file: PEM, for clients that pin it.
        created: whether this call made it.
    """

    folder: Path
    root_file: Path
    created: bool


def open_simulated_platform(folder: Path, now: Now = lambda: datetime.datetime.now(datetime.UTC)) -> SimulatedPlatform:
    """Read the platform in `folder`, or make it; renew collateral that nears its end. Several may call at once.

    Raises: StateError: some of its files are missing or cannot be read. OSError.
    """
    make_private_folder(folder)
    with _locked(folder):
        files = [folder / file for file in (ROOT_FILE, ROOT_KEY_FILE, PLATFORM_FILE, COLLATERAL_FILE, SEAL_KEY_FILE)]
        there = [file for file in files if file.exists()]
        if not there:
            _make(folder, now())
        elif len(there) < len(files):
            missing = ", ".join(file.name for file in files if file not in there)
            raise StateError(
                f"the simulated platform {folder} lacks {missing}; put it back, or move the folder away for a new one "
                "(what was sealed on it stays closed then)"
            )
        elif _collateral_ends(folder) - now() < datetime.timedelta(days=RENEW_DAYS):
            _renew(folder, now())
    return SimulatedPlatform(folder, folder / ROOT_FILE, not there)


def read_platform(folder: Path) -> PlatformFiles:
    """What an enclave needs of the platform, for one that cannot open the folder. Raises: StateError, OSError."""
    try:
        return PlatformFiles(
            platform=(folder / PLATFORM_FILE).read_text("utf-8"),
            collateral=(folder / COLLATERAL_FILE).read_text("utf-8"),
            seal_key=(folder / SEAL_KEY_FILE).read_bytes().hex(),
        )
    except ValueError as error:
        raise _unreadable(folder) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make(folder: Path, now: datetime.datetime) -> None:
    root_key, pck_ca_key, pck_key, attestation_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(4))
    root = authority(name(ROOT_NAME), root_key.public_key(), name(ROOT_NAME), root_key, None, now)
    pck_ca = authority(name(PCK_CA_NAME), pck_ca_key.public_key(), name(ROOT_NAME), root_key, 0, now)
    pck = _pck_certificate(pck_key.public_key(), pck_ca_key, now)
    pem = serialization.Encoding.PEM
    chain = b"".join(certificate.public_bytes(pem) for certificate in (pck, pck_ca, root))
    public = attestation_key.public_key().public_numbers()
    key_bytes = public.x.to_bytes(32, "big") + public.y.to_bytes(32, "big")
    auth_data = bytes(range(32))  # as Intel's QE has it
    report = _qe_report(hashlib.sha256(key_bytes + auth_data).digest())
    platform = {
        "format": FORMAT,
        "cpu_svn": CPU_SVN.hex(),
        "qe_svn": QE_SVN,
        "pce_svn": PCE_SVN,
        "attestation_key_pem": key_pem(attestation_key).decode("ascii"),
        "qe_report": report.hex(),
        "qe_report_signature": _sign(pck_key, report).hex(),
        "qe_auth_data": auth_data.hex(),
        "pck_chain_pem": chain.decode("ascii"),
    }
    collateral = _collateral(root, root_key, pck_ca, pck_ca_key, now)
    write_whole(folder / SEAL_KEY_FILE, secrets.token_bytes(SEAL_KEY_SIZE), 0o600)
    write_whole(folder / PLATFORM_FILE, json.dumps(platform, indent=1).encode(), 0o600)
    # The PCK CA's key signs CRLs at each renewal.
    write_whole(folder / ROOT_KEY_FILE, key_pem(root_key) + key_pem(pck_ca_key), 0o600)
    write_whole(folder / COLLATERAL_FILE, collateral, 0o644)
    write_whole(folder / ROOT_FILE, root.public_bytes(pem), 0o644)


def _renew(folder: Path, now: datetime.datetime) -> None:
    try:
        root = x509.load_pem_x509_certificate((folder / ROOT_FILE).read_bytes())
        platform = json.loads((folder / PLATFORM_FILE).read_bytes())
        _, pck_ca, _ = x509.load_pem_x509_certificates(platform["pck_chain_pem"].encode("ascii"))
        texts = (folder / ROOT_KEY_FILE).read_bytes().split(b"-----END PRIVATE KEY-----\n")[:2]
        keys = [serialization.load_pem_private_key(text + b"-----END PRIVATE KEY-----\n", None) for text in texts]
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(folder) from error
    root_key, pck_ca_key = keys
    if not isinstance(root_key, ec.EllipticCurvePrivateKey) or not isinstance(pck_ca_key, ec.EllipticCurvePrivateKey):
        raise _unreadable(folder)
    write_whole(folder / COLLATERAL_FILE, _collateral(root, root_key, pck_ca, pck_ca_key, now), 0o644)


def _collateral_ends(folder: Path) -> datetime.datetime:
    try:
        info = json.loads(json.loads((folder / COLLATERAL_FILE).read_bytes())["tcb_info"])
        return datetime.datetime.fromisoformat(info["nextUpdate"])
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(folder) from error


def _unreadable(folder: Path) -> StateError:
    return StateError(f"the simulated platform {folder} cannot be read; move the folder away for a new one")


# -- what Intel signs -------------------------------------------------------------------------------------------------


def _pck_certificate(
    key: ec.EllipticCurvePublicKey, issuer_key: ec.EllipticCurvePrivateKey, now: datetime.datetime
) -> x509.Certificate:
    return (
        builder(name(PCK_NAME), key, name(PCK_CA_NAME), issuer_key, now, ca=False)
        .add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_OID), _sgx_extension(secrets.token_bytes(16))),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )


def _sgx_extension(platform_id: bytes) -> bytes:
    tcb = [_pair(f"{SGX_OID}.2.{index}", _der_integer(svn)) for index, svn in enumerate(TCB_COMPONENTS, 1)]
    tcb.append(_pair(f"{SGX_OID}.2.17", _der_integer(PCE_SVN)))
    tcb.append(_pair(f"{SGX_OID}.2.18", _der(0x04, CPU_SVN)))
    flags = [_pair(f"{SGX_OID}.7.{index}", _der(0x01, b"\x00")) for index in (1, 2, 3)]
    return _der(
        0x30,
        _pair(f"{SGX_OID}.1", _der(0x04, platform_id))
        + _pair(f"{SGX_OID}.2", _der(0x30, b"".join(tcb)))
        + _pair(f"{SGX_OID}.3", _der(0x04, PCE_ID))
        + _pair(f"{SGX_OID}.4", _der(0x04, FMSPC))
        + _pair(f"{SGX_OID}.5", _der(0x0A, b"\x01"))
        + _pair(f"{SGX_OID}.6", _der(0x04, platform_id))
        + _pair(f"{SGX_OID}.7", _der(0x30, b"".join(flags))),
    )


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _der_integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _pair(oid: str, value: bytes) -> bytes:
    first, second, *rest = (int(arc) for arc in oid.split("."))
    content = bytearray()
    for number in (first * 40 + second, *rest):
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(0x80 | number & 0x7F)
        content += bytes(reversed(groups))
    return _der(0x30, _der(0x06, bytes(content)) + value)


def _qe_report(key_hash: bytes) -> bytes:
    """384 bytes, laid out as in enclave_os.evidence.quote, which only the trusted side may import."""
    report = bytearray(384)
    report[0:16] = CPU_SVN
    report[48:64] = QE_ATTRIBUTES
    report[64:96] = hashlib.sha256(b"Enclave OS simulated quoting enclave, 1").digest()
    report[128:160] = QE_MR_SIGNER
    report[256:258] = QE_PROD_ID.to_bytes(2, "little")
    report[258:260] = QE_SVN.to_bytes(2, "little")
    report[320:352] = key_hash
    return bytes(report)


def _collateral(
    root: x509.Certificate,
    root_key: ec.EllipticCurvePrivateKey,
    pck_ca: x509.Certificate,
    pck_ca_key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
) -> bytes:
    signer_key = ec.generate_private_key(ec.SECP256R1())
    signer = builder(name(TCB_SIGNER_NAME), signer_key.public_key(), name(ROOT_NAME), root_key, now, ca=False).sign(
        root_key, hashes.SHA256()
    )
    ends = now + datetime.timedelta(days=COLLATERAL_DAYS)
    dates = {"issueDate": _date(now), "nextUpdate": _date(ends)}
    tcb = {"sgxtcbcomponents": [{"svn": svn} for svn in TCB_COMPONENTS], "pcesvn": PCE_SVN}
    tcb_info = _text(
        {
            "id": "SGX", "version": 3, **dates, "fmspc": FMSPC.hex().upper(), "pceId": PCE_ID.hex(), "tcbType": 0,
            "tcbEvaluationDataNumber": 1,
            "tcbLevels": [{"tcb": tcb, "tcbDate": TCB_DATE, "tcbStatus": "UpToDate"}],
        }
    )  # fmt: skip
    qe_identity = _text(
        {
            "id": "QE", "version": 2, **dates, "tcbEvaluationDataNumber": 1,
            "miscselect": "00000000", "miscselectMask": "FFFFFFFF",
            "attributes": QE_ATTRIBUTES.hex().upper(), "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": QE_MR_SIGNER.hex().upper(), "isvprodid": QE_PROD_ID,
            "tcbLevels": [{"tcb": {"isvsvn": QE_SVN}, "tcbDate": TCB_DATE, "tcbStatus": "UpToDate"}],
        }
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    signer_chain = (signer.public_bytes(pem) + root.public_bytes(pem)).decode("ascii")
    collateral = {
        "pck_crl_issuer_chain": (pck_ca.public_bytes(pem) + root.public_bytes(pem)).decode("ascii"),
        "root_ca_crl": _empty_crl(root, root_key, now, ends).hex(),
        "pck_crl": _empty_crl(pck_ca, pck_ca_key, now, ends).hex(),
        "tcb_info_issuer_chain": signer_chain,
        "tcb_info": tcb_info,
        "tcb_info_signature": _sign(signer_key, tcb_info.encode()).hex(),
        "qe_identity_issuer_chain": signer_chain,
        "qe_identity": qe_identity,
        "qe_identity_signature": _sign(signer_key, qe_identity.encode()).hex(),
    }
    return json.dumps(collateral, indent=1).encode()


def _empty_crl(
    issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey, now: datetime.datetime, ends: datetime.datetime
) -> bytes:
    return (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now)
        .next_update(ends)
        .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _date(when: datetime.datetime) -> str:
    return when.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
