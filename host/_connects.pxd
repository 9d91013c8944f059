# Connections to servers: from the enclave's CONNECT to the connector's thread, and from its answer back to a slot.
#
# The lists are the one thing of the proxy that two threads touch, under one lock that is held for a few instructions.
# An answer names worker, life and conn_id; when that is nobody any more, its socket is closed.
from cpython.pythread cimport PyThread_acquire_lock, PyThread_release_lock, WAIT_LOCK
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from enclave_os._limits cimport CONN_SLOT_BITS, CONNECT_TARGET_SIZE_MAX
from host._connections cimport count, deadline_set, find, give_back_slot, owe, take_egress_slot
from host._ends cimport REASON_LIMIT, REASON_REFUSED, owe_close
from host._proxy cimport *
from host._sockets cimport *
from host._to_enclave cimport connection_tag


cdef inline void append(connects_t *to, connect_t *item) noexcept nogil:
    item.next = NULL
    if to.last == NULL:
        to.first = item
    else:
        to.last.next = item
    to.last = item
    to.count += 1

cdef inline connect_t *take_all(proxy_t *p, connects_t *of) noexcept nogil:
    cdef connect_t *first
    PyThread_acquire_lock(p.lock, WAIT_LOCK)
    first = of.first
    of.first = of.last = NULL
    of.count = 0
    PyThread_release_lock(p.lock)
    return first

cdef inline bint ask(proxy_t *p, worker_t *worker, uint32_t conn_id, uint32_t deadline_ms, const void *host,
                     uint32_t size) noexcept nogil:
    # False: no memory, or too many wait.
    cdef connect_t *item = <connect_t *>malloc(sizeof(connect_t))
    cdef bint fits
    if item == NULL:
        return False
    item.worker, item.life, item.conn_id = worker.index, worker.life, conn_id
    item.deadline_ms, item.fd, item.size = deadline_ms, -1, size
    if size:
        memcpy(item.text, host, size)
    PyThread_acquire_lock(p.lock, WAIT_LOCK)
    fits = p.asked.count < CONNECTS_MAX
    if fits:
        append(&p.asked, item)
    PyThread_release_lock(p.lock)
    if not fits:
        free(item)
        return False
    write_one(p.asked_bell)
    return True

cdef inline bint refuse_connect(proxy_t *p, worker_t *worker, uint32_t conn_id, uint16_t reason) noexcept nogil:
    # Without a slot. False: the enclave has more of them waiting than one that waits for answers.
    if worker.refusals == REFUSALS_MAX:
        return False
    worker.refusal[worker.refusals] = conn_id
    worker.refusal_reason[worker.refusals] = reason
    worker.refusals += 1
    count(&p.count.connects_failed, 1)
    return True

cdef inline bint ask_connector(proxy_t *p, worker_t *worker, uint32_t conn_id, const uint8_t *payload,
                               uint32_t size) noexcept nogil:
    # A CONNECT of 5 bytes or more. False: the enclave broke the contract.
    cdef uint32_t slot = conn_id & ((1 << CONN_SLOT_BITS) - 1)
    cdef uint8_t copied[CONNECT_TARGET_SIZE_MAX + 1]
    cdef uint32_t deadline_ms = 0
    cdef connection_t *connection
    count(&p.count.connects, 1)
    if p.egress_max == 0:
        return refuse_connect(p, worker, conn_id, REASON_REFUSED)
    if slot >= EGRESS_SLOTS:
        return refuse_connect(p, worker, conn_id, REASON_LIMIT)
    if worker.egress != NULL and worker.egress[slot] != NULL:
        return False            # a slot in use
    if worker.egress_live >= p.egress_max:
        return refuse_connect(p, worker, conn_id, REASON_LIMIT)
    connection = take_egress_slot(p, worker, conn_id)
    if connection == NULL:
        return refuse_connect(p, worker, conn_id, REASON_LIMIT)
    memcpy(copied, payload, size)
    memcpy(&deadline_ms, copied, 4)
    if not ask(p, worker, conn_id, deadline_ms, copied + 4, size - 4):
        connection.flags &= ~<int>C_CONNECTING
        count(&p.count.connects_failed, 1)
        owe_close(connection, REASON_LIMIT)
    return True

cdef inline void never_mind(proxy_t *p, connection_t *connection) noexcept nogil:
    # The enclave waits no longer. If this cannot be said, the deadline says it.
    connection.flags &= ~<int>C_CONNECTING
    ask(p, connection.worker, connection.conn_id, 0, NULL, 0)

cdef inline void take_answer(proxy_t *p, connect_t *answer) noexcept nogil:
    cdef worker_t *worker = p.worker[answer.worker]
    cdef connection_t *connection = NULL
    cdef egress_t *egress
    cdef epoll_event_t event
    if worker != NULL and worker.state != W_BROKEN and worker.life == answer.life:
        connection = find(worker, answer.conn_id)
    if connection == NULL or not connection.flags & C_CONNECTING:
        if answer.fd >= 0:
            close(answer.fd)
        return
    connection.flags &= ~<int>C_CONNECTING
    event.events = EPOLLIN | EPOLLRDHUP | EPOLLET
    event.data.u64 = connection_tag(connection)
    if answer.fd < 0:
        count(&p.count.connects_failed, 1)
        owe_close(connection, <uint16_t>answer.reason)
    elif epoll_ctl(p.epoll, EPOLL_CTL_ADD, answer.fd, &event) < 0:
        close(answer.fd)
        count(&p.count.connects_failed, 1)
        owe_close(connection, REASON_LIMIT)
    else:
        egress = <egress_t *>connection
        egress.address_size = answer.size
        memcpy(egress.address, answer.text, answer.size)
        connection.fd = answer.fd
        p.sockets += 1
        count(&p.count.connected, 1)
        deadline_set(p, connection, DEADLINE_IDLE)
        owe(connection, OWE_CONNECTED)

cdef inline void take_answers(proxy_t *p) noexcept nogil:
    cdef connect_t *answer = take_all(p, &p.answered)
    cdef connect_t *next
    while answer != NULL:
        next = answer.next
        take_answer(p, answer)
        free(answer)
        answer = next

cdef inline void drop_connects(proxy_t *p, connects_t *of) noexcept nogil:
    cdef connect_t *item = take_all(p, of)
    cdef connect_t *next
    while item != NULL:
        next = item.next
        if item.fd >= 0:
            close(item.fd)
        free(item)
        item = next
