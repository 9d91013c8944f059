# Reading wasm's bytes: a cursor that never leaves them, and says afterwards whether it had to stop short.
#
# Invariant: begin <= at <= end. What cannot be read is 0, and `broken` stays true; who loops over a count looks at it.
from libc.stdint cimport uint8_t, uint64_t


cdef struct Cursor:
    const uint8_t *at
    const uint8_t *end
    bint broken                     # something was read beyond the end, or is no number


cdef inline uint8_t byte(Cursor *c) noexcept nogil:
    cdef uint8_t found
    if c.at >= c.end:
        c.broken = True
        return 0
    found = c.at[0]
    c.at += 1
    return found


cdef inline uint64_t number(Cursor *c, int size_max) noexcept nogil:
    """An unsigned LEB128 number of at most `size_max` bytes."""
    cdef uint64_t value = 0
    cdef uint8_t part
    cdef int index
    for index in range(size_max):
        part = byte(c)
        value |= <uint64_t>(part & 0x7F) << (7 * index)
        if not part & 0x80:
            return value
    c.broken = True
    return 0


cdef inline uint64_t index_of(Cursor *c) noexcept nogil:
    return number(c, 5)


cdef inline void skip(Cursor *c, uint64_t size) noexcept nogil:
    if size > <uint64_t>(c.end - c.at):
        c.broken = True
        c.at = c.end
    else:
        c.at += size


cdef inline void skip_signed(Cursor *c) noexcept nogil:
    number(c, 10)  # what ends it is the same


cdef inline void skip_type(Cursor *c) noexcept nogil:
    """A value type, block type or heap type: one number, but for references, which have a heap type behind them."""
    cdef bint reference = c.at < c.end and (c.at[0] == 0x63 or c.at[0] == 0x64)
    skip_signed(c)
    if reference:
        skip_signed(c)


cdef inline Cursor part(Cursor *c, uint64_t size) noexcept nogil:
    """The next bytes by themselves; `c` is behind them."""
    cdef Cursor within
    within.at = c.at
    skip(c, size)
    within.end = c.at
    within.broken = c.broken
    return within
