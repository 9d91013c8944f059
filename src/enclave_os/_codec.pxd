# Frame and RPC headers: the C interface, inlined. Byte tables in docs/wire.md; the numbers for Python: wire/frames.py.
#
#   data frame   u8 kind, u8 flags, u16 zero, u32 LE conn_id          8 bytes, one aligned word, then the payload
#   RPC request  u64 req_id, u16 method, u16 zero, u32 size          16 bytes, two aligned words, then the payload
#   RPC reply    u64 req_id, i32 status, u32 size                    16 bytes, two aligned words, then the payload
#
# Invariant: what a decoder accepted, the encoder makes from the same fields, bit for bit.
#
# Each header word is loaded once from shared memory into a private u64 and decoded from there (threat-model.md RG4): these
# functions take words, never a pointer into shared memory. It does not: load, copy, allocate, or know connections.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from enclave_os._limits cimport (
    CLOSE_PAYLOAD_SIZE, CONN_ID_INGRESS_MAX, CONNECT_TARGET_SIZE_MAX, PEER_ADDRESS_SIZE_MAX, RPC_HEADER_SIZE,
)

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
    uint8_t flags       # always 0: nobody defined one
    uint32_t conn_id

cdef struct rpc_request_t:
    uint64_t req_id
    uint16_t method
    uint32_t size       # payload bytes

cdef struct rpc_reply_t:
    uint64_t req_id
    int32_t status
    uint32_t size       # payload bytes


# -- data frames ------------------------------------------------------------------------------------------------------

cdef inline uint64_t frame_word(uint8_t kind, uint32_t conn_id) noexcept nogil:
    return <uint64_t>kind | (<uint64_t>conn_id << 32)

cdef inline bint frame_decode(uint64_t word, frame_t *frame) noexcept nogil:
    # False: not a frame of this protocol (unknown kind, flags that nobody defined, a zero field that is not).
    frame.kind = <uint8_t>(word & 0xFF)
    frame.flags = <uint8_t>((word >> 8) & 0xFF)
    frame.conn_id = <uint32_t>(word >> 32)
    return 1 <= frame.kind <= FRAME_KIND_MAX and (word & <uint64_t>0xFFFFFF00) == 0

cdef inline bint frame_allowed(const frame_t *frame, uint32_t payload_size, bint to_enclave) noexcept nogil:
    # Whether a decoded frame may come this way, with this conn_id and this many payload bytes (the record's less 8).
    # False: the sender broke the contract. FRAME_RULES of wire/frames.py, for C.
    cdef uint8_t kind = frame.kind
    cdef bint ingress = 1 <= frame.conn_id <= <uint32_t>CONN_ID_INGRESS_MAX
    if kind == FRAME_DATA:
        return frame.conn_id != 0
    if kind == FRAME_EOF or kind == FRAME_PAUSE or kind == FRAME_RESUME:
        return frame.conn_id != 0 and payload_size == 0
    if kind == FRAME_CLOSE:
        return frame.conn_id != 0 and payload_size == CLOSE_PAYLOAD_SIZE
    if kind == FRAME_NEW:
        return to_enclave and ingress and 1 <= payload_size <= <uint32_t>PEER_ADDRESS_SIZE_MAX
    if kind == FRAME_DRAIN:
        return frame.conn_id == 0 and payload_size == 0
    if kind == FRAME_READY:
        return not to_enclave and frame.conn_id == 0 and payload_size == 0
    if kind == FRAME_CONNECT:
        return (not to_enclave and frame.conn_id > <uint32_t>CONN_ID_INGRESS_MAX
                and 5 <= payload_size <= <uint32_t>CONNECT_TARGET_SIZE_MAX)
    if kind == FRAME_CONNECTED:
        return (to_enclave and frame.conn_id > <uint32_t>CONN_ID_INGRESS_MAX
                and 1 <= payload_size <= <uint32_t>PEER_ADDRESS_SIZE_MAX)
    return False


# -- RPC headers: the first word is req_id, these are the second ------------------------------------------------------

cdef inline uint64_t rpc_request_word(uint16_t method, uint32_t size) noexcept nogil:
    return <uint64_t>method | (<uint64_t>size << 32)

cdef inline uint64_t rpc_reply_word(int32_t status, uint32_t size) noexcept nogil:
    return <uint64_t><uint32_t>status | (<uint64_t>size << 32)

cdef inline bint rpc_request_decode(uint64_t first, uint64_t second, uint32_t record_size,
                                    rpc_request_t *request) noexcept nogil:
    # False: the zero field is not, or the size is not what the record holds. The words are private copies, and the
    # caller saw record_size >= RPC_HEADER_SIZE before it loaded them.
    request.req_id = first
    request.method = <uint16_t>(second & 0xFFFF)
    request.size = <uint32_t>(second >> 32)
    return ((second >> 16) & 0xFFFF) == 0 and <uint64_t>request.size + RPC_HEADER_SIZE == record_size

cdef inline bint rpc_reply_decode(uint64_t first, uint64_t second, uint32_t record_size,
                                  rpc_reply_t *reply) noexcept nogil:
    # False: the size is not what the record holds. Terms as for a request.
    reply.req_id = first
    reply.status = <int32_t><uint32_t>(second & <uint64_t>0xFFFFFFFF)
    reply.size = <uint32_t>(second >> 32)
    return <uint64_t>reply.size + RPC_HEADER_SIZE == record_size
