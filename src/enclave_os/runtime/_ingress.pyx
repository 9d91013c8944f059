"""Ingress: from ring record to module call and back, for every client connection of this enclave process.

This is the one native that holds both a pointer into shared memory and an OpenSSL connection, so it is the file to
review hardest. What makes it right:

- A frame's header word is loaded once into a private copy and decoded from that. The payload is touched by one copy
  only: OpenSSL's BIO read copies from the ring into OpenSSL's own buffer (eos_copy_in), or `connection_hold` copies it
  aside. The record is given back to the host only after that copy.
- What leaves is ciphertext that OpenSSL finished in private memory, copied once by `connection_sink`.
- A frame that the contract does not allow (unknown kind, wrong direction, a connection that never was named right)
  is either the host's lie about the framing, which poisons the channel, or a late frame of a closed connection, which
  is dropped and counted; it never reaches another connection, since `_find` compares the whole conn_id.
- One connection never waits for another: full rings and slow clients leave bytes in that connection's own bounded
  buffers, and the incoming ring is drained on.
- Python is entered once per request (`respond`), not per frame or header.

States of a connection, and who moves it:

    HANDSHAKE --TLS up--> READING --request--> BUSY --answer--> WRITING --all out--> READING
    READING --synchronous answer, all out--> READING          (the usual case never leaves READING)
    any --close, lie, deadline, host's CLOSE--> GONE --both CLOSE frames crossed--> forgotten

Only READING and HANDSHAKE take bytes from the client; in BUSY and WRITING they wait in `held` (ciphertext) and `left`
(plaintext behind the request), and the host is asked to PAUSE. So at most one request of a connection is in flight.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from enclave_os._codec cimport (
    FRAME_CLOSE, FRAME_DATA, FRAME_DRAIN, FRAME_NEW, FRAME_PAUSE, FRAME_READY, FRAME_RESUME,
    frame_allowed, frame_decode, frame_t,
)
from enclave_os._limits cimport (
    CONN_ID_INGRESS_MAX, CONN_SLOT_BITS, FRAME_HEADER_SIZE, FRAMES_PER_TURN_MAX, PEER_ADDRESS_SIZE_MAX,
)
from enclave_os._native cimport eos_copy_in, eos_cpu_pause, eos_load_acquire, eos_load_relaxed, eos_monotonic_ns
from enclave_os._ring cimport (
    LIE_FRAME, RING_EMPTY, RING_POISONED, RING_READY, ring_advance, ring_arm, ring_peek, ring_publish, ring_release,
)
from enclave_os._tls cimport (
    TLS_CLOSED, TLS_FAILED, TLS_REFUSED_BY_JUDGE, TLS_WANT_INPUT, tls_close, tls_conn_new, tls_pending, tls_read,
    tls_release, tls_take_error, tls_take_verdict, tls_write,
)
from enclave_os.http._message cimport (
    RESPONSE_NO_ROOM, Request, Response, StreamingResponse, request_hostname, response_write, response_write_head,
)
from enclave_os.http._parser cimport (
    HTTP_AT_START, HTTP_CONTINUE, HTTP_IN_BODY, HTTP_NEED_DATA, HTTP_REQUEST, http_parser_feed,
    http_parser_init, http_parser_next, http_take_request,
)
from enclave_os.runtime._connection cimport *
from enclave_os.runtime._egress cimport make_outgoings

from collections.abc import Coroutine
from typing import get_args

from enclave_os.errors import AttestationError, InternalError
from enclave_os.http._message import encode_chunk, error_response
from enclave_os.http.connection import AttestationTag
from enclave_os.wire.errors import HostProtocolError

cdef enum:
    PLAIN_SIZE = 16384 + 256        # one TLS record's plaintext, RFC 8446 section 5.1
    PAGE_SIZE = 32768               # a head (its limit is 8 KiB) and a small body, written as one
    HEAD_ROOM = 16384
    HOLD_PAUSE = 16384              # held bytes above which the host is asked to stop reading the socket
    SLOT_FILLED = 1                 # wire.layout.SlotState
    FRAMES_PER_LOOK = 8             # at the clock, whether the turn has lasted long enough
    TURNS_PER_WAKE_MAX = 4          # then the event loop's other work gets its turn
    CONN_SLOTS = 1 << CONN_SLOT_BITS
    TOMBSTONES_MAX = 1 << 17        # closed by us, not yet by the host: an honest one has no more than it has sockets

cdef uint64_t DATE_EVERY_NS = 200_000_000
cdef uint64_t TURN_NS_MAX = 2_000_000
cdef uint64_t WARM_NS = 500_000_000  # as long as most gaps between requests that come one after the other
cdef tuple TAGS = get_args(AttestationTag)
cdef double TICK_SECONDS = 0.5      # granularity of deadlines; the tick runs only while there are connections
cdef bytes CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
cdef Response MISDIRECTED = error_response(421, "this connection shows the certificate of another host; open a new one")
cdef Response STALE = error_response(421, "the configuration changed since this connection was attested; open a new one")
cdef str TOO_MANY_BODIES = "too many request bodies are in flight; try later"


cdef class Answer:
    """A request that a module answers asynchronously. Its connection may be gone when the task ends: see `_owner`."""

    def __call__(self, task):
        self.ingress._task_done(self, task)


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

    def __cinit__(self, *args, **kwargs):
        self._plain = <uint8_t *>malloc(PLAIN_SIZE)
        self._page = <uint8_t *>malloc(PAGE_SIZE)
        self._table_size = 1024
        self._table = <conn_t **>calloc(self._table_size, sizeof(conn_t *))
        if self._plain == NULL or self._page == NULL or self._table == NULL:
            raise MemoryError

    def __init__(self, *, Consumer from_host not None, Producer to_host not None, Consumer rpc_from_host not None,
                 region not None, size_t shutdown_offset, int doorbell_in, int doorbell_out, TLSContext tls not None,
                 respond, loop, http_date, on_rpc, on_stop, report, limits, timeouts, uint64_t spin_us=0,
                 uint32_t egress_max=0):
        cdef uint8_t[::1] view = region
        cdef int index
        self._from_host, self._to_host, self._rpc_from_host = from_host, to_host, rpc_from_host
        self._region = view
        if shutdown_offset % 8 or shutdown_offset + 8 > <size_t>view.shape[0]:
            raise InternalError("the shutdown word is not in the region")
        self._shutdown_word = <uint64_t *>(&view[0] + shutdown_offset)
        self._doorbell_in, self._doorbell_out = doorbell_in, doorbell_out
        self._tls, self._respond, self._loop, self._http_date = tls, respond, loop, http_date
        self._on_rpc, self._on_stop, self._report = on_rpc, on_stop, report
        self._limits.head_size_max = limits["head_bytes"]
        self._limits.header_count_max = limits["headers"]
        self._limits.target_size_max = limits["target_bytes"]
        self._limits.body_size_max = limits["body_bytes"]
        self._body_memory_max = limits["body_memory_bytes"]
        self._connections_max = limits["connections"]
        # A host that goes on sending after PAUSE has at most one ring's worth in flight.
        self._held_max = HOLD_PAUSE + self._from_host.ring.capacity
        for index, name in ((DEADLINE_HANDSHAKE, "handshake"), (DEADLINE_HEAD, "head"), (DEADLINE_BODY, "body"),
                            (DEADLINE_IDLE, "idle"), (DEADLINE_REQUEST, "request"), (DEADLINE_WRITE, "write_stall")):
            self._deadlines.timeout_ns[index] = <uint64_t>(timeouts[name] * 1e9)
        self._deadlines.timeout_ns[DEADLINE_WARM] = WARM_NS
        self._spin_ns = spin_us * 1000
        self._out.ring = &self._to_host.ring
        if egress_max:
            self.outgoings = make_outgoings(self, &self._out, self._leave_publicly, egress_max,
                                            self._from_host.ring.capacity)
        self._now = eos_monotonic_ns()

    def __dealloc__(self):
        cdef uint32_t slot
        if self._table != NULL:
            for slot in range(self._table_size):
                if self._table[slot] != NULL:
                    connection_free(self._table[slot])
            free(self._table)
        free(self._plain)
        free(self._page)

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
        self._draining = True
        for slot in range(self._table_size):
            conn = self._table[slot]
            if conn != NULL and conn.phase == PHASE_READING and conn.parser.state == HTTP_AT_START:
                self._finish(conn, CLOSE_SHUTDOWN)
        self._check_drained()
        self._ring_host()

    def set_apps(self, hostnames):
        """Applications with certificates of their own (frozenset of names as `Request.hostname` spells them), or None.

        A request for one of them on a connection that shows another certificate is answered 421; then the connection
        goes on.
        """
        self._apps = hostnames or None

    def expire(self, uint64_t now_ns):
        """Enforce every deadline that is due at `now_ns` (CLOCK_MONOTONIC nanoseconds). Called by the tick, and by tests."""
        cdef uint8_t deadline
        cdef conn_t *conn
        self._now = now_ns
        for deadline in range(DEADLINE_HANDSHAKE, DEADLINE_COUNT):
            while True:
                conn = deadline_due(&self._deadlines, deadline, now_ns)
                if conn == NULL:
                    break
                self._expire(conn, deadline)
        self._leave()

    def counters(self):
        """Counts since the start, and what lives now: a dict of ints for /metrics."""
        return {
            "connections_accepted_total": self._accepted, "connections_live": self._live,
            "connections_closing": self._tombstones, "connections_over_limit_total": self._over_limit,
            "connections_flooded_total": self._flooded, "deadlines_expired_total": self._timeouts,
            "handshakes_total": self._handshakes, "handshakes_failed_total": self._handshakes_failed,
            "clients_refused_total": self._clients_refused, "requests_misdirected_total": self._misdirected,
            "requests_total": self._requests, "requests_refused_total": self._refused,
            "answers_failed_total": self._failures, "frames_in_total": self._frames_in,
            "frames_out_total": self._out.frames, "frames_dropped_total": self._dropped,
            "bytes_in_total": self._bytes_in, "bytes_out_total": self._out.bytes,
            "ring_full_total": self._out.full, "doorbell_wakes_total": self._wakes,
            "doorbell_rings_total": self._rings, "turns_total": self._turns, "body_memory_bytes": self._body_memory,
            **({} if self.outgoings is None else self.outgoings.counters()),
        }

    @property
    def live(self):
        """Connections that are not yet closed on our side."""
        return self._live

    @property
    def draining(self):
        """Whether a drain was asked for."""
        return self._draining

    @property
    def drained(self):
        """Whether a drain was asked for and no connection is left."""
        return self._drained

    # -- ring -> connection ---------------------------------------------------------------------------------------

    cdef int _turn(self) except -1:
        # One batch of frames, answers published once; bounded in number and in time, since a handshake costs as much as
        # a hundred requests and those who wait for an answer should not wait for all of them. 1: there may be more.
        cdef const uint8_t *payload = NULL
        cdef uint32_t size = 0
        cdef int frames = 0
        cdef int state = RING_EMPTY
        self._turns += 1
        self._now = eos_monotonic_ns()
        if self._now - self._date_at > DATE_EVERY_NS:
            self._date_at = self._now
            self._write_lines()
        if self._ready_owed and out_control(&self._out, FRAME_READY, 0, -1):
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
            if frames % FRAMES_PER_LOOK == 0 and eos_monotonic_ns() - self._now > TURN_NS_MAX:
                break
        self._frames_in += frames
        if state == RING_POISONED:
            self._break(HostProtocolError(self._from_host.ring.lie, "data.to_enclave"))
            return 0
        if self._out.ring.lie:
            self._break(HostProtocolError(self._out.ring.lie, "data.to_host"))
            return 0
        if self._out.blocked_first != NULL:
            self._flush()               # after the frames: a PAUSE among them counts before more is written
        if self._drain_owed and out_control(&self._out, FRAME_DRAIN, 0, -1):
            self._drain_owed = False
        if self._live and self._tick_handle is None:
            self._arm_tick()
        self._ring_host(ring_release(&self._from_host.ring))
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
            conn = self._find(frame.conn_id)
            if conn == NULL or conn.phase == PHASE_GONE:
                self._dropped += 1
                return 0
            self._bytes_in += size
            return self._data(conn, payload, size)
        if frame.kind == FRAME_NEW:
            return self._new(frame.conn_id, payload, size)
        if frame.kind == FRAME_DRAIN:
            if not self._draining:
                self.begin_drain()
            return 0
        conn = self._find(frame.conn_id)
        if conn == NULL:
            self._dropped += 1
            return 0
        if frame.kind == FRAME_CLOSE:
            conn.host_closed = True
            if conn.phase != PHASE_GONE:
                # The client is gone: nothing of this connection needs to go out any more but our CLOSE.
                self._drop_output(conn)
                return self._finish(conn, CLOSE_NORMAL)
            self._drop_output(conn)
            return self._say_close(conn)
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
                    return self._progress(conn)
                connection_block(conn)
            return 0
        return self._eof(conn)

    cdef conn_t *_find(self, uint32_t conn_id) noexcept:
        cdef uint32_t slot = conn_id & (CONN_SLOTS - 1)
        cdef conn_t *conn
        if slot >= self._table_size:
            return NULL
        conn = self._table[slot]
        if conn == NULL or conn.conn_id != conn_id:
            return NULL
        return conn

    cdef int _new(self, uint32_t conn_id, const uint8_t *payload, uint32_t size) except -1:
        cdef uint32_t slot = conn_id & (CONN_SLOTS - 1)
        cdef uint32_t grown
        cdef uint8_t address[PEER_ADDRESS_SIZE_MAX]
        cdef conn_t **table
        cdef conn_t *conn
        if slot >= self._table_size:
            grown = self._table_size
            while grown <= slot:
                grown *= 2
            table = <conn_t **>realloc(self._table, grown * sizeof(conn_t *))
            if table == NULL:
                raise MemoryError
            memset(table + self._table_size, 0, (grown - self._table_size) * sizeof(conn_t *))
            self._table, self._table_size = table, grown
        if self._table[slot] != NULL or self._tombstones > TOMBSTONES_MAX:
            self._dropped += 1          # NEW twice, or a slot still in use: the host's confusion harms nobody (RG10)
            return 0
        eos_copy_in(address, payload, size)
        conn = <conn_t *>calloc(1, sizeof(conn_t))
        if conn == NULL:
            raise MemoryError
        conn.conn_id = conn_id
        conn.sink = &self._out
        conn.window_start = self._out.ring.produced
        try:
            conn.tls = tls_conn_new(self._tls, eos_copy_in, connection_sink, conn)
        except MemoryError:
            free(conn)
            raise
        self._table[slot] = conn
        self._accepted += 1
        self._live += 1
        if self._live > self._connections_max or self._draining or http_parser_init(&conn.parser, &self._limits) != 0:
            self._over_limit += 1
            return self._finish(conn, CLOSE_SHUTDOWN if self._draining else CLOSE_LIMIT)
        peer = PyUnicode_DecodeUTF8(<const char *>address, size, "replace")
        Py_INCREF(peer)
        conn.peer = <void *>peer
        self._start(conn, DEADLINE_HANDSHAKE)
        return 0

    cdef int _data(self, conn_t *conn, const uint8_t *payload, uint32_t size) except -1:
        if conn.eof:
            self._dropped += 1
            return 0
        if conn.phase > PHASE_READING or conn.held_size or conn.left != NULL:
            if conn.held_size + size > self._held_max:
                self._flooded += 1
                return self._finish(conn, CLOSE_FLOOD)
            if connection_hold(conn, payload, size, True) != 0:
                raise MemoryError
            if conn.held_size > HOLD_PAUSE and not conn.pause_sent:
                conn.pause_sent = True
                connection_owe(conn, OWE_PAUSE)
            return 0
        conn.tls.copy_in = eos_copy_in
        conn.tls.input = payload
        conn.tls.input_size = size
        self._read(conn)
        if conn.phase != PHASE_GONE and conn.tls.input_size:
            if connection_hold(conn, conn.tls.input, conn.tls.input_size, True) != 0:
                raise MemoryError
            conn.tls.input_size = 0
        return 0

    cdef int _eof(self, conn_t *conn) except -1:
        # TCP says that no more comes. A request in flight is answered; a half-received one never completes.
        conn.eof = True
        if conn.phase <= PHASE_READING and not conn.held_size:
            return self._finish(conn, CLOSE_NORMAL)
        return 0

    # -- connection -> requests -----------------------------------------------------------------------------------

    cdef int _read(self, conn_t *conn) except -1:
        # Requests out of plaintext, plaintext out of TLS, until more input is needed or the connection has to wait.
        cdef int got
        cdef size_t used
        while conn.phase <= PHASE_READING:
            got = tls_read(conn.tls, self._plain, PLAIN_SIZE)
            if conn.phase == PHASE_HANDSHAKE and conn.sni == NULL and conn.tls.hello != NULL:
                connection_keep_name(conn)
            if conn.phase == PHASE_HANDSHAKE and conn.tls.handshake_done:
                self._handshakes += 1
                conn.phase = PHASE_READING
                self._start(conn, DEADLINE_HEAD)
                if conn.tls.has_peer:
                    connection_object(conn).evidence = tls_take_verdict(conn.tls)
                if got <= 0:
                    tls_release(conn.tls)       # whether a request follows soon, nobody knows
            if got > 0:
                used = self._feed(conn, self._plain, got)
                if used < <size_t>got and conn.phase != PHASE_GONE:
                    conn.left = <uint8_t *>malloc(got - used)
                    if conn.left == NULL:
                        raise MemoryError
                    memcpy(conn.left, self._plain + used, got - used)
                    conn.left_size, conn.left_used = <uint32_t>(got - used), 0
                if conn.phase <= PHASE_READING and not conn.tls.input_size and not tls_pending(conn.tls):
                    break
                continue
            if got == TLS_WANT_INPUT:
                break
            if got == TLS_CLOSED:
                conn.eof = True
                return self._finish(conn, CLOSE_NORMAL)
            if conn.phase == PHASE_HANDSHAKE:
                self._handshakes_failed += 1
            error = tls_take_error(conn.tls)
            if conn.tls.refusal == TLS_REFUSED_BY_JUDGE and isinstance(error, AttestationError):
                self._clients_refused += 1
                self._report("a client's evidence was refused", error)
            elif error is not None:
                self._report("the handshake could not go on", error)
            return self._finish(conn, CLOSE_PROTOCOL)
        return 0

    cdef size_t _feed(self, conn_t *conn, const uint8_t *data, size_t size) except? 0:
        # Hand plaintext to the parser, up to and with the first request that is not answered at once. Returns the bytes
        # used. `data` may be the connection's own `left`: it is not touched any more once the connection is GONE.
        cdef size_t done = 0
        cdef size_t used = 0
        cdef int result
        while done < size:
            result = http_parser_feed(&conn.parser, data + done, size - done, &used)
            done += used
            if result == HTTP_REQUEST:
                self._dispatch(conn)
                if conn.phase != PHASE_READING:
                    return done
            elif result == HTTP_NEED_DATA:
                break
            elif result == HTTP_CONTINUE:
                # RFC 9110 section 10.1.1: the client waits for this before it sends the body.
                self._write(conn, <const uint8_t *>PyBytes_AS_STRING(CONTINUE), PyBytes_GET_SIZE(CONTINUE))
                if conn.phase != PHASE_READING:
                    return done
            else:
                self._refuse(conn, conn.parser.status, conn.parser.reason.decode("ascii"))
                return size
        if conn.parser.state == HTTP_AT_START:
            if conn.served and conn.deadline != DEADLINE_WARM and conn.deadline != DEADLINE_IDLE:
                self._idle(conn)
        elif conn.parser.state == HTTP_IN_BODY:
            if self._count_body(conn) == 0 and conn.deadline != DEADLINE_BODY:
                self._start(conn, DEADLINE_BODY)
        elif conn.deadline != DEADLINE_HEAD:
            self._start(conn, DEADLINE_HEAD)
        return done

    cdef int _count_body(self, conn_t *conn) except -1:
        # Bodies of all connections together stay under one bound, whatever each may have. 1: refused.
        self._body_memory += conn.parser.body_size - conn.body_counted
        conn.body_counted = conn.parser.body_size
        if self._body_memory <= self._body_memory_max:
            return 0
        self._refuse(conn, 503, TOO_MANY_BODIES)
        return 1

    cdef int _dispatch(self, conn_t *conn) except -1:
        cdef Request request
        cdef Answer answer
        conn.keep_alive = conn.parser.keep_alive and not self._draining
        conn.is_head = conn.parser.is_head
        request = http_take_request(&conn.parser)
        conn.http10 = request.http_minor == 0
        request.peer = <object>conn.peer
        request.sni = <object>conn.sni if conn.sni != NULL else None
        request.link = connection_object(conn)
        http_parser_next(&conn.parser)
        self._body_memory += PyBytes_GET_SIZE(request.body) - conn.body_counted     # held until the module has answered
        conn.body_counted = PyBytes_GET_SIZE(request.body)
        if conn.body_counted and self._body_memory > self._body_memory_max:
            return self._refuse(conn, 503, TOO_MANY_BODIES)
        self._requests += 1
        conn.served = True
        conn.streaming = False
        if conn.stale:
            # Not one byte more under evidence of another configuration (RT9): the client attests anew, elsewhere.
            self._misdirected += 1
            conn.keep_alive = False
            return self._answer(conn, STALE)
        if self._apps is not None:
            hostname = request_hostname(request)
            if hostname in self._apps and (conn.tls.app == NULL or hostname != <str>conn.tls.app):
                self._misdirected += 1
                return self._answer(conn, MISDIRECTED)
        result = self._respond(request)
        if isinstance(result, Response) and not isinstance(result, StreamingResponse):
            return self._answer(conn, <Response>result)
        conn.phase = PHASE_BUSY
        tls_release(conn.tls)           # how long the module takes, nobody knows
        self._start(conn, DEADLINE_REQUEST)
        answer = Answer()
        answer.ingress, answer.conn_id = self, conn.conn_id
        Py_INCREF(answer)
        conn.task = <void *>answer
        if isinstance(result, StreamingResponse):
            answer.task = self._loop.create_task(self._stream(answer, result))
        elif isinstance(result, Coroutine):
            answer.task = self._loop.create_task(result)
        else:
            return self._failed(conn, InternalError(f"{type(result).__name__} is neither Response nor coroutine"))
        answer.task.add_done_callback(answer)
        return 0

    cdef conn_t *_owner(self, Answer answer) noexcept:
        # The connection that waits for this very answer, or NULL. By the Answer's identity: the host chooses conn_ids
        # and may give one to the next client while a cancelled task of the former one still runs to its end.
        cdef conn_t *conn = self._find(answer.conn_id)
        if conn == NULL or conn.phase != PHASE_BUSY or conn.task != <void *>answer:
            return NULL
        return conn

    cdef int _failed(self, conn_t *conn, object error) except -1:
        # The registry answers for modules' mistakes, so this is ours: no answer, but the others go on.
        self._failures += 1
        self._report("an answer failed", error)
        return self._finish(conn, CLOSE_INTERNAL)

    cdef int _task_done(self, Answer answer, task) except -1:
        # A module's coroutine ended; its connection may have ended before it, or given it up.
        cdef conn_t *conn = self._owner(answer)
        error = None if task.cancelled() else task.exception()      # asked for in any case, or asyncio complains
        if conn == NULL:
            return 0
        self._now = eos_monotonic_ns()
        result = None if task.cancelled() or error is not None else task.result()
        if isinstance(result, StreamingResponse):
            answer.task = self._loop.create_task(self._stream(answer, result))
            answer.task.add_done_callback(answer)
            return 0
        Py_DECREF(<object>conn.task)
        conn.task = NULL
        if task.cancelled():
            # Not by us, who would have given the claim to it up before: the loop ends, or the module cancelled itself.
            self._failures += 1
            self._finish(conn, CLOSE_INTERNAL)
        elif error is not None:
            self._failed(conn, error)
        elif isinstance(result, Response):
            self._answer(conn, <Response>result)
        elif not conn.streaming:
            self._failed(conn, InternalError(f"{type(result).__name__} is not a Response"))
        elif connection_blocked(conn):          # the last piece waits for room
            conn.phase = PHASE_WRITING
            self._start(conn, DEADLINE_WRITE)
        else:
            self._answered(conn)
        if conn.phase == PHASE_READING:
            self._progress(conn)
        self._leave()
        return 0

    # -- answers -> ring ------------------------------------------------------------------------------------------

    cdef int _write_lines(self) except -1:
        cdef bytes date = b"Date: " + self._http_date() + b"\r\nX-Privasys-Attestation: "
        cdef int tag
        for tag in range(TAG_COUNT):
            line = date + TAGS[tag].encode("ascii") + b"\r\n"
            self._lines_size[tag] = len(line)
            memcpy(self._lines[tag], PyBytes_AS_STRING(line), len(line))
        return 0

    cdef int _write(self, conn_t *conn, const uint8_t *data, size_t size) except -1:
        if tls_write(conn.tls, data, size) == TLS_FAILED:
            self._finish(conn, CLOSE_INTERNAL)
        return 0

    cdef int _answer(self, conn_t *conn, Response response) except -1:
        cdef bytes body = response.body
        cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
        cdef Py_ssize_t head, first
        if self._draining:
            conn.keep_alive = False
        if conn.body_counted:
            self._body_memory -= conn.body_counted
            conn.body_counted = 0
        # The usual answer: head and body in one piece, one or two TLS records.
        head = response_write(response, conn.keep_alive, conn.http10, conn.is_head, self._lines[conn.tag],
                              self._lines_size[conn.tag], self._page, PAGE_SIZE)
        first = size = 0 if head != RESPONSE_NO_ROOM else size
        if head == RESPONSE_NO_ROOM:
            head = response_write_head(response, conn.keep_alive, conn.http10, self._lines[conn.tag],
                                       self._lines_size[conn.tag], self._page, HEAD_ROOM)
            if head == RESPONSE_NO_ROOM:
                self._report("an answer's head is too big", InternalError(f"more than {HEAD_ROOM} bytes"))
                return self._finish(conn, CLOSE_INTERNAL)
            first = BODY_PIECE - head if head < BODY_PIECE else 0       # the first record is a full one
            memcpy(self._page + head, PyBytes_AS_STRING(body), first)
        if tls_write(conn.tls, self._page, head + first) == TLS_FAILED:
            return self._finish(conn, CLOSE_INTERNAL)
        if first == size and not connection_blocked(conn):
            return self._answered(conn)
        conn.phase = PHASE_WRITING
        self._start(conn, DEADLINE_WRITE)
        if first < size:
            Py_INCREF(body)
            conn.body = <void *>body
            conn.body_used = first
            return self._write_body(conn)
        return 0

    cdef int _write_body(self, conn_t *conn) except -1:
        # Pieces of one TLS record each, until all is out or something is in the way.
        cdef bytes body = <bytes>conn.body
        cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
        cdef Py_ssize_t piece
        while <Py_ssize_t>conn.body_used < size:
            if connection_blocked(conn):
                return 0
            piece = size - conn.body_used
            if piece > BODY_PIECE:
                piece = BODY_PIECE
            if tls_write(conn.tls, <const uint8_t *>PyBytes_AS_STRING(body) + conn.body_used, piece) == TLS_FAILED:
                return self._finish(conn, CLOSE_INTERNAL)
            conn.body_used += piece
        Py_DECREF(body)
        conn.body = NULL
        if not connection_blocked(conn):
            return self._answered(conn)
        return 0

    cdef int _answered(self, conn_t *conn) except -1:
        # The whole answer is in the ring: go on, or close.
        self._body_memory -= conn.body_counted      # of a streamed answer, whose module had the request to the end
        conn.body_counted = 0
        if not conn.keep_alive:
            return self._finish(conn, CLOSE_NORMAL)
        conn.phase = PHASE_READING
        self._idle(conn)
        if self._draining and not conn.left_size and not conn.held_size:
            return self._finish(conn, CLOSE_SHUTDOWN)
        return 0

    cdef int _refuse(self, conn_t *conn, int status, str reason) except -1:
        # The client broke the protocol or a limit: say so and close; nothing after it is parsed as a request (HT1).
        self._refused += 1
        conn.is_head = False            # whatever it was, it is not a request that we understood
        return self._answer_error(conn, status, reason)

    cdef int _answer_error(self, conn_t *conn, int status, str reason) except -1:
        conn.keep_alive = False
        return self._answer(conn, error_response(status, reason))

    cdef int _flush(self) except -1:
        # Room came, or may have: each that waits gets one try, oldest first, until the ring is full.
        cdef conn_t *conn
        cdef conn_t *last = self._out.blocked_last
        cdef int result
        while self._out.blocked_first != NULL:
            conn = connection_unblock_first(&self._out)
            result = connection_flush(conn)
            if result == FLUSH_NO_ROOM:
                connection_block_first(conn)
                break
            if result == FLUSH_PARKED:
                connection_block(conn)          # its own window is full, not the ring: the others go on
            elif conn.conn_id > <uint32_t>CONN_ID_INGRESS_MAX:
                self.outgoings.flushed(conn)
            elif conn.phase == PHASE_GONE:
                self._forget(conn)
            else:
                self._progress(conn)
            if conn == last:
                break
        return self._check_drained()

    cdef int _progress(self, conn_t *conn) except -1:
        # Nothing of this connection waits for room: write on, wake its stream, read what was held back.
        cdef uint8_t *held
        cdef uint32_t size
        cdef Answer answer
        if conn.phase == PHASE_GONE or connection_blocked(conn):
            return 0
        if conn.phase == PHASE_WRITING:
            self._start(conn, DEADLINE_WRITE)
            if conn.body != NULL:
                self._write_body(conn)
            else:
                self._answered(conn)
        elif conn.phase == PHASE_BUSY and conn.task != NULL:
            answer = <Answer>conn.task
            if answer.waiter is not None and not answer.waiter.done():
                answer.waiter.set_result(None)
        while conn.phase <= PHASE_READING and conn.left != NULL:
            conn.left_used += <uint32_t>self._feed(conn, conn.left + conn.left_used, conn.left_size - conn.left_used)
            if conn.phase == PHASE_GONE:
                return 0
            if conn.left_used == conn.left_size:
                free(conn.left)
                conn.left = NULL
                conn.left_size = conn.left_used = 0
        if conn.phase <= PHASE_READING:
            if conn.held_size:
                # Taken out of the connection while OpenSSL reads it: what is left over is held again.
                held, size = conn.held, conn.held_size
                conn.held, conn.held_size, conn.held_capacity = NULL, 0, 0
                conn.tls.copy_in = copy_private
                conn.tls.input, conn.tls.input_size = held, size
                try:
                    self._read(conn)
                    if conn.phase != PHASE_GONE and conn.tls.input_size:
                        if connection_hold(conn, conn.tls.input, conn.tls.input_size, False) != 0:
                            raise MemoryError
                        conn.tls.input_size = 0
                finally:
                    if conn.tls != NULL:
                        conn.tls.input_size = 0
                    free(held)
            elif tls_pending(conn.tls):
                self._read(conn)
        if conn.phase <= PHASE_READING and not conn.held_size:
            if conn.pause_sent:
                conn.pause_sent = False
                connection_owe(conn, OWE_RESUME)
            if conn.eof:
                return self._finish(conn, CLOSE_NORMAL)
        return 0

    async def _stream(self, Answer answer, response):
        """Write a StreamingResponse piece by piece, waiting whenever the client is slower than the module."""
        cdef conn_t *conn = self._owner(answer)
        cdef bytes piece
        cdef Py_ssize_t head
        if conn == NULL:
            return None
        if conn.http10:
            conn.keep_alive = False     # RFC 9112 section 6.1: no chunks for HTTP/1.0, the end is the close
        chunked = not conn.http10
        bodyless = conn.is_head or response.status in (204, 304)
        head = response_write_head(response, conn.keep_alive, conn.http10, self._lines[conn.tag],
                                   self._lines_size[conn.tag], self._page, HEAD_ROOM)
        if head < 0:
            raise InternalError(f"an answer's head is more than {HEAD_ROOM} bytes")
        conn.streaming = True
        self._write(conn, self._page, head)
        self._leave()                   # the client may wait for the head long before the first piece exists
        if not bodyless:
            async for piece in response.chunks:
                if not piece:
                    continue
                for start in range(0, len(piece), BODY_PIECE):
                    part = piece[start:start + BODY_PIECE]
                    if not self._stream_write(answer, encode_chunk(part) if chunked else part):
                        return None
                    await self._stream_room(answer)
            if chunked and not self._stream_write(answer, encode_chunk(b"")):
                return None
        await self._stream_room(answer)
        return None

    cdef bint _stream_write(self, Answer answer, bytes data) except -1:
        cdef conn_t *conn = self._owner(answer)
        if conn == NULL:
            return False
        self._now = eos_monotonic_ns()
        self._start(conn, DEADLINE_REQUEST)
        self._write(conn, <const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        self._leave()
        return conn.phase == PHASE_BUSY

    async def _stream_room(self, Answer answer):
        cdef conn_t *conn = self._owner(answer)
        while conn != NULL and connection_blocked(conn):
            self._start(conn, DEADLINE_WRITE)
            answer.waiter = self._loop.create_future()
            await answer.waiter
            conn = self._owner(answer)
            if conn != NULL:
                self._now = eos_monotonic_ns()
                self._start(conn, DEADLINE_REQUEST)     # it is the module's turn again

    # -- ends -----------------------------------------------------------------------------------------------------

    cdef int _finish(self, conn_t *conn, uint16_t reason) except -1:
        # Our side is done: close_notify where TLS still stands, CLOSE behind the last byte, and give the memory back.
        if conn.phase == PHASE_GONE:
            return 0
        if conn.tls != NULL and conn.phase != PHASE_HANDSHAKE and not conn.host_closed:
            tls_close(conn.tls)
        if reason == CLOSE_TIMEOUT or reason == CLOSE_FLOOD:
            self._drop_output(conn)         # it did not take these bytes in all its time
        conn.phase = PHASE_GONE
        deadline_clear(&self._deadlines, conn)
        self._body_memory -= conn.body_counted
        conn.body_counted = 0
        connection_empty(conn)
        self._live -= 1
        self._tombstones += 1
        conn.close_reason = reason
        conn.owed = OWE_CLOSE               # PAUSE and RESUME mean nothing any more
        if conn.task != NULL:
            self._cancel(conn)
        return self._say_close(conn)

    cdef int _cancel(self, conn_t *conn) except -1:
        # Give the module's work up; its task may still run to its end, for nobody.
        answer = <Answer>conn.task
        Py_DECREF(<object>conn.task)
        conn.task = NULL
        if answer.task is not None:
            answer.task.cancel()
        return 0

    cdef int _say_close(self, conn_t *conn) except -1:
        # Our CLOSE, now or with the next flush. A connection that queues for room stays in the queue until its turn:
        # the host may use the slot again as soon as it has this frame, so it must be the last that we have of it.
        if conn.owed & OWE_CLOSE and (conn.blocked or connection_flush(conn) != FLUSHED):
            connection_block(conn)
            self._again()
        self._forget(conn)
        return self._check_drained()

    cdef int _drop_output(self, conn_t *conn) except -1:
        free(conn.out)
        conn.out = NULL
        conn.out_size = conn.out_used = 0
        return 0

    cdef int _forget(self, conn_t *conn) except -1:
        # Both CLOSE frames crossed: the slot may be used again.
        if conn.phase != PHASE_GONE or not conn.host_closed or conn.owed & OWE_CLOSE or conn.blocked:
            return 0
        self._table[conn.conn_id & (CONN_SLOTS - 1)] = NULL
        self._tombstones -= 1
        connection_free(conn)
        return 0

    cdef int _check_drained(self) except -1:
        # Not before the last CLOSE is in the ring: DRAIN is small and would find room before it.
        if self._draining and not self._drained and self._live == 0 and self._out.blocked_first == NULL:
            self._drained = True
            self._drain_owed = not out_control(&self._out, FRAME_DRAIN, 0, -1)
        return 0

    cdef int _break(self, object error) except -1:
        # The host broke the contract: the channel is dead for good, and with it this process.
        self._stopped = True
        self._on_stop(error)
        return 0

    # -- deadlines ------------------------------------------------------------------------------------------------

    cdef void _start(self, conn_t *conn, uint8_t deadline) noexcept:
        deadline_set(&self._deadlines, conn, deadline, self._now)

    cdef void _idle(self, conn_t *conn) noexcept:
        # Between requests: warm first. The oldest of too many, or one whose time is up, cools down.
        deadline_set(&self._deadlines, conn, DEADLINE_WARM, self._now)
        if self._deadlines.count[DEADLINE_WARM] > WARM_MAX:
            self._cool(self._deadlines.first[DEADLINE_WARM])

    cdef void _cool(self, conn_t *conn) noexcept:
        tls_release(conn.tls)
        deadline_set(&self._deadlines, conn, DEADLINE_IDLE, conn.since)

    cdef int _expire(self, conn_t *conn, uint8_t deadline) except -1:
        if deadline == DEADLINE_WARM:
            self._cool(conn)
            return 0
        self._timeouts += 1
        if deadline == DEADLINE_HEAD and conn.parser.state == HTTP_AT_START:
            return self._finish(conn, CLOSE_TIMEOUT)        # connected, then silent: nobody waits for an answer
        if deadline == DEADLINE_HEAD or deadline == DEADLINE_BODY:
            return self._refuse(conn, 408, "the request did not arrive in time")
        if deadline == DEADLINE_REQUEST:
            if conn.streaming:
                return self._finish(conn, CLOSE_TIMEOUT)    # its head is out: no second answer in the middle of the first
            if conn.task != NULL:
                self._cancel(conn)
            return self._answer_error(conn, 503, "the request was not answered in time")
        return self._finish(conn, CLOSE_NORMAL if deadline == DEADLINE_IDLE else CLOSE_TIMEOUT)

    cdef int _arm_tick(self) except -1:
        self._tick_handle = self._loop.call_later(TICK_SECONDS, self._tick)
        return 0

    def _tick(self):
        self._tick_handle = None
        if self._stopped:
            return
        self.expire(eos_monotonic_ns())
        if self._live:
            self._arm_tick()

    def _again(self):
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.on_wake)

    cdef int _leave(self) except -1:
        # The end of work that no turn began: publish it, and have a turn deal with a lie that was met meanwhile.
        self._ring_host()
        if self._out.ring.lie:
            self._again()
        return 0

    def _leave_publicly(self):
        # For the outgoing connections, whose work begins in no turn of ours.
        self._leave()

    cdef void _ring_host(self, bint owed=False) noexcept:
        # Publish what was committed; one ring of the doorbell if the proxy sleeps, or is owed one for room given back.
        if ring_publish(self._out.ring) or owed:
            self._rings += 1
            doorbell_ring(self._doorbell_out)
