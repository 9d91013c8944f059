# Operations on one connection's memory: slots, queues, deadline lists and the bounded buffer of a slow client.
#
# Invariant: a client's connection is on the free list, or in use (a server's is made and freed); in use it is in at most one deadline list, at most once in
# worker.ready and at most once in worker.owed; `unsent` exists only while unsent_start < unsent_end.
# Cost: a slot is 104 bytes; all operations are O(1). It does not touch sockets or rings.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove

from enclave_os._limits cimport CONN_ID_INGRESS_MAX, CONN_SLOT_BITS
from enclave_os._native cimport eos_store_relaxed
from host._proxy cimport (
    C_CONNECTING, C_EGRESS, C_GOT_CLOSE, C_IN_OWED, C_IN_READY, C_SENT_CLOSE, CHUNK_BITS, CHUNK_SLOTS, CHUNKS_MAX,
    DEADLINE_NONE, EGRESS_SLOTS, GENERATION_MAX, QUICKACK_READS, connection_t, egress_t, proxy_t, queue_t, worker_t,
)

# A connection moves to the end of its deadline list at most every 2**26 ns (67 ms): deadlines are seconds, and a busy
# connection should not pay six stores a request.
cdef enum:
    TICK_BITS = 26

cdef inline void count(uint64_t *counter, uint64_t n) noexcept nogil:
    # One writer, many readers: a plain word store is enough, but it must not be torn or repeated.
    eos_store_relaxed(counter, counter[0] + n)


# -- slots ------------------------------------------------------------------------------------------------------------

cdef inline connection_t *slot_at(worker_t *worker, uint32_t slot) noexcept nogil:
    return &worker.chunk[slot >> CHUNK_BITS][slot & (CHUNK_SLOTS - 1)]

cdef inline connection_t *find(worker_t *worker, uint32_t conn_id) noexcept nogil:
    # The connection that has this id now, or NULL: free, another generation, never given.
    cdef uint32_t slot = conn_id & ((1 << CONN_SLOT_BITS) - 1)
    cdef connection_t *connection
    if conn_id > <uint32_t>CONN_ID_INGRESS_MAX:
        if worker.egress == NULL or slot >= EGRESS_SLOTS or worker.egress[slot] == NULL:
            return NULL
        connection = &worker.egress[slot].connection
        return connection if connection.conn_id == conn_id else NULL
    if slot >= worker.slots:
        return NULL
    connection = slot_at(worker, slot)
    if connection.conn_id != conn_id or connection.worker == NULL:
        return NULL
    return connection

cdef inline bint grow(worker_t *worker) noexcept nogil:
    # One chunk more; its slots join the free list, lowest first. False: no memory, or the id's bits are used up.
    cdef uint32_t chunk = worker.slots >> CHUNK_BITS, i
    cdef connection_t *connections
    if chunk >= CHUNKS_MAX:
        return False
    connections = <connection_t *>calloc(CHUNK_SLOTS, sizeof(connection_t))
    if connections == NULL:
        return False
    worker.chunk[chunk] = connections
    for i in range(CHUNK_SLOTS):
        connections[CHUNK_SLOTS - 1 - i].fd = -1
        connections[CHUNK_SLOTS - 1 - i].deadline = DEADLINE_NONE
        connections[CHUNK_SLOTS - 1 - i].conn_id = worker.slots + CHUNK_SLOTS - 1 - i
        connections[CHUNK_SLOTS - 1 - i].owed_next = worker.free_slots
        worker.free_slots = &connections[CHUNK_SLOTS - 1 - i]
    worker.slots += CHUNK_SLOTS
    return True

cdef inline connection_t *take_slot(proxy_t *p, worker_t *worker) noexcept nogil:
    # A slot with its next generation, or NULL. Generations run 1 .. GENERATION_MAX, so conn_id 0 is never made.
    cdef connection_t *connection
    cdef uint32_t generation
    if worker.free_slots == NULL and not grow(worker):
        return NULL
    connection = worker.free_slots
    worker.free_slots = connection.owed_next
    generation = (connection.conn_id >> CONN_SLOT_BITS) + 1
    if generation > GENERATION_MAX:
        generation = 1
    connection.conn_id = (connection.conn_id & ((1 << CONN_SLOT_BITS) - 1)) | (generation << CONN_SLOT_BITS)
    connection.fd = -1
    connection.flags = 0
    connection.owed = 0
    connection.reads = 0
    connection.close_reason = 0
    connection.owed_next = NULL
    connection.ready_next = NULL
    connection.worker = worker
    worker.live += 1
    p.connections += 1
    return connection

cdef inline connection_t *take_egress_slot(proxy_t *p, worker_t *worker, uint32_t conn_id) noexcept nogil:
    # The slot that the enclave chose, which is free. NULL: no memory.
    cdef egress_t *egress
    if worker.egress == NULL:
        worker.egress = <egress_t **>calloc(EGRESS_SLOTS, sizeof(egress_t *))
        if worker.egress == NULL:
            return NULL
    egress = <egress_t *>calloc(1, sizeof(egress_t))
    if egress == NULL:
        return NULL
    worker.egress[conn_id & (EGRESS_SLOTS - 1)] = egress
    egress.connection.fd = -1
    egress.connection.deadline = DEADLINE_NONE
    egress.connection.conn_id = conn_id
    egress.connection.flags = C_EGRESS | C_CONNECTING
    egress.connection.reads = QUICKACK_READS    # a server waits for our requests, not for our ACKs
    egress.connection.worker = worker
    worker.egress_live += 1
    p.egress += 1
    return &egress.connection

cdef inline void give_back_slot(proxy_t *p, connection_t *connection) noexcept nogil:
    # Frees the slot if nothing can name it any more: no socket, CLOSE went both ways, in no queue.
    cdef worker_t *worker = connection.worker
    if connection.fd >= 0 or connection.owed:
        return
    if connection.flags & (C_SENT_CLOSE | C_GOT_CLOSE | C_IN_READY | C_IN_OWED) != C_SENT_CLOSE | C_GOT_CLOSE:
        return
    if connection.flags & C_EGRESS:
        worker.egress[connection.conn_id & (EGRESS_SLOTS - 1)] = NULL
        worker.egress_live -= 1
        p.egress -= 1
        free(connection)
        return
    connection.worker = NULL
    connection.owed_next = worker.free_slots
    worker.free_slots = connection
    worker.live -= 1
    p.connections -= 1
    count(&p.count.closed, 1)


# -- queues -----------------------------------------------------------------------------------------------------------

cdef inline void queue_ready(connection_t *connection) noexcept nogil:
    cdef queue_t *queue = &connection.worker.ready
    if connection.flags & C_IN_READY:
        return
    connection.flags |= C_IN_READY
    connection.ready_next = NULL
    if queue.last == NULL:
        queue.first = connection
    else:
        queue.last.ready_next = connection
    queue.last = connection

cdef inline void pop_ready(connection_t *connection) noexcept nogil:
    # `connection` is the first of its queue.
    cdef queue_t *queue = &connection.worker.ready
    queue.first = connection.ready_next
    if queue.first == NULL:
        queue.last = NULL
    connection.flags &= ~<int>C_IN_READY

cdef inline void owe(connection_t *connection, uint8_t frame) noexcept nogil:
    cdef queue_t *queue = &connection.worker.owed
    connection.owed |= frame
    if connection.flags & C_IN_OWED:
        return
    connection.flags |= C_IN_OWED
    connection.owed_next = NULL
    if queue.last == NULL:
        queue.first = connection
    else:
        queue.last.owed_next = connection
    queue.last = connection

cdef inline void pop_owed(connection_t *connection) noexcept nogil:
    cdef queue_t *queue = &connection.worker.owed
    queue.first = connection.owed_next
    if queue.first == NULL:
        queue.last = NULL
    connection.flags &= ~<int>C_IN_OWED


# -- deadlines --------------------------------------------------------------------------------------------------------

cdef inline void deadline_clear(proxy_t *p, connection_t *connection) noexcept nogil:
    if connection.deadline == DEADLINE_NONE:
        return
    if connection.deadline_before == NULL:
        p.deadline[connection.deadline].first = connection.deadline_after
    else:
        connection.deadline_before.deadline_after = connection.deadline_after
    if connection.deadline_after == NULL:
        p.deadline[connection.deadline].last = connection.deadline_before
    else:
        connection.deadline_after.deadline_before = connection.deadline_before
    connection.deadline = DEADLINE_NONE

cdef inline void deadline_set(proxy_t *p, connection_t *connection, int which) noexcept nogil:
    # Starts the deadline afresh. All of a list have the same length, so the end of the list is the right place.
    deadline_clear(p, connection)
    connection.active_ns = p.now_ns
    connection.deadline = <signed char>which
    connection.deadline_after = NULL
    connection.deadline_before = p.deadline[which].last
    if p.deadline[which].last == NULL:
        p.deadline[which].first = connection
    else:
        p.deadline[which].last.deadline_after = connection
    p.deadline[which].last = connection

cdef inline void deadline_touch(proxy_t *p, connection_t *connection, int which) noexcept nogil:
    # Something moved: as deadline_set, but only for this list and not more than once a tick.
    if connection.deadline == which and connection.active_ns >> TICK_BITS != p.now_ns >> TICK_BITS:
        deadline_set(p, connection, which)


# -- what a slow client has not taken ---------------------------------------------------------------------------------

cdef inline uint32_t unsent_size(connection_t *connection) noexcept nogil:
    return connection.unsent_end - connection.unsent_start

cdef inline bint unsent_reserve(connection_t *connection, uint32_t size) noexcept nogil:
    # Room for `size` more bytes at unsent_end. The caller bounds the sum. False: no memory.
    cdef uint32_t held = unsent_size(connection), room
    cdef uint8_t *larger
    if connection.unsent_room - connection.unsent_end >= size:
        return True
    if connection.unsent_room - held >= size and connection.unsent_start >= held:
        memmove(connection.unsent, connection.unsent + connection.unsent_start, held)
    else:
        room = connection.unsent_room * 2
        if room < held + size:
            room = held + size
        larger = <uint8_t *>malloc(room)
        if larger == NULL:
            return False
        if held:
            memcpy(larger, connection.unsent + connection.unsent_start, held)
        free(connection.unsent)
        connection.unsent = larger
        connection.unsent_room = room
    connection.unsent_start = 0
    connection.unsent_end = held
    return True

cdef inline void unsent_free(proxy_t *p, connection_t *connection) noexcept nogil:
    if connection.unsent == NULL:
        return
    p.unsent_bytes -= unsent_size(connection)
    p.unsent_connections -= 1
    connection.worker.flushing -= 1
    free(connection.unsent)
    connection.unsent = NULL
    connection.unsent_start = connection.unsent_end = connection.unsent_room = 0
