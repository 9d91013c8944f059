"""Where quotes come from.

    sgx                  DeviceAttester     /dev/attestation, as Gramine offers it: CPU, Quoting Enclave, AESM
    simulated, direct    SimulatedAttester  a platform made on this machine, in a folder of the host's

Both answer the same questions, so that nothing above knows which of them it has but by `simulated`, which it shows.
"""

from __future__ import annotations

import dataclasses
import hmac
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from enclave_os.errors import AttestationError, UsageError
from enclave_os.evidence.binding import REPORT_DATA_SIZE
from enclave_os.evidence.collateral import COLLATERAL_SIZE_MAX, Collateral
from enclave_os.evidence.quote import (
    BODY_SIZE,
    QUOTE_SIZE_MAX,
    SIGNATURE_SIZE,
    SIGNED_SIZE,
    QuoteHeader,
    ReportBody,
    encode_body,
    encode_header,
    encode_quote,
    parse_body,
    parse_quote,
)
from enclave_os.wire.gramine import PlatformFiles

Mode = Literal["simulated", "direct", "sgx"]


class Attester(Protocol):
    """One enclave's way to prove what it is. Safe to call from any thread.

    Attributes:
        mode: how the enclave runs.
        simulated: its quotes are signed by no hardware.
        body: our own report, with report_data zero: measurement, signer, product, versions.
        quote_seconds: what one quote took, measured at the start.
        simulated_root_der: the root that simulated quotes lead to; None on hardware.
    """

    mode: Mode
    simulated: bool
    body: ReportBody
    quote_seconds: float
    simulated_root_der: bytes | None

    def quote(self, report_data: bytes) -> bytes:
        """A quote over exactly these 64 bytes. Blocks: tens of microseconds simulated, milliseconds on hardware.

        Raises: UsageError: another size. AttestationError: the platform gave none, or not ours.
        """

    def collateral(self) -> Collateral | None:
        """What a verifier needs beside the quote, the last that was taken; None: there is none yet."""

    def take_collateral(self, collateral: Collateral) -> None:
        """Show this from now on: our own quote verified with it (`collateral_source`)."""

    def sealing_key(self) -> bytes:
        """32 bytes that only this measurement gets on this platform, the same at every start.

        Raises: AttestationError: the platform gives no key.
        """


def image_profile(attester: Attester) -> str:
    """`production` only where hardware keeps the host out, else `dev`: what extension P.2.8 says."""
    return "dev" if attester.simulated or attester.body.debug else "production"


SEAL_INFO: Final = b"enclave-os sealing key 1"
DEVICE_ROOT: Final = Path("/dev/attestation")
ATTESTATION_TYPE: Final = "attestation_type"
"""Gramine has this file exactly when it runs on SGX."""
PLATFORM_VARIABLE: Final = "ENCLAVE_OS_PLATFORM"
DEVICE_SEAL_KEY_SIZE: Final = 16
DEVICE_REPORT_SIZE: Final = BODY_SIZE + 32 + 16  # KEYID, MAC
SIMULATED_SEAL_KEY_SIZE: Final = 32
PLATFORM_SIZE_MAX: Final = 64 * 1024
PLATFORM_FORMAT: Final = 1
SVN_MAX: Final = 0xFFFF
# FLAGS: INITTED and MODE64BIT, no debug; XFRM: x87, SSE, AVX. What an enclave of Gramine's has.
SIMULATED_ATTRIBUTES: Final = bytes.fromhex("05000000000000000700000000000000")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedIdentity:
    """What a signed manifest fixes on hardware: signer, product, security version."""

    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int


def platform_folder(environment: Mapping[str, str]) -> Path:
    """The simulated platform's folder, by the host's word. Raises: AttestationError: it named none."""
    folder = environment.get(PLATFORM_VARIABLE, "")
    if not folder.startswith("/"):
        raise AttestationError(f"{PLATFORM_VARIABLE} names no folder", "no_platform")
    return Path(folder)


class DeviceAttester:
    """Gramine's /dev/attestation. One lock around report data and quote, since the files are one per process.

    Who we are the CPU says itself (EREPORT). A quote comes by way of the host, who can put any in its place: it counts
    only when it is of that report.

    Args: root: another folder in tests only.
    Raises: AttestationError: no DCAP here, or what it gives is not ours.
    """

    mode: Mode = "sgx"
    simulated = False
    simulated_root_der: bytes | None = None

    def __init__(self, root: Path = DEVICE_ROOT) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._collateral: Collateral | None = None
        kind = self._read(ATTESTATION_TYPE, 64)
        if kind != b"dcap":
            raise AttestationError(
                f"this enclave has no DCAP attestation ({kind.decode('ascii', 'backslashreplace')}); "
                'sign it with sgx.remote_attestation = "dcap"',
                "no_platform",
            )
        self.body = self._own_report()
        begin = time.monotonic()
        self.quote(bytes(REPORT_DATA_SIZE))
        self.quote_seconds = time.monotonic() - begin

    def quote(self, report_data: bytes) -> bytes:
        """See `Attester`."""
        _check_report_data(report_data)
        made = self._ask(report_data, "quote", QUOTE_SIZE_MAX)
        ours = encode_body(dataclasses.replace(self.body, report_data=report_data))
        if not hmac.compare_digest(encode_body(parse_quote(made).body), ours):
            raise AttestationError("the platform gave a quote over another report than ours", "no_quote")
        return made

    def collateral(self) -> Collateral | None:
        """See `Attester`. Intel's comes through the host."""
        return self._collateral

    def take_collateral(self, collateral: Collateral) -> None:
        """See `Attester`."""
        self._collateral = collateral

    def sealing_key(self) -> bytes:
        """See `Attester`. From the CPU's key for this MRENCLAVE (EGETKEY), as Gramine gives it."""
        key = self._read("keys/_sgx_mrenclave", DEVICE_SEAL_KEY_SIZE)
        if len(key) != DEVICE_SEAL_KEY_SIZE or not any(key):
            raise AttestationError("the platform gives no sealing key", "no_sealing_key")
        return _derive_seal_key(key, self.body.mr_enclave)

    def _own_report(self) -> ReportBody:
        report = self._ask(bytes(REPORT_DATA_SIZE), "report", DEVICE_REPORT_SIZE)
        if len(report) != DEVICE_REPORT_SIZE:
            raise AttestationError(f"the platform's report has {len(report)} bytes", "no_platform")
        return parse_body(report[:BODY_SIZE])

    def _ask(self, report_data: bytes, name: str, size_max: int) -> bytes:
        """What the platform makes over these 64 bytes."""
        with self._lock:
            try:
                # One write, all 64 bytes: each replaces the whole content.
                with (self._root / "user_report_data").open("wb", buffering=0) as file:
                    if file.write(report_data) != REPORT_DATA_SIZE:
                        raise AttestationError("the platform did not take the report data", "no_quote")
            except OSError as error:
                raise _device_error("user_report_data", error) from error
            return self._read(name, size_max)

    def _read(self, name: str, size_max: int) -> bytes:
        try:
            with (self._root / name).open("rb", buffering=0) as file:
                parts: list[bytes] = []
                size = 0
                while part := file.read(size_max + 1 - size):
                    parts.append(part)
                    size += len(part)
                    if size > size_max:
                        raise AttestationError(f"the platform's {name} has more than {size_max} bytes", "no_platform")
                return b"".join(parts)
        except OSError as error:
            raise _device_error(name, error) from error


class SimulatedAttester:
    """Quotes of a platform that was made on this machine, by its attestation key.

    Args:
        source: the platform's folder, as the host names it, or its files, where the enclave can open no folder. All of
            it is the host's; that is what simulated means.
        identity: what the manifest would fix.
        mr_enclave: our measurement.
    Raises: AttestationError: that is no platform.
    """

    simulated = True

    def __init__(
        self, mode: Mode, source: Path | PlatformFiles, identity: SimulatedIdentity, mr_enclave: bytes
    ) -> None:
        self.mode = mode
        where = str(source)[:200] if isinstance(source, Path) else "the configuration document"
        try:
            files = _read_files(source) if isinstance(source, Path) else source
            platform = _parse_platform(files.platform)
            key = load_pem_private_key(platform["attestation_key_pem"].encode("ascii"), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
                raise ValueError("an attestation key that is not on P-256")
            self.body = ReportBody(
                cpu_svn=bytes.fromhex(platform["cpu_svn"]),
                attributes=SIMULATED_ATTRIBUTES,
                mr_enclave=mr_enclave,
                mr_signer=identity.mr_signer,
                isv_prod_id=identity.isv_prod_id,
                isv_svn=identity.isv_svn,
                report_data=bytes(REPORT_DATA_SIZE),
            )
            header = encode_header(QuoteHeader(qe_svn=platform["qe_svn"], pce_svn=platform["pce_svn"]))
            # All that does not change between quotes is encoded once: report_data is the last field that is signed.
            self._signed = (header + encode_body(self.body))[:-REPORT_DATA_SIZE]
            point = key.public_key().public_numbers()
            whole = encode_quote(
                self._signed + bytes(REPORT_DATA_SIZE),
                bytes(SIGNATURE_SIZE),
                attestation_key=point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big"),
                qe_report=bytes.fromhex(platform["qe_report"]),
                qe_report_signature=bytes.fromhex(platform["qe_report_signature"]),
                qe_auth_data=bytes.fromhex(platform["qe_auth_data"]),
                cert_data=platform["pck_chain_pem"].encode("ascii"),
            )
            *_, root = x509.load_pem_x509_certificates(platform["pck_chain_pem"].encode("ascii"))
            self.simulated_root_der: bytes | None = root.public_bytes(Encoding.DER)
            self._size = whole[SIGNED_SIZE : SIGNED_SIZE + 4]
            self._rest = whole[SIGNED_SIZE + 4 + SIGNATURE_SIZE :]
            self._collateral = Collateral.from_json(files.collateral.encode())
            self._seal_key = bytes.fromhex(files.seal_key)
        except (OSError, ValueError, UsageError, UnsupportedAlgorithm) as error:
            raise AttestationError(
                f"no simulated platform: {type(error).__name__}, {where}",
                "no_platform",
            ) from error
        if len(self._seal_key) != SIMULATED_SEAL_KEY_SIZE:
            raise AttestationError(f"{where}: the sealing key is not 32 bytes", "no_platform")
        self._key = key
        begin = time.monotonic()
        parse_quote(self.quote(bytes(REPORT_DATA_SIZE)))
        self.quote_seconds = time.monotonic() - begin

    def quote(self, report_data: bytes) -> bytes:
        """See `Attester`."""
        _check_report_data(report_data)
        signed = self._signed + report_data
        r, s = decode_dss_signature(self._key.sign(signed, _ECDSA))
        return signed + self._size + r.to_bytes(32, "big") + s.to_bytes(32, "big") + self._rest

    def collateral(self) -> Collateral | None:
        """See `Attester`. At first the folder's; it is good for 30 days, and the host renews it."""
        return self._collateral

    def take_collateral(self, collateral: Collateral) -> None:
        """See `Attester`."""
        self._collateral = collateral

    def sealing_key(self) -> bytes:
        """See `Attester`. As EGETKEY's, it changes with CPUSVN."""
        return _derive_seal_key(self._seal_key + self.body.cpu_svn, self.body.mr_enclave)


_ECDSA: Final = ec.ECDSA(hashes.SHA256())


def _check_report_data(report_data: bytes) -> None:
    if not isinstance(report_data, bytes) or len(report_data) != REPORT_DATA_SIZE:
        raise UsageError(f"report_data is exactly {REPORT_DATA_SIZE} bytes")


def _derive_seal_key(key: bytes, mr_enclave: bytes) -> bytes:
    # Never the raw key: it may serve other uses (an encrypted mount), and two uses of one key are one too many.
    return HKDF(hashes.SHA256(), 32, salt=mr_enclave, info=SEAL_INFO).derive(key)


def _read_bounded(path: Path, size_max: int) -> bytes:
    with path.open("rb") as stream:
        data = stream.read(size_max + 1)
    if len(data) > size_max:
        raise ValueError(f"{path.name} has more than {size_max} bytes")
    return data


def _read_files(folder: Path) -> PlatformFiles:
    """Raises: OSError, ValueError: a file is not there, too big, or no text."""
    return PlatformFiles(
        platform=_read_bounded(folder / "platform.json", PLATFORM_SIZE_MAX).decode(),
        collateral=_read_bounded(folder / "collateral.json", COLLATERAL_SIZE_MAX).decode(),
        seal_key=_read_bounded(folder / "seal.key", SIMULATED_SEAL_KEY_SIZE).hex(),
    )


def _parse_platform(text: str) -> dict[str, Any]:
    """The members that a quote is made of, each of its kind. Raises: ValueError."""
    try:
        platform = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(platform, dict) or platform.get("format") != PLATFORM_FORMAT:
        raise ValueError("another format")
    for name in ("attestation_key_pem", "cpu_svn", "pck_chain_pem", "qe_auth_data", "qe_report", "qe_report_signature"):
        if not isinstance(platform.get(name), str):
            raise ValueError(f"{name} is not a string")
    for name in ("qe_svn", "pce_svn"):
        value = platform.get(name)
        if not isinstance(value, int) or not 0 <= value <= SVN_MAX:
            raise ValueError(f"{name} is not a number of 0 to {SVN_MAX}")
    return platform


def _device_error(name: str, error: OSError) -> AttestationError:
    return AttestationError(f"/dev/attestation/{name}: {error.strerror}", "no_platform")
