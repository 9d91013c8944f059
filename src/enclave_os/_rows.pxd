# The key-value payloads that hold many things: batches, multi-gets and their replies. Layouts: docs/wire.md.
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum:
    NAMESPACE_SIZE = 16
    KEY_MAX = 64
    VALUE_MAX = 31 * 1024
    MESSAGE_MAX = 131048        # record_size_max(RPC_RING_CAPACITY_MIN) - RPC_HEADER_SIZE
    COUNT_MAX = 1024            # operations of a batch, keys of a multi-get
    NAMESPACES_MAX = 255        # of a batch, which counts them in a byte
    KIND_PUT = 1
    KIND_DELETE = 2
    KIND_DELETE_RANGE = 3
    FLAG_DEFERRED = 1
    FLAG_NUMBERED = 2
    FLAG_FOLLOWS = 4

# A cursor over a private copy of a payload: one bounds check for each read.
cdef struct rows_reader_t:
    const uint8_t *at
    size_t left

cdef const uint8_t *rows_take(rows_reader_t *reader, size_t size) except NULL

# A row that is asked for, for the code that takes it out of a reply. `take` is told once, by the reply that has it, or
# `refuse` with why there is none. Another module's class says what becomes of it.
cdef class Wanted:
    cdef readonly bytes key
    # `value`: `size` bytes of private memory, the caller's, valid during the call; found: False: the host has no row.
    # What is wrong with the bytes goes to who waits; only our own mistakes are raised.
    cdef int take(self, const uint8_t *value, size_t size, bint found) except -1
