"""Ingress: the data ring's reader and the loop's servant, for every client connection of this enclave process.

With its two parts, `_exchange` (requests and answers) and `_connections` (the table, and ends), this is the one native
that holds both a pointer into shared memory and an OpenSSL connection, so it is the one to review hardest; and this file
first, since every byte of the host comes in here. What makes it right:

- A frame's header word is loaded once into a private copy and decoded from that. The payload is touched by one copy
  only: OpenSSL's BIO read copies from the ring into OpenSSL's own buffer (eos_copy_in), or `connection_hold` copies it
  aside. The record is given back to the host only after that copy.
- A frame that the contract does not allow (unknown kind, wrong direction, a connection that never was named right)
  is either the host's lie about the framing, which poisons the channel, or a late frame of a closed connection, which
  is dropped and counted; it never reaches another connection, since `connections_find` compares the whole conn_id.
- One connection never waits for another: full rings and slow clients leave bytes in that connection's own bounded
  buffers, and the incoming ring is drained on.
- Answers are published, and the host's doorbell rung, once a turn. To sleep, the rings are armed and looked at once
  more (`_ring.pxd` says why no wake-up is lost).
"""

from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from enclave_os._codec cimport (
    FRAME_CLOSE, FRAME_DATA, FRAME_DRAIN, FRAME_NEW, FRAME_PAUSE, FRAME_READY, FRAME_RESUME,
    frame_allowed, frame_decode, frame_t,
)
from enclave_os._limits cimport CONN_ID_INGRESS_MAX, FRAME_HEADER_SIZE, FRAMES_PER_TURN_MAX, PEER_ADDRESS_SIZE_MAX
from enclave_os._native cimport eos_copy_in, eos_cpu_pause, eos_load_acquire, eos_load_relaxed, eos_monotonic_ns
from enclave_os._ring cimport (
    LIE_FRAME, RING_EMPTY, RING_POISONED, RING_READY, Producer, ring_advance, ring_arm, ring_peek, ring_release,
)
from enclave_os._tls cimport TLSContext
from enclave_os.http._parser cimport HTTP_AT_START, http_parser_init
from enclave_os.runtime._connection cimport *
from enclave_os.runtime._connections cimport connections_find, connections_start, make_connections
from enclave_os.runtime._egress cimport make_outgoings
from enclave_os.runtime._exchange cimport make_exchange

from enclave_os.errors import InternalError
from enclave_os.wire.errors import HostProtocolError

cdef enum:
    HOLD_PAUSE = 16384              # held bytes above which the host is asked to stop reading the socket
    SLOT_FILLED = 1                 # wire.layout.SlotState
    FRAMES_PER_LOOK = 8             # at the clock, whether the turn has lasted long enough
    TURNS_PER_WAKE_MAX = 4          # then the event loop's other work gets its turn

cdef uint64_t DATE_EVERY_NS = 200_000_000
cdef uint64_t TURN_NS_MAX = 2_000_000
cdef double TICK_SECONDS = 0.5      # granularity of deadlines; the tick runs only while there are connections


cdef class Ingress:
    """All client connections of one enclave process. Single-threaded: the event loop's thread, with the GIL.

    Args:
        from_host, to_host: the data channel's ends, attached and checked by `border`.
        rpc_from_host: looked at (never consumed) to know when `on_rpc` is due.
        region: writable buffer of the mapping; kept alive, and the place of `shutdown_offset`.
        shutdown_offset: byte offset of the shutdown slot's state word.
        doorbell_in, doorbell_out: file descriptors; `doorbell_in` is read on each wake, `doorbell_out` wakes the proxy.
        tls: server context; respond: `Registry.respond`; loop: the running event loop.
        http_date: gives 29 bytes of IMF-fixdate. on_rpc, on_stop, report: see the .pxd.
        limits, timeouts: mappings of ints (bytes, counts) and seconds, as wire.settings names them.
        egress_max: connections to servers at once; 0: there are none, and `outgoings` is None.
    """

    def __init__(self, *, Consumer from_host not None, Producer to_host not None, Consumer rpc_from_host not None,
                 region not None, size_t shutdown_offset, int doorbell_in, int doorbell_out, TLSContext tls not None,
                 respond, loop, http_date, on_rpc, on_stop, report, limits, timeouts, uint64_t spin_us=0,
                 uint32_t egress_max=0):
        cdef uint8_t[::1] view = region
        self._from_host, self._rpc_from_host = from_host, rpc_from_host
        self._region = view
        if shutdown_offset % 8 or shutdown_offset + 8 > <size_t>view.shape[0]:
            raise InternalError("the shutdown word is not in the region")
        self._shutdown_word = <uint64_t *>(&view[0] + shutdown_offset)
        self._doorbell_in = doorbell_in
        self._loop, self._on_rpc, self._on_stop = loop, on_rpc, on_stop
        self._limits.head_size_max = limits["head_bytes"]
        self._limits.header_count_max = limits["headers"]
        self._limits.target_size_max = limits["target_bytes"]
        self._limits.body_size_max = limits["body_bytes"]
        self._connections_max = limits["connections"]
        self._held_max = HOLD_PAUSE + FLOOD_RINGS * self._from_host.ring.capacity
        self._held_total_max = limits["body_memory_bytes"]
        self._spin_ns = spin_us * 1000
        self._connections = make_connections(tls, to_host, doorbell_out, self._again, timeouts)
        self._exchange = make_exchange(self._connections, respond, loop, http_date, report, limits["body_memory_bytes"])
        if egress_max:
            self.outgoings = make_outgoings(self._connections, &self._connections.out, self._connections.publish,
                                            egress_max, self._from_host.ring.capacity)

    # -- what the loop calls --------------------------------------------------------------------------------------
    def start(self):
        """Tell the host that connections are welcome: READY, once. Before it, `on_wake` arms the doorbell for RPC."""
        self._ready_owed = True
        self.on_wake()

    def on_doorbell(self):
        """The doorbell's descriptor is readable: silence it and serve until the rings are empty, then arm and return."""
        self._wakes += 1
        doorbell_silence(self._doorbell_in)
        if not self._scheduled:         # else it is about to run anyway
            self.on_wake()

    def on_wake(self):
        """Serve a bounded number of turns; what is left is scheduled behind the loop's other work."""
        cdef int turns = 0
        cdef bint more
        cdef uint64_t until
        cdef int state
        self._scheduled = False
        if self._stopped:
            return
        if self.rpc_blocked:
            self._on_rpc()
        while turns < TURNS_PER_WAKE_MAX:
            turns += 1
            more = self._turn()
            if self._stopped:
                return
            if eos_load_acquire(self._rpc_from_host.ring.produced_word) != self._rpc_from_host.ring.consumed:
                self._on_rpc()          # also under load, when this function never comes to arm and sleep
            if self._called_to_stop():
                return
            if more:
                continue
            if self._spin_ns:
                until = eos_monotonic_ns() + self._spin_ns
                while eos_load_acquire(self._from_host.ring.produced_word) == self._from_host.ring.produced_seen:
                    eos_cpu_pause()
                    if eos_monotonic_ns() >= until:
                        break
                else:
                    continue
            state = ring_arm(&self._from_host.ring)
            if state == RING_EMPTY:
                # The RPC ring and the control block share the doorbell; both are looked at after arming.
                if ring_arm(&self._rpc_from_host.ring) != RING_EMPTY:
                    self._on_rpc()
                    continue
                self._called_to_stop()
                return
            if state == RING_POISONED:
                self._break(HostProtocolError(self._from_host.ring.lie, "data.to_enclave"))
                return
        self._again()

    cdef bint _called_to_stop(self) except -1:
        # The host's ECALL `shutdown`; once is enough.
        if eos_load_acquire(self._shutdown_word) != SLOT_FILLED:
            return False
        self._stopped = True
        self._on_stop(None)
        return True

    def begin_drain(self):
        """Finish what is in flight, answer with `Connection: close`, close idle connections; DRAIN goes to the host after."""
        cdef uint32_t slot
        cdef conn_t *conn
        self._connections.draining = True
        for slot in range(self._connections.table_size):
            conn = self._connections.table[slot]
            if conn != NULL and conn.phase == PHASE_READING and conn.parser.state == HTTP_AT_START:
                self._connections.finish(conn, CLOSE_SHUTDOWN)
        self._connections.check_drained()
        self._connections.ring_host(False)

    def set_apps(self, hostnames):
        """Applications with certificates of their own (frozenset of names as `Request.hostname` spells them), or None.

        A request for one of them on a connection that shows another certificate is answered 421; then the connection
        goes on.
        """
        self._exchange.apps = hostnames or None

    def expire(self, uint64_t now_ns):
        """Enforce every deadline that is due at `now_ns` (CLOCK_MONOTONIC nanoseconds). Called by the tick, and by tests."""
        cdef uint8_t deadline
        cdef conn_t *conn
        self._connections.now = now_ns
        for deadline in range(DEADLINE_HANDSHAKE, DEADLINE_COUNT):
            while True:
                conn = deadline_due(&self._connections.deadlines, deadline, now_ns)
                if conn == NULL:
                    break
                self._exchange.expire(conn, deadline)
        self._connections.leave()

    def counters(self):
        """Counts since the start, and what lives now: a dict of ints for /metrics."""
        cdef Connections all_ = self._connections
        cdef Exchange exchange = self._exchange
        return {
            "connections_accepted_total": all_.accepted, "connections_live": all_.live,
            "connections_closing": all_.tombstones, "connections_over_limit_total": self._over_limit,
            "connections_flooded_total": self._flooded, "deadlines_expired_total": exchange.timeouts,
            "handshakes_total": exchange.handshakes, "handshakes_failed_total": exchange.handshakes_failed,
            "clients_refused_total": exchange.clients_refused, "requests_misdirected_total": exchange.misdirected,
            "requests_total": exchange.requests, "requests_refused_total": exchange.refused,
            "answers_failed_total": exchange.failures, "frames_in_total": self._frames_in,
            "frames_out_total": all_.out.frames, "frames_dropped_total": self._dropped,
            "bytes_in_total": self._bytes_in, "bytes_out_total": all_.out.bytes,
            "ring_full_total": all_.out.full, "doorbell_wakes_total": self._wakes,
            "doorbell_rings_total": all_.rings, "turns_total": self._turns, "body_memory_bytes": all_.body_memory,
            "answer_memory_bytes": all_.answer_memory, "answers_cut_total": all_.cut,
            **({} if self.outgoings is None else self.outgoings.counters()),
        }

    @property
    def live(self):
        """Connections that are not yet closed on our side."""
        return self._connections.live

    @property
    def draining(self):
        """Whether a drain was asked for."""
        return self._connections.draining

    @property
    def drained(self):
        """Whether a drain was asked for and no connection is left."""
        return self._connections.drained

    # -- ring -> connection ---------------------------------------------------------------------------------------

    cdef int _turn(self) except -1:
        # One batch of frames, answers published once; bounded in number and in time, since a handshake costs as much as
        # a hundred requests and those who wait for an answer should not wait for all of them. 1: there may be more.
        cdef const uint8_t *payload = NULL
        cdef uint32_t size = 0
        cdef int frames = 0
        cdef int state = RING_EMPTY
        cdef out_t *out = &self._connections.out
        self._turns += 1
        self._connections.now = eos_monotonic_ns()
        if self._connections.now - self._date_at > DATE_EVERY_NS:
            self._date_at = self._connections.now
            self._exchange.write_lines()
        if self._ready_owed and out_control(out, FRAME_READY, 0, -1):
            self._ready_owed = False
        while frames < FRAMES_PER_TURN_MAX:
            state = ring_peek(&self._from_host.ring, &payload, &size)
            if state != RING_READY:
                break
            frames += 1
            self._frame(payload, size)
            if self._from_host.ring.lie:
                state = RING_POISONED
                break
            ring_advance(&self._from_host.ring)
            if frames % FRAMES_PER_LOOK == 0 and eos_monotonic_ns() - self._connections.now > TURN_NS_MAX:
                break
        self._frames_in += frames
        if state == RING_POISONED:
            self._break(HostProtocolError(self._from_host.ring.lie, "data.to_enclave"))
            return 0
        if out.ring.lie:
            self._break(HostProtocolError(out.ring.lie, "data.to_host"))
            return 0
        if out.blocked_first != NULL:
            self._flush()               # after the frames: a PAUSE among them counts before more is written
        if self._connections.drain_owed and out_control(out, FRAME_DRAIN, 0, -1):
            self._connections.drain_owed = False
        if self._connections.live and self._tick_handle is None:
            self._arm_tick()
        self._connections.ring_host(ring_release(&self._from_host.ring))
        return state == RING_READY

    cdef int _frame(self, const uint8_t *payload, uint32_t size) except -1:
        cdef frame_t frame
        cdef conn_t *conn
        if size < FRAME_HEADER_SIZE or not frame_decode(eos_load_relaxed(<const uint64_t *>payload), &frame):
            self._from_host.ring.lie = LIE_FRAME
            return 0
        payload += FRAME_HEADER_SIZE
        size -= FRAME_HEADER_SIZE
        if not frame_allowed(&frame, size, True):
            self._from_host.ring.lie = LIE_FRAME
            return 0
        if frame.conn_id > <uint32_t>CONN_ID_INGRESS_MAX:
            if self.outgoings is None:
                self._dropped += 1
                return 0
            return self.outgoings.frame(&frame, payload, size)
        if frame.kind == FRAME_DATA:
            conn = connections_find(self._connections, frame.conn_id)
            if conn == NULL or conn.phase == PHASE_GONE:
                self._dropped += 1
                return 0
            self._bytes_in += size
            return self._data(conn, payload, size)
        if frame.kind == FRAME_NEW:
            return self._new(frame.conn_id, payload, size)
        if frame.kind == FRAME_DRAIN:
            if not self._connections.draining:
                self.begin_drain()
            return 0
        conn = connections_find(self._connections, frame.conn_id)
        if conn == NULL:
            self._dropped += 1
            return 0
        if frame.kind == FRAME_CLOSE:
            conn.host_closed = True
            connection_drop_output(conn)        # the client is gone: nothing of it needs to go out but our CLOSE
            if conn.phase != PHASE_GONE:
                return self._connections.finish(conn, CLOSE_NORMAL)
            return self._connections.say_close(conn)
        if conn.phase == PHASE_GONE:
            self._dropped += 1
            return 0
        if frame.kind == FRAME_PAUSE:
            conn.paused = True
            return 0
        if frame.kind == FRAME_RESUME:
            conn.paused = False
            if not conn.blocked:
                if connection_flush(conn) == FLUSHED:
                    return self._exchange.progress(conn)
                connection_block(conn)
            return 0
        return self._eof(conn)

    cdef int _new(self, uint32_t conn_id, const uint8_t *payload, uint32_t size) except -1:
        cdef uint8_t address[PEER_ADDRESS_SIZE_MAX]
        cdef conn_t *conn = self._connections.add(conn_id)
        if conn == NULL:
            self._dropped += 1          # NEW twice, or a slot still in use: the host's confusion harms nobody (RG10)
            return 0
        if (self._connections.live > self._connections_max or self._connections.draining
                or http_parser_init(&conn.parser, &self._limits) != 0):
            self._over_limit += 1
            return self._connections.finish(conn, CLOSE_SHUTDOWN if self._connections.draining else CLOSE_LIMIT)
        eos_copy_in(address, payload, size)
        peer = PyUnicode_DecodeUTF8(<const char *>address, size, "replace")
        Py_INCREF(peer)
        conn.peer = <void *>peer
        connections_start(self._connections, conn, DEADLINE_HANDSHAKE)
        return 0

    cdef int _data(self, conn_t *conn, const uint8_t *payload, uint32_t size) except -1:
        if conn.eof:
            self._dropped += 1
            return 0
        if conn.phase > PHASE_READING or conn.held_size or conn.left != NULL:
            if conn.held_size + size > self._held_max or (
                conn.held_size + size > HOLD_PAUSE and self._connections.body_memory + size > self._held_total_max
            ):
                self._flooded += 1
                return self._connections.finish(conn, CLOSE_FLOOD)
            self._connections.hold(conn, payload, size, True)
            if conn.held_size > HOLD_PAUSE and not conn.pause_sent:
                conn.pause_sent = True
                connection_owe(conn, OWE_PAUSE)
            return 0
        conn.tls.copy_in = eos_copy_in
        conn.tls.input = payload
        conn.tls.input_size = size
        self._exchange.read(conn)
        if conn.phase != PHASE_GONE and conn.tls.input_size:
            self._connections.hold(conn, conn.tls.input, conn.tls.input_size, True)
            conn.tls.input_size = 0
        return 0

    cdef int _eof(self, conn_t *conn) except -1:
        # TCP says that no more comes. A request in flight is answered; a half-received one never completes.
        conn.eof = True
        if conn.phase <= PHASE_READING and not conn.held_size:
            return self._connections.finish(conn, CLOSE_NORMAL)
        return 0

    cdef int _flush(self) except -1:
        # Room came, or may have: each that waits gets one try, oldest first, until the ring is full.
        cdef conn_t *conn
        cdef out_t *out = &self._connections.out
        cdef conn_t *last = out.blocked_last
        cdef int result
        while out.blocked_first != NULL:
            conn = connection_unblock_first(out)
            result = connection_flush(conn)
            if result == FLUSH_NO_ROOM:
                connection_block_first(conn)
                break
            if result == FLUSH_PARKED:
                connection_block(conn)          # its own window is full, not the ring: the others go on
            elif conn.conn_id > <uint32_t>CONN_ID_INGRESS_MAX:
                self.outgoings.flushed(conn)
            elif conn.phase == PHASE_GONE:
                self._connections.forget(conn)
            else:
                self._exchange.progress(conn)
            if conn == last:
                break
        return self._connections.check_drained()

    cdef int _break(self, object error) except -1:
        # The host broke the contract: the channel is dead for good, and with it this process.
        self._stopped = True
        self._on_stop(error)
        return 0

    # -- deadlines ------------------------------------------------------------------------------------------------

    cdef int _arm_tick(self) except -1:
        self._tick_handle = self._loop.call_later(TICK_SECONDS, self._tick)
        return 0

    def _tick(self):
        self._tick_handle = None
        if self._stopped:
            return
        self.expire(eos_monotonic_ns())
        if self._connections.live:
            self._arm_tick()

    def _again(self):
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.on_wake)
