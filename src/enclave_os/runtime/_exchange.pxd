# Requests and answers: table of contents. Law and reasons stand in _exchange.pyx.
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from enclave_os.http._message cimport Response
from enclave_os.runtime._connection cimport TAG_COUNT, conn_t
from enclave_os.runtime._connections cimport Connections

cdef enum:
    LINES_ROOM = 96                 # Date, 37 bytes, and X-Privasys-Attestation, at most 39

@cython.final
cdef class Answer:
    # A request that a module answers asynchronously: the task, and the connection that it may write to.
    cdef Exchange exchange
    cdef object task
    cdef object waiter              # Future of a stream that waits for room
    cdef uint32_t conn_id

@cython.final           # calls within it are direct, and inlined where that pays
cdef class Exchange:
    cdef Connections connections
    # what boot handed over
    cdef object respond             # callable(Request) -> Response or awaitable
    cdef object loop
    cdef object http_date           # callable() -> 29 bytes
    cdef object report              # callable(str, BaseException)
    cdef frozenset apps             # host names of applications with leaves of their own; None: there are none
    cdef uint64_t body_memory_max
    # state
    cdef char[TAG_COUNT][LINES_ROOM] lines      # what every answer says, by the connection's tag
    cdef Py_ssize_t[TAG_COUNT] lines_size
    cdef uint8_t *plain             # one TLS record's plaintext; all connections take turns
    cdef uint8_t *page              # head and small body of one answer
    # counters, for /metrics
    cdef uint64_t requests, refused, timeouts, handshakes, handshakes_failed, failures, misdirected, clients_refused

    # connection -> requests
    cdef int read(self, conn_t *conn) except -1
    cdef size_t feed(self, conn_t *conn, const uint8_t *data, size_t size) except? 0
    cdef int count_body(self, conn_t *conn) except -1
    cdef int dispatch(self, conn_t *conn) except -1
    cdef conn_t *owner(self, Answer answer) noexcept
    cdef int failed(self, conn_t *conn, object error) except -1
    cdef int task_done(self, Answer answer, object task) except -1
    # answers -> ciphertext
    cdef int write_lines(self) except -1
    cdef int write(self, conn_t *conn, const uint8_t *data, size_t size) except -1
    cdef int answer(self, conn_t *conn, Response response) except -1
    cdef int write_body(self, conn_t *conn) except -1
    cdef int answered(self, conn_t *conn) except -1
    cdef int refuse(self, conn_t *conn, int status, str reason) except -1
    cdef int answer_error(self, conn_t *conn, int status, str reason) except -1
    cdef int progress(self, conn_t *conn) except -1
    cdef bint stream_write(self, Answer answer, bytes data) except -1
    # deadlines
    cdef int expire(self, conn_t *conn, uint8_t deadline) except -1

cdef Exchange make_exchange(Connections connections, object respond, object loop, object http_date, object report,
                            uint64_t body_memory_max)
