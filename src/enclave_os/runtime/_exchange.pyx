"""Exchanges: from a connection's ciphertext to requests, from requests to the module, from answers to ciphertext.

Between the ring (`_ingress`) and the module (`respond`): TLS, HTTP, and one call into Python a request.

- What is read is lent by the caller for the length of one call, as pointer and size in `conn.tls.input`; the one copy of it
  is OpenSSL's BIO read. What is left over when a call returns is the caller's to keep aside.
- What leaves is ciphertext that OpenSSL finished in private memory, copied once by `connection_sink`.
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
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from enclave_os._native cimport eos_monotonic_ns
from enclave_os._tls cimport (
    TLS_CLOSED, TLS_FAILED, TLS_REFUSED_BY_JUDGE, TLS_WANT_INPUT, tls_pending, tls_read, tls_release, tls_take_error,
    tls_take_verdict, tls_write,
)
from enclave_os.http._message cimport (
    RESPONSE_NO_ROOM, Request, Response, StreamingResponse, request_hostname, response_write, response_write_head,
)
from enclave_os.http._parser cimport (
    HTTP_AT_START, HTTP_CONTINUE, HTTP_IN_BODY, HTTP_NEED_DATA, HTTP_REQUEST, http_parser_feed, http_parser_next,
    http_take_request,
)
from enclave_os.runtime._connection cimport *
from enclave_os.runtime._connections cimport (
    Connections, connections_cool, connections_find, connections_idle, connections_start,
)

from collections.abc import Coroutine
from typing import get_args

from enclave_os.errors import AttestationError, InternalError
from enclave_os.http._message import encode_chunk, error_response
from enclave_os.http.connection import AttestationTag

cdef enum:
    PLAIN_SIZE = 16384 + 256        # one TLS record's plaintext, RFC 8446 section 5.1
    PAGE_SIZE = 32768               # a head (its limit is 8 KiB) and a small body, written as one
    HEAD_ROOM = 16384

cdef tuple TAGS = get_args(AttestationTag)
cdef bytes CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
cdef Response MISDIRECTED = error_response(421, "this connection shows the certificate of another host; open a new one")
cdef Response STALE = error_response(421, "the configuration changed since this connection was attested; open a new one")
cdef str TOO_MANY_BODIES = "too many request bodies are in flight; try later"


cdef class Answer:
    """A request that a module answers asynchronously. Its connection may be gone when the task ends."""

    def __call__(self, task):
        self.exchange.task_done(self, task)

    def cancel(self):
        """Nobody waits for it any more."""
        if self.task is not None:
            self.task.cancel()


cdef class Exchange:
    """The requests and answers of all connections of one ingress. Single-threaded, with the GIL."""

    def __cinit__(self):
        self.plain = <uint8_t *>malloc(PLAIN_SIZE)
        self.page = <uint8_t *>malloc(PAGE_SIZE)
        if self.plain == NULL or self.page == NULL:
            raise MemoryError

    def __init__(self):
        raise TypeError("an Exchange belongs to an Ingress")

    def __dealloc__(self):
        free(self.plain)
        free(self.page)

    # -- connection -> requests -----------------------------------------------------------------------------------

    cdef int read(self, conn_t *conn) except -1:
        # Requests out of plaintext, plaintext out of TLS, until more input is needed or the connection has to wait.
        cdef int got
        cdef size_t used
        while conn.phase <= PHASE_READING:
            got = tls_read(conn.tls, self.plain, PLAIN_SIZE)
            if conn.phase == PHASE_HANDSHAKE and conn.sni == NULL and conn.tls.hello != NULL:
                connection_keep_name(conn)
            if conn.phase == PHASE_HANDSHAKE and conn.tls.handshake_done:
                self.handshakes += 1
                conn.phase = PHASE_READING
                connections_start(self.connections, conn, DEADLINE_HEAD)
                if conn.tls.has_peer:
                    connection_object(conn).evidence = tls_take_verdict(conn.tls)
                if got <= 0:
                    tls_release(conn.tls)       # whether a request follows soon, nobody knows
            if got > 0:
                used = self.feed(conn, self.plain, got)
                if used < <size_t>got and conn.phase != PHASE_GONE:
                    conn.left = <uint8_t *>malloc(got - used)
                    if conn.left == NULL:
                        raise MemoryError
                    memcpy(conn.left, self.plain + used, got - used)
                    conn.left_size, conn.left_used = <uint32_t>(got - used), 0
                if conn.phase <= PHASE_READING and not conn.tls.input_size and not tls_pending(conn.tls):
                    break
                continue
            if got == TLS_WANT_INPUT:
                break
            if got == TLS_CLOSED:
                conn.eof = True
                return self.connections.finish(conn, CLOSE_NORMAL)
            if conn.phase == PHASE_HANDSHAKE:
                self.handshakes_failed += 1
            error = tls_take_error(conn.tls)
            if conn.tls.refusal == TLS_REFUSED_BY_JUDGE and isinstance(error, AttestationError):
                self.clients_refused += 1
                self.report("a client's evidence was refused", error)
            elif error is not None:
                self.report("the handshake could not go on", error)
            return self.connections.finish(conn, CLOSE_PROTOCOL)
        return 0

    cdef size_t feed(self, conn_t *conn, const uint8_t *data, size_t size) except? 0:
        # Hand plaintext to the parser, up to and with the first request that is not answered at once. Returns the bytes
        # used. `data` may be the connection's own `left`: it is not touched any more once the connection is GONE.
        cdef size_t done = 0
        cdef size_t used = 0
        cdef int result
        while done < size:
            result = http_parser_feed(&conn.parser, data + done, size - done, &used)
            done += used
            if result == HTTP_REQUEST:
                self.dispatch(conn)
                if conn.phase != PHASE_READING:
                    return done
            elif result == HTTP_NEED_DATA:
                break
            elif result == HTTP_CONTINUE:
                # RFC 9110 section 10.1.1: the client waits for this before it sends the body.
                self.write(conn, <const uint8_t *>PyBytes_AS_STRING(CONTINUE), PyBytes_GET_SIZE(CONTINUE))
                if conn.phase != PHASE_READING:
                    return done
            else:
                self.refuse(conn, conn.parser.status, conn.parser.reason.decode("ascii"))
                return size
        if conn.parser.state == HTTP_AT_START:
            if conn.served and conn.deadline != DEADLINE_WARM and conn.deadline != DEADLINE_IDLE:
                connections_idle(self.connections, conn)
        elif conn.parser.state == HTTP_IN_BODY:
            if self.count_body(conn) == 0 and conn.deadline != DEADLINE_BODY:
                connections_start(self.connections, conn, DEADLINE_BODY)
        elif conn.deadline != DEADLINE_HEAD:
            connections_start(self.connections, conn, DEADLINE_HEAD)
        return done

    cdef int count_body(self, conn_t *conn) except -1:
        # Bodies of all connections together stay under one bound, whatever each may have. 1: refused.
        self.connections.body_memory += conn.parser.body_size - conn.body_counted
        conn.body_counted = conn.parser.body_size
        if self.connections.body_memory <= self.body_memory_max:
            return 0
        self.refuse(conn, 503, TOO_MANY_BODIES)
        return 1

    cdef int dispatch(self, conn_t *conn) except -1:
        cdef Request request
        cdef Answer answer
        conn.keep_alive = conn.parser.keep_alive and not self.connections.draining
        conn.is_head = conn.parser.is_head
        request = http_take_request(&conn.parser)
        conn.http10 = request.http_minor == 0
        request.peer = <object>conn.peer
        request.sni = <object>conn.sni if conn.sni != NULL else None
        request.link = connection_object(conn)
        http_parser_next(&conn.parser)
        self.connections.body_memory += PyBytes_GET_SIZE(request.body) - conn.body_counted     # held until the module has answered
        conn.body_counted = PyBytes_GET_SIZE(request.body)
        if conn.body_counted and self.connections.body_memory > self.body_memory_max:
            return self.refuse(conn, 503, TOO_MANY_BODIES)
        self.requests += 1
        conn.served = True
        conn.streaming = False
        if conn.stale:
            # Not one byte more under evidence of another configuration (RT9): the client attests anew, elsewhere.
            self.misdirected += 1
            conn.keep_alive = False
            return self.answer(conn, STALE)
        if self.apps is not None:
            hostname = request_hostname(request)
            if hostname in self.apps and (conn.tls.app == NULL or hostname != <str>conn.tls.app):
                self.misdirected += 1
                return self.answer(conn, MISDIRECTED)
        result = self.respond(request)
        if isinstance(result, Response) and not isinstance(result, StreamingResponse):
            return self.answer(conn, <Response>result)
        conn.phase = PHASE_BUSY
        tls_release(conn.tls)           # how long the module takes, nobody knows
        connections_start(self.connections, conn, DEADLINE_REQUEST)
        answer = Answer()
        answer.exchange, answer.conn_id = self, conn.conn_id
        Py_INCREF(answer)
        conn.task = <void *>answer
        if isinstance(result, StreamingResponse):
            answer.task = self.loop.create_task(self._stream(answer, result))
        elif isinstance(result, Coroutine):
            answer.task = self.loop.create_task(result)
        else:
            return self.failed(conn, InternalError(f"{type(result).__name__} is neither Response nor coroutine"))
        answer.task.add_done_callback(answer)
        return 0

    cdef conn_t *owner(self, Answer answer) noexcept:
        # The connection that waits for this very answer, or NULL. By the Answer's identity: the host chooses conn_ids
        # and may give one to the next client while a cancelled task of the former one still runs to its end.
        cdef conn_t *conn = connections_find(self.connections, answer.conn_id)
        if conn == NULL or conn.phase != PHASE_BUSY or conn.task != <void *>answer:
            return NULL
        return conn

    cdef int failed(self, conn_t *conn, object error) except -1:
        # The registry answers for modules' mistakes, so this is ours: no answer, but the others go on.
        self.failures += 1
        self.report("an answer failed", error)
        return self.connections.finish(conn, CLOSE_INTERNAL)

    cdef int task_done(self, Answer answer, task) except -1:
        # A module's coroutine ended; its connection may have ended before it, or given it up.
        cdef conn_t *conn = self.owner(answer)
        error = None if task.cancelled() else task.exception()      # asked for in any case, or asyncio complains
        if conn == NULL:
            return 0
        self.connections.now = eos_monotonic_ns()
        result = None if task.cancelled() or error is not None else task.result()
        if isinstance(result, StreamingResponse):
            answer.task = self.loop.create_task(self._stream(answer, result))
            answer.task.add_done_callback(answer)
            return 0
        Py_DECREF(<object>conn.task)
        conn.task = NULL
        if task.cancelled():
            # Not by us, who would have given the claim to it up before: the loop ends, or the module cancelled itself.
            self.failures += 1
            self.connections.finish(conn, CLOSE_INTERNAL)
        elif error is not None:
            self.failed(conn, error)
        elif isinstance(result, Response):
            self.answer(conn, <Response>result)
        elif not conn.streaming:
            self.failed(conn, InternalError(f"{type(result).__name__} is not a Response"))
        elif connection_blocked(conn):          # the last piece waits for room
            conn.phase = PHASE_WRITING
            connections_start(self.connections, conn, DEADLINE_WRITE)
        else:
            self.answered(conn)
        if conn.phase == PHASE_READING:
            self.progress(conn)
        self.connections.leave()
        return 0

    # -- answers -> ring ------------------------------------------------------------------------------------------

    cdef int write_lines(self) except -1:
        cdef bytes date = b"Date: " + self.http_date() + b"\r\nX-Privasys-Attestation: "
        cdef int tag
        for tag in range(TAG_COUNT):
            line = date + TAGS[tag].encode("ascii") + b"\r\n"
            self.lines_size[tag] = len(line)
            memcpy(self.lines[tag], PyBytes_AS_STRING(line), len(line))
        return 0

    cdef int write(self, conn_t *conn, const uint8_t *data, size_t size) except -1:
        if tls_write(conn.tls, data, size) == TLS_FAILED:
            self.connections.finish(conn, CLOSE_INTERNAL)
        return 0

    cdef int answer(self, conn_t *conn, Response response) except -1:
        cdef bytes body = response.body
        cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
        cdef Py_ssize_t head, first
        if self.connections.draining:
            conn.keep_alive = False
        if conn.body_counted:
            self.connections.body_memory -= conn.body_counted
            conn.body_counted = 0
        # The usual answer: head and body in one piece, one or two TLS records.
        head = response_write(response, conn.keep_alive, conn.http10, conn.is_head, self.lines[conn.tag],
                              self.lines_size[conn.tag], self.page, PAGE_SIZE)
        first = size = 0 if head != RESPONSE_NO_ROOM else size
        if head == RESPONSE_NO_ROOM:
            head = response_write_head(response, conn.keep_alive, conn.http10, self.lines[conn.tag],
                                       self.lines_size[conn.tag], self.page, HEAD_ROOM)
            if head == RESPONSE_NO_ROOM:
                self.report("an answer's head is too big", InternalError(f"more than {HEAD_ROOM} bytes"))
                return self.connections.finish(conn, CLOSE_INTERNAL)
            first = BODY_PIECE - head if head < BODY_PIECE else 0       # the first record is a full one
            memcpy(self.page + head, PyBytes_AS_STRING(body), first)
        if tls_write(conn.tls, self.page, head + first) == TLS_FAILED:
            return self.connections.finish(conn, CLOSE_INTERNAL)
        if first == size and not connection_blocked(conn):
            return self.answered(conn)
        conn.phase = PHASE_WRITING
        connections_start(self.connections, conn, DEADLINE_WRITE)
        if first < size:
            self.connections.keep_answer(conn, body, first)
            self.write_body(conn)
            if self.connections.answer_memory > self.body_memory_max:
                return self.connections.cut_answers(conn, self.body_memory_max)
        return 0

    cdef int write_body(self, conn_t *conn) except -1:
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
                return self.connections.finish(conn, CLOSE_INTERNAL)
            conn.body_used += piece
        self.connections.drop_answer(conn)
        if not connection_blocked(conn):
            return self.answered(conn)
        return 0

    cdef int answered(self, conn_t *conn) except -1:
        # The whole answer is in the ring: go on, or close.
        self.connections.body_memory -= conn.body_counted      # of a streamed answer, whose module had the request to the end
        conn.body_counted = 0
        if not conn.keep_alive:
            return self.connections.finish(conn, CLOSE_NORMAL)
        conn.phase = PHASE_READING
        connections_idle(self.connections, conn)
        if self.connections.draining and not conn.left_size and not conn.held_size:
            return self.connections.finish(conn, CLOSE_SHUTDOWN)
        return 0

    cdef int refuse(self, conn_t *conn, int status, str reason) except -1:
        # The client broke the protocol or a limit: say so and close; nothing after it is parsed as a request (HT1).
        self.refused += 1
        conn.is_head = False            # whatever it was, it is not a request that we understood
        return self.answer_error(conn, status, reason)

    cdef int answer_error(self, conn_t *conn, int status, str reason) except -1:
        conn.keep_alive = False
        return self.answer(conn, error_response(status, reason))

    cdef int progress(self, conn_t *conn) except -1:
        # Nothing of this connection waits for room: write on, wake its stream, read what was held back.
        cdef uint8_t *held
        cdef uint32_t size
        cdef Answer answer
        if conn.phase == PHASE_GONE or connection_blocked(conn):
            return 0
        if conn.phase == PHASE_WRITING:
            connections_start(self.connections, conn, DEADLINE_WRITE)
            if conn.body != NULL:
                self.write_body(conn)
            else:
                self.answered(conn)
        elif conn.phase == PHASE_BUSY and conn.task != NULL:
            answer = <Answer>conn.task
            if answer.waiter is not None and not answer.waiter.done():
                answer.waiter.set_result(None)
        while conn.phase <= PHASE_READING and conn.left != NULL:
            conn.left_used += <uint32_t>self.feed(conn, conn.left + conn.left_used, conn.left_size - conn.left_used)
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
                self.connections.body_memory -= size
                conn.held, conn.held_size, conn.held_capacity = NULL, 0, 0
                conn.tls.copy_in = copy_private
                conn.tls.input, conn.tls.input_size = held, size
                try:
                    self.read(conn)
                    if conn.phase != PHASE_GONE and conn.tls.input_size:
                        self.connections.hold(conn, conn.tls.input, conn.tls.input_size, False)
                        conn.tls.input_size = 0
                finally:
                    if conn.tls != NULL:
                        conn.tls.input_size = 0
                    free(held)
            elif tls_pending(conn.tls):
                self.read(conn)
        if conn.phase <= PHASE_READING and not conn.held_size:
            if conn.pause_sent:
                conn.pause_sent = False
                connection_owe(conn, OWE_RESUME)
            if conn.eof:
                return self.connections.finish(conn, CLOSE_NORMAL)
        return 0

    async def _stream(self, Answer answer, response):
        """Write a StreamingResponse piece by piece, waiting whenever the client is slower than the module."""
        cdef conn_t *conn = self.owner(answer)
        cdef bytes piece
        cdef Py_ssize_t head
        if conn == NULL:
            return None
        if conn.http10:
            conn.keep_alive = False     # RFC 9112 section 6.1: no chunks for HTTP/1.0, the end is the close
        chunked = not conn.http10
        bodyless = conn.is_head or response.status in (204, 304)
        head = response_write_head(response, conn.keep_alive, conn.http10, self.lines[conn.tag],
                                   self.lines_size[conn.tag], self.page, HEAD_ROOM)
        if head < 0:
            raise InternalError(f"an answer's head is more than {HEAD_ROOM} bytes")
        conn.streaming = True
        self.write(conn, self.page, head)
        self.connections.leave()                   # the client may wait for the head long before the first piece exists
        if not bodyless:
            async for piece in response.chunks:
                if not piece:
                    continue
                for start in range(0, len(piece), BODY_PIECE):
                    part = piece[start:start + BODY_PIECE]
                    if not self.stream_write(answer, encode_chunk(part) if chunked else part):
                        return None
                    await self._stream_room(answer)
            if chunked and not self.stream_write(answer, encode_chunk(b"")):
                return None
        await self._stream_room(answer)
        return None

    cdef bint stream_write(self, Answer answer, bytes data) except -1:
        cdef conn_t *conn = self.owner(answer)
        if conn == NULL:
            return False
        self.connections.now = eos_monotonic_ns()
        connections_start(self.connections, conn, DEADLINE_REQUEST)
        self.write(conn, <const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        self.connections.leave()
        return conn.phase == PHASE_BUSY

    async def _stream_room(self, Answer answer):
        cdef conn_t *conn = self.owner(answer)
        while conn != NULL and connection_blocked(conn):
            connections_start(self.connections, conn, DEADLINE_WRITE)
            answer.waiter = self.loop.create_future()
            await answer.waiter
            conn = self.owner(answer)
            if conn != NULL:
                self.connections.now = eos_monotonic_ns()
                connections_start(self.connections, conn, DEADLINE_REQUEST)     # it is the module's turn again

    cdef int expire(self, conn_t *conn, uint8_t deadline) except -1:
        if deadline == DEADLINE_WARM:
            connections_cool(self.connections, conn)
            return 0
        self.timeouts += 1
        if deadline == DEADLINE_HEAD and conn.parser.state == HTTP_AT_START:
            return self.connections.finish(conn, CLOSE_TIMEOUT)        # connected, then silent: nobody waits for an answer
        if deadline == DEADLINE_HEAD or deadline == DEADLINE_BODY:
            return self.refuse(conn, 408, "the request did not arrive in time")
        if deadline == DEADLINE_REQUEST:
            if conn.streaming:
                return self.connections.finish(conn, CLOSE_TIMEOUT)    # its head is out: no second answer in the middle of the first
            if conn.task != NULL:
                self.connections.cancel(conn)
            return self.answer_error(conn, 503, "the request was not answered in time")
        return self.connections.finish(conn, CLOSE_NORMAL if deadline == DEADLINE_IDLE else CLOSE_TIMEOUT)


cdef Exchange make_exchange(Connections connections, object respond, object loop, object http_date, object report,
                            uint64_t body_memory_max):
    # For the ingress; what each is stands there.
    cdef Exchange made = Exchange.__new__(Exchange)
    made.connections = connections
    made.respond, made.loop, made.http_date, made.report = respond, loop, http_date, report
    made.body_memory_max = body_memory_max
    return made
