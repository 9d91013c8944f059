"""SGX DCAP quotes: one strict reader, and the encoders that the simulated platform and the tests share.

Version 3. (Version 4 wraps the QE's part once more, in certification data of type 6. It is read, and `appraise` refuses
it: dcap-qvl verifies SGX quotes of version 3, which is what Intel's Quoting Enclave makes for Gramine.)

      0 ┬ header 48: version u16 · key type u16 · TEE type u32 · QE SVN u16 · PCE SVN u16 · vendor 16 · user data 20
     48 ┼ report body 384 (below): what the CPU said of the enclave
    432 ┼ size u32 of all that follows
    436 ┼ signature 64 over bytes 0 to 432, by the attestation key
    500 ┼ attestation key 64, P-256 x || y
    564 ┼ QE report 384, whose report_data starts with SHA-256(attestation key || QE auth data)
    948 ┼ signature 64 over the QE report, by the PCK
   1012 ┼ size u16 · QE auth data
        ┴ type u16 · size u32 · certification data (type 5: the PCK chain as PEM, real ones end in a NUL)

All integers little endian. Invariant: what parses encodes to the same bytes, so nothing rides along unread. The reader
judges form alone; whether anything is signed is `appraise`'s question.
(Intel SGX ECDSA QuoteGenReference, appendix A.4; SDM vol. 3D, 38.15 REPORT.)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from enclave_os.errors import AttestationError, UsageError
from enclave_os.evidence.binding import REPORT_DATA_SIZE

HEADER_SIZE: Final = 48
BODY_SIZE: Final = 384
SIGNED_SIZE: Final = HEADER_SIZE + BODY_SIZE
SIGNATURE_SIZE: Final = 64
KEY_SIZE: Final = 64
QE_AUTH_SIZE_MAX: Final = 1024  # Intel's QE writes 32
QUOTE_SIZE_MAX: Final = 16 * 1024
"""Intel's quotes are about 4.6 KiB, Gramine's buffer 8 KiB; twice that leaves room for longer chains."""

TEE_SGX: Final = 0
KEY_TYPE_P256: Final = 2
INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
CERT_TYPE_PCK_CHAIN: Final = 5
CERT_TYPE_QE_REPORT: Final = 6

ATTRIBUTE_DEBUG: Final = 0x02  # of the first byte of ATTRIBUTES.FLAGS

_HEADER: Final = struct.Struct("<HHIHH16s20s")
_BODY: Final = struct.Struct("<16sI12s16s16s32s32s32s32s64sHHH42s16s64s")
_BODY_GAPS: Final = (2, 6, 8, 13)  # the reserved fields among them
_SIZE16: Final = struct.Struct("<H")
_SIZE32: Final = struct.Struct("<I")
_CERTIFICATION: Final = struct.Struct("<HI")
assert _HEADER.size == HEADER_SIZE
assert _BODY.size == BODY_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteHeader:
    """The first 48 bytes."""

    version: int = 3
    attestation_key_type: int = KEY_TYPE_P256
    tee_type: int = TEE_SGX
    qe_svn: int
    pce_svn: int
    qe_vendor_id: bytes = INTEL_QE_VENDOR
    user_data: bytes = bytes(20)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportBody:
    """What the CPU says of an enclave. Reserved bytes are zero, or the report is not one that we understand."""

    cpu_svn: bytes
    misc_select: int = 0
    isv_ext_prod_id: bytes = bytes(16)
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    config_id: bytes = bytes(64)
    isv_prod_id: int
    isv_svn: int
    config_svn: int = 0
    isv_family_id: bytes = bytes(16)
    report_data: bytes

    @property
    def debug(self) -> bool:
        """Whether the host can read the enclave's memory by EDBGRD: then nothing in it is secret."""
        return bool(self.attributes[0] & ATTRIBUTE_DEBUG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A quote taken apart.

    Attributes:
        raw: all of it, as it came.
        signature: r || s over the first 432 bytes, by `attestation_key` (x || y).
        qe_report_signature: r || s over the QE report, by the PCK.
        cert_data: the PCK chain as PEM, leaf first.
    """

    raw: bytes
    header: QuoteHeader
    body: ReportBody
    signature: bytes
    attestation_key: bytes
    qe_report: ReportBody
    qe_report_signature: bytes
    qe_auth_data: bytes
    cert_data: bytes


def parse_quote(data: bytes) -> Quote:
    """Take a quote apart, or say what is wrong with its form.

    Raises: AttestationError: `malformed`, `trailing_bytes` (more than the sizes in it say), or `unsupported` (a
        version, TEE, key or certification that we do not judge). UsageError: `data` is not bytes.
    """
    if not isinstance(data, bytes):
        raise UsageError("a quote is bytes")
    if len(data) > QUOTE_SIZE_MAX:
        raise _malformed(f"a quote of {len(data)} bytes; the largest that is read has {QUOTE_SIZE_MAX}")
    reader = _Reader(data)
    header = _parse_header(reader.take("header", HEADER_SIZE))
    body = parse_body(reader.take("report body", BODY_SIZE))
    rest = reader.sized("signature data", _SIZE32)
    reader.end("the quote")
    reader = _Reader(rest)
    signature = reader.take("signature", SIGNATURE_SIZE)
    attestation_key = reader.take("attestation key", KEY_SIZE)
    if header.version == 4:
        wrapped = reader.certification(CERT_TYPE_QE_REPORT)
        reader.end("the signature data")
        reader = _Reader(wrapped)
    qe_report = parse_body(reader.take("QE report", BODY_SIZE))
    qe_report_signature = reader.take("QE report signature", SIGNATURE_SIZE)
    qe_auth_data = reader.sized("QE auth data", _SIZE16)
    if len(qe_auth_data) > QE_AUTH_SIZE_MAX:
        raise _malformed(f"QE auth data of {len(qe_auth_data)} bytes")
    cert_data = reader.certification(CERT_TYPE_PCK_CHAIN)
    reader.end("the certification data")
    return Quote(
        raw=data,
        header=header,
        body=body,
        signature=signature,
        attestation_key=attestation_key,
        qe_report=qe_report,
        qe_report_signature=qe_report_signature,
        qe_auth_data=qe_auth_data,
        cert_data=cert_data,
    )


def parse_body(data: bytes) -> ReportBody:
    """The 384 bytes of a report body.

    Raises: AttestationError: `malformed`: another size, or reserved bytes that are not zero.
    """
    if len(data) != BODY_SIZE:
        raise _malformed(f"a report body of {len(data)} bytes")
    fields = _BODY.unpack(data)
    if any(any(fields[gap]) for gap in _BODY_GAPS):
        raise _malformed("reserved bytes of a report body are not zero")
    cpu_svn, misc_select, _, ext_prod_id, attributes, mr_enclave, _, mr_signer, _, *rest = fields
    config_id, isv_prod_id, isv_svn, config_svn, _, family_id, report_data = rest
    return ReportBody(
        cpu_svn=cpu_svn,
        misc_select=misc_select,
        isv_ext_prod_id=ext_prod_id,
        attributes=attributes,
        mr_enclave=mr_enclave,
        mr_signer=mr_signer,
        config_id=config_id,
        isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
        config_svn=config_svn,
        isv_family_id=family_id,
        report_data=report_data,
    )


def encode_header(header: QuoteHeader) -> bytes:
    """48 bytes."""
    return _HEADER.pack(
        header.version,
        header.attestation_key_type,
        header.tee_type,
        header.qe_svn,
        header.pce_svn,
        _exact("a vendor id", header.qe_vendor_id, 16),
        _exact("user data", header.user_data, 20),
    )


def encode_body(body: ReportBody) -> bytes:
    """384 bytes."""
    return _BODY.pack(
        _exact("CPUSVN", body.cpu_svn, 16),
        body.misc_select,
        bytes(12),
        _exact("ISVEXTPRODID", body.isv_ext_prod_id, 16),
        _exact("ATTRIBUTES", body.attributes, 16),
        _exact("MRENCLAVE", body.mr_enclave, 32),
        bytes(32),
        _exact("MRSIGNER", body.mr_signer, 32),
        bytes(32),
        _exact("CONFIGID", body.config_id, 64),
        body.isv_prod_id,
        body.isv_svn,
        body.config_svn,
        bytes(42),
        _exact("ISVFAMILYID", body.isv_family_id, 16),
        _exact("report_data", body.report_data, REPORT_DATA_SIZE),
    )


def encode_quote(
    signed: bytes,
    signature: bytes,
    *,
    attestation_key: bytes,
    qe_report: bytes,
    qe_report_signature: bytes,
    qe_auth_data: bytes,
    cert_data: bytes,
    version: int = 3,
) -> bytes:
    """A whole quote from `signed` (header and body as encoded) and what vouches for it."""
    certified = b"".join(
        (
            _exact("a QE report", qe_report, BODY_SIZE),
            _exact("a signature", qe_report_signature, SIGNATURE_SIZE),
            _SIZE16.pack(len(qe_auth_data)),
            qe_auth_data,
            _CERTIFICATION.pack(CERT_TYPE_PCK_CHAIN, len(cert_data)),
            cert_data,
        )
    )
    if version == 4:
        certified = _CERTIFICATION.pack(CERT_TYPE_QE_REPORT, len(certified)) + certified
    rest = _exact("a signature", signature, SIGNATURE_SIZE) + _exact("a key", attestation_key, KEY_SIZE) + certified
    return _exact("header and body", signed, SIGNED_SIZE) + _SIZE32.pack(len(rest)) + rest


class _Reader:
    """A cursor over bytes of a peer's: never past the end, never anything left."""

    __slots__ = ("_data", "_pos")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._pos = 0

    def take(self, what: str, size: int) -> bytes:
        end = self._pos + size
        if end > len(self._data):
            raise _malformed(f"the quote ends within its {what}")
        taken = self._data[self._pos : end]
        self._pos = end
        return taken

    def sized(self, what: str, prefix: struct.Struct) -> bytes:
        (size,) = prefix.unpack(self.take(f"{what} size", prefix.size))
        return self.take(what, size)

    def certification(self, kind: int) -> bytes:
        found, size = _CERTIFICATION.unpack(self.take("certification data", _CERTIFICATION.size))
        if found != kind:
            raise AttestationError(f"certification data of type {found} where type {kind} is judged", "unsupported")
        return self.take("certification data", size)

    def end(self, what: str) -> None:
        left = len(self._data) - self._pos
        if left:
            raise AttestationError(f"{left} bytes after the end of {what}", "trailing_bytes")


def _parse_header(data: bytes) -> QuoteHeader:
    version, key_type, tee, qe_svn, pce_svn, vendor, user = _HEADER.unpack(data)
    if version not in (3, 4):
        raise AttestationError(f"quote version {version}; versions 3 and 4 are read", "unsupported")
    if tee != TEE_SGX:
        raise AttestationError(f"TEE type {tee:#x}; only SGX (0) is judged", "unsupported")
    if key_type != KEY_TYPE_P256:
        raise AttestationError(f"attestation key type {key_type}; only ECDSA P-256 (2) is judged", "unsupported")
    return QuoteHeader(
        version=version,
        attestation_key_type=key_type,
        tee_type=tee,
        qe_svn=qe_svn,
        pce_svn=pce_svn,
        qe_vendor_id=vendor,
        user_data=user,
    )


def _malformed(text: str) -> AttestationError:
    return AttestationError(text, "malformed")


def _exact(what: str, value: bytes, size: int) -> bytes:
    if len(value) != size:
        raise UsageError(f"{what} is {size} bytes, not {len(value)}")
    return value
