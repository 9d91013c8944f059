"""Invariant: any bytes decode to a value that encodes back to the same bytes, or raise PeerProtocolError; never else.

python -m tests.fuzz.fuzz_codec --seconds 60
"""

import argparse
import random
import sys
import time

from enclave_os.wire import (
    FrameReader,
    decode_frame,
    decode_rpc_reply,
    decode_rpc_request,
    encode_frame,
    encode_rpc_reply,
    encode_rpc_request,
    is_frame_allowed,
)
from enclave_os.wire.errors import PeerProtocolError

CODECS = (
    (decode_frame, encode_frame),
    (decode_rpc_request, encode_rpc_request),
    (decode_rpc_reply, encode_rpc_reply),
)


def fuzz_one(data: bytes) -> int:
    """Decode `data` in every way; returns how many succeeded. Raises AssertionError when the invariant is broken."""
    decoded = 0
    for decode, encode in CODECS:
        try:
            first, second, payload = decode(data)
        except PeerProtocolError:
            continue
        assert encode(first, second, payload) == data
        decoded += 1
        if decode is decode_frame:
            for to_enclave in (True, False):
                is_frame_allowed(first, second, len(payload), to_enclave=to_enclave)
    read_fields(data)
    return decoded


def read_fields(data: bytes) -> None:
    """Let the bytes choose which fields are read from them: every read gives bytes that are there, or a lie."""
    reader = FrameReader(data)
    reads = (
        reader.read_u8,
        reader.read_u16,
        reader.read_u32,
        reader.read_u64,
        reader.read_i32,
        reader.read_i64,
        lambda: reader.read_sized(16),
        lambda: reader.read_zeros(3),
        lambda: reader.read_bytes(5),
    )
    for choice in data:
        before = reader.remaining
        try:
            reads[choice % len(reads)]()
        except PeerProtocolError:
            assert reader.remaining <= before
            return
        assert reader.remaining < before
    reader.read_rest()
    reader.end()


def program_of(draw: random.Random) -> bytes:
    """Random bytes, or an honest record with a few bytes changed."""
    if draw.random() < 0.3:
        return draw.randbytes(draw.randrange(64))
    payload = draw.randbytes(draw.randrange(40))
    record = bytearray(
        draw.choice(
            (
                encode_frame(draw.randrange(1, 11), draw.getrandbits(32), payload),
                encode_rpc_request(draw.getrandbits(64), draw.getrandbits(16), payload),
                encode_rpc_reply(draw.getrandbits(64), draw.getrandbits(31) - (1 << 30), payload),
            )
        )
    )
    for _ in range(draw.randrange(4)):
        record[draw.randrange(len(record))] = draw.getrandbits(8)
    return bytes(record[: draw.randrange(len(record) + 1)] if draw.random() < 0.2 else record)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns() & 0xFFFF_FFFF)
    arguments = parser.parse_args()
    draw, count, until = random.Random(arguments.seed), 0, time.monotonic() + arguments.seconds
    print(f"seed {arguments.seed}", flush=True)
    while time.monotonic() < until:
        program = program_of(draw)
        try:
            fuzz_one(program)
        except AssertionError:
            print(f"program {program.hex()}", flush=True)
            raise
        count += 1
    print(f"{count} programs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
