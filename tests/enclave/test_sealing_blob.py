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


def key_of(platform: FakePlatform) -> blob.PlatformKey:
    return blob.PlatformKey(platform.measurement, platform.cpu_svn, platform.key)


def sealed(content: bytes = CONTENT, owner: str | None = None) -> bytes:
    return blob.seal(content, platform=key_of(PLATFORM), owner_key=owner, signer=SIGNER)


def forged(aad: bytes, body: bytes) -> bytes:
    """Parts put together by who has a signing key of his own."""
    other = blob.signing_key(b"another master key of 32 bytes!!")
    signed = aad[:48] + other.public_key().public_bytes_raw() + aad[80:] + body
    return signed + other.sign(b"enclave-os sealed configuration, v1\0" + signed)


def opened(data: bytes, platform: FakePlatform = PLATFORM) -> bytes:
    return blob.open_with_platform(blob.parse(data), key_of(platform))


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


def test_another_measurement_is_refused_with_its_reason() -> None:
    with pytest.raises(SealBroken, match=r"measurement 6d6d.* not ours"):
        opened(sealed(), FakePlatform(measurement=b"n" * 32))
    parts = blob.parse(sealed())
    renamed = forged(parts.aad[:8] + b"n" * 32 + parts.aad[40:], parts.body)
    with pytest.raises(SealBroken):
        opened(renamed, FakePlatform(measurement=b"n" * 32))


class TestKeyOfThePlatform:
    """A key that changed with the microcode is told from damage, and the host can lie about nothing but the reason."""

    LATER = FakePlatform(key=b"l" * 32, cpu_svn=b"6" * 16)

    def test_other_microcode_is_said_with_both_versions(self) -> None:
        with pytest.raises(blob.OtherPlatformKey, match=rf"at CPUSVN {'35' * 16}, .* at {'36' * 16} now") as caught:
            opened(sealed(), self.LATER)
        assert caught.value.microcode

    def test_another_machine_of_the_same_version_is_told_from_that(self) -> None:
        with pytest.raises(blob.OtherPlatformKey, match="another machine") as caught:
            opened(sealed(), FakePlatform(key=b"l" * 32))
        assert not caught.value.microcode

    def test_damage_under_the_right_key_is_damage(self) -> None:
        """Each byte of the wrap behind its key id, by who signs anew what he changed."""
        parts = blob.parse(sealed())
        for position in range(80 + 36, len(parts.aad)):
            changed = parts.aad[:position] + bytes([parts.aad[position] ^ 1]) + parts.aad[position + 1 :]
            with pytest.raises(SealBroken, match="it was changed") as caught:
                opened(forged(changed, parts.body))
            assert not isinstance(caught.value, blob.OtherPlatformKey)

    def test_no_lie_about_the_key_opens_anything(self) -> None:
        """The host writes another check value or version, or the right ones beside a key that is not: refused."""
        ours, theirs = blob.parse(sealed()), key_of(self.LATER)
        at = 80 + 4  # the wrap's key id
        for value in (theirs.check_value(), bytes(16)):
            with pytest.raises(blob.OtherPlatformKey):
                opened(forged(ours.aad[:at] + value + ours.aad[at + 16 :], ours.body))
        imitated = ours.aad[:at] + theirs.check_value() + theirs.cpu_svn + ours.aad[at + 32 :]
        with pytest.raises(SealBroken, match="it was changed"):
            opened(forged(imitated, ours.body), self.LATER)
        # Another version beside the right key is authenticated with the body.
        aged = ours.aad[: at + 16] + b"7" * 16 + ours.aad[at + 32 :]
        with pytest.raises(SealBroken, match="the content does not open"):
            opened(forged(aged, ours.body))

    def test_the_check_value_says_nothing_of_the_key_and_is_one_measurements(self) -> None:
        own = key_of(PLATFORM)
        values = {
            own.check_value(),
            key_of(self.LATER).check_value(),
            key_of(FakePlatform(measurement=b"n" * 32)).check_value(),
        }
        assert {len(value) for value in values} == {16}
        assert len(values) == 3
        assert own.check_value() not in own.wrapping_key(b"") + own.wrapping_key(bytes(32)) + own.key
        assert own.check_value() == key_of(FakePlatform(cpu_svn=b"6" * 16)).check_value()
        assert "kkkk" not in repr(own)


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
    for sizes in ((1, 16, 32), (32, 16, 16), (32, 0, 32), (32, 17, 32)):
        with pytest.raises(UsageError):
            blob.PlatformKey(*map(bytes, sizes))
