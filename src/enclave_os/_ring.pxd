# SPSC byte ring over borrowed shared memory: the C interface, inlined into whoever cimports it.
#
# One ring carries records one way between two processes that do not trust each other.
#
#   header (512 bytes, each word on cache lines of its own: two lines, because CPUs prefetch pairs)
#     +0    produced        u64, free-running byte count   written by the producer only
#     +128  consumed        u64, free-running byte count   written by the consumer only
#     +256  consumer_waits  u64, 0 or 1                    consumer sets before sleep, producer takes
#     +384  producer_waits  u64, 0 or 1                    producer sets when full, consumer takes
#   data (capacity bytes, a power of two, 8-aligned)
#     record   = u32 LE size, u32 zero, payload, zeros up to the next multiple of 8
#     padding  = u32 LE 0xFFFFFFFF, u32 zero: skip to the ring's start (never at offset 0)
#
# Invariant: released <= consumed <= produced <= released + capacity, all modulo 2**64, all multiples of 8.
#
# Who owns what: each side keeps its own cursor and the geometry privately and never reads them back; the peer's cursor
# is read with acquire, must move forward only and stay within the invariant, or the ring is poisoned for good. A size
# is read once, in one load with its zero word, and used from the private copy (threat-model.md RG1 to RG4).
#
# Memory order: payload stores, then `produced` with release; the peer's acquire makes them visible. The wake-up needs
# more, because it is a store followed by a load of another word on both sides (Dekker): the consumer stores
# consumer_waits and then loads produced, the producer stores produced and then loads consumer_waits. Release and
# acquire allow both loads to see the old values, and then both sides sleep; a full fence between store and load on both
# sides forbids it (C11 7.17.4, x86 SDM vol. 3A 9.2.3.4). tests/wire/test_wakeup_model.py walks every interleaving.
# producer_waits is the same protocol with the roles exchanged.
#
# Cost: a claim and commit touch shared memory only in the record itself; the cursor is stored once per publish.
# It does not: block, ring the doorbell, allocate, know frames, or look inside a payload.
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from enclave_os._limits cimport RECORD_HEADER_SIZE
from enclave_os._native cimport (
    eos_assert, eos_copy_in, eos_copy_out, eos_exchange, eos_fence, eos_load_acquire, eos_load_relaxed,
    eos_store_relaxed, eos_store_release,
)

cdef enum:
    RING_READY = 1        # a record, or room for one
    RING_EMPTY = 0        # weather: nothing to consume
    RING_FULL = -1        # weather: no room now
    RING_TOO_BIG = -2     # our caller's mistake: larger than a record can ever be
    RING_POISONED = -3    # the peer broke the contract; for good
    RING_PRODUCED_OFFSET = 0
    RING_CONSUMED_OFFSET = 128
    RING_CONSUMER_WAITS_OFFSET = 256
    RING_PRODUCER_WAITS_OFFSET = 384

cdef enum:
    RECORD_PADDING = 0xFFFFFFFF     # apart: one unsigned value would widen the type of the results above

# Why a ring was poisoned, for the one typed error that names the guilty party.
cdef enum:
    LIE_NONE = 0
    LIE_CURSOR_BACKWARDS_OR_FAR = 1
    LIE_CURSOR_UNALIGNED = 2
    LIE_RECORD_SIZE = 3
    LIE_RECORD_ZERO_WORD = 4
    LIE_PADDING = 5
    LIE_FRAME = 6           # set by the reader above: a frame that the contract does not allow
    LIE_RPC_HEADER = 7      # set by the reader above: cut short, a wrong size, or a zero field that is not
    LIE_LAST = 7

cdef struct ring_producer_t:
    uint8_t *data               # shared, borrowed from the mapping
    uint64_t *produced_word     # shared, ours to write
    uint64_t *consumed_word     # shared, the peer's
    uint64_t *consumer_waits    # shared
    uint64_t *producer_waits    # shared
    uint64_t capacity           # bytes; private snapshot
    uint64_t produced           # position after the last commit
    uint64_t published          # position that the peer may see
    uint64_t consumed_seen      # last accepted value of the peer's cursor
    uint64_t claim_skip         # padding before the open claim
    uint32_t claim_size         # payload bytes of the open claim
    bint claimed
    bint wordwise               # the enclave's side: only aligned 8-byte stores, so the writer pads
    int lie                     # LIE_*, not 0 when poisoned

cdef struct ring_consumer_t:
    uint8_t *data
    uint64_t *produced_word     # shared, the peer's
    uint64_t *consumed_word     # shared, ours to write
    uint64_t *consumer_waits
    uint64_t *producer_waits
    uint64_t capacity
    uint64_t consumed           # position after the last advance
    uint64_t released           # position that the peer may see
    uint64_t produced_seen      # last accepted value of the peer's cursor
    uint64_t record_total       # header, payload and padding of the peeked record; 0: none is
    uint32_t record_size        # payload bytes of the peeked record, from the one load of its header
    int lie


# -- geometry ---------------------------------------------------------------------------------------------------------

cdef inline uint32_t ring_record_size_max(uint64_t capacity) noexcept nogil:
    # Half the ring: with padding before it a record of this size still fits once the ring is drained.
    return <uint32_t>((capacity >> 1) - RECORD_HEADER_SIZE)

cdef inline uint64_t ring_record_total(uint32_t size) noexcept nogil:
    return RECORD_HEADER_SIZE + ((<uint64_t>size + 7) & ~<uint64_t>7)


# -- attach: both return 0, or a LIE_* -----------------------------------------------------------------------------

cdef inline int ring_producer_attach(ring_producer_t *p, uint8_t *header, uint8_t *data, uint64_t capacity,
                                     bint wordwise) noexcept nogil:
    cdef uint64_t start
    memset(p, 0, sizeof(ring_producer_t))
    p.data = data
    p.produced_word = <uint64_t *>(header + RING_PRODUCED_OFFSET)
    p.consumed_word = <uint64_t *>(header + RING_CONSUMED_OFFSET)
    p.consumer_waits = <uint64_t *>(header + RING_CONSUMER_WAITS_OFFSET)
    p.producer_waits = <uint64_t *>(header + RING_PRODUCER_WAITS_OFFSET)
    p.capacity = capacity
    p.wordwise = wordwise
    start = eos_load_acquire(p.produced_word)
    p.produced = p.published = p.consumed_seen = start
    if start & 7:
        p.lie = LIE_CURSOR_UNALIGNED
    elif eos_load_acquire(p.consumed_word) != start:
        p.lie = LIE_CURSOR_BACKWARDS_OR_FAR
    return p.lie

cdef inline int ring_consumer_attach(ring_consumer_t *c, uint8_t *header, uint8_t *data,
                                     uint64_t capacity) noexcept nogil:
    cdef uint64_t start
    memset(c, 0, sizeof(ring_consumer_t))
    c.data = data
    c.produced_word = <uint64_t *>(header + RING_PRODUCED_OFFSET)
    c.consumed_word = <uint64_t *>(header + RING_CONSUMED_OFFSET)
    c.consumer_waits = <uint64_t *>(header + RING_CONSUMER_WAITS_OFFSET)
    c.producer_waits = <uint64_t *>(header + RING_PRODUCER_WAITS_OFFSET)
    c.capacity = capacity
    start = eos_load_acquire(c.consumed_word)
    c.consumed = c.released = c.produced_seen = start
    if start & 7:
        c.lie = LIE_CURSOR_UNALIGNED
    elif eos_load_acquire(c.produced_word) != start:
        c.lie = LIE_CURSOR_BACKWARDS_OR_FAR
    return c.lie


# -- producer ---------------------------------------------------------------------------------------------------------

cdef inline int ring_look_for_room(ring_producer_t *p) noexcept nogil:
    # Take the peer's cursor: forward only, and never past what it was shown. RING_READY or RING_POISONED.
    cdef uint64_t consumed = eos_load_acquire(p.consumed_word)
    if consumed - p.consumed_seen > p.published - p.consumed_seen:
        p.lie = LIE_CURSOR_BACKWARDS_OR_FAR
        return RING_POISONED
    if consumed & 7:
        p.lie = LIE_CURSOR_UNALIGNED
        return RING_POISONED
    p.consumed_seen = consumed
    return RING_READY

cdef inline int ring_claim(ring_producer_t *p, uint32_t size, uint8_t **payload) noexcept nogil:
    # Reserve `size` payload bytes in one piece; one claim at a time. RING_READY sets *payload (8-aligned, borrowed until
    # commit or abort); RING_FULL, RING_TOO_BIG, RING_POISONED leave it alone. The peer sees nothing before the publish.
    cdef uint64_t offset, to_end, total
    eos_assert(not p.claimed)
    if p.lie:
        return RING_POISONED
    if size > ring_record_size_max(p.capacity):
        return RING_TOO_BIG
    total = ring_record_total(size)
    offset = p.produced & (p.capacity - 1)
    to_end = p.capacity - offset
    p.claim_skip = to_end if to_end < total else 0
    if p.produced + p.claim_skip + total - p.consumed_seen > p.capacity:
        if ring_look_for_room(p) == RING_POISONED:
            return RING_POISONED
        if p.produced + p.claim_skip + total - p.consumed_seen > p.capacity:
            return RING_FULL
    if p.claim_skip:
        eos_store_relaxed(<uint64_t *>(p.data + offset), <uint64_t>RECORD_PADDING)
        offset = 0
    p.claim_size = size
    p.claimed = True
    payload[0] = p.data + offset + RECORD_HEADER_SIZE
    return RING_READY

cdef inline uint8_t *ring_claimed_payload(ring_producer_t *p) noexcept nogil:
    # Where the open claim's payload starts: what ring_claim gave.
    eos_assert(p.claimed)
    return p.data + (0 if p.claim_skip else p.produced & (p.capacity - 1)) + RECORD_HEADER_SIZE

cdef inline void ring_commit(ring_producer_t *p, uint32_t size) noexcept nogil:
    # Close the claim with `size` <= claimed payload bytes; visible after publish. On the enclave's side the payload was
    # written by eos_copy_out, which pads; the host may have let a socket write it, so its tail is zeroed here.
    eos_assert(p.claimed and size <= p.claim_size)
    cdef uint64_t offset = 0 if p.claim_skip else p.produced & (p.capacity - 1)
    cdef uint8_t *record = p.data + offset
    if not p.wordwise and size & 7:
        memset(record + RECORD_HEADER_SIZE + size, 0, 8 - (size & 7))
    eos_store_relaxed(<uint64_t *>record, <uint64_t>size)
    p.produced += p.claim_skip + ring_record_total(size)
    p.claimed = False

cdef inline void ring_abort(ring_producer_t *p) noexcept nogil:
    p.claimed = False

cdef inline bint ring_publish(ring_producer_t *p) noexcept nogil:
    # Make all commits visible. True: the consumer sleeps and the caller owes it one ring of the doorbell.
    if p.published == p.produced or p.lie:
        return False
    eos_store_release(p.produced_word, p.produced)
    p.published = p.produced
    eos_fence()
    return eos_load_relaxed(p.consumer_waits) != 0 and eos_exchange(p.consumer_waits, 0) != 0

cdef inline int ring_wait_for_room(ring_producer_t *p, uint32_t size) noexcept nogil:
    # Ask to be woken when the consumer releases. RING_FULL: asked, sleep on the doorbell. RING_READY: room has come.
    # Publish before sleeping: a consumer that was shown nothing releases nothing. RING_TOO_BIG: it can never come.
    cdef uint64_t total = ring_record_total(size)
    cdef uint64_t to_end = p.capacity - (p.produced & (p.capacity - 1))
    if p.lie:
        return RING_POISONED
    if size > ring_record_size_max(p.capacity):
        return RING_TOO_BIG
    if to_end < total:
        total += to_end
    eos_store_relaxed(p.producer_waits, 1)
    eos_fence()
    if ring_look_for_room(p) == RING_POISONED:
        return RING_POISONED
    if p.produced + total - p.consumed_seen > p.capacity:
        return RING_FULL
    eos_store_relaxed(p.producer_waits, 0)
    return RING_READY


# -- consumer ---------------------------------------------------------------------------------------------------------

cdef inline int ring_look_for_records(ring_consumer_t *c) noexcept nogil:
    cdef uint64_t produced = eos_load_acquire(c.produced_word)
    if produced - c.produced_seen > c.capacity - (c.produced_seen - c.released):
        c.lie = LIE_CURSOR_BACKWARDS_OR_FAR
        return RING_POISONED
    if produced & 7:
        c.lie = LIE_CURSOR_UNALIGNED
        return RING_POISONED
    c.produced_seen = produced
    return RING_READY

cdef inline int ring_peek(ring_consumer_t *c, const uint8_t **payload, uint32_t *size) noexcept nogil:
    # The next record, in one piece: RING_READY sets *payload (8-aligned, SHARED: copy once, then look) and *size.
    # RING_EMPTY, RING_POISONED leave them alone. The record stays until ring_advance and ring_release; peeking again
    # gives the same answer without a second look at its header, which the peer may have changed meanwhile.
    cdef uint64_t offset, header, total, available
    if c.lie:
        return RING_POISONED
    if c.record_total:
        payload[0] = c.data + (c.consumed & (c.capacity - 1)) + RECORD_HEADER_SIZE
        size[0] = c.record_size
        return RING_READY
    while True:
        available = c.produced_seen - c.consumed
        if available == 0:
            if ring_look_for_records(c) == RING_POISONED:
                return RING_POISONED
            available = c.produced_seen - c.consumed
            if available == 0:
                return RING_EMPTY
        offset = c.consumed & (c.capacity - 1)
        header = eos_load_relaxed(<const uint64_t *>(c.data + offset))
        if header >> 32:
            c.lie = LIE_RECORD_ZERO_WORD
            return RING_POISONED
        if header == <uint64_t>RECORD_PADDING:
            # A producer pads only before a record that did not fit, never a whole ring, and publishes both together.
            if offset == 0 or c.capacity - offset >= available:
                c.lie = LIE_PADDING
                return RING_POISONED
            c.consumed += c.capacity - offset
            continue
        if header > ring_record_size_max(c.capacity):
            c.lie = LIE_RECORD_SIZE
            return RING_POISONED
        total = ring_record_total(<uint32_t>header)
        if total > available or total > c.capacity - offset:
            c.lie = LIE_RECORD_SIZE
            return RING_POISONED
        c.record_total = total
        c.record_size = <uint32_t>header
        payload[0] = c.data + offset + RECORD_HEADER_SIZE
        size[0] = <uint32_t>header
        return RING_READY

cdef inline void ring_advance(ring_consumer_t *c) noexcept nogil:
    # Done with the peeked record; its bytes may change as soon as they are released.
    c.consumed += c.record_total
    c.record_total = 0

cdef inline bint ring_release(ring_consumer_t *c) noexcept nogil:
    # Give the advanced bytes back. True: the producer waits for room and the caller owes it one ring of the doorbell.
    if c.released == c.consumed or c.lie:
        return False
    eos_store_release(c.consumed_word, c.consumed)
    c.released = c.consumed
    eos_fence()
    return eos_load_relaxed(c.producer_waits) != 0 and eos_exchange(c.producer_waits, 0) != 0

cdef inline int ring_arm(ring_consumer_t *c) noexcept nogil:
    # Before sleeping. RING_EMPTY: armed, sleep on the doorbell. RING_READY: records came meanwhile, do not sleep.
    # Release before sleeping: a producer that waits for the room we hold would wait as long as we do.
    if c.lie:
        return RING_POISONED
    eos_store_relaxed(c.consumer_waits, 1)
    eos_fence()
    if ring_look_for_records(c) == RING_POISONED:
        return RING_POISONED
    if c.produced_seen == c.consumed:
        return RING_EMPTY
    eos_store_relaxed(c.consumer_waits, 0)
    return RING_READY

cdef inline void ring_disarm(ring_consumer_t *c) noexcept nogil:
    # After waking for another reason: spare the producer a doorbell that nobody waits for.
    eos_store_relaxed(c.consumer_waits, 0)


# The Python classes of _ring.pyx, for natives that are handed one and use its C end. Single producer, single consumer
# means one thread each: whoever drives `ring` from C does not call the object's methods meanwhile.
@cython.final
cdef class Producer:
    cdef ring_producer_t ring
    cdef object _region     # a memoryview: keeps the mapping alive while we point into it
    cdef bint _owed         # a batch call published to a sleeping consumer: publish() will say so

@cython.final
cdef class Consumer:
    cdef ring_consumer_t ring
    cdef object _region
    cdef bint _owed
