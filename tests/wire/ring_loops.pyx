# C-speed loops over the ring's C interface, for tests/wire. Not part of the package.
#
# Payloads are not stored but made: word j of record i is mix(seed, i, j), and so is its size, so that the consumer in
# the other process checks every byte from the seed alone.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport read, write

from enclave_os._limits cimport RING_HEADER_SIZE as RING_HEADER_BYTES
from enclave_os._native cimport eos_copy_in, eos_copy_out
from enclave_os._ring cimport *

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum: POLLIN
    int poll(pollfd *fds, unsigned long count, int timeout_ms)

cdef enum:
    LOST_WAKEUP = -10       # slept for DEADLINE_MS with work waiting, or the peer died
    WRONG_BYTES = -11
    DEADLINE_MS = 30000


# -- made payloads ----------------------------------------------------------------------------------------------------

cdef inline uint64_t mix(uint64_t seed, uint64_t i, uint64_t j) noexcept nogil:
    # SplitMix64's finaliser (Steele, Lea, Flood 2014): enough to make a misplaced word visible.
    cdef uint64_t z = seed + i * <uint64_t>0x9E3779B97F4A7C15 + j * <uint64_t>0xD1B54A32D192ED03
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)

cdef inline uint32_t record_size(uint64_t seed, uint64_t i, uint32_t size_max) noexcept nogil:
    # Mostly small, one in 64 up to the maximum: padding, wrap and full rings all occur often.
    cdef uint64_t draw = mix(seed, i, <uint64_t>-1)
    if draw & 63:
        return <uint32_t>((draw >> 8) % (256 if size_max > 256 else size_max + 1))
    return <uint32_t>((draw >> 8) % (<uint64_t>size_max + 1))

cdef inline void fill(uint8_t *to, uint64_t seed, uint64_t i, uint32_t size) noexcept nogil:
    # Room for the last word is the caller's.
    cdef uint64_t j
    for j in range((size + 7) >> 3):
        (<uint64_t *>to)[j] = mix(seed, i, j)

cdef inline bint matches(const uint8_t *got, uint64_t seed, uint64_t i, uint32_t size) noexcept nogil:
    cdef uint64_t j, word
    for j in range(size >> 3):
        if (<const uint64_t *>got)[j] != mix(seed, i, j):
            return False
    if size & 7:
        word = mix(seed, i, size >> 3)
        return memcmp(got + (size & ~<uint32_t>7), &word, size & 7) == 0
    return True


# -- every offset x every size ----------------------------------------------------------------------------------------

def sweep(uint32_t capacity, uint64_t base, bint wordwise, uint32_t size_step=1):
    """One record of every size_step-th size at every start offset of a ring: exact bytes out, zeros behind, nothing beside.

    Cursors start at `base` + offset, so that a base just under 2**64 wraps them as well.
    Returns: (records checked, None) or (records checked, what was wrong).
    """
    cdef ring_producer_t p
    cdef ring_consumer_t c
    cdef uint32_t guard = 64, size, got_size = 0, size_max = ring_record_size_max(capacity), tail
    cdef uint64_t offset, checked = 0, start, k, fill_before
    cdef uint8_t *memory = <uint8_t *>malloc(RING_HEADER_BYTES + guard + capacity + guard + 8)
    cdef uint8_t *source = <uint8_t *>malloc(size_max + 8)
    cdef uint8_t *data
    cdef uint8_t *payload = NULL
    cdef const uint8_t *got = NULL
    cdef str wrong = None
    if memory == NULL or source == NULL:
        raise MemoryError
    data = memory + RING_HEADER_BYTES + guard
    try:
        for offset in range(0, capacity, 8):
            start = base + offset
            for size in range(0, size_max + 1, size_step):
                memset(memory, 0, RING_HEADER_BYTES)
                memset(data - guard, 0xAA, guard + capacity + guard)
                (<uint64_t *>(memory + RING_PRODUCED_OFFSET))[0] = start
                (<uint64_t *>(memory + RING_CONSUMED_OFFSET))[0] = start
                fill(source, start, size, size)
                if ring_producer_attach(&p, memory, data, capacity, wordwise) or \
                        ring_consumer_attach(&c, memory, data, capacity):
                    wrong = "attach"
                elif ring_claim(&p, size, &payload) != RING_READY:
                    wrong = "claim"
                elif payload < data or payload + size > data + capacity:
                    wrong = "claim outside the ring"
                else:
                    if wordwise:
                        eos_copy_out(payload, source, size)
                    else:
                        memcpy(payload, source, size)
                    ring_commit(&p, size)
                    if ring_peek(&c, &got, &got_size) != RING_EMPTY:
                        wrong = "visible before publish"
                    ring_publish(&p)
                    if ring_peek(&c, &got, &got_size) != RING_READY or got_size != size or got != payload:
                        wrong = "peek"
                    elif memcmp(got, source, size) != 0:
                        wrong = "bytes"
                    for tail in range(size, (size + 7) & ~<uint32_t>7):
                        if got[tail]:
                            wrong = "padding is not zero"
                    # Written: header, payload, its zeros, and the one word of a padding record. Nothing else.
                    fill_before = p.claim_skip
                    for k in range(capacity):
                        if data[k] != 0xAA and not (
                                <uint64_t>(payload - data) - 8 <= k < <uint64_t>(payload - data) + ((size + 7) & ~<uint32_t>7)
                                or (fill_before and offset <= k < offset + 8)):
                            wrong = "a write beside the record"
                            break
                    for k in range(guard):
                        if (data - guard)[k] != 0xAA or (data + capacity)[k] != 0xAA:
                            wrong = "a write beside the ring"
                    ring_advance(&c)
                    ring_release(&c)
                    if c.consumed != p.produced or ring_peek(&c, &got, &got_size) != RING_EMPTY:
                        wrong = "not empty after release"
                    if ring_look_for_room(&p) != RING_READY or p.consumed_seen != p.produced:
                        wrong = "room did not come back"
                if wrong is not None:
                    return checked, f"{wrong}: offset {offset}, size {size}, capacity {capacity}, base {base:#x}"
                checked += 1
    finally:
        free(memory)
        free(source)
    return checked, None


# -- two processes ----------------------------------------------------------------------------------------------------

cdef int sleep_on(int doorbell) noexcept nogil:
    # 0: rung. LOST_WAKEUP: nobody rang within the deadline, which no correct run comes near.
    cdef pollfd entry
    cdef uint64_t rung
    entry.fd, entry.events, entry.revents = doorbell, POLLIN, 0
    if poll(&entry, 1, DEADLINE_MS) != 1:
        return LOST_WAKEUP
    return 0 if read(doorbell, &rung, 8) == 8 else LOST_WAKEUP

cdef void ring_bell(int doorbell) noexcept nogil:
    cdef uint64_t one = 1
    write(doorbell, &one, 8)

def stream_out(Producer producer not None, uint64_t seed, uint64_t count, uint32_t size_max, uint32_t batch,
               int doorbell_consumer, int doorbell_producer):
    """Produce `count` made records, published every `batch`; sleeps on its eventfd when full.

    Returns: (result, doorbells rung, times slept); result is READY, or a negative reason.
    """
    cdef ring_producer_t *p = &producer.ring
    cdef uint64_t i, bells = 0, sleeps = 0
    cdef uint32_t size
    cdef int result = RING_READY
    cdef uint8_t *payload = NULL
    cdef uint8_t *source = <uint8_t *>malloc(size_max + 8)
    if source == NULL:
        raise MemoryError
    with nogil:
        for i in range(count):
            size = record_size(seed, i, size_max)
            fill(source, seed, i, size)
            while True:
                result = ring_claim(p, size, &payload)
                if result != RING_FULL:
                    break
                if ring_publish(p):
                    bells += 1
                    ring_bell(doorbell_consumer)
                result = ring_wait_for_room(p, size)
                if result == RING_FULL:
                    sleeps += 1
                    if sleep_on(doorbell_producer):
                        result = LOST_WAKEUP
                        break
                elif result != RING_READY:
                    break
            if result != RING_READY:
                break
            if p.wordwise:
                eos_copy_out(payload, source, size)
            else:
                memcpy(payload, source, size)
            ring_commit(p, size)
            if (i + 1) % batch == 0 and ring_publish(p):
                bells += 1
                ring_bell(doorbell_consumer)
        if ring_publish(p):
            bells += 1
            ring_bell(doorbell_consumer)
    free(source)
    return result, bells, sleeps

def stream_in(Consumer consumer not None, uint64_t seed, uint64_t count, uint32_t size_max, uint32_t batch,
              int doorbell_consumer, int doorbell_producer):
    """Consume `count` made records and check each byte; released every `batch`; sleeps on its eventfd when empty.

    Returns: (result, records taken, doorbells rung, times slept); result is READY, or a negative reason.
    """
    cdef ring_consumer_t *c = &consumer.ring
    cdef uint64_t i = 0, bells = 0, sleeps = 0
    cdef uint32_t size = 0
    cdef int result = RING_READY
    cdef const uint8_t *payload = NULL
    cdef uint8_t *copy = <uint8_t *>malloc(size_max + 8)
    if copy == NULL:
        raise MemoryError
    with nogil:
        while i < count:
            result = ring_peek(c, &payload, &size)
            if result == RING_EMPTY:
                if ring_release(c):
                    bells += 1
                    ring_bell(doorbell_producer)
                result = ring_arm(c)
                if result == RING_EMPTY:
                    sleeps += 1
                    if sleep_on(doorbell_consumer):
                        result = LOST_WAKEUP
                        break
                elif result != RING_READY:
                    break
                continue
            if result != RING_READY:
                break
            if size != record_size(seed, i, size_max):
                result = WRONG_BYTES
                break
            eos_copy_in(copy, payload, size)
            if not matches(copy, seed, i, size):
                result = WRONG_BYTES
                break
            ring_advance(c)
            i += 1
            if i % batch == 0 and ring_release(c):
                bells += 1
                ring_bell(doorbell_producer)
        if ring_release(c):
            bells += 1
            ring_bell(doorbell_producer)
    free(copy)
    return result, i, bells, sleeps
