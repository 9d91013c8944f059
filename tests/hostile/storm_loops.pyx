# The ring storm's two sides at C speed: a peer that rewrites every shared word, and the honest end that must survive it.
# Not part of the package.
#
# The peer mixes three kinds of lies, since pure noise is refused at the first look and tests nothing behind it:
# noise (any value, anywhere), plausible lies (boundary values near the real cursors, sizes near the limits), and an
# almost honest peer that produces or consumes correctly and flips a word a moment later (threat-model.md RG1 to RG4).
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from enclave_os._codec cimport frame_allowed, frame_decode, frame_t, rpc_request_decode, rpc_request_t
from enclave_os._limits cimport FRAME_HEADER_SIZE, RING_HEADER_SIZE, RPC_HEADER_SIZE
from enclave_os._native cimport (
    eos_copy_in, eos_copy_out, eos_load_acquire, eos_load_relaxed, eos_monotonic_ns, eos_store_relaxed,
    eos_store_release,
)
from enclave_os._ring cimport *

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_NONE
    enum: PROT_READ
    enum: PROT_WRITE
    enum: MAP_PRIVATE
    enum: MAP_ANONYMOUS
    enum: MAP_SHARED
    enum: MAP_FIXED
    void *MAP_FAILED
    void *mmap(void *address, size_t size, int protection, int flags, int descriptor, long offset)
    int munmap(void *address, size_t size)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    PAGE = 4096
    # One shared page before the ring is the storm's own: the peer leaves it alone, the honest side trusts it.
    STOP_WORD = 0
    PEER_EVENTS_WORD = 1
    START_WORD = 2          # where the honest end starts; valid for the restart that GENERATION_WORD counts
    GENERATION_WORD = 3
    LIES = LIE_LAST + 1


cdef class Mapping:
    """A file mapped between two inaccessible pages: one byte out of the ring is a fault, not luck.

    Layout: storm page, ring header at the end of the second page, ring data up to the very end.
    """
    cdef uint8_t *reserved
    cdef uint8_t *base
    cdef size_t size
    cdef readonly uint64_t capacity

    def __cinit__(self, int descriptor, uint64_t capacity):
        self.capacity = capacity
        self.size = 2 * PAGE + capacity
        self.reserved = <uint8_t *>mmap(NULL, self.size + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if <void *>self.reserved == MAP_FAILED:
            self.reserved = NULL
            raise MemoryError
        self.base = <uint8_t *>mmap(self.reserved + PAGE, self.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                                    descriptor, 0)
        if <void *>self.base == MAP_FAILED:
            raise MemoryError

    def __dealloc__(self):
        if self.reserved != NULL:
            munmap(self.reserved, self.size + 2 * PAGE)

    def stop(self):
        """Ask the peer's process to end."""
        eos_store_release(<uint64_t *>self.base + STOP_WORD, 1)

    @property
    def peer_events(self):
        """Shared words that the peer has rewritten so far."""
        return eos_load_acquire(<uint64_t *>self.base + PEER_EVENTS_WORD)


cdef inline uint64_t draw(uint64_t *state) noexcept nogil:
    # xorshift64* (Vigna 2016).
    state[0] ^= state[0] >> 12
    state[0] ^= state[0] << 25
    state[0] ^= state[0] >> 27
    return state[0] * <uint64_t>0x2545F4914F6CDD1D

cdef inline uint64_t plausible(uint64_t random, uint64_t capacity, uint64_t cursor) noexcept nogil:
    # RG1's and RG3's values, near `cursor` or near the limits of a size.
    cdef uint64_t kind = random & 31, near = (random >> 5) & (2 * capacity - 1)
    if kind < 8:
        return cursor + (near & ~<uint64_t>7)
    if kind < 12:
        return cursor - (near & ~<uint64_t>7)
    if kind < 20:
        return near
    if kind == 20:
        return 0
    if kind == 21:
        return <uint64_t>1 << 31
    if kind == 22:
        return <uint64_t>1 << 63
    if kind == 23:
        return <uint64_t>-1
    if kind == 24:
        return RECORD_PADDING
    if kind == 25:
        return capacity + ((random >> 5) % 3) - 1
    if kind == 26:
        return cursor + ((random >> 5) % 3) - 1
    if kind == 27:
        return capacity // 2 - 8 + ((random >> 5) % 3) - 1
    if kind == 28:
        return cursor + capacity
    if kind == 29:
        return (random >> 5) & 0xFF
    return random

def peer(Mapping mapping not None, uint64_t seed, uint32_t noise_in, bint produces):
    """Rewrite shared words at full speed until told to stop. One event is one word.

    Args:
        noise_in: one step in `noise_in` is a lie; in the others it plays its part by the contract, so that records flow.
        produces: its part: True, it feeds an honest consumer; False, it drains an honest producer.
    """
    cdef uint8_t *header = mapping.base + 2 * PAGE - RING_HEADER_SIZE
    cdef uint8_t *data = mapping.base + 2 * PAGE
    cdef uint64_t *shared = <uint64_t *>mapping.base
    cdef uint64_t *produced = <uint64_t *>(header + RING_PRODUCED_OFFSET)
    cdef uint64_t *consumed = <uint64_t *>(header + RING_CONSUMED_OFFSET)
    cdef uint64_t *word
    cdef uint64_t capacity = mapping.capacity, events = 0, state = seed | 1, generation = 0, cursor = 0, steps = 0, stuck = 0
    cdef uint64_t random, at, size, total, skip, used, other, flicker
    with nogil:
        while True:
            steps += 1
            if steps & 63 == 0:
                eos_store_release(shared + PEER_EVENTS_WORD, events)
                if eos_load_acquire(shared + STOP_WORD):
                    break
            if eos_load_acquire(shared + GENERATION_WORD) != generation:
                # The honest end started over.
                generation = eos_load_acquire(shared + GENERATION_WORD)
                cursor = eos_load_acquire(shared + START_WORD)
            random = draw(&state)
            if random % noise_in == 0:
                random = draw(&state)
                # The four header words are chosen as often as all the data.
                if random & 1:
                    word = <uint64_t *>header + 16 * ((random >> 1) & 3)
                else:
                    word = <uint64_t *>data + ((random >> 1) & (capacity // 8 - 1))
                eos_store_relaxed(word, plausible(draw(&state), capacity, cursor))
                events += 1
            elif produces:
                at = cursor & (capacity - 1)
                size = (random >> 8) & (0xFF if random & <uint64_t>0xF0000000 else 0x3FFF)
                total = 8 + ((size + 7) & ~<uint64_t>7)
                skip = capacity - at if capacity - at < total else 0
                used = cursor - eos_load_acquire(consumed)
                if used + skip + total > capacity and used <= capacity:
                    stuck += 1
                    if stuck & 0xFF == 0:
                        sched_yield()       # the two may share one core
                    if stuck & 0x3FFF:
                        continue
                # Room, or one of our lies stands in the consumer's word: then it is taken for drained, and may object.
                if skip:
                    eos_store_relaxed(<uint64_t *>(data + at), RECORD_PADDING)
                    at = 0
                    events += 1
                eos_store_relaxed(<uint64_t *>(data + at), size)
                cursor += skip + total
                eos_store_release(produced, cursor)
                # Now and then the header flickers between the truth and a lie right after it was published, and ends
                # with the truth: a double fetch would see both.
                if (random >> 32) & 15 == 0:
                    other = plausible(draw(&state), capacity, size)
                    for flicker in range((random >> 36) & 63):
                        eos_store_relaxed(<uint64_t *>(data + at), other)
                        eos_store_relaxed(<uint64_t *>(data + at), size)
                        events += 2
                eos_store_relaxed(<uint64_t *>(header + RING_CONSUMER_WAITS_OFFSET), random)
                events += 3
            else:
                # What is read here may be another lie of ours: then the honest end hears it.
                random = eos_load_acquire(produced)
                if random == cursor:
                    stuck += 1
                    if stuck & 0xFF == 0:
                        sched_yield()
                else:
                    cursor = random
                    eos_store_release(consumed, cursor)
                    eos_store_relaxed(<uint64_t *>(header + RING_PRODUCER_WAITS_OFFSET), random)
                    events += 2
        eos_store_release(shared + PEER_EVENTS_WORD, events)
    return events


cdef inline void restart(uint8_t *base, uint64_t start, uint64_t generation) noexcept nogil:
    cdef uint8_t *header = base + 2 * PAGE - RING_HEADER_SIZE
    eos_store_release(<uint64_t *>(header + RING_CONSUMED_OFFSET), start)
    eos_store_release(<uint64_t *>(header + RING_PRODUCED_OFFSET), start)
    eos_store_release(<uint64_t *>base + START_WORD, start)
    eos_store_release(<uint64_t *>base + GENERATION_WORD, generation)

cdef inline bint enough(uint8_t *base, uint64_t attaches, uint64_t calls, uint64_t events,
                        uint64_t until_ns) noexcept nogil:
    # Also a few lives: without them nothing was told about what comes after a lie.
    if attaches > 16 and calls >= events and eos_load_acquire(<uint64_t *>base + PEER_EVENTS_WORD) >= events:
        return True
    return eos_monotonic_ns() > until_ns

def honest_consumer(Mapping mapping not None, uint64_t seed, uint64_t events, uint64_t until_ns):
    """Consume from the lying peer until `events` calls were made and as many words rewritten, or the time is up.

    A poisoned end is replaced by a fresh one at a random cursor, as a restarted worker would be.
    Returns: (calls made, records taken, bytes taken, attaches, list of counts by lie, what went wrong or None).
    """
    cdef uint8_t *header = mapping.base + 2 * PAGE - RING_HEADER_SIZE
    cdef uint8_t *data = mapping.base + 2 * PAGE
    cdef uint64_t capacity = mapping.capacity, state = seed | 1, start, calls = 0, records = 0, taken = 0, attaches = 0
    cdef uint64_t idle = 0
    cdef uint64_t lies[LIES]
    cdef uint64_t header_words[2]
    cdef ring_consumer_t c
    cdef frame_t frame
    cdef rpc_request_t request
    cdef const uint8_t *payload = NULL
    cdef uint32_t size = 0, size_max = ring_record_size_max(capacity)
    cdef uint64_t fill
    cdef int result = 0
    cdef const char *wrong = NULL
    # Exactly as large as a record may be: a byte more is AddressSanitizer's to find.
    cdef uint8_t *copy = <uint8_t *>malloc(size_max)
    if copy == NULL:
        raise MemoryError
    memset(lies, 0, sizeof(lies))
    with nogil:
        while wrong == NULL:
            start = draw(&state) & ~<uint64_t>7
            if start & 0x70 == 0:
                start = <uint64_t>0 - (start & 0xFF8)
            attaches += 1
            restart(mapping.base, start, attaches)
            if ring_consumer_attach(&c, header, data, capacity):
                lies[c.lie] += 1
                calls += 1
            while not c.lie and wrong == NULL:
                calls += 1
                if calls & 0xFFFF == 0 and enough(mapping.base, attaches, calls, events, until_ns):
                    break
                result = ring_peek(&c, &payload, &size)
                if result == RING_READY:
                    if payload < data or size > size_max or payload + size > data + capacity:
                        wrong = b"a record outside the ring"
                        break
                    eos_copy_in(copy, payload, size)
                    if size >= FRAME_HEADER_SIZE:
                        eos_copy_in(<uint8_t *>header_words, payload, 8)
                        if frame_decode(header_words[0], &frame):
                            frame_allowed(&frame, size - FRAME_HEADER_SIZE, True)
                    if size >= RPC_HEADER_SIZE:
                        eos_copy_in(<uint8_t *>header_words, payload, 16)
                        if rpc_request_decode(header_words[0], header_words[1], size, &request):
                            if request.size != size - RPC_HEADER_SIZE:
                                wrong = b"an RPC size that is not the record's"
                    records += 1
                    taken += size
                    ring_advance(&c)
                elif result == RING_EMPTY:
                    ring_release(&c)
                    if ring_arm(&c) == RING_EMPTY:
                        ring_disarm(&c)
                    idle += 1
                    if idle & 0xFFF == 0:
                        sched_yield()
                elif result != RING_POISONED:
                    wrong = b"an unknown result"
                if calls & 7 == 0:
                    ring_release(&c)
                fill = c.produced_seen - c.released
                if not c.lie and (fill > capacity or c.produced_seen - c.consumed > fill):
                    wrong = b"the invariant does not hold"
            lies[c.lie] += c.lie != 0
            if enough(mapping.base, attaches, calls, events, until_ns):
                break
    free(copy)
    return calls, records, taken, attaches, [lies[k] for k in range(LIES)], None if wrong == NULL else wrong.decode()

def honest_producer(Mapping mapping not None, uint64_t seed, uint64_t events, uint64_t until_ns, bint wordwise):
    """Produce for the lying peer; terms as for `honest_consumer`.

    Returns: (calls made, records committed, bytes committed, attaches, list of counts by lie, what went wrong or None).
    """
    cdef uint8_t *header = mapping.base + 2 * PAGE - RING_HEADER_SIZE
    cdef uint8_t *data = mapping.base + 2 * PAGE
    cdef uint64_t capacity = mapping.capacity, state = seed | 1, start, calls = 0, records = 0, given = 0, attaches = 0
    cdef uint64_t idle = 0
    cdef uint64_t lies[LIES]
    cdef ring_producer_t p
    cdef uint8_t *payload = NULL
    cdef uint32_t size, size_max = ring_record_size_max(capacity)
    cdef int result = 0
    cdef const char *wrong = NULL
    cdef uint8_t *source = <uint8_t *>malloc(size_max)
    if source == NULL:
        raise MemoryError
    memset(source, 0x5A, size_max)
    memset(lies, 0, sizeof(lies))
    with nogil:
        while wrong == NULL:
            start = draw(&state) & ~<uint64_t>7
            if start & 0x70 == 0:
                start = <uint64_t>0 - (start & 0xFF8)
            attaches += 1
            restart(mapping.base, start, attaches)
            if ring_producer_attach(&p, header, data, capacity, wordwise):
                lies[p.lie] += 1
                calls += 1
            while not p.lie and wrong == NULL:
                calls += 1
                if calls & 0xFFFF == 0 and enough(mapping.base, attaches, calls, events, until_ns):
                    break
                size = <uint32_t>(draw(&state) % 600 if calls & 15 else draw(&state) % (<uint64_t>size_max + 1))
                result = ring_claim(&p, size, &payload)
                if result == RING_READY:
                    if payload < data or payload + size > data + capacity:
                        wrong = b"a claim outside the ring"
                        break
                    eos_copy_out(payload, source, size)
                    ring_commit(&p, size)
                    records += 1
                    given += size
                elif result == RING_FULL:
                    ring_publish(&p)
                    result = ring_wait_for_room(&p, size)
                    idle += 1
                    if idle & 0xFFF == 0:
                        sched_yield()
                elif result != RING_POISONED:
                    wrong = b"an unknown result"
                if calls & 3 == 0:
                    ring_publish(&p)
                if not p.lie and p.produced - p.consumed_seen > capacity:
                    wrong = b"the invariant does not hold"
            lies[p.lie] += p.lie != 0
            if enough(mapping.base, attaches, calls, events, until_ns):
                break
    free(source)
    return calls, records, given, attaches, [lies[k] for k in range(LIES)], None if wrong == NULL else wrong.decode()
