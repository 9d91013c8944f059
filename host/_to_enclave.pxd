# From clients to the enclave: frames into data.to_enclave, reading, accepting.
#
# A function that finds the ring full leaves everything as it was and says so; nothing here waits. What must be said in
# any case (EOF, CLOSE, PAUSE, RESUME) is owed as bits of the connection and put later.
from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EMFILE, ENFILE, EPROTO, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from enclave_os._codec cimport (
    FRAME_CLOSE, FRAME_CONNECTED, FRAME_DATA, FRAME_DRAIN, FRAME_EOF, FRAME_NEW, FRAME_PAUSE, FRAME_RESUME, frame_word,
)
from enclave_os._limits cimport FRAME_HEADER_SIZE, PEER_ADDRESS_SIZE_MAX
from enclave_os._native cimport eos_store_relaxed
from enclave_os._ring cimport (
    RING_FULL, RING_POISONED, RING_READY, ring_abort, ring_claim, ring_commit, ring_publish, ring_release,
)
from host._connections cimport (
    count, deadline_set, deadline_touch, give_back_slot, pop_owed, pop_ready, queue_ready, take_slot,
)
from host._front cimport FRONT_BAD, FRONT_SIZE_MAX, FRONT_WAIT, front_parse, is_front
from host._ends cimport REASON_PEER_GONE, broke, drop_socket, end, forget
from host._proxy cimport *
from host._sockets cimport *


cdef enum:
    DISCARDS_MAX = 16             # reads of up to 64 KiB thrown away in one go while lingering
    ACCEPT_PAUSE_NS = 100000000   # after accept found no descriptor or memory and there was nothing to shed


cdef inline uint64_t connection_tag(connection_t *connection) noexcept nogil:
    # Worker, its life and the conn_id with its generation: an event for a former owner names nobody.
    return worker_tag(connection.worker) << 32 | connection.conn_id

cdef inline uint64_t worker_tag(worker_t *worker) noexcept nogil:
    return worker.index | (<uint64_t>worker.life & 0x7FFF) << 8


# -- doorbells and frames to the enclave ------------------------------------------------------------------------------

cdef inline void publish(proxy_t *p, worker_t *worker) noexcept nogil:
    if ring_publish(&worker.to_enclave):
        worker.ring_owed = True

cdef inline void release(worker_t *worker) noexcept nogil:
    if ring_release(&worker.to_host):
        worker.ring_owed = True

cdef inline void ring_doorbell(proxy_t *p, worker_t *worker) noexcept nogil:
    if worker.ring_owed:
        worker.ring_owed = False
        count(&p.count.doorbells, 1)
        write_one(worker.enclave_doorbell)

cdef inline void take_rings(worker_t *worker) noexcept nogil:
    # An enclave under Gramine rings through its standard output, together with text. Its rings are words of one, and no
    # text has the bytes 0 and 1. Only we read the pipe, and to its end: epoll looks at it again before it tells, so what
    # another thread took would be a ring that nobody hears.
    cdef uint8_t data[4096]
    cdef ssize_t got, i, kept
    cdef bint rang = False
    if worker == NULL or worker.text < 0:
        return
    while True:
        got = read(worker.host_doorbell, data, sizeof(data))
        if got <= 0:
            break
        kept = 0
        for i in range(got):
            if data[i] > 1:
                data[kept] = data[i]
                kept += 1
        rang = rang or kept < got
        if kept and write(worker.text, data, <size_t>kept) < 0:
            pass        # nobody reads it fast enough: text is not worth a stop
        if got < <ssize_t>sizeof(data):
            break
    if rang:
        write_one(worker.rpc_doorbell)

cdef inline int claim(proxy_t *p, worker_t *worker, uint32_t size, uint8_t **payload) noexcept nogil:
    # ring_claim that remembers FULL; a lie costs the worker.
    cdef int result = ring_claim(&worker.to_enclave, size, payload)
    if result == RING_FULL:
        worker.blocked = True
        count(&p.count.full, 1)
    elif result == RING_POISONED:
        broke(p, worker)
    return result

cdef inline bint put_frame(proxy_t *p, worker_t *worker, uint8_t kind, uint32_t conn_id, const void *data,
                    uint32_t size) noexcept nogil:
    cdef uint8_t *payload = NULL
    if claim(p, worker, FRAME_HEADER_SIZE + size, &payload) != RING_READY:
        return False
    eos_store_relaxed(<uint64_t *>payload, frame_word(kind, conn_id))
    if size:
        memcpy(payload + FRAME_HEADER_SIZE, data, size)
    ring_commit(&worker.to_enclave, FRAME_HEADER_SIZE + size)
    count(&p.count.frames_to_enclave, 1)
    return True

cdef inline bint put_close(proxy_t *p, worker_t *worker, uint32_t conn_id, uint16_t reason) noexcept nogil:
    return put_frame(p, worker, FRAME_CLOSE, conn_id, &reason, sizeof(reason))

cdef inline bint put_owed(proxy_t *p, worker_t *worker, connection_t *connection) noexcept nogil:
    # All that one connection owes; False when the ring is full. CLOSE says all that the others could say.
    if connection.owed & OWE_CLOSE:
        connection.owed = OWE_CLOSE
    if connection.owed & OWE_CONNECTED:
        if not put_frame(p, worker, FRAME_CONNECTED, connection.conn_id, (<egress_t *>connection).address,
                         (<egress_t *>connection).address_size):
            return False
        connection.owed &= ~<int>OWE_CONNECTED
        if connection.flags & C_READABLE:
            queue_ready(connection)
    if connection.owed & OWE_PAUSE:
        if not put_frame(p, worker, FRAME_PAUSE, connection.conn_id, NULL, 0):
            return False
        connection.owed &= ~<int>OWE_PAUSE
        count(&p.count.pauses, 1)
    if connection.owed & OWE_RESUME:
        if not put_frame(p, worker, FRAME_RESUME, connection.conn_id, NULL, 0):
            return False
        connection.owed &= ~<int>OWE_RESUME
        connection.flags &= ~<int>C_PAUSED
        count(&p.count.resumes, 1)
    if connection.owed & OWE_EOF:
        if not put_frame(p, worker, FRAME_EOF, connection.conn_id, NULL, 0):
            return False
        connection.owed &= ~<int>OWE_EOF
    if connection.owed & OWE_CLOSE:
        if not put_close(p, worker, connection.conn_id, connection.close_reason):
            return False
        connection.owed &= ~<int>OWE_CLOSE
        connection.flags |= C_SENT_CLOSE
    return True

cdef inline void put_all_owed(proxy_t *p, worker_t *worker) noexcept nogil:
    # One publish makes them visible; order between connections does not matter.
    cdef connection_t *connection
    if worker.blocked:
        return
    if worker.drain_owed:
        if not put_frame(p, worker, FRAME_DRAIN, 0, NULL, 0):
            return
        worker.drain_owed = False
        worker.drain_sent = True
    while worker.refusals:
        if not put_close(p, worker, worker.refusal[worker.refusals - 1], worker.refusal_reason[worker.refusals - 1]):
            return
        worker.refusals -= 1
    while worker.owed.first != NULL:
        connection = worker.owed.first
        if not put_owed(p, worker, connection):
            return
        pop_owed(connection)
        give_back_slot(p, connection)


# -- client to enclave ------------------------------------------------------------------------------------------------

cdef inline void discard(proxy_t *p, connection_t *connection) noexcept nogil:
    # Lingering: MSG_TRUNC throws TCP bytes away without copying them.
    cdef int i
    cdef ssize_t got
    for i in range(DISCARDS_MAX):
        got = recv(connection.fd, NULL, 65536, MSG_TRUNC)
        if got > 0:
            continue
        if got < 0 and errno == EAGAIN:
            connection.flags &= ~<int>C_READABLE
            return
        if got < 0 and errno == EINTR:
            continue
        drop_socket(p, connection, False)
        give_back_slot(p, connection)
        return
    queue_ready(connection)

cdef inline void receive(proxy_t *p, worker_t *worker, connection_t *connection, uint8_t *payload) noexcept nogil:
    # One read into the open claim, which this closes.
    cdef int one = 1
    cdef ssize_t got
    count(&p.count.receives, 1)
    got = recv(connection.fd, payload + FRAME_HEADER_SIZE, p.read_size, 0)
    if got > 0:
        eos_store_relaxed(<uint64_t *>payload, frame_word(FRAME_DATA, connection.conn_id))
        ring_commit(&worker.to_enclave, FRAME_HEADER_SIZE + <uint32_t>got)
        count(&p.count.frames_to_enclave, 1)
        count(&p.count.bytes_to_enclave, got)
        p.forwarded = True
        deadline_touch(p, connection, DEADLINE_IDLE)
        if connection.reads < QUICKACK_READS:
            # Without session tickets the server is silent after the client's Finished, so the kernel delays its ACK by
            # 40 ms, and a client with Nagle's algorithm holds its request back until that ACK comes.
            connection.reads += 1
            setsockopt(connection.fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof(one))
        if got == p.read_size or connection.flags & C_HANGUP:
            queue_ready(connection)
        else:
            # A short read used the edge up: epoll(7), question 9.
            connection.flags &= ~<int>C_READABLE
    elif got == 0:
        eos_store_relaxed(<uint64_t *>payload, frame_word(FRAME_EOF, connection.conn_id))
        ring_commit(&worker.to_enclave, FRAME_HEADER_SIZE)
        count(&p.count.frames_to_enclave, 1)
        connection.flags = (connection.flags & ~<int>C_READABLE) | C_SENT_EOF
    else:
        ring_abort(&worker.to_enclave)
        if errno == EAGAIN:
            connection.flags &= ~<int>C_READABLE
        elif errno == EINTR:
            queue_ready(connection)
        else:
            count(&p.count.resets, 1)
            end(p, connection, REASON_PEER_GONE, True)

cdef inline void announce(proxy_t *p, worker_t *worker, connection_t *connection, const sockaddr_storage *address,
                          bint alleged, uint8_t *payload) noexcept nogil:
    # NEW with the client's address, marked when a front alleges it, into the FRAME_HEADER_SIZE + PEER_ADDRESS_SIZE_MAX
    # bytes that were claimed.
    cdef uint32_t size
    eos_store_relaxed(<uint64_t *>payload, frame_word(FRAME_NEW, connection.conn_id))
    payload += FRAME_HEADER_SIZE
    size = address_text(address, <char *>payload, PEER_ADDRESS_SIZE_MAX)
    if alleged and size + 10 <= PEER_ADDRESS_SIZE_MAX:
        memcpy(payload + size, b" via front", 10)
        size += 10
    ring_commit(&worker.to_enclave, FRAME_HEADER_SIZE + size)
    count(&p.count.frames_to_enclave, 1)
    deadline_set(p, connection, DEADLINE_IDLE)

cdef inline void await_header(proxy_t *p, worker_t *worker, connection_t *connection) noexcept nogil:
    # A front's header is looked at where it lies in the socket until it is whole, so that not one byte of what follows
    # is taken. Then the enclave hears of the client.
    cdef uint8_t data[FRONT_SIZE_MAX]
    cdef sockaddr_storage source
    cdef unsigned int size = sizeof(source)
    cdef ssize_t got = recv(connection.fd, data, FRONT_SIZE_MAX, MSG_PEEK)
    cdef uint8_t *payload = NULL
    cdef int parsed = FRONT_BAD
    cdef bint alleged
    if got < 0 and (errno == EAGAIN or errno == EINTR):
        connection.flags &= ~<int>C_READABLE
        return
    source.ss_family = 0
    if got > 0 and not worker.drain_owed and not worker.drain_sent:
        parsed = front_parse(data, <uint32_t>got, &source)
    if parsed == FRONT_WAIT and not connection.flags & C_HANGUP:
        connection.flags &= ~<int>C_READABLE        # the next byte is another edge
        return
    if parsed <= 0:
        count(&p.count.bad_fronts, 1)
        forget(p, connection)
        return
    alleged = source.ss_family != 0
    if not alleged:
        getpeername(connection.fd, <sockaddr *>&source, &size)      # fails when it is gone: family 0, so "?"
    if claim(p, worker, FRAME_HEADER_SIZE + PEER_ADDRESS_SIZE_MAX, &payload) != RING_READY:
        queue_ready(connection)                     # the ring is full: the header stays where it is
        return
    announce(p, worker, connection, &source, alleged, payload)
    recv(connection.fd, data, <size_t>parsed, 0)    # as many bytes as were there to be looked at
    connection.flags &= ~<int>C_FRONT
    queue_ready(connection)

cdef inline void read_sockets(proxy_t *p, worker_t *worker) noexcept nogil:
    # One ring's worth a turn, and of one connection less: a fast enclave empties the ring while we fill it, and a PAUSE
    # among its frames waits until the turn's second half. So what comes after the enclave asked for a PAUSE is what was in
    # the ring and what one turn adds; frames that a turn left behind would make it many turns, hence `behind`.
    cdef int budget = READS_PER_TURN_MAX, rounds = READS_OF_ONE_MAX
    cdef uint64_t stop_at = worker.to_enclave.produced + worker.to_enclave.capacity
    cdef uint64_t publish_above = worker.to_enclave.capacity // 8
    cdef connection_t *connection
    cdef connection_t *last = worker.ready.last
    cdef bint round_over = False
    cdef uint8_t *payload = NULL
    if worker.behind:
        return
    while worker.ready.first != NULL and budget > 0 and worker.to_enclave.produced < stop_at:
        if round_over:
            rounds -= 1
            if rounds == 0:
                break
            last = worker.ready.last
        connection = worker.ready.first
        round_over = connection == last
        if connection.fd < 0 or not connection.flags & C_READABLE:
            pop_ready(connection)
            give_back_slot(p, connection)
            continue
        if connection.flags & C_LINGER:
            pop_ready(connection)
            budget -= 1
            discard(p, connection)
            continue
        if connection.flags & C_FRONT:
            if worker.blocked:
                return
            pop_ready(connection)
            budget -= 1
            await_header(p, worker, connection)
            continue
        if connection.flags & (C_STOPPED | C_SENT_EOF | C_GOT_CLOSE) or connection.owed & OWE_CONNECTED:
            pop_ready(connection)       # RESUME, the end of flushing, or CONNECTED queues it again
            continue
        if worker.blocked or claim(p, worker, FRAME_HEADER_SIZE + p.read_size, &payload) != RING_READY:
            return                      # it keeps its place
        pop_ready(connection)
        budget -= 1
        receive(p, worker, connection, payload)
        if worker.to_enclave.produced - worker.to_enclave.published >= publish_above:
            publish(p, worker)
            ring_doorbell(p, worker)
    if worker.ready.first != NULL:
        p.more = True


# -- accept -----------------------------------------------------------------------------------------------------------

cdef inline worker_t *least_loaded(proxy_t *p) noexcept nogil:
    cdef uint32_t i, index
    cdef worker_t *worker
    cdef worker_t *best = NULL
    for i in range(p.workers_high):
        index = (p.next_worker + i) % p.workers_high
        worker = p.worker[index]
        if worker == NULL or worker.state != W_READY or worker.blocked or worker.drain_sent or worker.drain_owed:
            continue
        if best == NULL or worker.live < best.live:
            best = worker
    if best != NULL:
        p.next_worker = best.index + 1
    return best

cdef inline void accept_failed(proxy_t *p, uint32_t listener, int error) noexcept nogil:
    cdef int fd
    if error == EAGAIN:
        p.listener_ready[listener] = False
        return
    if error == EINTR or error == ECONNABORTED or error == EPROTO:
        return      # that one went away by itself (accept(2), "Error handling")
    count(&p.count.accept_errors, 1)
    if (error == EMFILE or error == ENFILE) and p.reserve >= 0:
        # Give up the spare descriptor to take the client off the queue and tell it at once; otherwise it waits and
        # the listener stays readable.
        close(p.reserve)
        fd = accept4(p.listener[listener], NULL, NULL, SOCK_CLOEXEC)
        if fd >= 0:
            refuse(fd)
            count(&p.count.shed, 1)
        p.reserve = open("/dev/null", O_RDONLY | O_CLOEXEC)
        if p.reserve >= 0:
            return
    p.accept_again_ns = p.now_ns + ACCEPT_PAUSE_NS

cdef inline bint accept_one(proxy_t *p, uint32_t listener) noexcept nogil:
    # False: stop for this turn.
    cdef worker_t *worker = least_loaded(p)
    cdef sockaddr_storage address
    cdef unsigned int address_size = sizeof(address)
    cdef connection_t *connection
    cdef uint8_t *payload = NULL
    cdef epoll_event_t event
    cdef int fd
    if worker == NULL:
        return False
    if claim(p, worker, FRAME_HEADER_SIZE + PEER_ADDRESS_SIZE_MAX, &payload) != RING_READY:
        return True     # it is blocked or broken now: another may have room
    fd = accept4(p.listener[listener], <sockaddr *>&address, &address_size, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if fd < 0:
        ring_abort(&worker.to_enclave)
        accept_failed(p, listener, errno)
        return p.listener_ready[listener] and not p.accept_again_ns
    connection = NULL
    if p.connections >= p.connections_max:
        count(&p.count.refused, 1)
    else:
        connection = take_slot(p, worker)
        if connection == NULL:
            count(&p.count.shed, 1)
    if connection == NULL:
        ring_abort(&worker.to_enclave)
        refuse(fd)
        return True
    event.events = EPOLLIN | EPOLLRDHUP | EPOLLET
    event.data.u64 = connection_tag(connection)
    if epoll_ctl(p.epoll, EPOLL_CTL_ADD, fd, &event) < 0:
        ring_abort(&worker.to_enclave)
        refuse(fd)
        count(&p.count.shed, 1)
        forget(p, connection)
        return True
    connection.fd = fd
    p.sockets += 1
    count(&p.count.accepted, 1)
    if is_front(p, &address):
        ring_abort(&worker.to_enclave)
        connection.flags |= C_FRONT
        deadline_set(p, connection, DEADLINE_FRONT)
        return True
    announce(p, worker, connection, &address, False, payload)
    return True

cdef inline void accept_all(proxy_t *p) noexcept nogil:
    cdef uint32_t i
    cdef int budget = ACCEPTS_PER_TURN_MAX
    if not p.accepting:
        return
    if p.accept_again_ns:
        if p.now_ns < p.accept_again_ns:
            return
        p.accept_again_ns = 0
        if p.reserve < 0:
            p.reserve = open("/dev/null", O_RDONLY | O_CLOEXEC)
    for i in range(p.listeners):
        while p.listener_ready[i]:
            if budget == 0:
                p.more = True
                return
            budget -= 1
            if not accept_one(p, i):
                break
