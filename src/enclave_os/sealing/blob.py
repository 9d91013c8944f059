"""The sealed blob: one body under a data key of its own, and that key wrapped for who may open it.

    offset  size
    0       8     magic "EOSSEAL1"
    8       32    measurement (MRENCLAVE) that sealed it
    40      1     number of wraps, 1 or 2          41   3   zero
    44      4     u32 LE: size of the body
    48      32    blob key: Ed25519, public; derived from the master key, so one for all blobs of one first boot
    80            wraps, each:  u8 kind, u8 zero, u16 LE size, 32 bytes key id, wrapped data key
    ...           body: AES-256-GCM of the content under the data key; AAD is every byte before it
    end     64    signature by the blob key over every byte before it

Every sealing draws a new data key, so the body's nonce is constant and nothing that the host can roll back feeds one.
The platform's wrap: AES-256-GCM under HKDF-SHA256(sealing key, a fresh salt), the measurement in `info` and in AAD. The
platform's key changes with its microcode (Gramine uses the current CPUSVN), so a second wrap can go to the owner's RSA
key (OAEP with SHA-256: what every HSM can undo); whoever holds that one reads everything.

So that a changed key is not taken for damage, the key id of the platform's wrap says which key it was, and on what:

    0       16    check value: HKDF-SHA256 of the sealing key under a label of its own, cut short
    16      16    CPUSVN of the processor that sealed it, as its report had it

Like every byte before the body it is authenticated, once the body opens; until then it is the host's word, which can
choose between two refusals and nothing else.

The owner's public key is public, so anybody can wrap a data key to it, and seal what he likes under that: the wrap
says nothing of who made the blob. The signature does, to an owner who noted the blob key while the enclave attested it
(leaf `seal.blob_key`, `seal status`): only who knows the master key can sign. The enclave that the owner lets open a
blob knows no master key yet and cannot tell, so it asks for the owner's own signature over the blob (`grant_message`).

A blob that opens is one that this measurement sealed on this machine (or the owner's key opened). It need not be the
latest: an older one opens as well, which only the boot count and a client that remembers can tell (docs/sealing.md).
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_der_public_key

from enclave_os.errors import ConfigError, SealBroken, UsageError
from enclave_os.wire.rpc import MEASUREMENT_SIZE, SEALED_SIZE_MAX

MAGIC: Final = b"EOSSEAL1"
KEY_SIZE: Final = 32
CPU_SVN_SIZE: Final = 16
TAG_SIZE: Final = 16
PLATFORM: Final = 1
OWNER_RSA_OAEP_SHA256: Final = 2
OWNER_KEY_BITS_MIN: Final = 3072  # the strength of P-256 and above (NIST SP 800-57 part 1, table 2)
OWNER_KEY_BITS_MAX: Final = 8192

_HEAD: Final = struct.Struct("<8s32sB3sI32s")
_WRAP: Final = struct.Struct("<BBH32s")
_SALT_SIZE: Final = 32
_NONCE: Final = bytes(12)  # of keys that encrypt once
_PLATFORM_WRAP_SIZE: Final = _SALT_SIZE + KEY_SIZE + TAG_SIZE
_INFO: Final = b"enclave-os seal: key that wraps the data key, v1"
_CHECK_INFO: Final = b"enclave-os seal: check value of the platform's key, v1"
_CHECK_SIZE: Final = 16
_OAEP: Final = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)

BLOB_KEY_SIZE: Final = 32
SIGNATURE_SIZE: Final = 64
_SIGNING_INFO: Final = b"enclave-os seal: key that signs blobs, v1"
_SIGNED_AS: Final = b"enclave-os sealed configuration, v1\0"
_GRANTED_AS: Final = b"enclave-os seal recover, v1\0"
_PSS: Final = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256().digest_size)

NOT_WHOLE: Final = "it is cut short, or not a sealed configuration"


class OtherPlatformKey(SealBroken):
    """It was sealed under another key of the platform's than this start has: it may be whole, and opens elsewhere.

    Attributes: microcode: by its own word the processor had another CPUSVN; else it was another machine.
    """

    def __init__(self, sealed_svn: bytes, svn: bytes) -> None:
        self.microcode = sealed_svn != svn
        text = "the platform's key is not the one that sealed it: "
        if self.microcode:
            text += f"that was at CPUSVN {sealed_svn.hex()}, and the processor is at {svn.hex()} now"
        else:
            text += f"that was on another machine, or the owner epoch was changed; the CPUSVN is the same, {svn.hex()}"
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class PlatformKey:
    """What the platform gives to seal under.

    Attributes:
        measurement: MRENCLAVE, 32 bytes. cpu_svn: the processor's security version, 16 bytes, which the key contains.
        key: 32 bytes, of this measurement.
    """

    measurement: bytes
    cpu_svn: bytes
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if (len(self.measurement), len(self.cpu_svn), len(self.key)) != (MEASUREMENT_SIZE, CPU_SVN_SIZE, KEY_SIZE):
            raise UsageError("a measurement and a sealing key have 32 bytes each, a CPUSVN 16")

    def check_value(self) -> bytes:
        """By which a blob tells its key from another; public."""
        info = _CHECK_INFO + self.measurement
        return HKDF(hashes.SHA256(), _CHECK_SIZE, salt=None, info=info).derive(self.key)

    def wrapping_key(self, salt: bytes) -> bytes:
        """The key that wraps one data key."""
        return HKDF(hashes.SHA256(), KEY_SIZE, salt=salt, info=_INFO + self.measurement).derive(self.key)


@dataclass(frozen=True, slots=True)
class Wrap:
    """One way to the data key.

    Attributes:
        key_id: SHA-256 of the owner's public key (DER); for the platform check value and CPUSVN.
    """

    kind: int
    key_id: bytes
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob taken apart. Nothing in it is authenticated until the body opens, or a blob key that one knows fits.

    Attributes:
        blob_key: whose signature it bears, 32 bytes: alleged.
        sha256: of all of it.
        aad: every byte before the body.
    """

    measurement: bytes
    blob_key: bytes
    sha256: bytes
    wraps: tuple[Wrap, ...]
    aad: bytes = field(repr=False)
    body: bytes = field(repr=False)


def signing_key(master_key: bytes) -> Ed25519PrivateKey:
    """The key that signs the blobs of this master key."""
    seed = HKDF(hashes.SHA256(), BLOB_KEY_SIZE, salt=None, info=_SIGNING_INFO).derive(master_key)
    return Ed25519PrivateKey.from_private_bytes(seed)


def blob_key_of(master_key: bytes) -> bytes:
    """Its public half: what an owner notes, to know true blobs by."""
    return signing_key(master_key).public_key().public_bytes_raw()


def seal(content: bytes, *, platform: PlatformKey, owner_key: str | None, signer: Ed25519PrivateKey) -> bytes:
    """Seal `content` under a fresh data key.

    Args:
        owner_key: base64 of the owner's RSA public key (DER), None for no second wrap.
        signer: `signing_key` of the content's master key.
    Raises:
        ConfigError: the owner's key is none, or too weak. UsageError: too much content for one blob.
    """
    data_key = os.urandom(KEY_SIZE)
    wraps = [_wrap_for_platform(data_key, platform)]
    if owner_key is not None:
        public_key, key_id = load_owner_key(owner_key)
        wraps.append(Wrap(OWNER_RSA_OAEP_SHA256, key_id, public_key.encrypt(data_key, _OAEP)))
    body_size = len(content) + TAG_SIZE
    blob_key = signer.public_key().public_bytes_raw()
    aad = _HEAD.pack(MAGIC, platform.measurement, len(wraps), bytes(3), body_size, blob_key) + b"".join(
        _WRAP.pack(wrap.kind, 0, len(wrap.wrapped), wrap.key_id) + wrap.wrapped for wrap in wraps
    )
    size = len(aad) + body_size + SIGNATURE_SIZE
    if size > SEALED_SIZE_MAX:
        raise UsageError(f"a sealed configuration of {size} bytes; at most {SEALED_SIZE_MAX} fit")
    signed = aad + AESGCM(data_key).encrypt(_NONCE, content, aad)
    return signed + signer.sign(_SIGNED_AS + signed)


def parse(data: bytes) -> Blob:
    """Take a blob apart, strictly; says nothing of its truth but that it is as its signer, whoever that is, signed it.

    Raises: SealBroken: it is none, or not whole.
    """
    if len(data) > SEALED_SIZE_MAX or len(data) < _HEAD.size + SIGNATURE_SIZE:
        raise SealBroken(NOT_WHOLE)
    magic, measurement, count, zero, body_size, blob_key = _HEAD.unpack_from(data)
    if magic != MAGIC or zero != bytes(3) or count not in (1, 2) or body_size < TAG_SIZE:
        raise SealBroken(NOT_WHOLE)
    wraps, end = _parse_wraps(data, count)
    signed = end + body_size
    kinds = [PLATFORM, OWNER_RSA_OAEP_SHA256][:count]
    if [wrap.kind for wrap in wraps] != kinds or len(data) != signed + SIGNATURE_SIZE:
        raise SealBroken(NOT_WHOLE)
    try:
        Ed25519PublicKey.from_public_bytes(blob_key).verify(data[signed:], _SIGNED_AS + data[:signed])
    except (InvalidSignature, ValueError) as error:
        raise SealBroken("it was changed: its signature does not fit") from error
    return Blob(measurement, blob_key, hashlib.sha256(data).digest(), wraps, data[:end], data[end:signed])


def open_with_platform(blob: Blob, platform: PlatformKey) -> bytes:
    """The content, by the platform's wrap.

    Raises:
        OtherPlatformKey: by its own word another machine's, or the processor's before its microcode was changed.
        SealBroken: another measurement's, or changed in any bit.
    """
    if blob.measurement != platform.measurement:
        raise SealBroken(f"it was sealed by measurement {blob.measurement.hex()}, which is not ours")
    wrap = blob.wraps[0]
    if len(wrap.wrapped) != _PLATFORM_WRAP_SIZE:
        raise SealBroken(NOT_WHOLE)
    if wrap.key_id[:_CHECK_SIZE] != platform.check_value():
        raise OtherPlatformKey(wrap.key_id[_CHECK_SIZE:], platform.cpu_svn)
    key = platform.wrapping_key(wrap.wrapped[:_SALT_SIZE])
    try:
        data_key = AESGCM(key).decrypt(_NONCE, wrap.wrapped[_SALT_SIZE:], _platform_aad(platform.measurement))
    except InvalidTag as error:
        raise SealBroken("it was changed: it does not open under the key that sealed it") from error
    return open_with_data_key(blob, data_key)


def open_with_data_key(blob: Blob, data_key: bytes) -> bytes:
    """The content, by the data key itself: what the owner unwrapped offline.

    Raises: SealBroken: not this blob's key, or the blob was changed.
    """
    if len(data_key) != KEY_SIZE:
        raise SealBroken(f"a data key has {KEY_SIZE} bytes")
    try:
        return AESGCM(data_key).decrypt(_NONCE, blob.body, blob.aad)
    except InvalidTag as error:
        raise SealBroken("the content does not open: it was changed, or the data key is another blob's") from error


def check_signer(blob: Blob, master_key: bytes) -> None:
    """Whether a blob that opened is signed by the master key inside it. Raises: SealBroken: not so."""
    if blob.blob_key != blob_key_of(master_key):
        raise SealBroken("it is signed by another key than its master key's")


def grant_message(blob: Blob) -> bytes:
    """What the owner signs to let an enclave open this blob, and no other, with the data key."""
    return _GRANTED_AS + blob.sha256


def grant(blob: Blob, private_key: rsa.RSAPrivateKey) -> bytes:
    """The owner's signature (RSA-PSS with SHA-256), offline: after the blob was found to be true."""
    return private_key.sign(grant_message(blob), _PSS, hashes.SHA256())


def check_grant(blob: Blob, owner_key: str, signature: bytes) -> None:
    """Whether the owner of the content's policy let this blob be opened, and it is wrapped to that owner.

    Args: owner_key: of the policy inside the blob.
    Raises: SealBroken: not so. ConfigError: no key.
    """
    public_key, key_id = load_owner_key(owner_key)
    wrap = owner_wrap(blob)
    if wrap is None or wrap.key_id != key_id:
        raise SealBroken("its second wrap is for another key than its policy's owner has")
    try:
        public_key.verify(signature, grant_message(blob), _PSS, hashes.SHA256())
    except InvalidSignature as error:
        raise SealBroken("the owner's signature does not fit this blob: unwrap the file that lies there now") from error


def owner_wrap(blob: Blob) -> Wrap | None:
    """The wrap that the owner can undo, if there is one."""
    return next((wrap for wrap in blob.wraps if wrap.kind == OWNER_RSA_OAEP_SHA256), None)


def unwrap_as_owner(blob: Blob, private_key: rsa.RSAPrivateKey) -> bytes:
    """The data key, offline, by the owner.

    Raises: SealBroken: no second wrap, or another key's.
    """
    wrap = owner_wrap(blob)
    if wrap is None:
        raise SealBroken("it has no second wrap: only the platform that sealed it can open it")
    try:
        data_key = private_key.decrypt(wrap.wrapped, _OAEP)
    except ValueError as error:
        raise SealBroken(f"this key does not undo the second wrap, which is for key {wrap.key_id.hex()}") from error
    if len(data_key) != KEY_SIZE:
        raise SealBroken("the second wrap holds no data key")
    return data_key


def load_owner_key(owner_key: str) -> tuple[rsa.RSAPublicKey, bytes]:
    """The owner's public key and its id.

    Raises: ConfigError: not an RSA public key of OWNER_KEY_BITS_MIN to OWNER_KEY_BITS_MAX bits.
    """
    try:
        der = base64.b64decode(owner_key, validate=True)
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("seal.owner_public_key_pem: cannot be read as a public key") from error
    if not isinstance(key, rsa.RSAPublicKey) or not OWNER_KEY_BITS_MIN <= key.key_size <= OWNER_KEY_BITS_MAX:
        raise ConfigError(
            f"seal.owner_public_key_pem: give an RSA key of {OWNER_KEY_BITS_MIN} to {OWNER_KEY_BITS_MAX} bits"
        )
    return key, hashlib.sha256(der).digest()


def _parse_wraps(data: bytes, count: int) -> tuple[tuple[Wrap, ...], int]:
    offset = _HEAD.size
    wraps: list[Wrap] = []
    for _ in range(count):
        if offset + _WRAP.size > len(data):
            raise SealBroken(NOT_WHOLE)
        kind, zero, size, key_id = _WRAP.unpack_from(data, offset)
        offset += _WRAP.size
        if zero or offset + size > len(data):
            raise SealBroken(NOT_WHOLE)
        wraps.append(Wrap(kind, key_id, data[offset : offset + size]))
        offset += size
    return tuple(wraps), offset


def _wrap_for_platform(data_key: bytes, platform: PlatformKey) -> Wrap:
    salt = os.urandom(_SALT_SIZE)
    sealed = AESGCM(platform.wrapping_key(salt)).encrypt(_NONCE, data_key, _platform_aad(platform.measurement))
    return Wrap(PLATFORM, platform.check_value() + platform.cpu_svn, salt + sealed)


def _platform_aad(measurement: bytes) -> bytes:
    return MAGIC + measurement
