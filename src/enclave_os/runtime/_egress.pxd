# Connections that the enclave opens: table of contents. Law and reasons stand in _egress.pyx.
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from enclave_os._codec cimport frame_t
from enclave_os.runtime._connection cimport conn_t, out_t

cdef enum:
    EGRESS_SLOTS = 4096             # egress_settings.EGRESS_CONNECTIONS_MAX

@cython.final
cdef class Outgoing:
    cdef conn_t *conn               # NULL: it has ended and nobody of the border needs it
    cdef Outgoings owner
    cdef list pieces                # bytes that were not taken yet, oldest first
    cdef uint64_t held              # bytes in them
    cdef readonly str target        # host:port
    cdef readonly str address       # reached, alleged by the host; None before
    cdef readonly str state         # connecting, open, ended
    cdef readonly str ended_by      # ours, host, lie; None before
    cdef bint finished              # our half has ended
    cdef readonly int reason        # of the host's CLOSE, alleged; -1: there was none
    cdef public object wake         # callable(): something changed; None
    cdef void drop(self) noexcept

@cython.final
cdef class Outgoings:
    cdef out_t *out                 # the ingress's, as long as `owner` lives
    cdef object owner
    cdef object publish             # callable(): what was put into the ring is to be seen by the host
    cdef conn_t *table[EGRESS_SLOTS]
    cdef uint16_t generation[EGRESS_SLOTS]
    cdef uint32_t next_slot
    cdef readonly uint32_t connections_max
    cdef uint32_t live
    cdef uint32_t tombstones
    cdef uint64_t held              # bytes that modules have not taken, of all connections
    cdef uint64_t held_max          # of one
    cdef uint64_t held_total_max
    cdef uint64_t connects, connected, lies, floods, dropped, bytes_in

    # host -> module
    cdef int frame(self, const frame_t *frame, const uint8_t *payload, uint32_t size) except -1
    cdef int data(self, conn_t *conn, const uint8_t *payload, uint32_t size) except -1
    cdef int flushed(self, conn_t *conn) except -1
    cdef conn_t *find(self, uint32_t conn_id) noexcept
    cdef int lie(self, conn_t *conn) except -1
    # ends
    cdef int finish(self, conn_t *conn, uint16_t reason, str by) except -1
    cdef int forget(self, conn_t *conn) except -1
    cdef conn_t *free_slot(self, bytes target, uint32_t deadline_ms) except NULL

cdef Outgoings make_outgoings(object owner, out_t *out, object publish, uint32_t connections_max, uint64_t ring)
