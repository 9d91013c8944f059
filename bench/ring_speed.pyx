# C-speed loops over the C interfaces of ring and codec, for bench/bench_ring.py and bench/bench_codec.py. Not part of the package.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from enclave_os._codec cimport (
    frame_allowed, frame_decode, frame_t, frame_word, rpc_request_decode, rpc_request_t, rpc_request_word,
)
from enclave_os._native cimport eos_copy_in, eos_copy_out, eos_cpu_pause, eos_monotonic_ns
from enclave_os._ring cimport *

cdef enum:
    TOO_LATE = -10          # spun for DEADLINE_MS: the other process is gone
    DEADLINE_MS = 30000


def push_pop(Producer producer not None, Consumer consumer not None, uint32_t size, uint32_t batch, uint64_t count):
    """Push and pop `count` records of `size` bytes on this core, `batch` a publish. Returns nanoseconds a record."""
    cdef ring_producer_t *p = &producer.ring
    cdef ring_consumer_t *c = &consumer.ring
    cdef uint64_t done = 0, began
    cdef uint32_t k, got = 0
    cdef bint good = True
    cdef uint8_t *payload = NULL
    cdef const uint8_t *shared = NULL
    cdef uint8_t *source = <uint8_t *>malloc(2 * (<size_t>size + 8))
    if source == NULL:
        raise MemoryError
    memset(source, 0x5A, 2 * (<size_t>size + 8))
    with nogil:
        began = eos_monotonic_ns()
        while done < count and good:
            for k in range(batch):
                if ring_claim(p, size, &payload) != RING_READY:
                    good = False
                    break
                if p.wordwise:
                    eos_copy_out(payload, source, size)
                else:
                    memcpy(payload, source, size)
                ring_commit(p, size)
            ring_publish(p)
            while ring_peek(c, &shared, &got) == RING_READY:
                eos_copy_in(source + size + 8, shared, got)
                ring_advance(c)
                done += 1
            ring_release(c)
        began = eos_monotonic_ns() - began
    free(source)
    if not good:
        raise RuntimeError("the batch does not fit the ring")
    return began / <double>done

def spin_out(Producer producer not None, uint32_t size, uint64_t publish_bytes, uint64_t count):
    """Produce `count` records of `size` bytes for a consumer in another process, spinning. Returns a READY or a reason."""
    cdef ring_producer_t *p = &producer.ring
    cdef uint64_t i, until = eos_monotonic_ns() + <uint64_t>DEADLINE_MS * 1000000
    cdef int result = RING_READY
    cdef uint32_t turns = 0
    cdef uint8_t *payload = NULL
    cdef uint8_t *source = <uint8_t *>malloc(<size_t>size + 8)
    if source == NULL:
        raise MemoryError
    memset(source, 0x5A, <size_t>size + 8)
    with nogil:
        for i in range(count):
            while True:
                result = ring_claim(p, size, &payload)
                if result != RING_FULL:
                    break
                ring_publish(p)
                eos_cpu_pause()
                turns += 1
                if turns & 0xFFFF == 0 and eos_monotonic_ns() > until:
                    result = TOO_LATE
                    break
            if result != RING_READY:
                break
            if p.wordwise:
                eos_copy_out(payload, source, size)
            else:
                memcpy(payload, source, size)
            ring_commit(p, size)
            if p.produced - p.published >= publish_bytes:
                ring_publish(p)
        ring_publish(p)
    free(source)
    return result

def spin_in(Consumer consumer not None, uint64_t release_bytes, uint64_t count):
    """Take `count` records from a producer in another process, spinning.

    Returns: (result, nanoseconds a record after the first).
    """
    cdef ring_consumer_t *c = &consumer.ring
    cdef uint64_t i = 0, began = 0, until = eos_monotonic_ns() + <uint64_t>DEADLINE_MS * 1000000
    cdef int result = RING_READY
    cdef uint32_t size = 0, turns = 0
    cdef const uint8_t *payload = NULL
    cdef uint8_t *copy = <uint8_t *>malloc(ring_record_size_max(c.capacity) + 8)
    if copy == NULL:
        raise MemoryError
    with nogil:
        while i < count:
            result = ring_peek(c, &payload, &size)
            if result == RING_EMPTY:
                ring_release(c)
                eos_cpu_pause()
                turns += 1
                if turns & 0xFFFF == 0 and eos_monotonic_ns() > until:
                    result = TOO_LATE
                    break
                continue
            if result != RING_READY:
                break
            eos_copy_in(copy, payload, size)
            ring_advance(c)
            if i == 0:
                began = eos_monotonic_ns()
            i += 1
            if c.consumed - c.released >= release_bytes:
                ring_release(c)
        ring_release(c)
        began = eos_monotonic_ns() - began
    free(copy)
    return result, began / <double>(count - 1 if count > 1 else 1)

def ping(Producer producer not None, Consumer consumer not None, uint32_t size, uint64_t count):
    """`count` round trips of `size` bytes with `pong` in another process, both spinning. Returns ns a round trip."""
    return _turns(&producer.ring, &consumer.ring, size, count, True)

def pong(Producer producer not None, Consumer consumer not None, uint32_t size, uint64_t count):
    """The other end of `ping`."""
    return _turns(&producer.ring, &consumer.ring, size, count, False)

cdef double _turns(ring_producer_t *p, ring_consumer_t *c, uint32_t size, uint64_t count, bint first) except -1:
    cdef uint64_t i, began, until = eos_monotonic_ns() + <uint64_t>DEADLINE_MS * 1000000
    cdef uint32_t got = 0, turns = 0
    cdef int result = RING_READY
    cdef uint8_t *payload = NULL
    cdef const uint8_t *shared = NULL
    cdef uint8_t *copy = <uint8_t *>malloc(<size_t>ring_record_size_max(c.capacity) + 8)
    if copy == NULL:
        raise MemoryError
    memset(copy, 0x5A, size)
    with nogil:
        began = eos_monotonic_ns()
        for i in range(2 * count):
            if (i & 1) == (0 if first else 1):
                result = ring_claim(p, size, &payload)
                if result != RING_READY:
                    break
                if p.wordwise:
                    eos_copy_out(payload, copy, size)
                else:
                    memcpy(payload, copy, size)
                ring_commit(p, size)
                ring_publish(p)
            else:
                while True:
                    result = ring_peek(c, &shared, &got)
                    if result != RING_EMPTY:
                        break
                    eos_cpu_pause()
                    turns += 1
                    if turns & 0xFFFF == 0 and eos_monotonic_ns() > until:
                        result = TOO_LATE
                        break
                if result != RING_READY:
                    break
                eos_copy_in(copy, shared, got)
                ring_advance(c)
                ring_release(c)
        began = eos_monotonic_ns() - began
    free(copy)
    if result != RING_READY:
        raise RuntimeError(f"round trip ended with {result}")
    return began / <double>count


def frame_headers(uint64_t count):
    """Encode, decode and check `count` frame headers. Returns nanoseconds each."""
    cdef uint64_t i, began, good = 0
    cdef frame_t frame
    with nogil:
        began = eos_monotonic_ns()
        for i in range(count):
            if frame_decode(frame_word(<uint8_t>(i % 10 + 1), <uint32_t>i), &frame):
                good += frame_allowed(&frame, <uint32_t>(i & 3), True)
        began = eos_monotonic_ns() - began
    if good == 0:
        raise RuntimeError("no frame was good")
    return began / <double>count

def request_headers(uint64_t count):
    """Encode and decode `count` request headers. Returns nanoseconds each."""
    cdef uint64_t i, began, good = 0
    cdef rpc_request_t request
    with nogil:
        began = eos_monotonic_ns()
        for i in range(count):
            good += rpc_request_decode(i, rpc_request_word(<uint16_t>(i & 7), <uint32_t>(i & 255)), 116, &request)
        began = eos_monotonic_ns() - began
    if good == 0:
        raise RuntimeError("no header was good")
    return began / <double>count
