"""All client connections of one enclave process: the table, their deadlines, their common way out, and how they end.

- A slot of the table has one owner at a time, and is free again when both CLOSE frames crossed. Until then a tombstone
  keeps late frames from the next owner; `connections_find` compares the whole conn_id, generation included.
- An end is said once, behind the connection's last byte, and gives its memory back at once but for that byte. A full
  ring delays it, and only it.
- Whoever waits does so under one of the deadlines, whose times the configuration gave (`_connection.pxd` has the lists).
- The work of a module may outlive its connection; what it was done for (`conn.task`) is given up with it.
"""

from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from enclave_os._codec cimport FRAME_DRAIN
from enclave_os._native cimport eos_copy_in, eos_monotonic_ns
from enclave_os._ring cimport ring_publish
from enclave_os._tls cimport tls_close, tls_conn_new
from enclave_os.runtime._connection cimport *

cdef enum:
    TOMBSTONES_MAX = 1 << 17        # closed by us, not yet by the host: an honest one has no more than it has sockets

cdef uint64_t WARM_NS = 500_000_000  # as long as most gaps between requests that come one after the other


cdef class Connections:
    """The connections of one ingress. Single-threaded, with the GIL. Made by `make_connections`."""

    def __init__(self):
        raise TypeError("Connections belong to an Ingress")

    def __dealloc__(self):
        cdef uint32_t slot
        if self.table != NULL:
            for slot in range(self.table_size):
                if self.table[slot] != NULL:
                    connection_free(self.table[slot])
            free(self.table)

    def publish(self):
        """Let the host see what was put into the ring. For the outgoing connections, whose work begins in no turn."""
        self.leave()

    cdef conn_t *add(self, uint32_t conn_id) except? NULL:
        # A live connection before its handshake; NULL: its slot has an owner or a tombstone, or there are too many.
        cdef uint32_t slot = conn_id & (CONN_SLOTS - 1)
        cdef uint32_t grown
        cdef conn_t **table
        cdef conn_t *conn
        if slot >= self.table_size:
            grown = self.table_size
            while grown <= slot:
                grown *= 2
            table = <conn_t **>realloc(self.table, grown * sizeof(conn_t *))
            if table == NULL:
                raise MemoryError
            memset(table + self.table_size, 0, (grown - self.table_size) * sizeof(conn_t *))
            self.table, self.table_size = table, grown
        if self.table[slot] != NULL or self.tombstones > TOMBSTONES_MAX:
            return NULL
        conn = <conn_t *>calloc(1, sizeof(conn_t))
        if conn == NULL:
            raise MemoryError
        conn.conn_id = conn_id
        conn.sink = &self.out
        conn.window_start = self.out.ring.produced
        try:
            conn.tls = tls_conn_new(self.tls, eos_copy_in, connection_sink, conn)
        except MemoryError:
            free(conn)
            raise
        self.table[slot] = conn
        self.accepted += 1
        self.live += 1
        return conn

    cdef int hold(self, conn_t *conn, const uint8_t *data, size_t size, bint shared) except -1:
        # Ciphertext that waits until the connection may read again: counted with the bodies, since it is most of one.
        if connection_hold(conn, data, size, shared) != 0:
            raise MemoryError
        self.body_memory += size
        return 0

    cdef int keep_answer(self, conn_t *conn, bytes body, Py_ssize_t used) except -1:
        # A body that is out as far as `used`.
        cdef size_t address = <size_t><void *>body
        cdef object known = self.answers.get(address)
        Py_INCREF(body)
        conn.body = <void *>body
        conn.body_used = used
        if known is None:
            self.answers[address] = 1
            self.answer_memory += PyBytes_GET_SIZE(body)
        else:
            self.answers[address] = known + 1
        return 0

    cdef int drop_answer(self, conn_t *conn) except -1:
        cdef bytes body = <bytes>conn.body
        cdef size_t address = <size_t>conn.body
        cdef object known = self.answers.pop(address)
        if known != 1:
            self.answers[address] = known - 1
        else:
            self.answer_memory -= PyBytes_GET_SIZE(body)
        conn.body = NULL
        Py_DECREF(body)
        return 0

    cdef int cut_answers(self, conn_t *newest, uint64_t most) except -1:
        # Too much waits for clients that read slowly: who took nothing for longest goes, but for the last that came. At
        # first those whose body nobody else waits for: only they give memory back at once.
        cdef conn_t *conn
        cdef conn_t *following
        cdef bint shared
        for shared in (False, True):
            following = self.deadlines.first[DEADLINE_WRITE]
            while following != NULL and self.answer_memory > most:
                conn, following = following, following.next
                if conn == newest or conn.body == NULL:
                    continue
                if shared or self.answers[<size_t>conn.body] == 1:
                    self.cut += 1
                    self.finish(conn, CLOSE_LIMIT)
        return 0

    # -- ends -----------------------------------------------------------------------------------------------------

    cdef int finish(self, conn_t *conn, uint16_t reason) except -1:
        # Our side is done: close_notify where TLS still stands, CLOSE behind the last byte, and give the memory back.
        if conn.phase == PHASE_GONE:
            return 0
        if conn.tls != NULL and conn.phase != PHASE_HANDSHAKE and not conn.host_closed:
            tls_close(conn.tls)
        if reason == CLOSE_TIMEOUT or reason == CLOSE_FLOOD or reason == CLOSE_LIMIT:
            connection_drop_output(conn)    # it did not take these bytes in all its time, or longer than others
        conn.phase = PHASE_GONE
        deadline_clear(&self.deadlines, conn)
        self.body_memory -= conn.body_counted + conn.held_size
        conn.body_counted = 0
        if conn.body != NULL:
            self.drop_answer(conn)
        connection_empty(conn)
        self.live -= 1
        self.tombstones += 1
        conn.close_reason = reason
        conn.owed = OWE_CLOSE               # PAUSE and RESUME mean nothing any more
        if conn.task != NULL:
            self.cancel(conn)
        return self.say_close(conn)

    cdef int cancel(self, conn_t *conn) except -1:
        # Give the module's work up; its task may still run to its end, for nobody.
        answer = <object>conn.task
        Py_DECREF(answer)
        conn.task = NULL
        answer.cancel()
        return 0

    cdef int say_close(self, conn_t *conn) except -1:
        # Our CLOSE, now or with the next flush. A connection that queues for room stays in the queue until its turn:
        # the host may use the slot again as soon as it has this frame, so it must be the last that we have of it.
        if conn.owed & OWE_CLOSE and (conn.blocked or connection_flush(conn) != FLUSHED):
            connection_block(conn)
            self.again()
        self.forget(conn)
        return self.check_drained()

    cdef int forget(self, conn_t *conn) except -1:
        if connection_over(conn):
            self.table[conn.conn_id & (CONN_SLOTS - 1)] = NULL
            self.tombstones -= 1
            connection_free(conn)
        return 0

    cdef int check_drained(self) except -1:
        # Not before the last CLOSE is in the ring: DRAIN is small and would find room before it.
        if self.draining and not self.drained and self.live == 0 and self.out.blocked_first == NULL:
            self.drained = True
            self.drain_owed = not out_control(&self.out, FRAME_DRAIN, 0, -1)
        return 0

    # -- the way out ----------------------------------------------------------------------------------------------

    cdef int leave(self) except -1:
        # The end of work that no turn began: publish it, and have a turn deal with a lie that was met meanwhile.
        self.ring_host(False)
        if self.out.ring.lie:
            self.again()
        return 0

    cdef void ring_host(self, bint owed) noexcept:
        # Publish what was committed; one ring of the doorbell if the proxy sleeps, or is owed one for room given back.
        if ring_publish(self.out.ring) or owed:
            self.rings += 1
            doorbell_ring(self.doorbell)


cdef Connections make_connections(TLSContext tls, Producer to_host, int doorbell, object again, object timeouts):
    # For the ingress. doorbell: borrowed. timeouts: seconds by the names of wire.settings.
    cdef Connections made = Connections.__new__(Connections)
    cdef int index
    made.tls, made.to_host, made.doorbell, made.again = tls, to_host, doorbell, again
    made.answers = {}
    made.out.ring = &to_host.ring
    made.table_size = 1024
    made.table = <conn_t **>calloc(made.table_size, sizeof(conn_t *))
    if made.table == NULL:
        raise MemoryError
    for index, name in ((DEADLINE_HANDSHAKE, "handshake"), (DEADLINE_HEAD, "head"), (DEADLINE_BODY, "body"),
                        (DEADLINE_IDLE, "idle"), (DEADLINE_REQUEST, "request"), (DEADLINE_WRITE, "write_stall")):
        made.deadlines.timeout_ns[index] = <uint64_t>(timeouts[name] * 1e9)
    made.deadlines.timeout_ns[DEADLINE_WARM] = WARM_NS
    made.now = eos_monotonic_ns()
    return made
