# From ring record to connection, and the loop: table of contents. Law and reasons stand in _ingress.pyx.
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from enclave_os._ring cimport Consumer
from enclave_os.http._parser cimport http_limits_t
from enclave_os.runtime._connection cimport conn_t
from enclave_os.runtime._connections cimport Connections
from enclave_os.runtime._egress cimport Outgoings
from enclave_os.runtime._exchange cimport Exchange

@cython.final           # calls within it are direct, and inlined where that pays
cdef class Ingress:
    cdef public bint rpc_blocked    # the RPC client waits for room in its outgoing ring: call on_rpc on each wake
    cdef Connections _connections
    cdef Exchange _exchange
    cdef readonly Outgoings outgoings   # connections to servers; None: there are none
    # what boot handed over
    cdef Consumer _from_host
    cdef Consumer _rpc_from_host
    cdef object _region
    cdef object _loop
    cdef object _on_rpc             # callable(): records wait in the RPC ring, or it has room again
    cdef object _on_stop            # callable(exception or None): the loop has to end
    cdef int _doorbell_in
    cdef uint64_t *_shutdown_word
    # limits
    cdef http_limits_t _limits
    cdef uint64_t _held_max         # bytes, of one connection
    cdef uint64_t _held_total_max   # bytes, of all, with the bodies of their requests
    cdef uint32_t _connections_max
    cdef uint64_t _spin_ns
    # state
    cdef uint64_t _date_at
    cdef bint _ready_owed
    cdef bint _stopped
    cdef bint _scheduled
    cdef object _tick_handle
    # counters, for /metrics
    cdef uint64_t _dropped, _bytes_in, _frames_in, _turns, _wakes, _flooded, _over_limit

    cdef bint _called_to_stop(self) except -1
    # ring -> connection
    cdef int _turn(self) except -1
    cdef int _frame(self, const uint8_t *payload, uint32_t size) except -1
    cdef int _new(self, uint32_t conn_id, const uint8_t *payload, uint32_t size) except -1
    cdef int _data(self, conn_t *conn, const uint8_t *payload, uint32_t size) except -1
    cdef int _eof(self, conn_t *conn) except -1
    cdef int _flush(self) except -1
    # the end
    cdef int _arm_tick(self) except -1
    cdef int _break(self, object error) except -1
