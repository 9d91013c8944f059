# One client connection inside the enclave: its memory, its way out to the ring, and its place in the deadline lists.
# Inlined into _ingress.pyx and its parts; _exchange.pyx holds the state machine. At its end, what a module sees of it,
# which is _connection.pyx.
#
# The way out. OpenSSL hands finished TLS records to `connection_sink`, which copies them into the outgoing ring: the one
# copy out of the enclave, in aligned words (eos_copy_out). OpenSSL never sees a pointer into shared memory. What the
# ring has no room for, or what the host asked us to keep back (PAUSE), waits in the connection's `out` buffer.
# Bound: the state machine stops writing as soon as `connection_blocked`, so `out` holds at most one handshake flight or
# one body piece (BODY_PIECE) with its records' overhead.
#
# The deadline lists. Members of one class all wait equally long, so each list is in the order of expiry by
# construction: appending is O(1), and only the first one can be due.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

from enclave_os._codec cimport FRAME_CLOSE, FRAME_DATA, FRAME_EOF, FRAME_PAUSE, FRAME_RESUME, frame_word
from enclave_os._limits cimport FRAME_HEADER_SIZE
from enclave_os._native cimport eos_copy_in, eos_copy_out, eos_fence, eos_store_relaxed
from enclave_os._ring cimport (
    RING_FULL, RING_POISONED, RING_READY, ring_claim, ring_commit, ring_look_for_room, ring_producer_t,
    ring_record_size_max, ring_wait_for_room,
)
from enclave_os._tls cimport tls_conn_t
from enclave_os.http._parser cimport http_parser_t

#   HANDSHAKE -> READING -> BUSY -> WRITING -> READING ...   and from each of them -> GONE
cdef enum phase_t:
    PHASE_HANDSHAKE     # TLS is not up yet
    PHASE_READING       # between requests, or inside one: parser.state says which
    PHASE_BUSY          # a module works on the request
    PHASE_WRITING       # an answer is partly out
    PHASE_GONE          # our CLOSE went out or is owed; a tombstone until the host's CLOSE

cdef enum:
    DEADLINE_NONE
    DEADLINE_HANDSHAKE
    DEADLINE_HEAD
    DEADLINE_BODY
    DEADLINE_WARM       # just answered: its TLS buffers are kept for the next request
    DEADLINE_IDLE       # the time since the last answer goes on; the buffers are gone
    DEADLINE_REQUEST
    DEADLINE_WRITE
    DEADLINE_COUNT

# Control frames that a full ring made us owe; sent before anything else of the connection, EOF and CLOSE after its bytes.
cdef enum owed_t:
    OWE_CLOSE = 1
    OWE_PAUSE = 2
    OWE_RESUME = 4
    OWE_EOF = 8

# Why a connection ends: wire.frames.CloseReason.
cdef enum:
    CLOSE_NORMAL = 0
    CLOSE_TIMEOUT = 2
    CLOSE_LIMIT = 3
    CLOSE_PROTOCOL = 4
    CLOSE_FLOOD = 5
    CLOSE_SHUTDOWN = 6
    CLOSE_INTERNAL = 8

# What connection_flush says.
cdef enum:
    FLUSHED = 0
    FLUSH_NO_ROOM = -1          # the ring is full: nobody else's bytes fit either
    FLUSH_PARKED = -2           # this connection's write window is full

cdef enum:
    # What one connection may have in the outgoing ring: at most two windows. So one big answer neither fills the ring
    # before the host's PAUSE can arrive, nor makes the others wait for all of it.
    WRITE_WINDOW = 131072
    # Connections that keep their TLS buffers (33 KiB each) between requests, as long as each has its next one soon. The
    # heap keeps what they leave, so this is memory for good: 4 MiB, where 1024 of them took 10,000 idle connections over
    # 15 KiB each.
    WARM_MAX = 128
    BODY_PIECE = 16384          # plaintext bytes of a body written at once: one full TLS record
    # Rings' worth that an honest host may bring of a connection after we asked for PAUSE: what is in the ring; what it puts
    # in during the turn in which it reads PAUSE; and in one turn more, where a turn's frames were not all that we had said
    # before. And one to spare: who is cut off may be a client that did nothing but send ahead.
    FLOOD_RINGS = 4

cdef struct out_t:              # where every connection's ciphertext goes
    ring_producer_t *ring
    conn_t *blocked_first       # connections with bytes or frames that found no room, oldest first
    conn_t *blocked_last
    uint64_t full               # times the ring was full
    uint64_t frames
    uint64_t bytes

cdef struct conn_t:
    tls_conn_t *tls             # NULL when GONE
    http_parser_t parser
    uint8_t *held               # ciphertext that waits until the connection may read again (private copy)
    uint32_t held_size
    uint32_t held_capacity
    uint32_t left_size
    uint32_t left_used
    uint8_t *left               # plaintext behind the request that is being answered (pipelining)
    uint8_t *out                # ciphertext that found no room in the ring, or that the host asked us to keep
    uint32_t out_size
    uint32_t out_used
    uint64_t since              # monotonic ns: start of the present deadline
    conn_t *previous            # neighbours in the deadline list
    conn_t *next
    conn_t *blocked_next
    out_t *sink
    void *peer                  # str, owned: the alleged address
    void *sni                   # str, owned: the name that the client asked for; NULL when it named none
    void *object                # Connection, owned: since its first request; NULL before, and when GONE
    uint64_t window_start       # ring position at which the present write window began
    uint32_t window_used        # bytes put into the ring since
    void *body                  # bytes, owned: the answer's body while it is partly out
    void *task                  # Answer, owned: while a module works asynchronously
    uint64_t body_used
    uint64_t body_counted       # bytes of this request's body counted in the enclave-wide body memory
    uint32_t conn_id
    uint16_t close_reason
    uint8_t phase
    uint8_t deadline
    uint8_t owed
    uint8_t tag                 # of TAGS: what its replies say about attestation
    bint stale                  # what was attested on it is true no more
    bint blocked                # in the blocked list
    bint parked                 # its write window is full: wait until the host took the one before
    bint paused                 # the host asked us to stop sending
    bint pause_sent             # we asked the host to stop sending
    bint eof                    # the client sends no more
    bint keep_alive
    bint http10
    bint is_head
    bint served                 # answered at least one request
    bint streaming              # the head of a streamed answer is out
    bint host_closed            # the host's CLOSE came


# -- the way out ------------------------------------------------------------------------------------------------------

cdef inline bint connection_blocked(conn_t *conn) noexcept nogil:
    return conn.out_size != 0 or conn.paused or conn.parked

cdef inline void connection_block(conn_t *conn) noexcept nogil:
    # Queue for the next flush. A paused connection queues too: its owed frames may still go.
    cdef out_t *sink = conn.sink
    if conn.blocked:
        return
    conn.blocked = True
    conn.blocked_next = NULL
    if sink.blocked_last == NULL:
        sink.blocked_first = conn
    else:
        sink.blocked_last.blocked_next = conn
    sink.blocked_last = conn

cdef inline void connection_block_first(conn_t *conn) noexcept nogil:
    # Back to where it was taken from.
    cdef out_t *sink = conn.sink
    conn.blocked = True
    conn.blocked_next = sink.blocked_first
    sink.blocked_first = conn
    if sink.blocked_last == NULL:
        sink.blocked_last = conn

cdef inline conn_t *connection_unblock_first(out_t *sink) noexcept nogil:
    cdef conn_t *conn = sink.blocked_first
    sink.blocked_first = conn.blocked_next
    if sink.blocked_first == NULL:
        sink.blocked_last = NULL
    conn.blocked = False
    conn.blocked_next = NULL
    return conn

cdef inline bint connection_next_window(conn_t *conn) noexcept nogil:
    # Begin the next window if the host has taken all before the present one; else ask to be woken when it takes more.
    cdef ring_producer_t *ring = conn.sink.ring
    cdef int attempt
    for attempt in range(2):
        if ring_look_for_room(ring) == RING_POISONED:
            return False
        if <int64_t>(ring.consumed_seen - conn.window_start) >= 0:
            conn.window_start = ring.produced
            conn.window_used = 0
            conn.parked = False
            return True
        if attempt == 0:
            # Store, fence, look again: the protocol of _ring.pxd for a producer that waits. What is committed but not
            # published yet is published at the end of the turn, and then the host sees the flag.
            eos_store_relaxed(ring.producer_waits, 1)
            eos_fence()
    conn.parked = True
    return False

cdef inline int out_room(out_t *sink, uint32_t size, uint8_t **payload) noexcept nogil:
    # Claim, and when full ask to be woken: room that came meanwhile is taken at once.
    cdef int got = ring_claim(sink.ring, size, payload)
    if got == RING_FULL:
        sink.full += 1
        if ring_wait_for_room(sink.ring, size) == RING_READY:
            got = ring_claim(sink.ring, size, payload)
    return got

cdef inline bint out_data(out_t *sink, uint32_t conn_id, const uint8_t *data, uint32_t size) noexcept nogil:
    # One DATA frame, or False: no room.
    cdef uint8_t *payload
    if out_room(sink, FRAME_HEADER_SIZE + size, &payload) != RING_READY:
        return False
    eos_store_relaxed(<uint64_t *>payload, frame_word(FRAME_DATA, conn_id))
    eos_copy_out(payload + FRAME_HEADER_SIZE, data, size)
    ring_commit(sink.ring, FRAME_HEADER_SIZE + size)
    sink.frames += 1
    sink.bytes += size
    return True

cdef inline bint out_control(out_t *sink, uint8_t kind, uint32_t conn_id, int reason) noexcept nogil:
    # A frame without payload, or with a u16 close reason when reason >= 0. False: no room.
    cdef uint8_t *payload
    cdef uint32_t size = FRAME_HEADER_SIZE + (2 if reason >= 0 else 0)
    if out_room(sink, size, &payload) != RING_READY:
        return False
    eos_store_relaxed(<uint64_t *>payload, frame_word(kind, conn_id))
    if reason >= 0:
        eos_store_relaxed(<uint64_t *>(payload + FRAME_HEADER_SIZE), <uint64_t>reason)
    ring_commit(sink.ring, size)
    sink.frames += 1
    return True

cdef inline int out_later(conn_t *conn, const uint8_t *data, size_t size) noexcept nogil:
    cdef uint8_t *grown
    if conn.out_used:
        memmove(conn.out, conn.out + conn.out_used, conn.out_size - conn.out_used)
        conn.out_size -= conn.out_used
        conn.out_used = 0
    grown = <uint8_t *>realloc(conn.out, conn.out_size + size)
    if grown == NULL:
        return -1
    conn.out = grown
    memcpy(conn.out + conn.out_size, data, size)
    conn.out_size += <uint32_t>size
    connection_block(conn)
    return 0

cdef inline int connection_sink(void *arg, const uint8_t *data, size_t size) noexcept nogil:
    # tls_sink_t: takes all of it. 0, or -1 when memory ran out.
    cdef conn_t *conn = <conn_t *>arg
    cdef uint32_t frame_max = ring_record_size_max(conn.sink.ring.capacity) - FRAME_HEADER_SIZE
    cdef uint32_t piece
    while size:
        if connection_blocked(conn):
            return out_later(conn, data, size)
        piece = <uint32_t>size if size < frame_max else frame_max
        if not out_data(conn.sink, conn.conn_id, data, piece):
            return out_later(conn, data, size)
        data += piece
        size -= piece
        conn.window_used += piece
        if conn.window_used >= WRITE_WINDOW and not connection_next_window(conn):
            connection_block(conn)
    return 0

cdef inline void connection_drop_output(conn_t *conn) noexcept nogil:
    # What waits for room is sent no more, or all of it is out.
    free(conn.out)
    conn.out = NULL
    conn.out_size = conn.out_used = 0

cdef inline bint connection_over(const conn_t *conn) noexcept nogil:
    # Both CLOSE frames crossed, and nobody holds it: its slot may be used again.
    return conn.phase == PHASE_GONE and conn.host_closed and not conn.owed & OWE_CLOSE and not conn.blocked

cdef inline int connection_flush(conn_t *conn) noexcept nogil:
    # Send what waits. FLUSHED: nothing of this connection waits for room any more (it may still be paused).
    cdef uint32_t frame_max = ring_record_size_max(conn.sink.ring.capacity) - FRAME_HEADER_SIZE
    cdef uint32_t piece
    if conn.owed & OWE_PAUSE:
        if not out_control(conn.sink, FRAME_PAUSE, conn.conn_id, -1):
            return FLUSH_NO_ROOM
        conn.owed &= ~OWE_PAUSE
    if conn.owed & OWE_RESUME:
        if not out_control(conn.sink, FRAME_RESUME, conn.conn_id, -1):
            return FLUSH_NO_ROOM
        conn.owed &= ~OWE_RESUME
    if conn.paused and conn.phase != PHASE_GONE:
        return FLUSHED
    while conn.out_used < conn.out_size:
        # What is left of a connection that is GONE is a record or two: it goes without asking for a window.
        if conn.parked and conn.phase != PHASE_GONE and not connection_next_window(conn):
            return FLUSH_PARKED
        piece = conn.out_size - conn.out_used
        if piece > frame_max:
            piece = frame_max
        if not out_data(conn.sink, conn.conn_id, conn.out + conn.out_used, piece):
            return FLUSH_NO_ROOM
        conn.out_used += piece
        conn.window_used += piece
    if conn.out != NULL:
        connection_drop_output(conn)
    if conn.owed & OWE_EOF:
        if not out_control(conn.sink, FRAME_EOF, conn.conn_id, -1):
            return FLUSH_NO_ROOM
        conn.owed &= ~OWE_EOF
    if conn.owed & OWE_CLOSE:
        if not out_control(conn.sink, FRAME_CLOSE, conn.conn_id, conn.close_reason):
            return FLUSH_NO_ROOM
        conn.owed &= ~OWE_CLOSE
    if conn.parked and conn.phase != PHASE_GONE and not connection_next_window(conn):
        return FLUSH_PARKED
    return FLUSHED

cdef inline void connection_owe(conn_t *conn, uint8_t what) noexcept nogil:
    # PAUSE or RESUME: now if there is room, whatever else of the connection waits; else as soon as there is. Of the two
    # at most one is owed: the second takes the first back.
    cdef uint8_t other = OWE_RESUME if what == OWE_PAUSE else OWE_PAUSE
    if conn.owed & other:
        conn.owed &= ~other
    elif not out_control(conn.sink, FRAME_PAUSE if what == OWE_PAUSE else FRAME_RESUME, conn.conn_id, -1):
        conn.owed |= what
        if what == OWE_PAUSE and not conn.blocked:
            connection_block_first(conn)    # every byte that goes before it lets more come in
        else:
            connection_block(conn)


# -- ciphertext held back ---------------------------------------------------------------------------------------------

cdef inline int connection_hold(conn_t *conn, const uint8_t *data, size_t size, bint shared) noexcept nogil:
    # Keep bytes that came while the connection may not read. 0, or -1 when memory ran out.
    cdef uint8_t *grown
    cdef size_t capacity
    if conn.held_size + size > conn.held_capacity:
        capacity = conn.held_size + size
        capacity += capacity // 2
        grown = <uint8_t *>realloc(conn.held, capacity)
        if grown == NULL:
            return -1
        conn.held = grown
        conn.held_capacity = <uint32_t>capacity
    if shared:
        eos_copy_in(conn.held + conn.held_size, data, size)
    else:
        memcpy(conn.held + conn.held_size, data, size)
    conn.held_size += <uint32_t>size
    return 0

cdef inline void connection_unhold(conn_t *conn) noexcept nogil:
    free(conn.held)
    conn.held = NULL
    conn.held_size = conn.held_capacity = 0


# -- deadlines --------------------------------------------------------------------------------------------------------

cdef struct deadlines_t:
    conn_t *first[DEADLINE_COUNT]
    conn_t *last[DEADLINE_COUNT]
    uint64_t timeout_ns[DEADLINE_COUNT]
    uint32_t count[DEADLINE_COUNT]

cdef inline void deadline_clear(deadlines_t *lists, conn_t *conn) noexcept nogil:
    if conn.deadline == DEADLINE_NONE:
        return
    if conn.previous == NULL:
        lists.first[conn.deadline] = conn.next
    else:
        conn.previous.next = conn.next
    if conn.next == NULL:
        lists.last[conn.deadline] = conn.previous
    else:
        conn.next.previous = conn.previous
    conn.previous = conn.next = NULL
    lists.count[conn.deadline] -= 1
    conn.deadline = DEADLINE_NONE

cdef inline void deadline_set(deadlines_t *lists, conn_t *conn, uint8_t deadline, uint64_t now) noexcept nogil:
    # Start the clock of `deadline` anew.
    deadline_clear(lists, conn)
    conn.deadline = deadline
    conn.since = now
    lists.count[deadline] += 1
    conn.previous = lists.last[deadline]
    if conn.previous == NULL:
        lists.first[deadline] = conn
    else:
        conn.previous.next = conn
    lists.last[deadline] = conn

cdef inline conn_t *deadline_due(deadlines_t *lists, uint8_t deadline, uint64_t now) noexcept nogil:
    # The first connection of this class whose time is up, or NULL.
    cdef conn_t *conn = lists.first[deadline]
    if conn != NULL and now >= conn.since and now - conn.since >= lists.timeout_ns[deadline]:
        return conn
    return NULL


# -- small ends -------------------------------------------------------------------------------------------------------

cdef extern from "unistd.h" nogil:
    ssize_t read(int fd, void *to, size_t size)
    ssize_t write(int fd, const void *from_, size_t size)

cdef inline void doorbell_ring(int doorbell) noexcept nogil:
    cdef uint64_t one = 1
    write(doorbell, &one, sizeof(one))      # an eventfd that is full is already ringing

cdef inline void doorbell_silence(int doorbell) noexcept nogil:
    cdef uint64_t rings[8]
    read(doorbell, rings, sizeof(rings))    # nothing to read is fine: somebody woke us for nothing

cdef inline void copy_private(uint8_t *to, const uint8_t *from_, size_t size) noexcept nogil:
    # tls_copy_in_t for bytes that are inside already.
    memcpy(to, from_, size)


# -- the connection as modules see it ---------------------------------------------------------------------------------

cdef enum:
    TAG_COUNT = 4               # of http.AttestationTag, whose order a conn_t's tag counts in

cdef class Connection:
    cdef conn_t *conn           # NULL: it has ended
    cdef object kept_evidence
    cdef object kept_attested
    cdef conn_t *alive(self) except NULL

# The one Connection of `conn`, made when first asked for.
cdef Connection connection_object(conn_t *conn)
# What the handshake said, before TLS forgets it with the end of the handshake. May be called again.
cdef int connection_keep_name(conn_t *conn) except -1
# End it for whoever holds its Connection, and give back all but what still has to go out, and the claim of its task.
cdef void connection_empty(conn_t *conn) noexcept
# All of it, `conn` too.
cdef void connection_free(conn_t *conn) noexcept
