"""What the store holds of one secret or key: its policy, its versions, and a value beside them.

    record = u32 BE size of the header || header, canonical JSON || value

Only the vault writes these, under the store's seal; what cannot be read is our own bug.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Self

from enclave_os.errors import InternalError
from enclave_os.evidence.audit_chain import entry_bytes
from enclave_os.modules.api import Item
from enclave_os.modules.vault.policy_document import Policy, read_policy

FORMAT: Final = 1
KEPT_MAX: Final = 1024
_SIZE: Final = 4


class State(StrEnum):
    """Of one version. `live` and `deleted` go back and forth; what is destroyed has no value any more."""

    LIVE = "live"
    DELETED = "deleted"
    DESTROYED = "destroyed"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a secret or key, without its value.

    Attributes:
        created: milliseconds since the Unix epoch.
        created_by: subject of the token, or measurement of the enclave, that wrote it.
        size: bytes of its value.
        expires: seconds since the Unix epoch from which on it counts as deleted; 0: never.
    """

    number: int
    created: int
    created_by: str
    size: int
    expires: int = 0
    state: State = State.LIVE

    def is_live(self, now_s: int) -> bool:
        """Whether it can be read at a time, seconds since the Unix epoch."""
        return self.state is State.LIVE and not (self.expires and now_s >= self.expires)

    def document(self) -> dict[str, Any]:
        """As a client is shown it."""
        found: dict[str, Any] = {
            "version": self.number,
            "created": self.created,
            "created_by": self.created_by,
            "size": self.size,
            "state": self.state.value,
        }
        return found | ({"expires": self.expires} if self.expires else {})


@dataclass(frozen=True, slots=True)
class Record:
    """One secret or key.

    Attributes:
        policy: the document, as it was written.
        versions: oldest first; numbers are not used twice.
        next_number: of the version that comes.
        attributes: what else the kind needs, texts and numbers.
        value_of: the version whose value is here; 0: none, values stand in rows of their own.
        value: that value, or what the kind keeps of all its versions.
    """

    policy: Mapping[str, Any]
    versions: tuple[Version, ...] = ()
    next_number: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)
    value_of: int = 0
    value: bytes = field(default=b"", repr=False)

    @property
    def current(self) -> Version | None:
        """The latest version; None before the first."""
        return self.versions[-1] if self.versions else None

    def find(self, number: int) -> Version | None:
        """A version by its number; 0 is the latest."""
        if number == 0:
            return self.current
        return next((version for version in self.versions if version.number == number), None)

    def with_states(self, numbers: frozenset[int], state: State) -> Self:
        """The same with other states; a destroyed version stays destroyed."""
        versions = tuple(
            replace(version, state=state)
            if version.number in numbers and version.state is not State.DESTROYED
            else version
            for version in self.versions
        )
        return replace(self, versions=versions)

    def encode(self) -> bytes:
        """As it is stored."""
        header = entry_bytes(
            {
                "format": FORMAT,
                "policy": self.policy,
                "next": self.next_number,
                "attributes": self.attributes,
                "value_of": self.value_of,
                "versions": [
                    [one.number, one.created, one.created_by, one.size, one.expires, one.state.value]
                    for one in self.versions
                ],
            }
        )
        return len(header).to_bytes(_SIZE, "big") + header + self.value


def decode(data: bytes) -> Record:
    """Read what `encode` wrote. Raises: InternalError: it did not."""
    end = _SIZE + int.from_bytes(data[:_SIZE], "big")
    try:
        header = json.loads(data[_SIZE:end])
        if header["format"] != FORMAT:
            raise InternalError("a record of the vault has another format")
        versions = tuple(
            Version(number, created, created_by, size, expires, State(state))
            for number, created, created_by, size, expires, state in header["versions"]
        )
        return Record(header["policy"], versions, header["next"], header["attributes"], header["value_of"], data[end:])
    except (ValueError, KeyError, TypeError) as error:
        raise InternalError("a record of the vault cannot be read") from error


class Records:
    """Records and their policies as they were last read: a secret that is read all the time is taken apart once.

    What is kept is asked for by the version of the row that was read just now, so it is never older than the store.
    Values are not kept.

    Args: kind: "secret" or "key".
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._kept: OrderedDict[bytes, tuple[int, Record, Policy]] = OrderedDict()

    def read(self, item: Item) -> tuple[Record, Policy]:
        """The record of a row, and its policy."""
        kept = self._kept.get(item.name)
        if kept is not None and kept[0] == item.version:
            self._kept.move_to_end(item.name)
            _, record, policy = kept
            size = int.from_bytes(item.value[:_SIZE], "big")
            return replace(record, value=item.value[_SIZE + size :]), policy
        record = decode(item.value)
        policy = read_policy(record.policy, self._kind, "")
        self._kept[item.name] = (item.version, replace(record, value=b""), policy)
        if len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return record, policy
