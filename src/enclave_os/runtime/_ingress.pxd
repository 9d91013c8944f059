# The hot path from ring record to module call and back: table of contents. Law and reasons stand in _ingress.pyx.
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from enclave_os._ring cimport Consumer, Producer
from enclave_os._tls cimport TLSContext
from enclave_os.http._message cimport Response
from enclave_os.http._parser cimport http_limits_t
from enclave_os.runtime._connection cimport TAG_COUNT, conn_t, deadlines_t, out_t
from enclave_os.runtime._egress cimport Outgoings

cdef enum:
    LINES_ROOM = 96                 # Date, 37 bytes, and X-Privasys-Attestation, at most 39

cdef class Answer:
    # A request that a module answers asynchronously: the task, and the connection that it may write to.
    cdef Ingress ingress
    cdef object task
    cdef object waiter              # Future of a stream that waits for room
    cdef uint32_t conn_id

@cython.final           # calls within it are direct, and inlined where that pays
cdef class Ingress:
    cdef public bint rpc_blocked    # the RPC client waits for room in its outgoing ring: call on_rpc on each wake
    # what boot handed over
    cdef Consumer _from_host
    cdef Producer _to_host
    cdef Consumer _rpc_from_host
    cdef TLSContext _tls
    cdef object _region
    cdef object _respond            # callable(Request) -> Response or awaitable
    cdef object _loop
    cdef object _http_date          # callable() -> 29 bytes
    cdef object _on_rpc             # callable(): records wait in the RPC ring, or it has room again
    cdef object _on_stop            # callable(exception or None): the loop has to end
    cdef object _report             # callable(str, BaseException)
    cdef frozenset _apps            # host names of applications with leaves of their own; None: there are none
    cdef int _doorbell_in
    cdef int _doorbell_out
    cdef uint64_t *_shutdown_word
    cdef readonly Outgoings outgoings   # connections to servers; None: there are none
    # limits
    cdef http_limits_t _limits
    cdef uint64_t _body_memory_max
    cdef uint64_t _held_max
    cdef uint32_t _connections_max
    cdef uint64_t _spin_ns
    # state
    cdef conn_t **_table            # by slot
    cdef uint32_t _table_size
    cdef uint32_t _live
    cdef uint32_t _tombstones
    cdef out_t _out
    cdef deadlines_t _deadlines
    cdef uint64_t _now              # monotonic ns, read once a turn
    cdef uint64_t _date_at
    cdef char[TAG_COUNT][LINES_ROOM] _lines     # what every answer says, by the connection's tag
    cdef Py_ssize_t[TAG_COUNT] _lines_size
    cdef uint64_t _body_memory
    cdef bint _draining
    cdef bint _drained
    cdef bint _ready_owed
    cdef bint _drain_owed
    cdef bint _stopped
    cdef bint _scheduled
    cdef object _tick_handle
    cdef uint8_t *_plain            # one TLS record's plaintext; all connections take turns
    cdef uint8_t *_page             # head and small body of one answer
    # counters, for /metrics
    cdef uint64_t _accepted, _requests, _refused, _dropped, _timeouts, _handshakes, _handshakes_failed
    cdef uint64_t _bytes_in, _frames_in, _turns, _wakes, _rings, _flooded, _over_limit, _failures
    cdef uint64_t _misdirected, _clients_refused

    cdef bint _called_to_stop(self) except -1
    # ring -> connection
    cdef int _turn(self) except -1
    cdef int _frame(self, const uint8_t *payload, uint32_t size) except -1
    cdef int _new(self, uint32_t conn_id, const uint8_t *payload, uint32_t size) except -1
    cdef int _data(self, conn_t *conn, const uint8_t *payload, uint32_t size) except -1
    cdef int _eof(self, conn_t *conn) except -1
    cdef conn_t *_find(self, uint32_t conn_id) noexcept
    # connection -> requests
    cdef int _read(self, conn_t *conn) except -1
    cdef size_t _feed(self, conn_t *conn, const uint8_t *data, size_t size) except? 0
    cdef int _dispatch(self, conn_t *conn) except -1
    cdef conn_t *_owner(self, Answer answer) noexcept
    cdef int _failed(self, conn_t *conn, object error) except -1
    cdef int _count_body(self, conn_t *conn) except -1
    # answers -> ring
    cdef int _write_lines(self) except -1
    cdef int _answer(self, conn_t *conn, Response response) except -1
    cdef int _write_body(self, conn_t *conn) except -1
    cdef int _answered(self, conn_t *conn) except -1
    cdef int _answer_error(self, conn_t *conn, int status, str reason) except -1
    cdef int _refuse(self, conn_t *conn, int status, str reason) except -1
    cdef int _write(self, conn_t *conn, const uint8_t *data, size_t size) except -1
    cdef int _flush(self) except -1
    cdef int _progress(self, conn_t *conn) except -1
    cdef int _task_done(self, Answer answer, object task) except -1
    cdef bint _stream_write(self, Answer answer, bytes data) except -1
    # ends
    cdef int _drop_output(self, conn_t *conn) except -1
    cdef int _finish(self, conn_t *conn, uint16_t reason) except -1
    cdef int _say_close(self, conn_t *conn) except -1
    cdef int _forget(self, conn_t *conn) except -1
    cdef int _cancel(self, conn_t *conn) except -1
    cdef int _check_drained(self) except -1
    # deadlines
    cdef void _start(self, conn_t *conn, uint8_t deadline) noexcept
    cdef void _idle(self, conn_t *conn) noexcept
    cdef void _cool(self, conn_t *conn) noexcept
    cdef int _expire(self, conn_t *conn, uint8_t deadline) except -1
    cdef int _arm_tick(self) except -1
    cdef int _leave(self) except -1
    cdef void _ring_host(self, bint owed=*) noexcept
    cdef int _break(self, object error) except -1
