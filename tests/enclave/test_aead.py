"""AES-256-GCM and HKDF: the published vectors, a second implementation, and every way to be wrong (KV2, KV6, KV12)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from enclave_os import _aead
from enclave_os._aead import AEADKey, Sealer, equal, hkdf_sha256, nonce_of, wipe
from enclave_os.errors import SealBroken
from enclave_os.wire.errors import UsageError

KEY, NONCE = bytes(range(32)), bytes(range(12))
VECTORS: list[dict[str, Any]] = [
    test | {"group": group}
    for group in json.loads((Path(__file__).parents[1] / "vectors/wycheproof/aes_gcm_test.json").read_text())[
        "testGroups"
    ]
    for test in group["tests"]
]
OURS = [test for test in VECTORS if (test["group"]["keySize"], test["group"]["ivSize"]) == (256, 96)]


def test_the_vectors_are_there() -> None:
    assert len(VECTORS) == 316
    assert {test["result"] for test in OURS} == {"valid", "invalid"}
    assert len(OURS) == 66


@pytest.mark.parametrize("test", OURS, ids=lambda test: str(test["tcId"]))
def test_wycheproof(test: dict[str, Any]) -> None:
    key, nonce, aad, plaintext, sealed = (
        bytes.fromhex(text) for text in (test["key"], test["iv"], test["aad"], test["msg"], test["ct"] + test["tag"])
    )
    if test["result"] == "valid":
        assert AEADKey(key).seal(nonce, plaintext, aad) == sealed
        assert AEADKey(key).open(nonce, sealed, aad) == plaintext
    else:
        with pytest.raises(SealBroken):
            AEADKey(key).open(nonce, sealed, aad)


def test_other_sizes_of_key_and_nonce_are_refused() -> None:
    refused = 0
    for test in VECTORS:
        key, nonce = bytes.fromhex(test["key"]), bytes.fromhex(test["iv"])
        if len(key) != 32:
            with pytest.raises(UsageError, match="a key has 32 bytes"):
                AEADKey(key)
        elif len(nonce) != 12:
            with pytest.raises(UsageError, match="a nonce has 12 bytes"):
                AEADKey(key).open(nonce, bytes.fromhex(test["ct"] + test["tag"]))
        else:
            continue
        refused += 1
    assert refused == 316 - 66


RFC_5869 = [
    # A.1, A.2, A.3: key, salt, info, size, output
    (
        "0b" * 22, bytes(range(13)).hex(), bytes(range(0xF0, 0xFA)).hex(), 42,
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)).hex(), bytes(range(0x60, 0xB0)).hex(), bytes(range(0xB0, 0x100)).hex(), 82,
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
        "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    (
        "0b" * 22, "", "", 42,
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("key", "salt", "info", "size", "output"), RFC_5869)
def test_hkdf_vectors(key: str, salt: str, info: str, size: int, output: str) -> None:
    assert hkdf_sha256(bytes.fromhex(key), bytes.fromhex(salt), bytes.fromhex(info), size).hex() == output


@given(st.binary(min_size=1, max_size=80), st.binary(max_size=80), st.binary(max_size=80), st.integers(1, 8160))
def test_hkdf_as_another_does_it(key: bytes, salt: bytes, info: bytes, size: int) -> None:
    assert hkdf_sha256(key, salt, info, size) == HKDF(SHA256(), size, salt, info).derive(key)


def test_hkdf_refuses_what_it_cannot_do() -> None:
    for key, salt, info, size in (
        (b"", b"", b"", 32),
        (b"k", b"", b"", 0),
        (b"k", b"", b"", 8161),
        (b"k", bytes(1025), b"", 32),
        (b"k", b"", bytes(1025), 32),
        (bytes(1025), b"", b"", 32),
    ):
        with pytest.raises(UsageError):
            hkdf_sha256(key, salt, info, size)


@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=12, max_size=12),
    st.binary(max_size=300),
    st.binary(max_size=300),
)
def test_as_another_does_it(key: bytes, nonce: bytes, plaintext: bytes, aad: bytes) -> None:
    sealed = AESGCM(key).encrypt(nonce, plaintext, aad)
    ours = AEADKey(key)
    assert ours.seal(nonce, plaintext, aad) == sealed
    assert ours.open(nonce, sealed, aad) == plaintext


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1024, 16 << 20])
def test_sizes(size: int) -> None:
    key, plaintext = AEADKey(KEY), bytes(size)
    sealed = key.seal(NONCE, plaintext)
    assert len(sealed) == size + _aead.TAG_SIZE
    assert key.open(NONCE, sealed) == plaintext


def test_every_flipped_bit_and_every_truncation_is_found() -> None:
    """KV2: nonce, ciphertext, tag and associated data of a 64 byte value, exhaustively."""
    key, aad, plaintext = AEADKey(KEY), b"associated", bytes(range(64))
    sealed = key.seal(NONCE, plaintext, aad)
    for place, whole in enumerate((NONCE, sealed, aad)):
        for bit in range(len(whole) * 8):
            parts = [NONCE, sealed, aad]
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            parts[place] = bytes(flipped)
            with pytest.raises(SealBroken):
                key.open(*parts)
    for size in range(len(sealed)):
        with pytest.raises(SealBroken):
            key.open(NONCE, sealed[:size], aad)
        with pytest.raises(SealBroken):
            key.open(NONCE, sealed[len(sealed) - size :], aad)
    with pytest.raises(SealBroken):
        key.open(NONCE, sealed + b"\0", aad)
    with pytest.raises(SealBroken):
        AEADKey(KEY[::-1]).open(NONCE, sealed, aad)
    assert key.open(NONCE, sealed, aad) == plaintext, "a broken message leaves the key as it was"


def test_batches_are_the_same_as_one_by_one() -> None:
    key = AEADKey(KEY)
    messages = [(nonce_of(index), bytes(index), b"aad" * index) for index in range(50)]
    sealed = key.seal_many(messages)
    assert sealed == [key.seal(*message) for message in messages]
    back = [(nonce, data, aad) for (nonce, _, aad), data in zip(messages, sealed, strict=True)]
    assert key.open_many(back) == [plaintext for _, plaintext, _ in messages]
    assert (key.seal_many([]), key.open_many([])) == ([], [])


@pytest.mark.parametrize("broken", [0, 7, 19])
def test_a_batch_with_one_broken_message_gives_nothing(broken: int) -> None:
    key = AEADKey(KEY)
    messages = [(nonce_of(index), key.seal(nonce_of(index), b"secret"), b"") for index in range(20)]
    nonce, sealed, aad = messages[broken]
    messages[broken] = (nonce, sealed[:-1] + bytes((sealed[-1] ^ 1,)), aad)
    with pytest.raises(SealBroken, match=f"message {broken} of 20"):
        key.open_many(messages)
    messages[broken] = (nonce, sealed[:15], aad)
    with pytest.raises(SealBroken, match="shorter than their tag"):
        key.open_many(messages)


def test_what_is_no_message_is_refused() -> None:
    key = AEADKey(KEY)
    for batch in ([(None, b"", b"")], [(NONCE, None, b"")], [(NONCE, b"", None)], [(b"", b"", b"")]):
        with pytest.raises(UsageError):
            key.seal_many(batch)  # type: ignore[arg-type] # what is tested
    with pytest.raises(TypeError):
        key.seal(NONCE, "text")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at most"):
        key.seal(NONCE, bytes(_aead.MESSAGE_SIZE_MAX + 1))


def test_a_sealer_counts_and_whoever_knows_the_salt_opens() -> None:
    sealer = Sealer(KEY, b"values of a namespace")
    first, sealed = sealer.seal(b"one", b"aad")
    second, more = sealer.seal_many([(b"two", b""), (b"three", b"")])
    assert (first, second, sealer.left) == (0, 1, _aead.MESSAGES_MAX - 3)
    opener = AEADKey.derive(KEY, sealer.salt, b"values of a namespace")
    assert opener.open(nonce_of(first), sealed, b"aad") == b"one"
    assert opener.open_many([(nonce_of(1), more[0], b""), (nonce_of(2), more[1], b"")]) == [b"two", b"three"]
    assert sealer.key.open(nonce_of(0), sealed, b"aad") == b"one"
    derived = HKDF(SHA256(), 32, sealer.salt, b"values of a namespace").derive(KEY)
    assert AESGCM(derived).decrypt(bytes(12), sealed, b"aad") == b"one"
    with pytest.raises(SealBroken):
        AEADKey.derive(KEY, sealer.salt, b"of another").open(nonce_of(0), sealed, b"aad")


def test_two_sealers_of_one_key_share_neither_key_nor_nonce() -> None:
    """KV12: a clone, or a start from a restored blob, draws its own salt."""
    sealers = [Sealer(KEY, b"info") for _ in range(100)]
    assert len({sealer.salt for sealer in sealers}) == 100
    assert len({sealer.seal(b"the same")[1] for sealer in sealers}) == 100
    with pytest.raises(TypeError):
        Sealer(KEY, b"info", salt=bytes(32))  # type: ignore[call-arg] # nobody can give it one


def test_a_sealer_ends_before_a_number_comes_again() -> None:
    """KV6."""
    sealer = Sealer(KEY, b"info", skip=_aead.MESSAGES_MAX - 2)
    with pytest.raises(UsageError, match="used up"):
        sealer.seal_many([(b"", b"")] * 3)
    assert sealer.left == 2, "and none of them was spent"
    assert sealer.seal(b"")[0] == _aead.MESSAGES_MAX - 2
    number, sealed = sealer.seal(b"last")
    assert sealer.key.open(nonce_of(number), sealed) == b"last"
    for _ in range(2):
        with pytest.raises(UsageError, match="used up: make a new one"):
            sealer.seal(b"")
    for bad in (-1, _aead.MESSAGES_MAX + 1):
        with pytest.raises(UsageError):
            Sealer(KEY, b"info", skip=bad)
    for bad in (-1, _aead.MESSAGES_MAX):
        with pytest.raises(UsageError):
            nonce_of(bad)
    with pytest.raises(UsageError, match="at least 32"):
        Sealer(KEY[1:], b"info")


def test_nonces_are_the_number_big_endian() -> None:
    assert nonce_of(0) == bytes(12)
    assert nonce_of(0x01020304) == bytes(8) + bytes((1, 2, 3, 4))


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_equal(one: bytes, other: bytes) -> None:
    assert equal(one, other) is (one == other)
    assert equal(one, bytes(bytearray(one)))


def test_wipe() -> None:
    memory = bytearray(b"secret")
    wipe(memory)
    assert memory == bytes(6)
    wipe(bytearray())
    with pytest.raises((BufferError, TypeError, ValueError)):
        wipe(b"constant")


def test_no_key_shows_in_repr() -> None:
    shown = repr(AEADKey(KEY)) + repr(Sealer(KEY, b"info"))
    assert shown == f"<AEADKey><Sealer 0 of {_aead.MESSAGES_MAX}>"
