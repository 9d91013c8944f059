# The latest version and tag of every row, in enclave memory: a table in C, and the set hash over all of it.
#
#   table --directory[top bits of the place]--> segment --linear probing--> slot: token 16, version 8, tag 16
#
# Extendible hashing: a segment that has SEGMENT_ROWS_MAX rows is split in two, one with fewer grows by a quarter, and
# nothing else moves. So no put ever moves more than that many slots (about 50 us), however large the store, and there
# is never a second copy of the table.
#
# The place of a token is a keyed mix of it: tokens are HMACs, which nobody outside can aim, and at a start, where the
# host shows keys that are not checked yet, it cannot aim at our places either.
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from enclave_os._openssl cimport SHA256_CTX
from enclave_os.kv._keyed cimport hmac_t

cdef enum:
    TOKEN_SIZE = 16
    TAG_SIZE = 16
    SLOT_SIZE = 40
    SEGMENT_ROWS_MIN = 12       # slots of a new segment
    SEGMENT_ROWS_MAX = 4096     # rows, before it is split
    DEPTH_MAX = 24              # of the directory: 16 M segments, far above any enclave's memory
    STEPS_MAX = 8               # that wait at once; the store has fewer batches under way

cdef struct slot_t:
    uint8_t token[TOKEN_SIZE]
    uint64_t version            # 0: the slot is free; no row has it
    uint8_t tag[TAG_SIZE]

cdef struct sum_t:
    uint64_t count              # rows
    uint64_t[4] total           # their set hash modulo 2**256, least word first: secret

cdef struct segment_t:
    slot_t *slots               # owned
    uint32_t room               # slots
    uint32_t count              # of them in use: at most four fifths
    uint32_t depth              # how many top bits of the place all of its rows share

@cython.final
cdef class Table:
    cdef readonly bytes name
    cdef segment_t **directory  # owned, 1 << depth entries; a segment of less depth stands in several, side by side
    cdef uint32_t depth
    cdef uint64_t count         # rows
    cdef uint64_t memory        # bytes that are allocated
    cdef uint64_t[2] mix
    cdef SHA256_CTX elements    # after the block of key and table: secret
    cdef slot_t *find(self, const uint8_t *token) noexcept nogil
    cdef int put(self, const uint8_t *token, uint64_t version, const uint8_t *tag) except -1 nogil
    cdef bint remove(self, const uint8_t *token) noexcept nogil
    cdef uint64_t _place(self, const uint8_t *token) noexcept nogil
    cdef int _split(self, segment_t *segment) except -1 nogil
    cdef int _double(self) except -1 nogil
    cdef void _element(self, const slot_t *slot, uint64_t *to) noexcept nogil

@cython.final
cdef class Freshness:
    cdef dict _tables
    cdef bytes _element_key
    cdef hmac_t _root           # secret
    cdef sum_t _now             # of all tables
    cdef list _steps            # changes that `step` was given and `change` not yet, in their order
    cdef sum_t[STEPS_MAX] _ahead    # count and sum after each of them
    cdef bint _broken           # a change went in by half
    cdef slot_t *slot(self, bytes table, bytes token) except? NULL  # NULL: there is none; gone with the next change
    cdef int _check(self) except -1
    cdef Table _table(self, bytes name)
    cdef int _after(self, dict changes, sum_t *to) except -1
    cdef bytes _stands_for(self, object version, const sum_t *of)
