"""Every size and bound of the wire, each with its reason, and the relations between them.

`_limits.pxd` holds the same numbers for C; tests/wire/test_limits.py holds the two equal. Sizes are bytes and inclusive
unless the name says otherwise. The limits that an operator may set stand in `settings.py`, these here are the contract.
"""

# -- rings ------------------------------------------------------------------------------------------------------------

RING_CAPACITY_MIN = 65_536
"""The smallest ring of a region: one full TLS record (16 KiB + 256, RFC 8446 5.2) each way and some to spare."""

RING_CAPACITY_MAX = 1_073_741_824
"""The largest ring: sizes stay far below 2**32, so a u32 record size plus its padding cannot overflow."""

RING_CAPACITY_FLOOR = 64
"""What the ring's own arithmetic needs. Only tests go below RING_CAPACITY_MIN, to try every offset and size."""

RING_HEADER_SIZE = 512
"""Four shared words, each on two cache lines of its own, since CPUs fetch lines in pairs."""

RECORD_HEADER_SIZE = 8
"""u32 size and u32 zero: one aligned word, so it is read by one load and written by one store."""

RECORD_ALIGN = 8
"""The enclave writes shared memory in whole aligned quadwords only (INTEL-SA-00615)."""

# -- data channel -----------------------------------------------------------------------------------------------------

FRAME_HEADER_SIZE = 8
"""One aligned word, for the same reasons as the record's."""

CONN_SLOT_BITS = 20
"""A conn_id's low bits name one of at most 2**20 slots: far above any descriptor limit."""

CONN_GENERATION_MAX = 0x7FF
"""The bits above the slot: how often a slot can be reused before a conn_id comes again."""

CONN_ID_INGRESS_MAX = 0x7FFF_FFFF
"""Ingress ids (chosen by the proxy) end here; egress ids (chosen by the enclave) have the top bit."""

PEER_ADDRESS_SIZE_MAX = 64
"""The payload of NEW: `[` + 45 characters of IPv6 + `%` zone is never sent + `]:65535`, rounded up."""

TCP_READ_SIZE_MAX = 16_384
"""One read of a socket, one DATA frame: about one TLS record, so that a slow reader delays others by little."""

FRAMES_PER_TURN_MAX = 256
"""Frames a consumer takes before it serves its other duties: bounds what one busy ring can hold up."""

CLOSE_PAYLOAD_SIZE = 2
"""u16 reason."""

CONNECT_TARGET_SIZE_MAX = 4 + 253 + 1 + 5
"""The payload of CONNECT: u32 deadline, a DNS name (253, RFC 1035 2.3.4), a colon, a port."""

# -- RPC channel ------------------------------------------------------------------------------------------------------

RPC_HEADER_SIZE = 16
"""Request: req_id, method, zero, size. Reply: req_id, status, size. Two aligned words."""

RPC_RING_CAPACITY_MIN = 256 * 1024
"""Whatever rings the operator sets, a record of half of it less its header goes through: the largest RPC messages."""

RPC_METHOD_MAX = 0xFFFF
"""A method is a u16."""

# -- relations --------------------------------------------------------------------------------------------------------


def record_size_max(capacity: int) -> int:
    """The largest payload of one record in a ring of `capacity` bytes: half the ring less the record's header.

    With the padding before it, a record of this size fits into every drained ring, whatever its position.
    """
    return capacity // 2 - RECORD_HEADER_SIZE


def _check_relations() -> None:
    relations = {
        "capacities are powers of two": all(
            capacity & (capacity - 1) == 0 for capacity in (RING_CAPACITY_FLOOR, RING_CAPACITY_MIN, RING_CAPACITY_MAX)
        ),
        "capacities are ordered": RING_CAPACITY_FLOOR <= RING_CAPACITY_MIN <= RING_CAPACITY_MAX < 2**32,
        "headers keep payloads aligned": all(
            size % RECORD_ALIGN == 0
            for size in (RING_HEADER_SIZE, RECORD_HEADER_SIZE, FRAME_HEADER_SIZE, RPC_HEADER_SIZE)
        ),
        "the smallest ring takes the largest read": (
            record_size_max(RING_CAPACITY_MIN) >= FRAME_HEADER_SIZE + TCP_READ_SIZE_MAX
        ),
        "the smallest ring takes every fixed payload": (
            record_size_max(RING_CAPACITY_MIN)
            >= FRAME_HEADER_SIZE + max(PEER_ADDRESS_SIZE_MAX, CONNECT_TARGET_SIZE_MAX)
        ),
        "slot and generation fill an ingress id": (
            CONN_GENERATION_MAX << CONN_SLOT_BITS | (1 << CONN_SLOT_BITS) - 1 == CONN_ID_INGRESS_MAX
        ),
        "ingress ids leave the top bit to egress": CONN_ID_INGRESS_MAX < 2**31,
        "the smallest floor ring has a payload": record_size_max(RING_CAPACITY_FLOOR) >= RECORD_ALIGN,
    }
    for relation, holds in relations.items():
        # Not `assert`: -O must not be able to switch the contract off.
        if not holds:
            raise RuntimeError(f"wire limits contradict each other: {relation}")


_check_relations()
