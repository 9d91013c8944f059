# Every size and bound that C code uses. wire/limits.py holds the same numbers for Python with the reason of each, and
# tests/wire/test_limits.py holds the two equal.

cdef enum:
    RING_CAPACITY_MIN = 65536
    RING_CAPACITY_MAX = 1073741824
    RING_CAPACITY_FLOOR = 64
    RING_HEADER_SIZE = 512
    RECORD_HEADER_SIZE = 8
    RECORD_ALIGN = 8
    FRAME_HEADER_SIZE = 8
    RPC_HEADER_SIZE = 16
    CONN_SLOT_BITS = 20
    CONN_GENERATION_MAX = 0x7FF
    CONN_ID_INGRESS_MAX = 0x7FFFFFFF
    FRAMES_PER_TURN_MAX = 256
    TCP_READ_SIZE_MAX = 16384
    PEER_ADDRESS_SIZE_MAX = 64
    CLOSE_PAYLOAD_SIZE = 2
    CONNECT_TARGET_SIZE_MAX = 263
    RPC_RING_CAPACITY_MIN = 262144
    RPC_METHOD_MAX = 0xFFFF
