"""The channel between two workers: AES-256-GCM, a key and a counter for each direction, made anew at each admission.

Two that meet have one of keys that worker 0 drew for them (`runtime.links`).

    record on its way:   16 bytes channel id, ciphertext, 16 bytes tag

The nonce is the number of the record in its direction and is not sent, so a record opens once, in its place, on its
channel, in its direction and between these two: one that the host repeats, leaves out, moves, sends back or gives to
another worker does not open. Then the channel is poisoned, for good: what went missing before cannot be told.

Invariant: what `open` returned is a prefix of what the other end sealed, in its order.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

from enclave_os._aead import MESSAGES_MAX, TAG_SIZE, AEADKey, nonce_of
from enclave_os.errors import SealBroken
from enclave_os.wire.errors import HostProtocolError, UsageError
from enclave_os.wire.rpc import PEER_RECORD_SIZE_MAX

CHANNEL_ID_SIZE: Final = 16
KEY_SIZE: Final = 32
PLAINTEXT_SIZE_MAX: Final = PEER_RECORD_SIZE_MAX - CHANNEL_ID_SIZE - TAG_SIZE


@dataclass(frozen=True, slots=True)
class ChannelKeys:
    """What one admission, or one meeting, made for one end.

    Attributes:
        channel_id: names the channel to both ends and to the host: it decides nothing, the keys do.
        sending, receiving: 32 bytes each; the other end has them the other way round.
    """

    channel_id: bytes
    sending: bytes = field(repr=False)
    receiving: bytes = field(repr=False)

    @staticmethod
    def drawn() -> ChannelKeys:
        """One end of a channel that nobody knew of."""
        return ChannelKeys(os.urandom(CHANNEL_ID_SIZE), os.urandom(KEY_SIZE), os.urandom(KEY_SIZE))

    def mirrored(self) -> ChannelKeys:
        """The other end's."""
        return ChannelKeys(self.channel_id, self.receiving, self.sending)


class Channel:
    """One end. Not for threads.

    Args:
        keys: of one admission; a second Channel on the same keys would repeat nonces.
        where: whom it leads to, in words, for the error.
    """

    def __init__(self, keys: ChannelKeys, where: str) -> None:
        self.channel_id = keys.channel_id
        self._where = where
        self._sealing = AEADKey(keys.sending)
        self._opening = AEADKey(keys.receiving)
        self.sealed = 0
        self.opened = 0
        self._broken: HostProtocolError | None = None

    @property
    def used_up(self) -> bool:
        """No nonce is left in one of the directions: a new admission is due."""
        return max(self.sealed, self.opened) >= MESSAGES_MAX

    def seal(self, plaintext: bytes) -> bytes:
        """The next record. Raises: UsageError: too large, or none is left."""
        if len(plaintext) > PLAINTEXT_SIZE_MAX:
            raise UsageError(f"a record holds at most {PLAINTEXT_SIZE_MAX} bytes, not {len(plaintext)}")
        nonce = nonce_of(self.sealed)
        self.sealed += 1  # before the work: a number is spent whatever comes of it
        return self.channel_id + self._sealing.seal(nonce, plaintext, self.channel_id)

    def open(self, record: bytes) -> bytes:
        """What the other end sealed next. Raises: HostProtocolError: it is not that; now and from then on."""
        if self._broken is not None:
            raise self._broken
        try:
            plaintext = self._opening.open(nonce_of(self.opened), record[CHANNEL_ID_SIZE:], self.channel_id)
        except (SealBroken, UsageError) as error:
            self._broken = HostProtocolError(
                f"record {self.opened} is not what was sent: changed, repeated, left out or moved", self._where
            )
            raise self._broken from error
        self.opened += 1
        return plaintext
