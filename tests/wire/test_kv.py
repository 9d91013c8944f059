"""The key-value payloads: what is written is read; whatever else is read is refused, never misread (RG9)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os._rows import limits
from enclave_os.wire import WantedValue, kv, take_value, take_values
from enclave_os.wire.errors import PeerProtocolError, UsageError
from enclave_os.wire.kv import Operation, OperationKind, Scan

NS = bytes(range(16))
namespaces = st.binary(min_size=16, max_size=16)
keys = st.binary(min_size=1, max_size=kv.KV_KEY_SIZE_MAX)
values = st.binary(max_size=200)
flags = st.sampled_from([kv.WriteFlag(0), kv.WriteFlag.DEFERRED])
numbers = st.integers(1, 2**64 - 1)
turns = (  # flags and number of a batch
    flags.map(lambda flag: (flag, 0))
    | numbers.map(lambda number: (kv.WriteFlag.NUMBERED, number))
    | numbers.map(lambda number: (kv.WriteFlag.NUMBERED | kv.WriteFlag.FOLLOWS, number))
)
bounds = st.binary(max_size=kv.KV_KEY_SIZE_MAX)
scans = st.builds(Scan, namespaces, bounds, bounds, st.integers(1, kv.KV_OPERATIONS_MAX))


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    kind, key = draw(st.sampled_from(OperationKind)), draw(keys)
    value = {OperationKind.PUT: draw(values), OperationKind.DELETE: b"", OperationKind.DELETE_RANGE: b"\xff" * 64}[kind]
    return Operation(kind, draw(namespaces), key if key < value or kind != OperationKind.DELETE_RANGE else b"a", value)


def batch_size(operations: Sequence[Operation]) -> int:
    """Bytes of the request that `encode_batch` makes, by the layout of docs/wire.md."""
    namespaces = {operation.namespace for operation in operations}
    rows = sum(kv.KV_OPERATION_HEADER_SIZE + len(operation.key) + len(operation.value) for operation in operations)
    return kv.KV_BATCH_HEADER_SIZE + kv.KV_NAMESPACE_SIZE * len(namespaces) + rows


def test_the_natives_know_the_same_limits() -> None:
    assert {name: getattr(kv, name) for name in limits()} == limits()


@given(namespaces, keys, values, flags)
def test_single_requests(namespace: bytes, key: bytes, value: bytes, flag: kv.WriteFlag) -> None:
    assert kv.decode_get(kv.encode_get(namespace, key)) == (namespace, key)
    put = Operation(OperationKind.PUT, namespace, key, value)
    assert kv.decode_put(kv.encode_put(namespace, key, value, flag)) == (put, flag)
    delete = Operation(OperationKind.DELETE, namespace, key)
    assert kv.decode_delete(kv.encode_delete(namespace, key, flag)) == (delete, flag)


@given(st.lists(operations(), min_size=1, max_size=20), turns)
def test_batches(batch: list[Operation], turn: tuple[kv.WriteFlag, int]) -> None:
    payload = kv.encode_batch(batch, *turn)
    assert len(payload) == batch_size(batch) + (kv.KV_NUMBER_SIZE if turn[1] else 0)
    assert kv.decode_batch(payload) == (batch, *turn)


@given(st.lists(operations(), min_size=1, max_size=20), turns, st.integers(0, 2**64 - 1), st.integers(0, 2**16 - 1))
def test_pieces(batch: list[Operation], turn: tuple[kv.WriteFlag, int], batch_id: int, index: int) -> None:
    assert kv.decode_piece(kv.encode_piece(batch_id, index, batch, *turn)) == (batch_id, index, batch, *turn)


def test_a_batch_is_split_into_pieces_that_fit() -> None:
    dice = random.Random(4)
    for count, size in ((1, 31_000), (40, 10_000), (3_000, 5), (400, 0), (2, 31_744)):
        batch = [
            Operation(OperationKind.PUT, dice.randbytes(16) if size == 0 else NS, b"%d" % number, dice.randbytes(size))
            for number in range(count)
        ]
        pieces = kv.split_batch(batch)
        assert [one for piece in pieces for one in piece] == batch
        for index, piece in enumerate(pieces):
            assert len(kv.encode_piece(2**64 - 1, index, piece)) <= kv.KV_MESSAGE_SIZE_MAX
        assert len(pieces) <= 1 + 2 * batch_size(batch) // kv.KV_MESSAGE_SIZE_MAX + count // 255
    with pytest.raises(UsageError):
        kv.split_batch([])
    with pytest.raises(UsageError):
        kv.encode_piece(0, 0, [Operation(OperationKind.PUT, NS, b"%d" % number, bytes(20_000)) for number in range(7)])


@given(namespaces, st.lists(keys, min_size=1, max_size=20))
def test_multi_gets(namespace: bytes, asked: list[bytes]) -> None:
    assert kv.decode_multi_get(kv.encode_multi_get(namespace, asked)) == (namespace, asked)


@given(scans)
def test_scans(scan: Scan) -> None:
    assert kv.decode_scan(kv.encode_scan(scan)) == scan


@given(st.none() | values)
def test_get_replies(value: bytes | None) -> None:
    assert kv.decode_get_reply(kv.encode_get_reply(value)) == value


@given(st.lists(st.none() | values, min_size=1, max_size=20))
def test_multi_get_replies(found: list[bytes | None]) -> None:
    payload, count = kv.encode_multi_get_reply(found)
    assert count == len(found)
    assert kv.decode_multi_get_reply(payload, len(found)) == found


def test_a_multi_get_reply_takes_what_fits() -> None:
    big = bytes(kv.KV_VALUE_SIZE_MAX)
    payload, count = kv.encode_multi_get_reply([big, None, big, big, big, big])
    assert count == 5
    assert kv.decode_multi_get_reply(payload, 6) == [big, None, big, big, big]


@given(st.dictionaries(keys, values, max_size=20), st.booleans())
def test_scan_replies(found: dict[bytes, bytes], more: bool) -> None:
    rows = sorted(found.items())
    payload = kv.encode_scan_reply(rows, more)
    scan = Scan(NS, b"", b"", 20)
    if more and not rows:
        with pytest.raises(PeerProtocolError):
            kv.decode_scan_reply(payload, scan)
    else:
        assert kv.decode_scan_reply(payload, scan) == (rows, more)


DECODERS: list[Callable[[bytes], object]] = [
    kv.decode_get,
    kv.decode_put,
    kv.decode_delete,
    kv.decode_batch,
    kv.decode_multi_get,
    kv.decode_scan,
    kv.decode_get_reply,
    lambda payload: kv.decode_multi_get_reply(payload, 3),
    lambda payload: kv.decode_scan_reply(payload, Scan(NS, b"b", b"y", 3)),
    kv.decode_piece,
    kv.decode_batch,
]
SEEDS = [
    kv.encode_get(NS, b"key"),
    kv.encode_put(NS, b"key", b"value", 1),
    kv.encode_delete(NS, b"key"),
    kv.encode_batch(
        [
            Operation(OperationKind.PUT, NS, b"key", b"value"),
            Operation(OperationKind.DELETE, NS[::-1], b"key"),
            Operation(OperationKind.DELETE_RANGE, NS, b"a", b"b"),
        ]
    ),
    kv.encode_multi_get(NS, [b"a", b"bc"]),
    kv.encode_scan(Scan(NS, b"a", b"b", 7)),
    kv.encode_get_reply(b"value"),
    kv.encode_multi_get_reply([b"value", None])[0],
    kv.encode_scan_reply([(b"c", b"1"), (b"d", b"22")], True),
    kv.encode_piece(
        7, 1, [Operation(OperationKind.PUT, NS, b"key", b"value"), Operation(OperationKind.DELETE, NS[::-1], b"key")], 1
    ),
    kv.encode_batch([Operation(OperationKind.PUT, NS, b"key", b"value")], kv.WriteFlag.FOLLOWS, 7),
]


def test_every_truncation_and_every_flipped_bit_is_read_or_refused_with_one_error() -> None:
    for decode, seed in zip(DECODERS, SEEDS, strict=True):
        decode(seed)
        changed = [seed[:size] for size in range(len(seed))] + [seed + b"\0"]
        for bit in range(len(seed) * 8):
            flipped = bytearray(seed)
            flipped[bit // 8] ^= 1 << bit % 8
            changed.append(bytes(flipped))
        for payload in changed:
            try:
                decode(payload)
            except PeerProtocolError:
                continue


@given(st.sampled_from(DECODERS), st.binary(max_size=300))
def test_garbage_is_read_or_refused_with_one_error(decode: Callable[[bytes], object], payload: bytes) -> None:
    try:
        decode(payload)
    except PeerProtocolError:
        return


def taken(payload: bytes, asked: int) -> list[bytes | None]:
    """The values of a multi-get's reply, as they are taken in their place; if it is refused, nobody was told."""
    loop = asyncio.new_event_loop()
    try:
        futures: list[asyncio.Future[bytes | None]] = [loop.create_future() for _ in range(asked)]
        wanted = [WantedValue(b"%d" % index, future) for index, future in enumerate(futures)]
        try:
            count = take_values(wanted, b"head" + payload, 4)
        except PeerProtocolError:
            assert not any(future.done() for future in futures)
            raise
        assert [future.done() for future in futures] == [index < count for index in range(asked)]
        return [future.result() for future in futures[:count]]
    finally:
        loop.close()


def taken_alone(payload: bytes) -> bytes | None:
    loop = asyncio.new_event_loop()
    try:
        future: asyncio.Future[bytes | None] = loop.create_future()
        take_value(WantedValue(b"key", future), b"head" + payload, 4)
        return future.result()
    finally:
        loop.close()


def outcome(decode: Callable[[bytes], object], payload: bytes) -> object:
    try:
        return decode(payload)
    except PeerProtocolError as error:
        return str(error)


def changed_replies(seed: bytes) -> list[bytes]:
    flipped = [
        bytes(byte ^ (1 << bit) * (at == index) for at, byte in enumerate(seed))
        for index in range(len(seed))
        for bit in range(8)
    ]
    return [seed, seed + b"\0", *(seed[:size] for size in range(len(seed))), *flipped]


def test_what_is_taken_in_its_place_is_what_is_decoded_and_a_lie_tells_nobody() -> None:
    for payload in changed_replies(kv.encode_multi_get_reply([b"value", None, b"", b"x" * 9])[0]):
        assert outcome(lambda one: taken(one, 4), payload) == outcome(
            lambda one: kv.decode_multi_get_reply(one, 4), payload
        )
    for payload in [*changed_replies(kv.encode_get_reply(b"value")), *changed_replies(kv.encode_get_reply(None))]:
        assert outcome(taken_alone, payload) == outcome(kv.decode_get_reply, payload)
    large = kv.encode_get_reply(bytes(kv.KV_VALUE_SIZE_MAX))
    assert outcome(taken_alone, large + b"\0") == outcome(kv.decode_get_reply, large + b"\0")


@given(st.lists(st.none() | values, min_size=1, max_size=20), st.integers(0, 5))
def test_as_many_as_a_reply_has_are_taken(found: list[bytes | None], more: int) -> None:
    assert taken(kv.encode_multi_get_reply(found)[0], len(found) + more) == found


def test_a_payload_begins_in_its_record() -> None:
    for start in (-1, 9):
        with pytest.raises(UsageError):
            take_values([], bytes(8), start)


SCAN = Scan(NS, b"b", b"y", 3)


def scan_reply(*rows: kv.Row, more: bool = False) -> bytes:
    return kv.encode_scan_reply(rows, more)


@pytest.mark.parametrize(
    ("decode", "payload", "reason"),
    [
        (kv.decode_get_reply, b"\2", "a yes or no that is 2"),
        (kv.decode_get_reply, b"\0x", "after its last field"),
        (kv.decode_get_reply, b"", "ends before"),
        (kv.decode_get_reply, b"\1" + bytes(kv.KV_VALUE_SIZE_MAX + 1), "larger than"),
        (DECODERS[7], b"\0\0", "0 values in answer to 3"),
        (DECODERS[7], kv.encode_multi_get_reply([None] * 4)[0], "4 values in answer to 3"),
        (DECODERS[7], b"\1\0\2\0\0\0\0", "a yes or no that is 2"),
        (DECODERS[7], b"\1\0\0\1\0\0\0x", "larger than"),
        (DECODERS[7], b"\1\0\1\xff\xff\xff\xff", "larger than"),
        (DECODERS[7], b"\1\0\1\2\0\0\0x", "ends before"),
        (DECODERS[8], scan_reply((b"a", b"")), "outside"),
        (DECODERS[8], scan_reply((b"y", b"")), "outside"),
        (DECODERS[8], scan_reply((b"d", b""), (b"c", b"")), "out of order"),
        (DECODERS[8], scan_reply((b"c", b""), (b"c", b"")), "out of order"),
        (DECODERS[8], scan_reply(*((bytes((99 + i,)), b"") for i in range(4))), "4 rows in answer to a scan of 3"),
        (DECODERS[8], scan_reply(more=True), "sends none"),
        (DECODERS[8], b"\0\1\0\0", "reserved"),
        (DECODERS[8], b"\0\0\1\0" + b"\0\0" + bytes(4), "a key of 0 bytes"),
        (DECODERS[8], b"\0\0\1\0" + b"\x41\0" + bytes(4) + bytes(65), "a key of 65 bytes"),
        (kv.decode_put, b"\2" + SEEDS[1][1:], "a flag that does not exist"),
        (kv.decode_batch, SEEDS[3][:2] + b"\0\0" + SEEDS[3][4:], "a count of 0"),
        (kv.decode_batch, SEEDS[3][:1] + b"\0" + SEEDS[3][2:], "."),
        (kv.decode_batch, b"\4" + SEEDS[3][1:], "not beside another"),
        (kv.decode_batch, b"\3" + SEEDS[3][1:], "not beside another"),
        (kv.decode_batch, SEEDS[10][:4] + bytes(8) + SEEDS[10][12:], "a batch of number 0"),
        (kv.decode_multi_get, NS + b"\1\4", "a count of 1025"),
    ],
)  # fmt: skip
def test_what_a_liar_may_say(decode: Callable[[bytes], object], payload: bytes, reason: str) -> None:
    with pytest.raises(PeerProtocolError, match=reason):
        decode(payload)


def test_our_own_values_are_held_to_the_bounds() -> None:
    long = bytes(kv.KV_KEY_SIZE_MAX + 1)
    put = Operation(OperationKind.PUT, NS, b"k", bytes(20_000))
    much = [put] * 7
    calls: tuple[Callable[[], object], ...] = (
        lambda: kv.encode_get(NS[1:], b"k"),
        lambda: kv.encode_get(NS, b""),
        lambda: kv.encode_get(NS, long),
        lambda: kv.encode_put(NS, b"k", bytes(kv.KV_VALUE_SIZE_MAX + 1)),
        lambda: kv.encode_delete(NS, b"k", 2),
        lambda: kv.encode_batch([]),
        lambda: kv.encode_batch(much),
        lambda: kv.encode_batch([Operation(OperationKind.DELETE, NS, b"k", b"v")]),
        lambda: kv.encode_batch([Operation(OperationKind.DELETE_RANGE, NS, b"k", b"k")]),
        lambda: kv.encode_batch([put], kv.WriteFlag.FOLLOWS),
        lambda: kv.encode_batch([put], kv.WriteFlag.DEFERRED, 7),
        lambda: kv.encode_multi_get(NS, []),
        lambda: kv.encode_scan(Scan(NS, long, b"", 1)),
        lambda: kv.encode_scan(Scan(NS, b"", b"", 0)),
    )
    for call in calls:
        with pytest.raises(UsageError):
            call()


def test_a_random_batch_of_full_size_goes_through() -> None:
    dice = random.Random(3)
    batch: list[Operation] = []
    while True:
        one = Operation(OperationKind.PUT, dice.choice([NS, NS[::-1]]), dice.randbytes(44), dice.randbytes(300))
        if batch_size([*batch, one]) > kv.KV_MESSAGE_SIZE_MAX:
            break
        batch.append(one)
    assert kv.decode_batch(kv.encode_batch(batch))[0] == batch
