"""RPC methods: the one table that both sides check against.

A method without a declared request, reply and largest sizes does not exist: `METHODS` is what the enclave's client may
call and what the host's dispatcher may register. Header layout: `_codec.pxd` and docs/wire.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import Final

from enclave_os.wire import kv
from enclave_os.wire.limits import RING_CAPACITY_MIN, RPC_HEADER_SIZE, record_size_max

LOG_LINE_SIZE_MAX: Final = 4096  # one line for a person; longer ones are cut by the logger, with a mark
MEASUREMENT_SIZE: Final = 32  # MRENCLAVE (Intel SDM 3D, 38.7)
SEALED_SIZE_MAX: Final = 96 << 10  # keys, a chain, two policies and what modules keep; one record of the RPC rings
CARRY_HEADER_SIZE: Final = 5  # which connection to the other enclave, as ours counts them, and whether to wait
CARRY_SIZE_MAX: Final = 64 << 10  # TLS bytes of one turn; the sealed content takes two or three
FMSPC_SIZE: Final = 6  # family, model, stepping, platform type, custom SKU: chooses the TCB info
PCK_AUTHORITIES: Final = ("processor", "platform")  # Intel's two CAs of PCK certificates; a u8 counts them
COLLATERAL_SIZE_MAX: Final = 96 << 10  # Intel's has some 14 KiB; one record of the smallest RPC ring
PEER_INDEX_SIZE: Final = 2  # u16 LE: a worker
PEER_LETTER_SIZE_MAX: Final = 100 << 10  # the sealed content, opened, and what a worker says with it
PEER_CARRY_HEADER_SIZE: Final = 4  # u8 PeerCarryFlag, u8 zero, u16 LE worker
PEER_RECORD_SIZE_MAX: Final = record_size_max(RING_CAPACITY_MIN) - RPC_HEADER_SIZE - PEER_CARRY_HEADER_SIZE
"""PEER_WINDOW of them wait at the host for a worker that is slow."""
PEER_WINDOW: Final = 64
"""Records that one worker may have on their way to another: what the host keeps for a worker that is slow."""
PEER_PARKED_MAX: Final = 8
"""Calls of PEER_CARRY that the host keeps unanswered for a worker: the oldest is answered with nothing."""
KV_VERSION_SIZE: Final = 8  # u64 LE: of the store that is copied
KV_ROOT_PREFIX_SIZE: Final = 8  # of its root: with the version it names the copy
CSR_SIZE_MAX: Final = 4096  # one P-256 key and a name, with room
CHAIN_LENGTH_MAX: Final = 8  # the intermediary and those above it
CHAIN_SIZE_MAX: Final = 16 << 10  # the intermediary and those above it, PEM


class Method(IntEnum):
    """u16 on the wire; numbers are never reused."""

    TIME = 1
    LOG = 2
    STOP = 3
    SEAL_LOAD = 4
    SEAL_STORE = 5
    CA_REQUEST = 6
    PEER_SEND = 7
    PEER_TAKE = 8
    SEAL_CARRY = 9
    KV_GET = 16
    KV_PUT = 17
    KV_DELETE = 18
    KV_BATCH = 19
    KV_MULTI_GET = 20
    KV_SCAN = 21
    PEER_CARRY = 22
    PEER_START = 23
    KV_BATCH_PIECE = 28
    KV_BATCH_END = 29
    KV_BACKUP = 30
    KV_SETTLED = 31
    COLLATERAL = 40


class Status(IntEnum):
    """i32 on the wire: 0, or why the host did not do it."""

    OK = 0
    UNKNOWN_METHOD = -1
    BAD_REQUEST = -2
    TOO_BIG = -3
    BUSY = -4
    FAILED = -5
    NO_SPACE = -6  # the disk is full: whether the write is there is unknown until it is read
    NOT_WRITABLE = -7  # the store could not make a write durable, and takes none until the server is started anew
    OUT_OF_TURN = -8  # a batch that follows one which was not written: nothing of it is there


class SealLoadFlag(IntFlag):
    """First byte of a SEAL_LOAD reply: what the host alleges to have."""

    BLOB = 1
    """The sealed configuration follows; without it nothing does."""
    STORE = 2
    """A key-value store of this measurement exists."""


class PeerCarryFlag(IntFlag):
    """First byte of a PEER_CARRY request."""

    RECORD = 1
    """A record for the named worker follows; without it nothing does."""
    ANEW = 2
    """Whatever waits for the caller, and calls of it that are not answered yet, are of a former time: forget them."""


class LogLevel(IntEnum):
    """First byte of a LOG request."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """One method's declared shape; sizes are inclusive bounds on payload bytes, checked at both ends.

    Attributes:
        request, reply: the payload in words, as docs/wire.md prints it.
    """

    method: Method
    request: str
    request_size_min: int
    request_size_max: int
    reply: str
    reply_size_min: int
    reply_size_max: int


METHODS: Final = MappingProxyType(
    {
        spec.method: spec
        for spec in (
            MethodSpec(Method.TIME, "empty", 0, 0, "i64 LE: nanoseconds since the Unix epoch, alleged", 8, 8),
            MethodSpec(
                Method.LOG, "u8 level, UTF-8 line without control characters", 1, 1 + LOG_LINE_SIZE_MAX, "empty", 0, 0
            ),
            MethodSpec(Method.STOP, "empty", 0, 0, "empty", 0, 0),
            MethodSpec(
                Method.SEAL_LOAD,
                "32 bytes measurement",
                MEASUREMENT_SIZE,
                MEASUREMENT_SIZE,
                "u8 SealLoadFlag, sealed configuration or nothing",
                1,
                1 + SEALED_SIZE_MAX,
            ),
            MethodSpec(
                Method.SEAL_STORE,
                "32 bytes measurement, sealed configuration; replied to when it is durable",
                MEASUREMENT_SIZE + 1,
                MEASUREMENT_SIZE + SEALED_SIZE_MAX,
                "empty",
                0,
                0,
            ),
            MethodSpec(
                Method.CA_REQUEST,
                "32 bytes measurement, certificate signing request (PKCS#10 DER)",
                MEASUREMENT_SIZE + 1,
                MEASUREMENT_SIZE + CSR_SIZE_MAX,
                "PEM: the certificate for that key, then those above it; empty: none is installed",
                0,
                CHAIN_SIZE_MAX,
            ),
            MethodSpec(
                Method.PEER_SEND,
                "u16 LE worker, letter",
                PEER_INDEX_SIZE + 1,
                PEER_INDEX_SIZE + PEER_LETTER_SIZE_MAX,
                "empty",
                0,
                0,
            ),
            MethodSpec(
                Method.PEER_TAKE,
                "empty",
                0,
                0,
                "u16 LE worker that sent it, letter; replied to when there is one",
                PEER_INDEX_SIZE + 1,
                PEER_INDEX_SIZE + PEER_LETTER_SIZE_MAX,
            ),
            MethodSpec(
                Method.PEER_CARRY,
                "u8 PeerCarryFlag, u8 zero, u16 LE worker, record",
                PEER_CARRY_HEADER_SIZE,
                PEER_CARRY_HEADER_SIZE + PEER_RECORD_SIZE_MAX,
                "empty; or u16 LE worker, and the record that it sent, or nothing: it has ended",
                0,
                PEER_INDEX_SIZE + PEER_RECORD_SIZE_MAX,
            ),
            MethodSpec(Method.PEER_START, "empty", 0, 0, "empty", 0, 0),
            MethodSpec(
                Method.SEAL_CARRY,
                "u32 LE connection (a new number is a new one), u8 1 to wait for an answer, TLS bytes to the giver",
                CARRY_HEADER_SIZE,
                CARRY_HEADER_SIZE + CARRY_SIZE_MAX,
                "u8 1 if it hung up, TLS bytes that came, at least one if it was waited for and did not hang up",
                1,
                1 + CARRY_SIZE_MAX,
            ),
            MethodSpec(
                Method.KV_GET,
                "16 bytes namespace, key",
                kv.KV_GET_SIZE_MIN,
                kv.KV_NAMESPACE_SIZE + kv.KV_KEY_SIZE_MAX,
                "u8 found, value",
                1,
                1 + kv.KV_VALUE_SIZE_MAX,
            ),
            MethodSpec(
                Method.KV_PUT,
                "u8 flags, u8 zero, u16 key size, 16 bytes namespace, key, value",
                kv.KV_WRITE_HEADER_SIZE + 1,
                kv.KV_WRITE_HEADER_SIZE + kv.KV_KEY_SIZE_MAX + kv.KV_VALUE_SIZE_MAX,
                "empty",
                0,
                0,
            ),
            MethodSpec(
                Method.KV_DELETE,
                "u8 flags, u8 zero, u16 key size, 16 bytes namespace, key",
                kv.KV_WRITE_HEADER_SIZE + 1,
                kv.KV_WRITE_HEADER_SIZE + kv.KV_KEY_SIZE_MAX,
                "empty",
                0,
                0,
            ),
            MethodSpec(
                Method.KV_BATCH,
                "u8 flags, u8 namespace count, u16 operation count, u64 number or nothing, namespaces, operations",
                kv.KV_BATCH_SIZE_MIN,
                kv.KV_MESSAGE_SIZE_MAX,
                "empty",
                0,
                0,
            ),
            MethodSpec(
                Method.KV_BATCH_PIECE,
                "u64 batch id, u16 index, a batch without flags: kept until its end",
                kv.KV_PIECE_HEADER_SIZE + kv.KV_BATCH_SIZE_MIN,
                kv.KV_MESSAGE_SIZE_MAX,
                "empty",
                0,
                0,
            ),
            MethodSpec(
                Method.KV_BATCH_END,
                "u64 batch id, u16 pieces before, a batch: done with the operations of those, all or none",
                kv.KV_PIECE_HEADER_SIZE + kv.KV_BATCH_SIZE_MIN,
                kv.KV_MESSAGE_SIZE_MAX,
                "empty",
                0,
                0,
            ),
            MethodSpec(
                Method.KV_MULTI_GET,
                "16 bytes namespace, u16 key count, keys",
                kv.KV_MULTI_GET_HEADER_SIZE + 3,
                kv.KV_MESSAGE_SIZE_MAX,
                "u16 value count, values",
                2 + kv.KV_FOUND_HEADER_SIZE,
                kv.KV_MESSAGE_SIZE_MAX,
            ),
            MethodSpec(
                Method.KV_SCAN,
                "16 bytes namespace, u16 limit, u16 start size, u16 end size, start, end",
                kv.KV_SCAN_HEADER_SIZE,
                kv.KV_SCAN_HEADER_SIZE + 2 * kv.KV_KEY_SIZE_MAX,
                "u8 more, u8 zero, u16 row count, rows",
                kv.KV_ROWS_HEADER_SIZE,
                kv.KV_MESSAGE_SIZE_MAX,
            ),
            MethodSpec(
                Method.KV_BACKUP,
                "u64 LE version, first 8 bytes of the root; replied to when the copy is complete and durable",
                KV_VERSION_SIZE + KV_ROOT_PREFIX_SIZE,
                KV_VERSION_SIZE + KV_ROOT_PREFIX_SIZE,
                "empty",
                0,
                0,
            ),
            MethodSpec(
                Method.KV_SETTLED,
                "empty; replied to when no write that any worker sent before still waits",
                0,
                0,
                "empty",
                0,
                0,
            ),
            MethodSpec(
                Method.COLLATERAL,
                "6 bytes FMSPC, u8 PCK CA: 0 processor, 1 platform",
                FMSPC_SIZE + 1,
                FMSPC_SIZE + 1,
                "JSON of the nine members of collateral, alleged: verified inside",
                2,
                COLLATERAL_SIZE_MAX,
            ),
        )
    }
)
