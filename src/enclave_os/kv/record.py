"""Sizes of the sealed store's rows. What a record is: `_record.pxd`."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from enclave_os._aead import SALT_SIZE, TAG_SIZE
from enclave_os.kv._record import limits
from enclave_os.wire.kv import KV_VALUE_SIZE_MAX

NAME_SIZE_MAX: Final = 1024
VALUE_SIZE_MAX: Final = 16 << 20
HEAD_SIZE: Final = 32 + SALT_SIZE
ENTRY_HEAD_SIZE: Final = 10  # name size, expiry
PART_SIZE: Final = 16 << 10
INLINE_SIZE_MAX: Final = 16 << 10  # a larger value goes in parts: so an entry, and a few more, fit one batch
PART_COUNT_MAX: Final = VALUE_SIZE_MAX // PART_SIZE
RECORD_SIZE_MIN: Final = HEAD_SIZE + TAG_SIZE

assert HEAD_SIZE + ENTRY_HEAD_SIZE + NAME_SIZE_MAX + INLINE_SIZE_MAX + TAG_SIZE <= KV_VALUE_SIZE_MAX
assert all(globals()[name] == number for name, number in limits().items())


class Kind(IntEnum):
    """What a row is."""

    INLINE = 1  # an entry with its value
    PARTED = 2  # an entry whose value stands in parts
    PART = 3
