"""Frames: numbers equal in Python and C, the rule table equal to the C check, conn_ids."""

import re
from itertools import product
from pathlib import Path

import pytest

from enclave_os.wire import decode_frame, encode_frame, is_frame_allowed
from enclave_os.wire.errors import Lie, PeerProtocolError, UsageError
from enclave_os.wire.frames import (
    FRAME_RULES,
    CloseReason,
    FrameKind,
    conn_generation,
    conn_id_make,
    conn_is_egress,
    conn_is_ingress,
    conn_slot,
)
from enclave_os.wire.limits import CONN_GENERATION_MAX, CONN_ID_INGRESS_MAX, CONN_SLOT_BITS

PXD = Path(__file__).parents[2] / "src/enclave_os/_codec.pxd"


def test_kinds_are_those_of_the_c_code() -> None:
    numbers = dict(re.findall(r"^    FRAME_([A-Z]+) = (\d+)$", PXD.read_text(), re.MULTILINE))
    assert {kind.name: str(kind.value) for kind in FrameKind} == numbers
    assert set(FRAME_RULES) == set(FrameKind)


def test_close_reasons_fit_their_field() -> None:
    assert [reason.value for reason in CloseReason] == list(range(11))


def test_rules_are_those_of_the_c_code() -> None:
    conn_ids = (0, 1, 5, CONN_ID_INGRESS_MAX, CONN_ID_INGRESS_MAX + 1, 0xFFFF_FFFF)
    sizes = (0, 1, 2, 3, 4, 5, 63, 64, 65, 262, 263, 264, 16384, 0xFFFF_FFFF)
    for kind, conn_id, size, to_enclave in product(range(16), conn_ids, sizes, (True, False)):
        allowed = False
        if kind in set(FrameKind):
            rule = FRAME_RULES[FrameKind(kind)]
            allowed = (
                (rule.to_enclave if to_enclave else rule.to_host)
                and rule.connection == (conn_id != 0)
                and rule.payload_min <= size
                and (rule.payload_max is None or size <= rule.payload_max)
                and (kind != FrameKind.NEW or conn_is_ingress(conn_id))
                and (kind not in (FrameKind.CONNECT, FrameKind.CONNECTED) or conn_is_egress(conn_id))
            )
        assert is_frame_allowed(kind, conn_id, size, to_enclave=to_enclave) == allowed, (
            kind,
            conn_id,
            size,
            to_enclave,
        )


@pytest.mark.parametrize("kind", list(FrameKind))
def test_round_trip(kind: FrameKind) -> None:
    for conn_id in (0, 1, CONN_ID_INGRESS_MAX, 0xFFFF_FFFF):
        for payload in (b"", b"x", bytes(range(256))):
            record = encode_frame(kind, conn_id, payload)
            assert len(record) == 8 + len(payload)
            assert decode_frame(record) == (kind, conn_id, payload)


def test_bytes_on_the_wire() -> None:
    assert encode_frame(FrameKind.CLOSE, 0x01020304, b"\x05\x00") == bytes.fromhex("04000000 04030201 0500")


def test_every_header_bit_matters() -> None:
    """Flip each bit of an honest header: another honest header that encodes back to itself, or a lie."""
    record = encode_frame(FrameKind.DATA, 7, b"payload")
    for bit in range(64):
        changed = bytearray(record)
        changed[bit // 8] ^= 1 << bit % 8
        if bit >= 32 or (changed[0] in set(FrameKind) and not any(changed[1:4])):
            kind, conn_id, payload = decode_frame(bytes(changed))
            assert encode_frame(kind, conn_id, payload) == changed
        else:
            with pytest.raises(PeerProtocolError) as caught:
                decode_frame(bytes(changed))
            assert caught.value.lie is Lie.FRAME
    for kind in (0, 11, 255):
        with pytest.raises(PeerProtocolError):
            decode_frame(bytes([kind]) + record[1:])
    for size in range(8):
        with pytest.raises(PeerProtocolError):
            decode_frame(record[:size])


@pytest.mark.parametrize(("kind", "conn_id"), [(0, 1), (11, 1), (-1, 1), (2, -1), (2, 1 << 32)])
def test_what_is_no_frame_is_not_encoded(kind: int, conn_id: int) -> None:
    with pytest.raises(UsageError):
        encode_frame(kind, conn_id)


def test_conn_ids() -> None:
    seen = set()
    for slot, generation in product((0, 1, 1000, (1 << CONN_SLOT_BITS) - 1), (0, 1, 77, CONN_GENERATION_MAX)):
        if (slot, generation) == (0, 0):
            continue
        conn_id = conn_id_make(slot, generation)
        assert conn_is_ingress(conn_id)
        assert not conn_is_egress(conn_id)
        assert (conn_slot(conn_id), conn_generation(conn_id)) == (slot, generation)
        seen.add(conn_id)
    assert len(seen) == 15
    for slot, generation in ((0, 0), (1 << CONN_SLOT_BITS, 0), (-1, 1), (1, -1), (1, CONN_GENERATION_MAX + 1)):
        with pytest.raises(UsageError):
            conn_id_make(slot, generation)
    assert not conn_is_ingress(0)
    assert not conn_is_egress(0)
    assert conn_is_egress(0x8000_0000)
    assert not conn_is_egress(1 << 32)
