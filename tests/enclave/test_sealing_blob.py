"""The sealed blob: who can open it, and that nobody can change it."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.errors import ConfigError, SealBroken, UsageError
from enclave_os.sealing import blob
from enclave_os.wire.rpc import SEALED_SIZE_MAX
from tests.enclave.sealing import FakePlatform, owner, owner_key

PLATFORM = FakePlatform()
CONTENT = b"what must stay secret, and whole"


SIGNER = blob.signing_key(b"m" * 32)


def sealed(content: bytes = CONTENT, owner: str | None = None) -> bytes:
    return blob.seal(
        content, measurement=PLATFORM.measurement, sealing_key=PLATFORM.key, owner_key=owner, signer=SIGNER
    )


def forged(aad: bytes, body: bytes) -> bytes:
    """Parts put together by who has a signing key of his own."""
    other = blob.signing_key(b"another master key of 32 bytes!!")
    signed = aad[:48] + other.public_key().public_bytes_raw() + aad[80:] + body
    return signed + other.sign(b"enclave-os sealed configuration, v1\0" + signed)


def opened(data: bytes, platform: FakePlatform = PLATFORM) -> bytes:
    return blob.open_with_platform(blob.parse(data), measurement=platform.measurement, sealing_key=platform.key)


@given(st.binary(max_size=4096))
def test_what_is_sealed_opens(content: bytes) -> None:
    assert opened(sealed(content)) == content


def test_two_sealings_share_nothing() -> None:
    first, second = sealed(), sealed()
    assert first[:80] == second[:80]
    assert blob.parse(first).wraps != blob.parse(second).wraps
    assert first[-112:-64] != second[-112:-64]
    assert CONTENT not in first


@pytest.mark.parametrize("key", [None, owner_key()], ids=["one wrap", "two wraps"])
def test_every_flipped_bit_is_refused(key: str | None) -> None:
    data = sealed(owner=key)
    for position in range(len(data) * 8):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(SealBroken):
            opened(bytes(changed))


@pytest.mark.parametrize("key", [None, owner_key()], ids=["one wrap", "two wraps"])
def test_every_truncation_and_extension_is_refused(key: str | None) -> None:
    data = sealed(owner=key)
    for size in range(len(data)):
        with pytest.raises(SealBroken):
            opened(data[:size])
    for tail in (b"\0", data, bytes(SEALED_SIZE_MAX)):
        with pytest.raises(SealBroken):
            opened(data + tail)


@given(st.binary(max_size=512))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(SealBroken):
        opened(data)
    with pytest.raises(SealBroken):
        opened(blob.MAGIC + data)
    with pytest.raises(SealBroken):
        opened(forged(blob.MAGIC + data + bytes(80), b""))


def test_the_second_wrap_cannot_be_cut_off_or_grafted_on() -> None:
    two, one = blob.parse(sealed(owner=owner_key())), blob.parse(sealed())
    head = 80 + 36 + len(two.wraps[0].wrapped)
    without = forged(two.aad[:40] + b"\1" + two.aad[41:head], two.body)
    grafted = forged(one.aad[:40] + b"\2" + one.aad[41:] + two.aad[head:], one.body)
    for data in (without, grafted):
        blob.parse(data)  # well-formed, so that it is the seal that refuses
        with pytest.raises(SealBroken, match="changed"):
            opened(data)


def test_another_measurement_or_platform_key_is_refused_with_its_reason() -> None:
    with pytest.raises(SealBroken, match=r"measurement 6d6d.* not ours"):
        opened(sealed(), FakePlatform(measurement=b"n" * 32))
    with pytest.raises(SealBroken, match="microcode"):
        opened(sealed(), FakePlatform(key=b"l" * 32))
    parts = blob.parse(sealed())
    renamed = forged(parts.aad[:8] + b"n" * 32 + parts.aad[40:], parts.body)
    with pytest.raises(SealBroken, match="microcode"):
        opened(renamed, FakePlatform(measurement=b"n" * 32))


class TestOwner:
    def test_the_owner_opens_what_the_platform_no_longer_does(self) -> None:
        parsed = blob.parse(sealed(owner=owner_key()))
        data_key = blob.unwrap_as_owner(parsed, owner())
        assert blob.open_with_data_key(parsed, data_key) == CONTENT

    def test_a_data_key_opens_its_own_blob_only(self) -> None:
        data_key = blob.unwrap_as_owner(blob.parse(sealed(owner=owner_key())), owner())
        with pytest.raises(SealBroken):
            blob.open_with_data_key(blob.parse(sealed(owner=owner_key())), data_key)
        for size in (0, 16, 31, 33):
            with pytest.raises(SealBroken):
                blob.open_with_data_key(blob.parse(sealed()), bytes(size))

    def test_nobody_else_undoes_the_second_wrap(self) -> None:
        stranger = rsa.generate_private_key(65537, 3072)
        with pytest.raises(SealBroken, match="does not undo"):
            blob.unwrap_as_owner(blob.parse(sealed(owner=owner_key())), stranger)
        with pytest.raises(SealBroken, match="no second wrap"):
            blob.unwrap_as_owner(blob.parse(sealed()), owner())

    def test_weak_and_odd_keys_are_refused_before_anything_is_sealed(self) -> None:
        weak = rsa.generate_private_key(65537, 2048).public_key()
        curve = ec.generate_private_key(ec.SECP256R1()).public_key()
        for key in (weak, curve):
            der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            with pytest.raises(ConfigError, match="3072"):
                sealed(owner=base64.b64encode(der).decode())
        for text in ("", "AAAA", "not base64"):
            with pytest.raises(ConfigError):
                sealed(owner=text)


def test_sizes_are_held() -> None:
    with pytest.raises(UsageError):
        sealed(bytes(SEALED_SIZE_MAX))
    with pytest.raises(UsageError):
        blob.seal(b"", measurement=b"m", sealing_key=bytes(32), owner_key=None, signer=SIGNER)
    with pytest.raises(UsageError):
        blob.seal(b"", measurement=bytes(32), sealing_key=bytes(16), owner_key=None, signer=SIGNER)
