"""Frame and RPC headers: one call from Python each; the C functions inlined into a loop.

Back of an envelope: a Python call with three arguments costs 30 to 50 ns, a new bytes object 20 to 30, its copy next
to nothing at 64 B and about 0.4 us at 16 KiB; a tuple of three 20. The C functions are shifts and masks on one word:
about a nanosecond.
"""

import time
from collections.abc import Callable

import pytest
from tests.wire import native

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

SIZES = (64, 1400, 16384)
COUNT = 20_000

Measure = Callable[..., list[float]]


def repeated(call: Callable[[], object]) -> Callable[[], float]:
    def once() -> float:
        began = time.perf_counter_ns()
        for _ in range(COUNT):
            call()
        return (time.perf_counter_ns() - began) / COUNT

    return once


@pytest.mark.parametrize("size", SIZES)
def test_frame(per_operation: Measure, size: int) -> None:
    payload = bytes(size)
    per_operation(
        f"encode + decode a frame, Python, {size} B", repeated(lambda: decode_frame(encode_frame(2, 7, payload)))
    )


@pytest.mark.parametrize("size", SIZES)
def test_request(per_operation: Measure, size: int) -> None:
    payload = bytes(size)
    per_operation(
        f"encode + decode an RPC request, Python, {size} B",
        repeated(lambda: decode_rpc_request(encode_rpc_request(7, 1, payload))),
    )


@pytest.mark.parametrize("size", SIZES)
def test_reply(per_operation: Measure, size: int) -> None:
    payload = bytes(size)
    per_operation(
        f"encode + decode an RPC reply, Python, {size} B",
        repeated(lambda: decode_rpc_reply(encode_rpc_reply(7, 0, payload))),
    )


def test_payload_fields(per_operation: Measure) -> None:
    def call() -> None:
        writer = FrameWriter(100)
        writer.write_u64(7)
        writer.write_u32(9)
        writer.write_sized(b"a name of a key")
        reader = FrameReader(writer.finish())
        reader.read_u64()
        reader.read_u32()
        reader.read_sized(64)
        reader.end()

    per_operation("write + read a payload of three fields, Python", repeated(call))


def test_headers_in_c(per_operation: Measure) -> None:
    loops = native.load("bench/ring_speed.pyx")
    per_operation("encode, decode and check a frame header, C", lambda: loops.frame_headers(1_000_000))


def test_rpc_headers_in_c(per_operation: Measure) -> None:
    loops = native.load("bench/ring_speed.pyx")
    per_operation("encode and decode an RPC request's header, C", lambda: loops.request_headers(1_000_000))
