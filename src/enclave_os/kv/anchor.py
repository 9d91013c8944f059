"""An anchor on etcd: how far the store is, kept where the host of this machine cannot turn it back.

One key of an etcd cluster holds who serves the store, and version and root of its last checkpoint, or of its last
batch (`kv.anchor_every`), of each of its ranges; every change is a compare-and-swap on all of it. So a store that was
put back is refused at its start, and of two clones the one that started last serves: the other's next exchange says so,
and it stops (`SealBroken`).

What it is worth. The exchange must be one that the host cannot answer itself: TLS that ends in this enclave, and a CA
that the operator pinned (docs/kv.md). The entry carries a MAC, so etcd can keep, lose or give back an older entry, and
not make one. Whoever operates etcd is trusted not to do the latter two; that is why this anchor is weak.

Where only checkpoints are anchored, what was acknowledged since the last one can be turned back by a host that stops
the enclave before the next.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from enclave_os._aead import KEY_SIZE, hkdf_sha256
from enclave_os.errors import HostRefused, SealBroken

FORMAT: Final = 1
FORMAT_RANGES: Final = 2  # of several
BOOT_SIZE: Final = 16
MAC_SIZE: Final = 32
_ENTRY: Final = struct.Struct(">B16sQ32s")  # format, boot, version, root
_FURTHER: Final = struct.Struct(">Q32s")  # of each further range
ENTRY_SIZE: Final = _ENTRY.size + MAC_SIZE  # of a store of one range
ANSWER_SIZE_MAX: Final = 64 << 10  # of one entry there is little to say
TRIES: Final = 4  # of one swap: each finds what an earlier one of ours left there, whose answer was lost
PREFIX: Final = b"/enclave-os/kv/"

State = tuple[int, bytes]  # version, root


class Exchange(Protocol):
    """A POST to etcd's JSON gateway over a connection that ends inside."""

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer, at most ANSWER_SIZE_MAX. Raises: HostRefused: none in time; says why."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """What the anchor knows.

    Attributes:
        boot: who serves, 16 bytes that a start draws.
        version, root: of a checkpoint; of the first range, where there are several.
        further: of the other ranges, in their order.
    """

    boot: bytes
    version: int
    root: bytes
    further: tuple[State, ...] = ()

    @property
    def states(self) -> tuple[State, ...]:
        """Of all ranges."""
        return (self.version, self.root), *self.further

    def encode(self, key: bytes, place: bytes) -> bytes:
        """As it lies in etcd."""
        form = FORMAT_RANGES if self.further else FORMAT
        head = _ENTRY.pack(form, self.boot, self.version, self.root)
        data = head + b"".join(_FURTHER.pack(*state) for state in self.further)
        return data + hmac.digest(key, place + data, "sha256")

    @classmethod
    def decode(cls, key: bytes, place: bytes, text: bytes) -> Entry:
        """Raises: SealBroken: not one that this store's enclaves wrote there."""
        data, mac = text[:-MAC_SIZE], text[-MAC_SIZE:]
        count, rest = divmod(len(text) - ENTRY_SIZE, _FURTHER.size)
        whole = count >= 0 and rest == 0
        if not whole or not hmac.compare_digest(mac, hmac.digest(key, place + data, "sha256")):
            raise SealBroken("the anchor holds an entry that none of our enclaves wrote: look at etcd")
        form, boot, version, root = _ENTRY.unpack(data[: _ENTRY.size])
        if form != (FORMAT_RANGES if count else FORMAT):
            raise SealBroken(f"the anchor's entry has format {form}, this enclave reads {FORMAT} and {FORMAT_RANGES}")
        return cls(boot, version, root, tuple(_FURTHER.iter_unpack(data[_ENTRY.size :])))


class EtcdAnchor:
    """`kv.store.Anchor` on etcd 3.4 or later. Event loop's thread only; one call at a time.

    Args:
        name: of the endpoint, for people.
        adopt: a store that is not new may find no entry, and makes one: for the day when the anchor is introduced.
    """

    def __init__(self, exchange: Exchange, master_key: bytes, *, name: str, adopt: bool = False) -> None:
        self._exchange = exchange
        self._name = name
        self._adopt = adopt
        self._key = hkdf_sha256(master_key, b"", b"enclave-os kv anchor", KEY_SIZE)
        self._place = PREFIX + hkdf_sha256(master_key, b"", b"enclave-os kv anchor name", 16).hex().encode()
        self._boot = os.urandom(BOOT_SIZE)
        self._held: bytes | None = None  # the entry as it lies there, as far as we know

    async def known(self, *, new: bool) -> State | None:
        """Version and root that a start must not fall behind; None: there is no entry, and there need be none.

        Raises: SealBroken: there must be one, or it is of a store in several ranges. HostRefused: no answer.
        """
        states = await self.known_states(new=new)
        if states is None:
            return None
        if len(states) > 1:
            raise SealBroken(f"the anchor {self._name} knows a store in {len(states)} ranges, and this one has one")
        return states[0]

    async def known_states(self, *, new: bool) -> tuple[State, ...] | None:
        """`known`, of each range. Raises: SealBroken: there must be an entry. HostRefused: no answer."""
        answer = await self._ask("/v3/kv/range", {"key": _base64(self._place)})
        self._held = self._value(answer)
        if self._held is not None:
            return Entry.decode(self._key, self._place, self._held).states
        if not new and not self._adopt:
            raise SealBroken(
                f"the anchor {self._name} knows nothing of this store, which is not new: it was emptied, or is "
                "another. Restore etcd, or, to begin with this anchor, start once with kv.anchor_adopt = true"
            )
        return None

    async def claim(self, version: int, root: bytes) -> None:
        """This start serves the store from here on: whoever did before is shut out.

        Raises: SealBroken: another start claimed it at the same time. HostRefused: no answer.
        """
        await self.claim_states([(version, root)])

    async def claim_states(self, states: Sequence[State]) -> None:
        """`claim`, of a store in several ranges."""
        await self._swap(self._entry(states))

    async def advance(self, version: int, root: bytes) -> None:
        """The store is there.

        Raises: SealBroken: another start has claimed the store: this one must stop. HostRefused: no answer; try again.
        """
        await self.advance_states([(version, root)])

    async def advance_states(self, states: Sequence[State]) -> None:
        """`advance`, of a store in several ranges."""
        new = self._entry(states)
        if new != self._held:
            await self._swap(new)

    async def confirm(self) -> None:
        """Look. Raises: as `advance`."""
        found = self._value(await self._ask("/v3/kv/range", {"key": _base64(self._place)}))
        if found is None or not self._is_ours(found):
            raise self._claimed()

    async def _swap(self, new: bytes) -> None:
        expected = self._held
        for _ in range(TRIES):
            answer = await self._ask("/v3/kv/txn", self._transaction(expected, new))
            if answer.get("succeeded") is True:
                self._held = new
                return
            found = self._value(_first_range(answer))
            # An earlier swap of ours whose answer was lost may be what lies there.
            if found is None or found == expected or not self._is_ours(found):
                raise self._claimed()
            self._held = expected = found
            if found == new:
                return
        raise self._strange()

    def _entry(self, states: Sequence[State]) -> bytes:
        (version, root), *further = states
        return Entry(self._boot, version, root, tuple(further)).encode(self._key, self._place)

    def _claimed(self) -> SealBroken:
        return SealBroken(
            f"another enclave has claimed this store at the anchor {self._name}, or the entry is gone: a clone, a "
            "start of it elsewhere, or an etcd that was emptied. Only one may serve; this one stops"
        )

    def _is_ours(self, text: bytes) -> bool:
        return Entry.decode(self._key, self._place, text).boot == self._boot

    def _transaction(self, expected: bytes | None, new: bytes) -> dict[str, Any]:
        key = _base64(self._place)
        if expected is None:
            compare: dict[str, Any] = {"target": "CREATE", "createRevision": "0"}
        else:
            compare = {"target": "VALUE", "value": _base64(expected)}
        return {
            "compare": [{**compare, "result": "EQUAL", "key": key}],
            "success": [{"requestPut": {"key": key, "value": _base64(new)}}],
            "failure": [{"requestRange": {"key": key}}],
        }

    def _value(self, answer: dict[str, Any]) -> bytes | None:
        found = answer.get("kvs", [])
        if found == []:
            return None
        try:
            (one,) = found
            if base64.b64decode(one["key"], validate=True) == self._place:
                return base64.b64decode(one["value"], validate=True)
        except (TypeError, ValueError, KeyError, binascii.Error) as error:
            raise self._strange() from error
        raise self._strange()

    async def _ask(self, path: str, question: dict[str, Any]) -> dict[str, Any]:
        status, body = await self._exchange.post(path, json.dumps(question).encode())
        if status != 200:
            raise HostRefused(f"the anchor {self._name} answered {status}: {body[:200].decode(errors='replace')}")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise self._strange() from error
        # Every answer of etcd has a header; one without comes from something else.
        if not isinstance(answer, dict) or not isinstance(answer.get("header"), dict):
            raise self._strange()
        return answer

    def _strange(self) -> HostRefused:
        return HostRefused(f"what the anchor {self._name} answered is nothing that etcd says: is it etcd 3.4 or later?")


def _first_range(answer: dict[str, Any]) -> dict[str, Any]:
    responses = answer.get("responses")
    first = responses[0] if isinstance(responses, list) and responses else None
    found = first.get("response_range") if isinstance(first, dict) else None
    return found if isinstance(found, dict) else {}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
