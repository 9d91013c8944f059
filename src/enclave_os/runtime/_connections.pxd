# All client connections of one enclave process: table of contents. Law and reasons stand in _connections.pyx.
#
# What the hot path needs of it is inlined into _ingress.pyx and _exchange.pyx from here.
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from enclave_os._limits cimport CONN_SLOT_BITS
from enclave_os._ring cimport Producer
from enclave_os._tls cimport TLSContext, tls_release
from enclave_os.runtime._connection cimport (
    DEADLINE_IDLE, DEADLINE_WARM, WARM_MAX, conn_t, deadline_set, deadlines_t, out_t,
)

cdef enum:
    CONN_SLOTS = 1 << CONN_SLOT_BITS

@cython.final
cdef class Connections:
    # what boot handed over
    cdef TLSContext tls
    cdef Producer to_host
    cdef object again               # callable(): a turn is due, though no doorbell rang
    cdef int doorbell               # wakes the proxy
    # state
    cdef conn_t **table             # by slot
    cdef uint32_t table_size
    cdef uint32_t live
    cdef uint32_t tombstones
    cdef out_t out
    cdef deadlines_t deadlines
    cdef uint64_t now               # monotonic ns, read once a turn
    cdef uint64_t body_memory       # bytes of request bodies and of what is held back, of all connections
    cdef dict answers               # bodies that are partly out, by address: on how many connections
    cdef uint64_t answer_memory     # their bytes, each once: what modules give to many is theirs
    cdef bint draining
    cdef bint drained
    cdef bint drain_owed            # DRAIN found no room
    # counters, for /metrics
    cdef uint64_t accepted, rings, cut

    cdef conn_t *add(self, uint32_t conn_id) except? NULL
    cdef int hold(self, conn_t *conn, const uint8_t *data, size_t size, bint shared) except -1
    cdef int keep_answer(self, conn_t *conn, bytes body, Py_ssize_t used) except -1
    cdef int drop_answer(self, conn_t *conn) except -1
    cdef int cut_answers(self, conn_t *newest, uint64_t most) except -1
    # ends
    cdef int finish(self, conn_t *conn, uint16_t reason) except -1
    cdef int say_close(self, conn_t *conn) except -1
    cdef int forget(self, conn_t *conn) except -1
    cdef int cancel(self, conn_t *conn) except -1
    cdef int check_drained(self) except -1
    # the way out
    cdef int leave(self) except -1
    cdef void ring_host(self, bint owed) noexcept

cdef Connections make_connections(TLSContext tls, Producer to_host, int doorbell, object again, object timeouts)


# The connection of this very conn_id, generation included, or NULL.
cdef inline conn_t *connections_find(Connections all_, uint32_t conn_id) noexcept:
    cdef uint32_t slot = conn_id & (CONN_SLOTS - 1)
    cdef conn_t *conn
    if slot >= all_.table_size:
        return NULL
    conn = all_.table[slot]
    if conn == NULL or conn.conn_id != conn_id:
        return NULL
    return conn

cdef inline void connections_start(Connections all_, conn_t *conn, uint8_t deadline) noexcept:
    # Start the clock of `deadline`, now.
    deadline_set(&all_.deadlines, conn, deadline, all_.now)

cdef inline void connections_cool(Connections all_, conn_t *conn) noexcept:
    tls_release(conn.tls)
    deadline_set(&all_.deadlines, conn, DEADLINE_IDLE, conn.since)

cdef inline void connections_idle(Connections all_, conn_t *conn) noexcept:
    # Between requests: warm, until its time is up. Where as many are warm as may be, this one goes cold, and not the one
    # that waited longest: its request is the next to come when all take turns, and then everybody would always be cold.
    if conn.deadline == DEADLINE_WARM or all_.deadlines.count[DEADLINE_WARM] < WARM_MAX:
        deadline_set(&all_.deadlines, conn, DEADLINE_WARM, all_.now)
        return
    tls_release(conn.tls)
    deadline_set(&all_.deadlines, conn, DEADLINE_IDLE, all_.now)
