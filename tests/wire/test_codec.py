"""RPC headers and payload cursors: round trips, every cut, every bit, and whose fault it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_os.wire import (
    FrameReader,
    FrameWriter,
    decode_frame,
    decode_rpc_reply,
    decode_rpc_request,
    encode_frame,
    encode_rpc_reply,
    encode_rpc_request,
)
from enclave_os.wire.errors import Lie, PeerProtocolError, UsageError
from enclave_os.wire.limits import RING_CAPACITY_MAX

U64_MAX = (1 << 64) - 1
u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
i32, i64 = (st.integers(-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (32, 64))


@given(req_id=u64, method=u16, payload=st.binary(max_size=300))
def test_request_round_trip(req_id: int, method: int, payload: bytes) -> None:
    assert decode_rpc_request(encode_rpc_request(req_id, method, payload)) == (req_id, method, payload)


@given(req_id=u64, status=i32, payload=st.binary(max_size=300))
def test_reply_round_trip(req_id: int, status: int, payload: bytes) -> None:
    assert decode_rpc_reply(encode_rpc_reply(req_id, status, payload)) == (req_id, status, payload)


def test_bytes_on_the_wire() -> None:
    assert encode_rpc_request(1, 0x0203, b"abc") == bytes.fromhex("0100000000000000 0302 0000 03000000") + b"abc"
    assert encode_rpc_reply(U64_MAX, -2, b"") == bytes.fromhex("ffffffffffffffff feffffff 00000000")


def test_a_request_cut_or_extended_or_with_a_bit_flipped_is_another_request_or_a_lie() -> None:
    record = encode_rpc_request(0x1122334455667788, 3, b"payload!")
    for size in range(len(record)):
        with pytest.raises(PeerProtocolError) as caught:
            decode_rpc_request(record[:size])
        assert caught.value.lie is Lie.RPC_HEADER
    with pytest.raises(PeerProtocolError):
        decode_rpc_request(record + b"\0")
    for bit in range(128):
        changed = bytearray(record)
        changed[bit // 8] ^= 1 << bit % 8
        if bit < 80:
            req_id, method, payload = decode_rpc_request(bytes(changed))
            assert encode_rpc_request(req_id, method, payload) == changed
        else:
            with pytest.raises(PeerProtocolError):
                decode_rpc_request(bytes(changed))


def test_a_reply_cut_or_extended_or_with_a_bit_flipped_is_another_reply_or_a_lie() -> None:
    record = encode_rpc_reply(7, -5, b"payload!")
    for size in range(len(record)):
        with pytest.raises(PeerProtocolError):
            decode_rpc_reply(record[:size])
    with pytest.raises(PeerProtocolError):
        decode_rpc_reply(record + b"\0")
    for bit in range(128):
        changed = bytearray(record)
        changed[bit // 8] ^= 1 << bit % 8
        if bit < 96:
            req_id, status, payload = decode_rpc_reply(bytes(changed))
            assert encode_rpc_reply(req_id, status, payload) == changed
        else:
            with pytest.raises(PeerProtocolError):
                decode_rpc_reply(bytes(changed))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFF0, 0xFFFF_FFFF])
def test_a_size_that_is_not_the_payloads(size: int) -> None:
    """Also those that would come right again after an overflow of u32."""
    for payload in (b"", b"x", b"12345678", b"1234567890"):
        if size == len(payload):
            continue
        request = bytearray(encode_rpc_request(1, 1, payload))
        request[12:16] = size.to_bytes(4, "little")
        with pytest.raises(PeerProtocolError):
            decode_rpc_request(bytes(request))
        reply = bytearray(encode_rpc_reply(1, 1, payload))
        reply[12:16] = size.to_bytes(4, "little")
        with pytest.raises(PeerProtocolError):
            decode_rpc_reply(bytes(reply))


def test_what_does_not_fit_the_wire_is_our_callers_fault() -> None:
    for req_id, method in ((-1, 1), (1 << 64, 1), (1, -1), (1, 1 << 16)):
        with pytest.raises(UsageError):
            encode_rpc_request(req_id, method)
    for req_id, status in ((-1, 0), (1 << 64, 0), (1, 1 << 31), (1, -(1 << 31) - 1)):
        with pytest.raises(UsageError):
            encode_rpc_reply(req_id, status)
    with pytest.raises(TypeError):
        encode_rpc_request(1, 1, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        decode_rpc_reply(bytearray(16))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_payload_larger_than_any_record_is_refused_before_it_is_copied() -> None:
    payload = bytes(RING_CAPACITY_MAX // 2)
    for encode in (encode_frame, encode_rpc_request, encode_rpc_reply):
        with pytest.raises(UsageError):
            encode(2, 1, payload)


FIELDS = {
    "u8": st.integers(0, 255),
    "u16": u16,
    "u32": u32,
    "u64": u64,
    "i32": i32,
    "i64": i64,
    "sized": st.binary(max_size=40),
    "zeros": st.integers(0, 20),
}
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "i32": 4, "i64": 8}
fields = st.lists(
    st.sampled_from(sorted(FIELDS)).flatmap(lambda name: st.tuples(st.just(name), FIELDS[name])), max_size=12
)


def size_of(name: str, value: object) -> int:
    if isinstance(value, bytes):
        return 4 + len(value)
    return value if name == "zeros" and isinstance(value, int) else SIZES[name]


def write(values: list[tuple[str, object]], size_max: int) -> bytes:
    writer = FrameWriter(size_max)
    for name, value in values:
        getattr(writer, f"write_{name}")(value)
    assert writer.size <= size_max
    return writer.finish()


def read(values: list[tuple[str, object]], payload: bytes) -> list[object]:
    reader = FrameReader(payload)
    got: list[object] = []
    for name, value in values:
        if name == "sized":
            got.append(reader.read_sized(40))
        elif name == "zeros" and isinstance(value, int):
            reader.read_zeros(value)
            got.append(value)
        else:
            got.append(getattr(reader, f"read_{name}")())
    reader.end()
    return got


@given(values=fields)
def test_what_was_written_is_read_and_every_cut_is_a_lie(values: list[tuple[str, object]]) -> None:
    total = sum(size_of(name, value) for name, value in values)
    payload = write(values, total)
    assert len(payload) == total
    assert read(values, payload) == [value for _, value in values]
    for size in range(total):
        with pytest.raises(PeerProtocolError):
            read(values, payload[:size])
    with pytest.raises(PeerProtocolError, match="after its last field"):
        read(values, payload + b"\0")
    if total:
        with pytest.raises(UsageError):
            write(values, total - 1)


def test_fields_out_of_range() -> None:
    writer = FrameWriter(100)
    for name, bits in (("u8", 8), ("u16", 16), ("u32", 32), ("u64", 64)):
        for value in (-1, 1 << bits, 1.0, "1", None):
            with pytest.raises(UsageError):
                getattr(writer, f"write_{name}")(value)
    for name, bits in (("i32", 32), ("i64", 64)):
        for value in (-(1 << bits - 1) - 1, 1 << bits - 1):
            with pytest.raises(UsageError):
                getattr(writer, f"write_{name}")(value)
    assert writer.size == 0
    with pytest.raises(UsageError):
        writer.write_zeros(-1)
    with pytest.raises(UsageError):
        writer.write_zeros(101)
    with pytest.raises(UsageError):
        writer.write_sized(bytes(97))
    assert writer.size == 0, "a refused field leaves nothing behind"
    writer.write_sized(bytes(96))
    assert len(writer.finish()) == 100
    assert writer.finish() == b"", "the writer starts over"
    for size_max in (-1, RING_CAPACITY_MAX):
        with pytest.raises(UsageError):
            FrameWriter(size_max)


def test_reader_says_whose_fault() -> None:
    reader = FrameReader(b"\x05\0\0\0hello")
    with pytest.raises(PeerProtocolError, match="declared maximum"):
        reader.read_sized(4)
    reader = FrameReader(b"\xff\xff\xff\xffhello")
    with pytest.raises(PeerProtocolError):
        reader.read_sized(0xFFFF_FFFF)
    with pytest.raises(UsageError):
        reader.read_bytes(-1)
    with pytest.raises(PeerProtocolError, match="reserved"):
        FrameReader(b"\0\x01").read_zeros(2)
    reader = FrameReader(b"abc")
    assert reader.read_rest() == b"abc"
    assert reader.remaining == 0
    assert reader.read_rest() == b""
    reader.end()


def test_a_decoded_payload_is_private() -> None:
    record = encode_frame(2, 9, b"x" * 1000)
    _, _, payload = decode_frame(record)
    assert payload == b"x" * 1000
    assert payload is not record
