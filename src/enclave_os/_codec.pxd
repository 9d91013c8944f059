# Frame and RPC headers: the C interface, inlined. Byte tables in docs/wire.md; the numbers' other copy is wire/frames.py.
#
#   data frame   u8 kind, u8 flags, u16 zero, u32 LE conn_id          8 bytes, one aligned word, then the payload
#   RPC request  u64 req_id, u16 method, u16 zero, u32 size          16 bytes, two aligned words, then the payload
#   RPC reply    u64 req_id, i32 status, u32 size                    16 bytes, two aligned words, then the payload
#
# Each header word is loaded once from shared memory into a private u64 and decoded from there (threats.md RG4).
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    FRAME_NEW = 1
    FRAME_DATA = 2
    FRAME_EOF = 3
    FRAME_CLOSE = 4
    FRAME_READY = 5
    FRAME_PAUSE = 6
    FRAME_RESUME = 7
    FRAME_CONNECT = 8
    FRAME_CONNECTED = 9
    FRAME_DRAIN = 10
    FRAME_KIND_MAX = 10

cdef struct frame_t:
    uint8_t kind
    uint8_t flags
    uint32_t conn_id

cdef inline uint64_t frame_word(uint8_t kind, uint32_t conn_id) noexcept nogil:
    return <uint64_t>kind | (<uint64_t>conn_id << 32)

cdef inline bint frame_decode(uint64_t word, frame_t *frame) noexcept nogil:
    # False: not a frame of this protocol (unknown kind, flags that nobody defined, a zero field that is not).
    frame.kind = <uint8_t>(word & 0xFF)
    frame.flags = <uint8_t>((word >> 8) & 0xFF)
    frame.conn_id = <uint32_t>(word >> 32)
    return 1 <= frame.kind <= FRAME_KIND_MAX and (word & 0xFFFFFF00) == 0
