# The ring's two ends for Python; layout, invariant, memory order and the C interface are in _ring.pxd.
#
# Who owns what: the region belongs to whoever mapped it; an end holds an exported buffer of it, so the mapping cannot
# be closed under the end's pointers. An end is used by one thread at a time. Nothing here waits, and nothing allocates
# more than the one `bytes` per record that it returns.
#
# Cost: about 40 ns a call, so take and give records in batches: produce_many, consume_many.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_GET_BUFFER
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from enclave_os._limits cimport RING_CAPACITY_FLOOR, RING_CAPACITY_MAX, RING_CAPACITY_MIN, RING_HEADER_SIZE
from enclave_os._native cimport (
    ENCLAVE_OS_DEBUG, eos_copy_in, eos_copy_out, eos_debug_loads, eos_debug_stores, eos_store_release,
)

READY = RING_READY
EMPTY = RING_EMPTY
FULL = RING_FULL
DEBUG_BUILD = bool(ENCLAVE_OS_DEBUG)


# -- geometry ---------------------------------------------------------------------------------------------------------

cdef object _borrow(object region):
    view = memoryview(region)
    if view.readonly or not view.c_contiguous:
        raise UsageError("a ring needs a writable, contiguous region")
    return view


cdef uint8_t *_at(object view, object offset, object size, str what) except NULL:
    cdef uint8_t *base = <uint8_t *>PyMemoryView_GET_BUFFER(view).buf
    if not isinstance(offset, int) or not 0 <= offset <= view.nbytes or size > view.nbytes - offset:
        raise UsageError(f"{what}: {size} bytes at {offset!r} leave the region of {view.nbytes} bytes")
    if (<uintptr_t>base + <uintptr_t>offset) & 7:
        raise UsageError(f"{what} is not 8-aligned")
    return base + <size_t>offset


cdef int _check_geometry(object header_offset, object data_offset, object capacity, object capacity_min) except -1:
    if not isinstance(capacity, int) or not isinstance(capacity_min, int) or capacity_min < RING_CAPACITY_FLOOR:
        raise UsageError("a ring's capacity is an integer, and its minimum at least 64")
    if not capacity_min <= capacity <= RING_CAPACITY_MAX or capacity & (capacity - 1):
        raise UsageError(f"capacity {capacity} is not a power of two in {capacity_min} .. {RING_CAPACITY_MAX}")
    if header_offset < data_offset + capacity and data_offset < header_offset + RING_HEADER_SIZE:
        raise UsageError("a ring's header lies in its data")
    return 0


def create_ring(region not None, header_offset, start=0):
    """Write a fresh ring header: both cursors at `start`, nobody waits. Before either end attaches; host only.

    Args:
        region: writable buffer, normally the mmap of the region; borrowed for the call.
        header_offset: where the 512 header bytes start; the address must be 8-aligned.
        start: position of both cursors, a multiple of 8 below 2**64; 0 but for tests of the wrap.
    Raises: UsageError.
    """
    view = _borrow(region)
    cdef uint8_t *header = _at(view, header_offset, RING_HEADER_SIZE, "the ring's header")
    if not isinstance(start, int) or not 0 <= start < 1 << 64 or start & 7:
        raise UsageError(f"a cursor cannot start at {start!r}")
    eos_store_release(<uint64_t *>(header + RING_CONSUMER_WAITS_OFFSET), 0)
    eos_store_release(<uint64_t *>(header + RING_PRODUCER_WAITS_OFFSET), 0)
    eos_store_release(<uint64_t *>(header + RING_CONSUMED_OFFSET), <uint64_t>start)
    eos_store_release(<uint64_t *>(header + RING_PRODUCED_OFFSET), <uint64_t>start)


def shared_accesses():
    """Words of shared memory (loaded, stored) through `Producer` and `Consumer` objects; (0, 0) in the fast build."""
    return eos_debug_loads(), eos_debug_stores()


# -- producer ---------------------------------------------------------------------------------------------------------

@cython.final
cdef class Producer:
    """The end of a ring that writes records.

    Args:
        region: writable buffer, borrowed for the life of this object.
        header_offset: bytes from the region's start to the ring's header.
        data_offset: bytes from the region's start to its data.
        capacity: bytes of data, a power of two in capacity_min .. 2**30.
        wordwise: True on the enclave's side: only aligned 8-byte stores leave it (INTEL-SA-00615).
        capacity_min: only tests lower it, down to 64.
    Raises:
        UsageError: the geometry is impossible.
        PeerProtocolError: the shared cursors differ, or are not multiples of 8.
    """

    def __cinit__(self, region not None, header_offset, data_offset, capacity, bint wordwise,
                  *, capacity_min=RING_CAPACITY_MIN):
        self._region = _borrow(region)
        cdef uint8_t *header = _at(self._region, header_offset, RING_HEADER_SIZE, "the ring's header")
        cdef uint8_t *data = _at(self._region, data_offset, capacity, "the ring's data")
        _check_geometry(header_offset, data_offset, capacity, capacity_min)
        if ring_producer_attach(&self.ring, header, data, capacity, wordwise):
            raise PeerProtocolError(self.ring.lie)

    @property
    def capacity(self):
        """Bytes of ring data, as it was at attach."""
        return self.ring.capacity

    @property
    def record_size_max(self):
        """The largest payload of one record, in bytes."""
        return ring_record_size_max(self.ring.capacity)

    @property
    def produced(self):
        """Position after the last commit; u64, free-running, private."""
        return self.ring.produced

    @property
    def published(self):
        """Position that the peer was last shown."""
        return self.ring.published

    @property
    def consumed_seen(self):
        """The peer's cursor, as last accepted."""
        return self.ring.consumed_seen

    @property
    def poisoned(self):
        """Whether the peer broke the contract; for good."""
        return self.ring.lie != LIE_NONE

    @property
    def lie(self):
        """Which rule it broke: a `wire.errors.Lie` number, 0 while it is honest."""
        return self.ring.lie

    def try_claim(self, size):
        """Reserve `size` bytes for one record; nothing is visible until `commit` and `publish`.

        Args: size: payload bytes, 0 <= size <= record_size_max.
        Returns: READY, or FULL: try again when the consumer released.
        Raises: UsageError: size out of range, or a claim is already open. PeerProtocolError: poisoned.
        """
        cdef uint8_t *payload = NULL
        if self.ring.claimed:
            raise UsageError("a claim is already open")
        if not 0 <= size <= ring_record_size_max(self.ring.capacity):
            raise UsageError(f"no record of this ring has {size} bytes")
        cdef int result = ring_claim(&self.ring, <uint32_t>size, &payload)
        if result == RING_POISONED:
            raise PeerProtocolError(self.ring.lie)
        return result

    def write(self, position, bytes data not None):
        """Copy `data` into the open claim, `position` bytes after the start of its payload.

        On the enclave's side a copy is padded with zeros to 8 bytes, so `position` is a multiple of 8 and pieces go up.
        Raises: UsageError: no claim is open, or `data` does not fit it. PeerProtocolError: poisoned.
        """
        cdef uint8_t *payload
        if self.ring.lie:
            raise PeerProtocolError(self.ring.lie)
        if not self.ring.claimed:
            raise UsageError("no claim is open")
        if not 0 <= position <= self.ring.claim_size - PyBytes_GET_SIZE(data) or position & 7:
            raise UsageError(f"{len(data)} bytes at {position} do not fit the claim of {self.ring.claim_size}")
        payload = ring_claimed_payload(&self.ring) + <size_t>position
        _copy_out(&self.ring, payload, data)

    def commit(self, size=None):
        """Close the claim with its first `size` bytes (default: all); visible after `publish`.

        Raises: UsageError: no claim is open, or size is larger than claimed. PeerProtocolError: poisoned.
        """
        if self.ring.lie:
            raise PeerProtocolError(self.ring.lie)
        if not self.ring.claimed:
            raise UsageError("no claim is open")
        if size is None:
            size = self.ring.claim_size
        if not 0 <= size <= self.ring.claim_size:
            raise UsageError(f"{size} bytes were not claimed")
        ring_commit(&self.ring, <uint32_t>size)

    def abort(self):
        """Give the open claim back; nothing happened. Raises: UsageError: no claim is open."""
        if not self.ring.claimed:
            raise UsageError("no claim is open")
        ring_abort(&self.ring)

    def produce(self, bytes payload not None):
        """Copy and commit one record; visible after `publish`.

        Returns: READY, or FULL.
        Raises: UsageError: larger than record_size_max, or a claim is open. PeerProtocolError: poisoned.
        """
        if self.ring.claimed:
            raise UsageError("a claim is already open")
        cdef int result = _produce(&self.ring, payload)
        if result == RING_TOO_BIG:
            raise UsageError(f"no record of this ring has {len(payload)} bytes")
        if result == RING_POISONED:
            raise PeerProtocolError(self.ring.lie)
        return result

    def produce_many(self, list payloads not None):
        """Commit and publish records, in order, until all are in or the ring is full.

        Ask `publish()` afterwards whether the consumer is owed a doorbell.
        Args: payloads: `bytes` objects, each at most record_size_max.
        Returns: how many are published, 0 <= count <= len(payloads); fewer means full.
        Raises: UsageError: one is too large (then none is published), or a claim is open. PeerProtocolError: poisoned.
        """
        cdef Py_ssize_t index, count = len(payloads)
        cdef uint32_t size_max = ring_record_size_max(self.ring.capacity)
        cdef int result
        if self.ring.claimed:
            raise UsageError("a claim is already open")
        for index in range(count):
            payload = payloads[index]
            if type(payload) is not bytes:
                raise UsageError(f"a record is bytes, not {type(payload).__name__}")
            if PyBytes_GET_SIZE(payload) > size_max:
                raise UsageError(f"no record of this ring has {len(payload)} bytes")
        for index in range(count):
            result = _produce(&self.ring, <bytes>payloads[index])
            if result == RING_POISONED:
                raise PeerProtocolError(self.ring.lie)
            if result != RING_READY:
                count = index
                break
        if ring_publish(&self.ring):
            self._owed = True
        return count

    def publish(self):
        """Make all commits visible.

        Returns: True when this, or a batch call since the last time, published to a sleeping consumer: the caller
            owes it one ring of the doorbell, and is told once.
        Raises: PeerProtocolError: poisoned.
        """
        cdef bint owed = self._owed
        if self.ring.lie:
            raise PeerProtocolError(self.ring.lie)
        self._owed = False
        return ring_publish(&self.ring) or owed

    def wait_for_room(self, size=0):
        """Before sleeping because the ring is full: ask the consumer to ring when it releases.

        Publish first, or the consumer may have nothing to release.
        Args: size: payload bytes of the record that wants in.
        Returns: FULL: asked, sleep on the doorbell. READY: room came meanwhile, do not sleep.
        Raises: UsageError: size out of range, or something is not published. PeerProtocolError: poisoned.
        """
        if not 0 <= size <= ring_record_size_max(self.ring.capacity):
            raise UsageError(f"no record of this ring has {size} bytes")
        if self.ring.published != self.ring.produced:
            raise UsageError("publish before waiting for room")
        cdef int result = ring_wait_for_room(&self.ring, <uint32_t>size)
        if result == RING_POISONED:
            raise PeerProtocolError(self.ring.lie)
        return result


cdef inline void _copy_out(ring_producer_t *ring, uint8_t *to, bytes data) noexcept:
    cdef const uint8_t *source = <const uint8_t *>PyBytes_AS_STRING(data)
    if ring.wordwise:
        eos_copy_out(to, source, <size_t>PyBytes_GET_SIZE(data))
    else:
        memcpy(to, source, <size_t>PyBytes_GET_SIZE(data))


cdef inline int _produce(ring_producer_t *ring, bytes payload) noexcept:
    # RING_READY, RING_FULL, RING_TOO_BIG or RING_POISONED.
    cdef uint8_t *to = NULL
    cdef int result
    if PyBytes_GET_SIZE(payload) > ring_record_size_max(ring.capacity):
        return RING_TOO_BIG
    result = ring_claim(ring, <uint32_t>PyBytes_GET_SIZE(payload), &to)
    if result == RING_READY:
        _copy_out(ring, to, payload)
        ring_commit(ring, <uint32_t>PyBytes_GET_SIZE(payload))
    return result


# -- consumer ---------------------------------------------------------------------------------------------------------

@cython.final
cdef class Consumer:
    """The end of a ring that takes records.

    Args:
        region: writable buffer (the consumer's cursor is shared too), borrowed for the life of this object.
        header_offset: bytes from the region's start to the ring's header.
        data_offset: bytes from the region's start to its data.
        capacity: bytes of data, a power of two in capacity_min .. 2**30.
        capacity_min: only tests lower it, down to 64.
    Raises:
        UsageError: the geometry is impossible.
        PeerProtocolError: the shared cursors differ, or are not multiples of 8.
    """

    def __cinit__(self, region not None, header_offset, data_offset, capacity, *, capacity_min=RING_CAPACITY_MIN):
        self._region = _borrow(region)
        cdef uint8_t *header = _at(self._region, header_offset, RING_HEADER_SIZE, "the ring's header")
        cdef uint8_t *data = _at(self._region, data_offset, capacity, "the ring's data")
        _check_geometry(header_offset, data_offset, capacity, capacity_min)
        if ring_consumer_attach(&self.ring, header, data, capacity):
            raise PeerProtocolError(self.ring.lie)

    @property
    def capacity(self):
        """Bytes of ring data, as it was at attach."""
        return self.ring.capacity

    @property
    def record_size_max(self):
        """The largest payload of one record, in bytes."""
        return ring_record_size_max(self.ring.capacity)

    @property
    def consumed(self):
        """Position after the last record taken; u64, free-running, private."""
        return self.ring.consumed

    @property
    def released(self):
        """Position that the peer was last shown."""
        return self.ring.released

    @property
    def produced_seen(self):
        """The peer's cursor, as last accepted."""
        return self.ring.produced_seen

    @property
    def poisoned(self):
        """Whether the peer broke the contract; for good."""
        return self.ring.lie != LIE_NONE

    @property
    def lie(self):
        """Which rule it broke: a `wire.errors.Lie` number, 0 while it is honest."""
        return self.ring.lie

    def poison(self, int lie):
        """Declare the peer a liar for what a record's content said (`Lie.FRAME`, ...); for good.

        The first accusation stays. Raises: UsageError: not the number of a lie.
        """
        if not LIE_NONE < lie <= LIE_LAST:
            raise UsageError(f"{lie} is not a lie")
        if not self.ring.lie:
            self.ring.lie = lie

    def peek(self):
        """A private copy of the next record's payload, which stays; None when the ring is empty.

        Raises: PeerProtocolError: poisoned.
        """
        cdef const uint8_t *payload = NULL
        cdef uint32_t size = 0
        cdef int result = ring_peek(&self.ring, &payload, &size)
        if result == RING_POISONED:
            raise PeerProtocolError(self.ring.lie)
        if result == RING_EMPTY:
            return None
        return _copy_in(payload, size)

    def advance(self):
        """Done with the peeked record; its room goes back with `release`. Raises: UsageError: none was peeked."""
        if not self.ring.record_total:
            raise UsageError("no record was peeked")
        ring_advance(&self.ring)

    def consume(self):
        """A private copy of the next record's payload, taken; None when the ring is empty.

        Its room goes back with `release`. Raises: PeerProtocolError: poisoned.
        """
        payload = self.peek()
        if payload is not None:
            ring_advance(&self.ring)
        return payload

    def consume_many(self, Py_ssize_t max_count, Py_ssize_t max_bytes, record_max=None):
        """Take and release a bounded number of records.

        Ask `release()` afterwards whether the producer is owed a doorbell.
        Args:
            max_count: at most this many records, >= 1.
            max_bytes: stop before the record that would exceed this sum of payloads; the first is taken regardless.
            record_max: the largest payload that the protocol above allows; a larger one is a lie (default: the ring's).
        Returns: private copies in order; empty when the ring is.
        Raises: UsageError: max_count < 1 or max_bytes < 0. PeerProtocolError: poisoned; what this call had taken is
            lost with the ring.
        """
        cdef const uint8_t *payload = NULL
        cdef uint32_t size = 0, size_max = ring_record_size_max(self.ring.capacity)
        cdef Py_ssize_t count = 0, total = 0
        cdef int result
        cdef list records = []
        if max_count < 1 or max_bytes < 0:
            raise UsageError("a turn takes at least one record")
        if record_max is not None:
            if record_max < 0:
                raise UsageError("a record has no negative size")
            size_max = min(size_max, record_max)
        while count < max_count:
            result = ring_peek(&self.ring, &payload, &size)
            if result == RING_EMPTY:
                break
            if result == RING_READY and size > size_max:
                self.ring.lie = LIE_RECORD_SIZE
                result = RING_POISONED
            if result == RING_POISONED:
                raise PeerProtocolError(self.ring.lie)
            if count and total + <Py_ssize_t>size > max_bytes:
                break
            records.append(_copy_in(payload, size))
            ring_advance(&self.ring)
            total += size
            count += 1
        if ring_release(&self.ring):
            self._owed = True
        return records

    def release(self):
        """Give the room of taken records back.

        Returns: True when this, or a batch call since the last time, released to a producer that waits for room: the
            caller owes it one ring of the doorbell, and is told once.
        Raises: PeerProtocolError: poisoned.
        """
        cdef bint owed = self._owed
        if self.ring.lie:
            raise PeerProtocolError(self.ring.lie)
        self._owed = False
        return ring_release(&self.ring) or owed

    def arm(self):
        """Before sleeping: say so to the producer, then look once more.

        Release first, or a producer that waits for that room sleeps as well.
        Returns: EMPTY: armed, sleep on the doorbell. READY: records came meanwhile, do not sleep.
        Raises: UsageError: something is not released. PeerProtocolError: poisoned.
        """
        if self.ring.released != self.ring.consumed and not self.ring.lie:
            raise UsageError("release before sleeping")
        cdef int result = ring_arm(&self.ring)
        if result == RING_POISONED:
            raise PeerProtocolError(self.ring.lie)
        return result

    def disarm(self):
        """After waking for another reason: spare the producer a doorbell that nobody waits for."""
        ring_disarm(&self.ring)


cdef inline bytes _copy_in(const uint8_t *shared, uint32_t size):
    cdef bytes copy = PyBytes_FromStringAndSize(NULL, size)
    eos_copy_in(<uint8_t *>PyBytes_AS_STRING(copy), shared, size)
    return copy


# Last, because the door `wire/__init__` imports this module, and a native that cimports `_ring.pxd` may be the first to
# import it: then the classes above must already exist when the import below goes through the door and back.
from enclave_os.wire.errors import PeerProtocolError, UsageError
