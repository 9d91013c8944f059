"""Connections that the enclave opens to servers: the border's half, raw bytes both ways. TLS is above it.

    CONNECT ─> connecting ── CONNECTED ──> open ── EOF ──> open, nothing more to read
                   └── CLOSE ──> ended       └── CLOSE, a lie, close() ──> ended ── both CLOSE crossed ──> slot free

Everything that the host says of them is an allegation: an address, a reason, bytes. What makes it right:

- A payload is copied once, out of the ring into a bytes object, and read from there.
- A frame for a connection that is not, or is no longer, is dropped and counted; `find` compares the whole conn_id. What
  the contract forbids within a connection (CONNECTED twice, DATA or EOF before it, DATA after EOF) ends that connection,
  and says that the host did it: passing on the rest would pass on a stream with a hole.
- A slot is used again when both CLOSE frames crossed, with its next generation, so no late frame meets a new owner. A
  host that never answers keeps its slots: it takes connections from us, never memory.
- What the module does not take is bounded: PAUSE above HOLD_PAUSE bytes, and the end of the connection above what an
  honest host may bring after that (FLOOD_RINGS); for all connections together likewise.
- The way out is the clients': the same windows, the same queue, so uploads and answers take turns (_connection.pxd).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from enclave_os._codec cimport (
    FRAME_CLOSE, FRAME_CONNECT, FRAME_CONNECTED, FRAME_DATA, FRAME_EOF, FRAME_PAUSE, FRAME_RESUME, frame_t, frame_word,
)
from enclave_os._limits cimport (
    CONN_GENERATION_MAX, CONN_ID_INGRESS_MAX, CONN_SLOT_BITS, CONNECT_TARGET_SIZE_MAX, FRAME_HEADER_SIZE,
    PEER_ADDRESS_SIZE_MAX,
)
from enclave_os._native cimport eos_copy_in, eos_copy_out, eos_load_relaxed, eos_store_relaxed
from enclave_os._ring cimport RING_READY, ring_commit
from enclave_os.runtime._connection cimport *

from enclave_os.errors import ConnectionGone
from enclave_os.wire.errors import UsageError

cdef enum:
    HOLD_PAUSE = 65536              # bytes not taken above which the host is asked to stop reading the socket
    HOLD_RESUME = 16384
    DEADLINE_SIZE = 4

cdef uint32_t EGRESS_BIT = <uint32_t>CONN_ID_INGRESS_MAX + 1


cdef class Outgoing:
    """One connection to a server, as the streams above see it. Made by `Outgoings.connect`.

    Attributes:
        target: `host:port` that was asked for.
        address: `ip:port` that the host says it reached; None before.
        state: "connecting", "open" or "ended".
        ended_by: "ours", "host", or "lie": the host broke the contract. None before the end.
        reason: of the host's CLOSE, as it alleges: a CloseReason; -1 before.
        wake: called without arguments whenever state, or what can be read or written, may have changed.
    """

    def __init__(self):
        raise TypeError("an Outgoing comes from Outgoings.connect")

    def take(self, size_max):
        """Bytes of the server, at most `size_max`; empty: it sends no more, or the host says so; None: not yet.

        Raises: ConnectionGone: the connection has ended, and all that came before was taken.
        """
        cdef bytes piece
        cdef Py_ssize_t room = size_max
        if self.pieces:
            piece = self.pieces[0]
            if PyBytes_GET_SIZE(piece) > room:
                self.pieces[0] = piece[room:]
                piece = piece[:room]
            else:
                self.pieces.pop(0)
            self.held -= PyBytes_GET_SIZE(piece)
            self.owner.held -= PyBytes_GET_SIZE(piece)
            if self.conn != NULL and self.conn.pause_sent and self.held < HOLD_RESUME and self.state == "open":
                self.conn.pause_sent = False
                connection_owe(self.conn, OWE_RESUME)
                self.owner.publish()
            return piece
        if self.state == "ended":
            raise ConnectionGone("the connection has ended")
        if self.conn != NULL and self.conn.eof:
            return b""
        return None

    @property
    def readable(self):
        """Whether `take` has something to say now."""
        return bool(self.pieces) or self.state == "ended" or (self.conn != NULL and self.conn.eof)

    @property
    def writable(self):
        """Whether all that was written is on its way, so that more may be."""
        return self.state == "open" and not self.finished and not connection_blocked(self.conn)

    def write(self, const uint8_t[::1] data not None):
        """Send all of `data`; to be called while `writable`, with at most what may wait in memory.

        Raises: ConnectionGone: the connection has ended. UsageError: it is not open yet.
        """
        if self.state == "ended":
            raise ConnectionGone("the connection has ended")
        if self.state != "open" or self.finished:
            raise UsageError("written to before it was connected, or after its end")
        if data.shape[0] and connection_sink(self.conn, &data[0], <size_t>data.shape[0]) != 0:
            raise MemoryError
        self.owner.publish()

    def finish_writing(self):
        """Nothing more will be written: the host ends its half once all that was written is out. Once.

        Raises: ConnectionGone: the connection has ended. UsageError: it is not open yet, or this was said before.
        """
        if self.state == "ended":
            raise ConnectionGone("the connection has ended")
        if self.state != "open" or self.finished:
            raise UsageError("finished before it was connected, or twice")
        self.finished = True
        self.conn.owed |= OWE_EOF
        if self.conn.blocked or connection_flush(self.conn) != FLUSHED:
            connection_block(self.conn)
        self.owner.publish()

    def close(self, uint16_t reason=CLOSE_NORMAL):
        """End it, if it has not ended: what was written still goes out if the reason is CloseReason.NORMAL.

        With CloseReason.PEER_GONE the host resets the connection. What was not taken is gone.
        """
        self.drop()
        if self.state != "ended":
            self.owner.finish(self.conn, reason, "ours")
            self.owner.publish()

    cdef void drop(self) noexcept:
        self.owner.held -= self.held
        self.held = 0
        self.pieces = []

    def __repr__(self):
        return f"<Outgoing to {self.target}, {self.state}>"


cdef class Outgoings:
    """All outgoing connections of one enclave process. Made by the ingress, whose ring and thread they share."""

    def __init__(self):
        raise TypeError("Outgoings belong to an Ingress, as ingress.outgoings")

    def __dealloc__(self):
        cdef uint32_t slot
        for slot in range(EGRESS_SLOTS):
            if self.table[slot] != NULL:
                self.table[slot].object = NULL      # it points at us, and goes by itself
                connection_free(self.table[slot])

    def connect(self, bytes target not None, uint32_t deadline_ms):
        """Ask the host for a connection.

        Args:
            target: `host:port` in ASCII, at most 259 bytes.
            deadline_ms: for the host's attempt; who waits here keeps a deadline of their own.
        Returns: an Outgoing; None: no slot, or no room in the ring, now.
        Raises: UsageError: a target that cannot be sent.
        """
        cdef conn_t *conn
        cdef Outgoing made
        if not 1 <= PyBytes_GET_SIZE(target) <= CONNECT_TARGET_SIZE_MAX - DEADLINE_SIZE or not target.isascii():
            raise UsageError("a target is host:port in ASCII")
        if self.live >= self.connections_max:
            return None
        conn = self.free_slot(target, deadline_ms)
        if conn.conn_id == 0:
            free(conn)
            return None
        made = Outgoing.__new__(Outgoing)
        made.conn, made.owner = conn, self
        made.pieces = []
        made.target = target.decode("ascii")
        made.state = "connecting"
        made.reason = -1
        Py_INCREF(made)
        conn.object = <void *>made
        self.table[conn.conn_id & (EGRESS_SLOTS - 1)] = conn
        self.live += 1
        self.connects += 1
        self.publish()
        return made

    cdef conn_t *free_slot(self, bytes target, uint32_t deadline_ms) except NULL:
        # A connection whose CONNECT is in the ring; conn_id 0: there was no slot, or no room.
        cdef conn_t *conn = <conn_t *>calloc(1, sizeof(conn_t))
        cdef uint8_t frame[CONNECT_TARGET_SIZE_MAX]
        cdef uint8_t *payload
        cdef uint32_t tried, slot = 0, size = DEADLINE_SIZE + <uint32_t>PyBytes_GET_SIZE(target)
        if conn == NULL:
            raise MemoryError
        for tried in range(EGRESS_SLOTS):
            slot = (self.next_slot + tried) % EGRESS_SLOTS
            if self.table[slot] == NULL:
                break
        else:
            return conn
        if out_room(self.out, FRAME_HEADER_SIZE + size, &payload) != RING_READY:
            return conn
        self.next_slot = (slot + 1) % EGRESS_SLOTS
        self.generation[slot] = self.generation[slot] % CONN_GENERATION_MAX + 1
        conn.conn_id = EGRESS_BIT | <uint32_t>self.generation[slot] << CONN_SLOT_BITS | slot
        memcpy(frame, &deadline_ms, DEADLINE_SIZE)
        memcpy(frame + DEADLINE_SIZE, PyBytes_AS_STRING(target), PyBytes_GET_SIZE(target))
        eos_store_relaxed(<uint64_t *>payload, frame_word(FRAME_CONNECT, conn.conn_id))
        eos_copy_out(payload + FRAME_HEADER_SIZE, frame, size)
        ring_commit(self.out.ring, FRAME_HEADER_SIZE + size)
        self.out.frames += 1
        conn.sink = self.out
        conn.window_start = self.out.ring.produced
        conn.phase = PHASE_HANDSHAKE
        return conn

    def counters(self):
        """Counts since the start, and what lives now, for /metrics."""
        return {
            "egress_connects_total": self.connects, "egress_connected_total": self.connected,
            "egress_connections_live": self.live, "egress_connections_closing": self.tombstones,
            "egress_held_bytes": self.held, "egress_bytes_in_total": self.bytes_in,
            "egress_host_lies_total": self.lies, "egress_floods_total": self.floods,
            "egress_frames_dropped_total": self.dropped,
        }

    # -- host -> module -----------------------------------------------------------------------------------------------

    cdef conn_t *find(self, uint32_t conn_id) noexcept:
        cdef uint32_t slot = conn_id & ((1 << CONN_SLOT_BITS) - 1)
        if slot >= EGRESS_SLOTS or self.table[slot] == NULL or self.table[slot].conn_id != conn_id:
            return NULL
        return self.table[slot]

    cdef int frame(self, const frame_t *frame, const uint8_t *payload, uint32_t size) except -1:
        # A frame that `frame_allowed` let pass, for an egress conn_id. `payload` lies in the ring.
        cdef conn_t *conn = self.find(frame.conn_id)
        cdef uint8_t address[PEER_ADDRESS_SIZE_MAX]
        cdef Outgoing outgoing
        if conn == NULL:
            self.dropped += 1
            return 0
        if frame.kind == FRAME_CLOSE:
            if conn.host_closed:
                self.dropped += 1
                return 0
            conn.host_closed = True
            connection_drop_output(conn)
            if conn.phase == PHASE_GONE:
                return self.forget(conn)
            (<Outgoing>conn.object).reason = <uint16_t>eos_load_relaxed(<const uint64_t *>payload)
            return self.finish(conn, CLOSE_NORMAL, "host")
        if conn.phase == PHASE_GONE or conn.host_closed:
            self.dropped += 1
            return 0
        outgoing = <Outgoing>conn.object
        if frame.kind == FRAME_CONNECTED:
            if conn.phase != PHASE_HANDSHAKE:
                return self.lie(conn)
            eos_copy_in(address, payload, size)
            outgoing.address = PyUnicode_DecodeUTF8(<const char *>address, size, "replace")
            outgoing.state = "open"
            conn.phase = PHASE_READING
            self.connected += 1
        elif frame.kind == FRAME_DATA:
            return self.data(conn, payload, size)
        elif frame.kind == FRAME_EOF:
            if conn.phase == PHASE_HANDSHAKE or conn.eof:
                return self.lie(conn)
            conn.eof = True
        elif frame.kind == FRAME_PAUSE:
            conn.paused = True
            return 0
        else:
            conn.paused = False
            if conn.blocked:
                return 0
            if connection_flush(conn) != FLUSHED:
                connection_block(conn)
                return 0
        if outgoing.wake is not None:
            outgoing.wake()
        return 0

    cdef int data(self, conn_t *conn, const uint8_t *payload, uint32_t size) except -1:
        cdef Outgoing outgoing = <Outgoing>conn.object
        cdef bytes piece
        if conn.phase == PHASE_HANDSHAKE or conn.eof:
            return self.lie(conn)
        if size == 0:
            return 0
        if outgoing.held + size > self.held_max or self.held + size > self.held_total_max:
            self.floods += 1
            return self.finish(conn, CLOSE_FLOOD, "lie")
        piece = PyBytes_FromStringAndSize(NULL, size)
        eos_copy_in(<uint8_t *>PyBytes_AS_STRING(piece), payload, size)
        outgoing.pieces.append(piece)
        outgoing.held += size
        self.held += size
        self.bytes_in += size
        if outgoing.held > HOLD_PAUSE and not conn.pause_sent:
            conn.pause_sent = True
            connection_owe(conn, OWE_PAUSE)
        if outgoing.wake is not None:
            outgoing.wake()
        return 0

    cdef int flushed(self, conn_t *conn) except -1:
        # Nothing of it waits for room any more.
        if conn.phase == PHASE_GONE:
            return self.forget(conn)
        if (<Outgoing>conn.object).wake is not None and not connection_blocked(conn):
            (<Outgoing>conn.object).wake()
        return 0

    cdef int lie(self, conn_t *conn) except -1:
        self.lies += 1
        return self.finish(conn, CLOSE_PROTOCOL, "lie")

    # -- ends ---------------------------------------------------------------------------------------------------------

    cdef int finish(self, conn_t *conn, uint16_t reason, str by) except -1:
        cdef Outgoing outgoing = <Outgoing>conn.object
        conn.phase = PHASE_GONE
        self.live -= 1
        self.tombstones += 1
        if by == "lie":
            outgoing.drop()     # what it brought is as little worth as the rest
        if by != "host":
            outgoing.reason = -1
        if by == "lie" or reason != CLOSE_NORMAL:
            connection_drop_output(conn)
        outgoing.state, outgoing.ended_by, outgoing.conn = "ended", by, NULL
        conn.object = NULL
        conn.close_reason = reason
        conn.owed = OWE_CLOSE
        if conn.blocked or connection_flush(conn) != FLUSHED:
            connection_block(conn)
        self.forget(conn)
        wake, outgoing.wake = outgoing.wake, None
        Py_DECREF(outgoing)
        if wake is not None:
            wake()
        return 0

    cdef int forget(self, conn_t *conn) except -1:
        if connection_over(conn):
            self.table[conn.conn_id & (EGRESS_SLOTS - 1)] = NULL
            self.tombstones -= 1
            connection_free(conn)
        return 0


cdef Outgoings make_outgoings(object owner, out_t *out, object publish, uint32_t connections_max, uint64_t ring):
    # For the ingress: `out` is its own, and `owner` keeps it alive. ring: capacity of data.to_enclave, bytes.
    cdef Outgoings made = Outgoings.__new__(Outgoings)
    if not 1 <= connections_max <= EGRESS_SLOTS:
        raise UsageError(f"outgoing connections: {connections_max} is not in 1 .. {EGRESS_SLOTS}")
    made.owner, made.out, made.publish = owner, out, publish
    made.connections_max = connections_max
    made.held_max = HOLD_PAUSE + FLOOD_RINGS * ring
    made.held_total_max = <uint64_t>HOLD_PAUSE * connections_max + FLOOD_RINGS * ring
    return made
