"""How the other workers get what worker 0 opened, and the keys of the channel to it: over a host that only carries.

    worker n                              host (mailbox)                     worker 0
      fresh X25519 key, nonce   ── HELLO: nonce || public key ──────────────>  fresh X25519 key
      <── WELCOME: public key || AES-256-GCM(content) ────────────    keys = HKDF(ECDH || PSK, hello || public key)

PSK is derived from the platform's sealing key, which only this measurement gets on this machine: an enclave of other
code, and the host, compute another key, and their message does not open. Both ECDH keys are of this one exchange, so
nothing that was recorded opens again; the nonce and both public keys are in the key's derivation, so no part can be
swapped. The hello is anybody's, so to worker 0 an exchange is one with a worker of its kind when the first record of
its channel opens. That the host starts two groups from one copy of the state is not seen here: an anchor or a client's
memory sees it; but a worker moves from one boot to a later one only along what `Welcome` says of its descent.
"""

from __future__ import annotations

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave_os.errors import SealBroken
from enclave_os.sealing.welcome import Welcome
from enclave_os.workers.channel import CHANNEL_ID_SIZE, ChannelKeys

KEY_SIZE: Final = 32
NONCE_SIZE: Final = 32
HELLO_SIZE: Final = NONCE_SIZE + KEY_SIZE
_PSK_INFO: Final = b"enclave-os workers: pre-shared key, v1"
_INFO: Final = b"enclave-os workers: admission, v3"
_CHANNEL: Final = b"enclave-os workers: channel id, v1"
_TO_FIRST: Final = b"enclave-os workers: channel to worker 0, v1"
_FROM_FIRST: Final = b"enclave-os workers: channel from worker 0, v1"
_ZERO_NONCE: Final = bytes(12)  # of a key that encrypts once


class Admission:
    """Worker n's half of one exchange. Args: sealing_key: the platform's, 32 bytes."""

    def __init__(self, sealing_key: bytes, worker_index: int) -> None:
        self._psk = _psk(sealing_key)
        self._private = X25519PrivateKey.generate()
        self._index = worker_index
        self.hello = os.urandom(NONCE_SIZE) + _raw(self._private)

    def open(self, answer: bytes) -> tuple[Welcome, ChannelKeys]:
        """What worker 0 handed over, and this end of the channel to it.

        Raises: SealBroken: not an answer to this hello, or not from our own kind.
        """
        if len(answer) <= KEY_SIZE:
            raise SealBroken("worker 0's answer is cut short")
        theirs, box = answer[:KEY_SIZE], answer[KEY_SIZE:]
        key, keys = _keys(self._private, theirs, self._psk, self.hello, theirs, self._index)
        try:
            content = AESGCM(key).decrypt(_ZERO_NONCE, box, _INFO)
        except InvalidTag as error:
            raise SealBroken("worker 0's answer does not open: it was changed, or its sender is other code") from error
        return Welcome.decode(content), keys


def admit(hello: bytes, sealing_key: bytes, worker_index: int, welcome: Welcome) -> tuple[bytes, ChannelKeys]:
    """Worker 0's answer to a hello, and its end of the channel. Raises: SealBroken: it is no hello."""
    if len(hello) != HELLO_SIZE:
        raise SealBroken("a worker's hello has another size")
    private = X25519PrivateKey.generate()
    ours = _raw(private)
    key, keys = _keys(private, hello[NONCE_SIZE:], _psk(sealing_key), hello, ours, worker_index)
    return ours + AESGCM(key).encrypt(_ZERO_NONCE, welcome.encode(), _INFO), keys.mirrored()


def _keys(
    private: X25519PrivateKey, peer: bytes, psk: bytes, hello: bytes, ours: bytes, index: int
) -> tuple[bytes, ChannelKeys]:
    """The key of the welcome, and worker n's end of the channel."""
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as error:  # a point of small order, which would make the key anybody's
        raise SealBroken("a worker's public key is none") from error
    exchange = index.to_bytes(2, "big") + hello + ours

    def derive(purpose: bytes, size: int = KEY_SIZE) -> bytes:
        return HKDF(hashes.SHA256(), size, salt=psk, info=purpose + exchange).derive(shared + psk)

    keys = ChannelKeys(derive(_CHANNEL, CHANNEL_ID_SIZE), derive(_TO_FIRST), derive(_FROM_FIRST))
    return derive(_INFO), keys


def _psk(sealing_key: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_SIZE, salt=None, info=_PSK_INFO).derive(sealing_key)


def _raw(private: X25519PrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
