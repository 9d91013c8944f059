# How connections end: by either side, by a deadline, with their worker. And what the supervisor is told.
#
# A slot is given back only when both CLOSE frames went and the socket is closed, so every end here either does the last
# of these or leaves what is owed as a bit.
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from enclave_os._native cimport eos_exchange, eos_store_release
from host._connections cimport (
    count, deadline_clear, deadline_set, give_back_slot, owe, queue_ready, slot_at, unsent_free,
)
from host._proxy cimport *
from host._sockets cimport *

cdef enum:
    EXPIRIES_PER_TURN_MAX = 256

# enclave_os.wire.frames.CloseReason; tests/host/test_proxy.py holds them equal.
cdef enum:
    REASON_NORMAL = 0
    REASON_PEER_GONE = 1
    REASON_TIMEOUT = 2
    REASON_LIMIT = 3
    REASON_FLOOD = 5
    REASON_INTERNAL = 8
    REASON_REFUSED = 9

cdef inline void tell(proxy_t *p, worker_t *worker, uint64_t event) noexcept nogil:
    # Only this thread sets bits, the supervisor's takes them all: exchange-or without a loop of compare-and-swap.
    eos_store_release(&worker.events, eos_exchange(&worker.events, 0) | event)
    write_one(p.event)

cdef inline void drop_socket(proxy_t *p, connection_t *connection, bint reset) noexcept nogil:
    # Closes the socket now. `reset`: by RST, so that a cut-off answer cannot be taken for a whole one and the kernel
    # keeps nothing; otherwise the kernel delivers what it has, then FIN.
    cdef linger_t linger
    if connection.fd < 0:
        return
    if reset:
        linger.l_onoff = 1
        linger.l_linger = 0
        setsockopt(connection.fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger))
    close(connection.fd)
    connection.fd = -1
    p.sockets -= 1
    unsent_free(p, connection)
    deadline_clear(p, connection)

cdef inline void owe_close(connection_t *connection, uint16_t reason) noexcept nogil:
    if connection.flags & C_SENT_CLOSE or connection.owed & OWE_CLOSE:
        return
    connection.close_reason = reason
    owe(connection, OWE_CLOSE)

cdef inline void end(proxy_t *p, connection_t *connection, uint16_t reason, bint reset) noexcept nogil:
    # Our side ends the connection: socket closed now, CLOSE owed, the slot waits for the enclave's CLOSE.
    drop_socket(p, connection, reset)
    owe_close(connection, reason)
    give_back_slot(p, connection)

cdef inline void finish(proxy_t *p, connection_t *connection) noexcept nogil:
    # The enclave closed and all its bytes are out: FIN, then take what the client still sends until its FIN. Closing
    # with unread bytes would make the kernel send RST, which may destroy the answer or the alert on its way
    # (RFC 9112 9.6).
    if connection.flags & C_SENT_EOF:
        drop_socket(p, connection, False)
        give_back_slot(p, connection)
        return
    if not connection.flags & C_SHUT:
        connection.flags |= C_SHUT
        shutdown(connection.fd, SHUT_WR)
    connection.flags |= C_LINGER
    deadline_set(p, connection, DEADLINE_LINGER)
    if connection.flags & C_READABLE:
        queue_ready(connection)

cdef inline void forget(proxy_t *p, connection_t *connection) noexcept nogil:
    # Ends a connection of which the enclave never heard: nothing is owed to it, and nothing comes from it.
    drop_socket(p, connection, True)
    connection.flags = (connection.flags & (C_IN_READY | C_IN_OWED)) | C_SENT_CLOSE | C_GOT_CLOSE
    give_back_slot(p, connection)

cdef inline void drop_all(proxy_t *p, worker_t *worker) noexcept nogil:
    # Every socket of a worker that is gone. One that only lingers has its whole answer in the kernel, which a reset would
    # throw away: it is closed, and the kernel delivers on.
    cdef uint32_t slot
    cdef connection_t *connection
    for slot in range(worker.slots):
        connection = slot_at(worker, slot)
        if connection.worker != NULL:
            drop_socket(p, connection, not connection.flags & C_LINGER)
    if worker.egress == NULL:
        return
    for slot in range(EGRESS_SLOTS):
        if worker.egress[slot] != NULL:
            connection = &worker.egress[slot].connection
            drop_socket(p, connection, not connection.flags & C_LINGER)

cdef inline void broke(proxy_t *p, worker_t *worker) noexcept nogil:
    # A lie. The worker's rings are not touched again; its connections end, the supervisor replaces it.
    if worker.state == W_BROKEN:
        return
    worker.state = W_BROKEN
    count(&p.count.broken, 1)
    drop_all(p, worker)
    tell(p, worker, EVENT_BROKEN)


# -- deadlines ---------------------------------------------------------------------------------------------------------

cdef inline void expire(proxy_t *p) noexcept nogil:
    cdef int which, budget = EXPIRIES_PER_TURN_MAX
    cdef connection_t *connection
    for which in range(DEADLINES):
        while True:
            connection = p.deadline[which].first
            if connection == NULL or p.now_ns - connection.active_ns < p.deadline[which].after_ns:
                break
            if budget == 0:
                p.more = True
                return
            budget -= 1
            if which == DEADLINE_FRONT:
                count(&p.count.bad_fronts, 1)
                forget(p, connection)
            elif which == DEADLINE_LINGER:
                drop_socket(p, connection, True)
                give_back_slot(p, connection)
            else:
                count(&p.count.timeouts, 1)
                end(p, connection, REASON_TIMEOUT, which == DEADLINE_STALL)

cdef inline int sleep_ms(proxy_t *p) noexcept nogil:
    # Until the next deadline, rounded up; -1: none.
    cdef uint64_t nearest = <uint64_t>-1, at
    cdef int which
    for which in range(DEADLINES):
        if p.deadline[which].first != NULL:
            at = p.deadline[which].first.active_ns + p.deadline[which].after_ns
            if at < nearest:
                nearest = at
    if p.accepting and p.accept_again_ns and p.accept_again_ns < nearest:
        nearest = p.accept_again_ns
    if nearest == <uint64_t>-1:
        return -1
    if nearest <= p.now_ns:
        return 0
    nearest = (nearest - p.now_ns + 999999) // 1000000
    return <int>nearest if nearest < 86400000 else 86400000
