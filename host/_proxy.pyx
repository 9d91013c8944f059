# The TCP proxy's loop: sockets <-> data channel, for all workers, in one thread that never holds the GIL.
#
# Read straight into the claimed ring space, sent straight from the ring: no copy of our own unless a client is slow.
# Per request: one recv, one send, a share of one epoll_wait, and a doorbell only if the enclave sleeps. Layout and
# states: _proxy.pxd; memory of a connection: _connections.pxd; sockets are made by tcp_proxy.py.
#
# A turn: read sockets (bounded), publish, drain data.to_host (bounded), deadlines, publish, release, ring doorbells,
# then arm the rings, look once more, and sleep in epoll_wait. data.to_host is drained in every turn, also while
# data.to_enclave is full, so that two full rings never wait for each other.
#
# The enclave is trusted with its own clients only: a ring or a frame that breaks the contract costs the worker, one
# that names no connection is counted and dropped.
cimport cython
from libc.errno cimport (
    EAGAIN, ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPROTO, errno,
)
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from enclave_os._codec cimport (
    FRAME_CLOSE, FRAME_CONNECT, FRAME_DATA, FRAME_DRAIN, FRAME_EOF, FRAME_NEW, FRAME_PAUSE, FRAME_READY, FRAME_RESUME,
    frame_decode, frame_t, frame_word,
)
from enclave_os._limits cimport (
    CONN_ID_INGRESS_MAX, FRAME_HEADER_SIZE, FRAMES_PER_TURN_MAX, PEER_ADDRESS_SIZE_MAX, RING_HEADER_SIZE,
    TCP_READ_SIZE_MAX,
)
from enclave_os._native cimport (
    eos_cpu_pause, eos_exchange, eos_fence, eos_load_acquire, eos_load_relaxed, eos_monotonic_ns, eos_store_relaxed,
    eos_store_release,
)
from enclave_os._ring cimport (
    LIE_FRAME, RING_EMPTY, RING_FULL, RING_POISONED, RING_READY, ring_abort, ring_advance, ring_arm, ring_claim,
    ring_commit, ring_consumer_attach, ring_disarm, ring_look_for_records, ring_peek, ring_producer_attach,
    ring_publish, ring_release, ring_wait_for_room,
)
from host._connections cimport (
    count, deadline_clear, deadline_set, deadline_touch, find, give_back_slot, owe, pop_owed, pop_ready, queue_ready,
    slot_at, take_slot, unsent_free, unsent_reserve, unsent_size,
)
from host._proxy cimport *

import os
import threading

from enclave_os.wire.errors import Lie, UsageError

cdef extern from "<sys/socket.h>" nogil:
    int SOL_SOCKET, SO_LINGER, SHUT_WR, SOCK_NONBLOCK, SOCK_CLOEXEC, MSG_NOSIGNAL, MSG_TRUNC, AF_INET, AF_INET6
    struct sockaddr:
        uint16_t sa_family
    struct sockaddr_storage:
        uint16_t ss_family
    struct linger_t "linger":
        int l_onoff
        int l_linger
    struct iovec_t "iovec":
        void *iov_base
        size_t iov_len
    struct msghdr_t "msghdr":
        iovec_t *msg_iov
        size_t msg_iovlen
    int accept4(int fd, sockaddr *address, unsigned int *size, int flags)
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)
    ssize_t sendmsg(int fd, const msghdr_t *message, int flags)
    int setsockopt(int fd, int level, int option, const void *value, unsigned int size)
    int shutdown(int fd, int how)

cdef extern from "<netinet/tcp.h>" nogil:
    int IPPROTO_TCP, TCP_QUICKACK

cdef extern from "<arpa/inet.h>" nogil:
    struct in_addr_t_ "in_addr":
        pass
    struct in6_addr_t "in6_addr":
        pass
    struct sockaddr_in_t "sockaddr_in":
        uint16_t sin_port
        in_addr_t_ sin_addr
    struct sockaddr_in6_t "sockaddr_in6":
        uint16_t sin6_port
        in6_addr_t sin6_addr
    const char *inet_ntop(int family, const void *address, char *text, unsigned int size)
    uint16_t ntohs(uint16_t port)

cdef extern from "<sys/epoll.h>" nogil:
    int EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CLOEXEC
    enum:
        EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP
    uint32_t EPOLLET
    union epoll_data_t:
        uint64_t u64
    struct epoll_event_t "epoll_event":
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event_t *event)
    int epoll_wait(int epoll, epoll_event_t *events, int count, int timeout)

cdef extern from "<sys/eventfd.h>" nogil:
    int EFD_CLOEXEC, EFD_NONBLOCK
    int eventfd(unsigned int value, int flags)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t read(int fd, void *buffer, size_t size)
    ssize_t write(int fd, const void *buffer, size_t size)

cdef extern from "<fcntl.h>" nogil:
    int O_RDONLY, O_CLOEXEC
    int open(const char *path, int flags)

cdef extern from "<poll.h>" nogil:
    short POLLIN
    struct pollfd_t "pollfd":
        int fd
        short events
    int poll(pollfd_t *fds, unsigned long count, int timeout)

cdef enum:
    EXPIRIES_PER_TURN_MAX = 256
    DISCARDS_MAX = 16             # reads of up to 64 KiB thrown away in one go while lingering
    FLOOD_RINGS = 4               # capacities of data.to_host that one slow client may have waiting
    ACCEPT_PAUSE_NS = 100000000   # after accept found no descriptor or memory and there was nothing to shed
    COMMAND_WAIT_NS = 5000000000  # a turn is bounded, so a live loop answers in milliseconds


# -- doorbells and frames to the enclave --------------------------------------------------------------------------------

cdef inline void write_one(int fd) noexcept nogil:
    # An eventfd refuses only when its counter is about to overflow, and then it is awake anyway.
    cdef uint64_t one = 1
    if write(fd, &one, sizeof(one)) < 0:
        pass

cdef inline void tell(proxy_t *p, worker_t *worker, uint64_t event) noexcept nogil:
    # Only this thread sets bits, the supervisor's takes them all: exchange-or without a loop of compare-and-swap.
    eos_store_release(&worker.events, eos_exchange(&worker.events, 0) | event)
    write_one(p.event)

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

cdef inline int claim(proxy_t *p, worker_t *worker, uint32_t size, uint8_t **payload) noexcept nogil:
    # ring_claim that remembers FULL; a lie costs the worker.
    cdef int result = ring_claim(&worker.to_enclave, size, payload)
    if result == RING_FULL:
        worker.blocked = True
        count(&p.count.full, 1)
    elif result == RING_POISONED:
        broke(p, worker)
    return result

cdef bint put_frame(proxy_t *p, worker_t *worker, uint8_t kind, uint32_t conn_id, const void *data,
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

cdef bint put_close(proxy_t *p, worker_t *worker, uint32_t conn_id, uint16_t reason) noexcept nogil:
    return put_frame(p, worker, FRAME_CLOSE, conn_id, &reason, sizeof(reason))

cdef bint put_owed(proxy_t *p, worker_t *worker, connection_t *connection) noexcept nogil:
    # All that one connection owes; False when the ring is full. CLOSE says all that the others could say.
    if connection.owed & OWE_CLOSE:
        connection.owed = OWE_CLOSE
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

cdef void put_all_owed(proxy_t *p, worker_t *worker) noexcept nogil:
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
        if not put_close(p, worker, worker.refusal[worker.refusals - 1], 9):
            return
        worker.refusals -= 1
    while worker.owed.first != NULL:
        connection = worker.owed.first
        if not put_owed(p, worker, connection):
            return
        pop_owed(connection)
        give_back_slot(p, connection)


# -- ends of a connection -----------------------------------------------------------------------------------------------

cdef void drop_socket(proxy_t *p, connection_t *connection, bint reset) noexcept nogil:
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

cdef void owe_close(connection_t *connection, uint16_t reason) noexcept nogil:
    if connection.flags & C_SENT_CLOSE or connection.owed & OWE_CLOSE:
        return
    connection.close_reason = reason
    owe(connection, OWE_CLOSE)

cdef void end(proxy_t *p, connection_t *connection, uint16_t reason, bint reset) noexcept nogil:
    # Our side ends the connection: socket closed now, CLOSE owed, the slot waits for the enclave's CLOSE.
    drop_socket(p, connection, reset)
    owe_close(connection, reason)
    give_back_slot(p, connection)

cdef void finish(proxy_t *p, connection_t *connection) noexcept nogil:
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

cdef void drop_all(proxy_t *p, worker_t *worker) noexcept nogil:
    # Every socket of a worker that is gone.
    cdef uint32_t slot
    for slot in range(worker.slots):
        if slot_at(worker, slot).worker != NULL:
            drop_socket(p, slot_at(worker, slot), True)

cdef void broke(proxy_t *p, worker_t *worker) noexcept nogil:
    # A lie. The worker's rings are not touched again; its connections end, the supervisor replaces it.
    if worker.state == W_BROKEN:
        return
    worker.state = W_BROKEN
    count(&p.count.broken, 1)
    drop_all(p, worker)
    tell(p, worker, EVENT_BROKEN)


# -- enclave to client --------------------------------------------------------------------------------------------------

cdef void edge_on_room(proxy_t *p, connection_t *connection) noexcept nogil:
    # Registered at the first partial send and then kept. Modifying polls the socket anew, so room that came meanwhile
    # is reported.
    cdef epoll_event_t event
    if connection.flags & C_OUT_EDGE:
        return
    connection.flags |= C_OUT_EDGE
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
    event.data.u64 = connection_tag(connection)
    epoll_ctl(p.epoll, EPOLL_CTL_MOD, connection.fd, &event)

cdef inline uint64_t connection_tag(connection_t *connection) noexcept nogil:
    # Worker, its life and the conn_id with its generation: an event for a former owner names nobody.
    return worker_tag(connection.worker) << 32 | connection.conn_id

cdef inline uint64_t worker_tag(worker_t *worker) noexcept nogil:
    return worker.index | (<uint64_t>worker.life & 0x7FFF) << 8

# PAUSE is a stop, but not an instant one: the enclave reads it behind all that was in data.to_enclave before, and goes on
# sending meanwhile. So the bound leaves several rings of room; an enclave that does not listen ends there.
cdef bint hold(proxy_t *p, connection_t *connection, const iovec_t *pieces, int pieces_count, size_t skip,
               size_t size) noexcept nogil:
    # Keeps `size` bytes after the first `skip` of the pieces in `unsent`. False: flood or no memory, and it is ended.
    cdef worker_t *worker = connection.worker
    cdef uint64_t bound = p.pause_above + FLOOD_RINGS * worker.to_host.capacity
    cdef bint first = connection.unsent == NULL
    cdef size_t part
    cdef int i
    if unsent_size(connection) + size > bound:
        count(&p.count.floods, 1)
        end(p, connection, 5, True)
        return False
    if not unsent_reserve(connection, <uint32_t>size):
        end(p, connection, 3, True)
        return False
    if first:
        p.unsent_connections += 1
        worker.flushing += 1
        deadline_set(p, connection, DEADLINE_STALL)
    for i in range(pieces_count):
        if skip >= pieces[i].iov_len:
            skip -= pieces[i].iov_len
            continue
        part = pieces[i].iov_len - skip
        memcpy(connection.unsent + connection.unsent_end, <uint8_t *>pieces[i].iov_base + skip, part)
        connection.unsent_end += <uint32_t>part
        skip = 0
    p.unsent_bytes += size
    if unsent_size(connection) > p.pause_above and not connection.flags & C_GOT_CLOSE:
        if connection.owed & OWE_RESUME:
            connection.owed &= ~<int>OWE_RESUME     # the enclave never heard of it: it is still paused
        elif not connection.flags & C_PAUSED:
            connection.flags |= C_PAUSED
            owe(connection, OWE_PAUSE)
            # Now and not at the turn's end: a fast enclave fills its ring several times in one turn of ours.
            put_all_owed(p, worker)
            publish(p, worker)
            ring_doorbell(p, worker)
    return True

cdef void deliver(proxy_t *p, worker_t *worker, uint32_t conn_id, iovec_t *pieces, int pieces_count,
                  size_t size) noexcept nogil:
    # DATA of one connection, still in the ring.
    cdef connection_t *connection = find(worker, conn_id)
    cdef msghdr_t message
    cdef ssize_t sent = 0
    if connection == NULL or connection.flags & (C_GOT_EOF | C_GOT_CLOSE):
        count(&p.count.dropped_frames, pieces_count)
        return
    if connection.fd < 0 or size == 0:
        return      # we closed first, and the enclave has not read it yet
    if connection.unsent == NULL:
        count(&p.count.sends, 1)
        if pieces_count == 1:
            sent = send(connection.fd, pieces[0].iov_base, size, MSG_NOSIGNAL)
        else:
            memset(&message, 0, sizeof(message))
            message.msg_iov = pieces
            message.msg_iovlen = pieces_count
            sent = sendmsg(connection.fd, &message, MSG_NOSIGNAL)
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                count(&p.count.resets, 1)
                end(p, connection, 1, True)
                return
            sent = 0
        count(&p.count.bytes_to_clients, sent)
        if <size_t>sent == size:
            deadline_touch(p, connection, DEADLINE_IDLE)
            return
        count(&p.count.partial_sends, 1)
    if hold(p, connection, pieces, pieces_count, sent, size - sent):
        edge_on_room(p, connection)

cdef void flush(proxy_t *p, connection_t *connection) noexcept nogil:
    # The socket has room again.
    cdef ssize_t sent
    if connection.unsent == NULL:
        return
    count(&p.count.sends, 1)
    sent = send(connection.fd, connection.unsent + connection.unsent_start, unsent_size(connection), MSG_NOSIGNAL)
    if sent < 0:
        if errno != EAGAIN and errno != EINTR:
            count(&p.count.resets, 1)
            end(p, connection, 1, True)
        return
    count(&p.count.bytes_to_clients, sent)
    connection.unsent_start += <uint32_t>sent
    p.unsent_bytes -= sent
    deadline_touch(p, connection, DEADLINE_STALL)
    if connection.flags & C_PAUSED and unsent_size(connection) < p.resume_below:
        if connection.owed & OWE_PAUSE:
            connection.owed &= ~<int>OWE_PAUSE      # the enclave never heard of it
            connection.flags &= ~<int>C_PAUSED
        elif not connection.flags & C_GOT_CLOSE:
            owe(connection, OWE_RESUME)
    if unsent_size(connection):
        return
    unsent_free(p, connection)
    deadline_set(p, connection, DEADLINE_IDLE)
    if connection.flags & C_GOT_CLOSE:
        finish(p, connection)
    elif connection.flags & C_GOT_EOF:
        connection.flags |= C_SHUT
        shutdown(connection.fd, SHUT_WR)

cdef void enclave_closed(proxy_t *p, connection_t *connection, uint16_t reason) noexcept nogil:
    if connection.flags & C_GOT_CLOSE:
        count(&p.count.dropped_frames, 1)
        return
    connection.flags |= C_GOT_CLOSE
    owe_close(connection, 0)
    if connection.fd < 0:
        give_back_slot(p, connection)
    elif reason == 1 or reason == 5 or reason == 8 or reason == 9:
        # PEER_GONE, FLOOD, INTERNAL, REFUSED: nothing whole is on its way.
        drop_socket(p, connection, True)
        give_back_slot(p, connection)
    elif connection.unsent == NULL:
        finish(p, connection)

cdef void lied(proxy_t *p, worker_t *worker) noexcept nogil:
    worker.to_host.lie = LIE_FRAME
    broke(p, worker)

cdef void frame_to_host(proxy_t *p, worker_t *worker, frame_t frame, const uint8_t *payload,
                        uint32_t size) noexcept nogil:
    # Every kind but DATA. `size` is the payload's.
    cdef connection_t *connection
    if frame.kind == FRAME_READY:
        if worker.state != W_STARTING or frame.conn_id or size:
            lied(p, worker)
            return
        worker.state = W_READY
        worker.drain_owed = p.draining
        p.more = True       # clients may wait to be accepted
        tell(p, worker, EVENT_READY)
        return
    if frame.kind == FRAME_DRAIN:
        if frame.conn_id or size:
            lied(p, worker)
            return
        worker.drain_got = True
        return
    if frame.kind == FRAME_CONNECT:
        if frame.conn_id <= CONN_ID_INGRESS_MAX or worker.refusals == REFUSALS_MAX:
            lied(p, worker)
            return
        worker.refusal[worker.refusals] = frame.conn_id
        worker.refusals += 1
        return
    if frame.kind == FRAME_CLOSE:
        if size != 2:
            lied(p, worker)
            return
    elif size or not (frame.kind == FRAME_EOF or frame.kind == FRAME_PAUSE or frame.kind == FRAME_RESUME):
        lied(p, worker)
        return
    connection = find(worker, frame.conn_id)
    if connection == NULL:
        count(&p.count.dropped_frames, 1)
    elif frame.kind == FRAME_CLOSE:
        enclave_closed(p, connection, <uint16_t>eos_load_relaxed(<const uint64_t *>payload))
    elif connection.flags & C_GOT_CLOSE:
        count(&p.count.dropped_frames, 1)
    elif frame.kind == FRAME_PAUSE:
        connection.flags |= C_STOPPED
    elif frame.kind == FRAME_RESUME:
        connection.flags &= ~<int>C_STOPPED
        if connection.flags & C_READABLE:
            queue_ready(connection)
    elif connection.flags & C_GOT_EOF:
        count(&p.count.dropped_frames, 1)
    else:
        connection.flags |= C_GOT_EOF
        if connection.fd >= 0 and connection.unsent == NULL:
            connection.flags |= C_SHUT
            shutdown(connection.fd, SHUT_WR)

cdef void drain_to_host(proxy_t *p, worker_t *worker) noexcept nogil:
    cdef int budget = FRAMES_PER_TURN_MAX, pieces_count, result
    cdef uint64_t release_above = worker.to_host.capacity // 8, word
    cdef const uint8_t *payload = NULL
    cdef uint32_t size = 0
    cdef size_t total
    cdef frame_t frame
    cdef iovec_t pieces[SEND_RECORDS_MAX]
    while budget > 0:
        result = ring_peek(&worker.to_host, &payload, &size)
        if result != RING_READY:
            break
        budget -= 1
        word = 0
        if size >= FRAME_HEADER_SIZE:
            word = eos_load_relaxed(<const uint64_t *>payload)
        if not frame_decode(word, &frame):
            lied(p, worker)
            return
        ring_advance(&worker.to_host)
        if frame.kind != FRAME_DATA:
            frame_to_host(p, worker, frame, payload + FRAME_HEADER_SIZE, size - FRAME_HEADER_SIZE)
            count(&p.count.frames_to_host, 1)
            if worker.state == W_BROKEN:
                return
            continue
        pieces[0].iov_base = <void *>(payload + FRAME_HEADER_SIZE)
        pieces[0].iov_len = total = size - FRAME_HEADER_SIZE
        pieces_count = 1
        while pieces_count < SEND_RECORDS_MAX and budget > 0:
            # Neighbours of the same connection go out with one call.
            if ring_peek(&worker.to_host, &payload, &size) != RING_READY or size < FRAME_HEADER_SIZE:
                break
            if eos_load_relaxed(<const uint64_t *>payload) != word:
                break
            ring_advance(&worker.to_host)
            budget -= 1
            pieces[pieces_count].iov_base = <void *>(payload + FRAME_HEADER_SIZE)
            pieces[pieces_count].iov_len = size - FRAME_HEADER_SIZE
            total += size - FRAME_HEADER_SIZE
            pieces_count += 1
        count(&p.count.frames_to_host, pieces_count)
        deliver(p, worker, frame.conn_id, pieces, pieces_count, total)
        if worker.state == W_BROKEN:
            return
        if worker.to_host.consumed - worker.to_host.released >= release_above:
            release(worker)
            ring_doorbell(p, worker)
    if worker.to_host.lie:
        broke(p, worker)
        return
    release(worker)
    if budget == 0:
        p.more = True
    if worker.drain_got and not worker.flushing:
        worker.drain_got = False
        tell(p, worker, EVENT_DRAINED)


# -- client to enclave --------------------------------------------------------------------------------------------------

cdef void discard(proxy_t *p, connection_t *connection) noexcept nogil:
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

cdef void receive(proxy_t *p, worker_t *worker, connection_t *connection, uint8_t *payload) noexcept nogil:
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
            end(p, connection, 1, True)

cdef void read_sockets(proxy_t *p, worker_t *worker) noexcept nogil:
    cdef int budget = READS_PER_TURN_MAX
    cdef uint64_t publish_above = worker.to_enclave.capacity // 8
    cdef connection_t *connection
    cdef uint8_t *payload = NULL
    while worker.ready.first != NULL and budget > 0:
        connection = worker.ready.first
        if connection.fd < 0 or not connection.flags & C_READABLE:
            pop_ready(connection)
            give_back_slot(p, connection)
            continue
        if connection.flags & C_LINGER:
            pop_ready(connection)
            budget -= 1
            discard(p, connection)
            continue
        if connection.flags & (C_STOPPED | C_SENT_EOF | C_GOT_CLOSE):
            pop_ready(connection)       # RESUME, or the end of flushing, queues it again
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


# -- accept -------------------------------------------------------------------------------------------------------------

cdef worker_t *least_loaded(proxy_t *p) noexcept nogil:
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

cdef uint32_t address_text(const sockaddr_storage *address, char *text, uint32_t size) noexcept nogil:
    # "192.0.2.1:443" or "[2001:db8::1]:443"; "?" for a family that we do not listen on.
    cdef char name[PEER_ADDRESS_SIZE_MAX]
    cdef const sockaddr_in_t *v4 = <const sockaddr_in_t *>address
    cdef const sockaddr_in6_t *v6 = <const sockaddr_in6_t *>address
    cdef int written = 0
    if address.ss_family == AF_INET and inet_ntop(AF_INET, &v4.sin_addr, name, sizeof(name)) != NULL:
        written = snprintf(text, size, "%s:%u", name, <unsigned int>ntohs(v4.sin_port))
    elif address.ss_family == AF_INET6 and inet_ntop(AF_INET6, &v6.sin6_addr, name, sizeof(name)) != NULL:
        written = snprintf(text, size, "[%s]:%u", name, <unsigned int>ntohs(v6.sin6_port))
    if written <= 0 or <uint32_t>written >= size:
        text[0] = b"?"
        return 1
    return <uint32_t>written

cdef void refuse(int fd) noexcept nogil:
    cdef linger_t linger
    linger.l_onoff = 1
    linger.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger))
    close(fd)

cdef void accept_failed(proxy_t *p, uint32_t listener, int error) noexcept nogil:
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

cdef bint accept_one(proxy_t *p, uint32_t listener) noexcept nogil:
    # False: stop for this turn.
    cdef worker_t *worker = least_loaded(p)
    cdef sockaddr_storage address
    cdef unsigned int address_size = sizeof(address)
    cdef connection_t *connection
    cdef uint8_t *payload = NULL
    cdef epoll_event_t event
    cdef uint32_t size
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
        connection.flags = C_SENT_CLOSE | C_GOT_CLOSE     # the enclave never heard of it
        give_back_slot(p, connection)
        return True
    eos_store_relaxed(<uint64_t *>payload, frame_word(FRAME_NEW, connection.conn_id))
    size = address_text(&address, <char *>payload + FRAME_HEADER_SIZE, PEER_ADDRESS_SIZE_MAX)
    ring_commit(&worker.to_enclave, FRAME_HEADER_SIZE + size)
    connection.fd = fd
    p.sockets += 1
    deadline_set(p, connection, DEADLINE_IDLE)
    count(&p.count.accepted, 1)
    count(&p.count.frames_to_enclave, 1)
    return True

cdef void accept_all(proxy_t *p) noexcept nogil:
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


# -- the turn -----------------------------------------------------------------------------------------------------------

cdef void expire(proxy_t *p) noexcept nogil:
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
            if which == DEADLINE_LINGER:
                drop_socket(p, connection, True)
                give_back_slot(p, connection)
            else:
                count(&p.count.timeouts, 1)
                end(p, connection, 2, which == DEADLINE_STALL)

cdef int sleep_ms(proxy_t *p) noexcept nogil:
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

cdef void spin(proxy_t *p) noexcept nogil:
    # Answers to what was forwarded may be microseconds away; look at the rings only.
    cdef uint64_t until = eos_monotonic_ns() + p.spin_ns
    cdef uint32_t i, round_
    cdef worker_t *worker
    while True:
        for round_ in range(32):
            for i in range(p.workers_high):
                worker = p.worker[i]
                if worker == NULL or worker.state == W_BROKEN:
                    continue
                if ring_look_for_records(&worker.to_host) == RING_POISONED:
                    broke(p, worker)
                    return
                if worker.to_host.produced_seen != worker.to_host.consumed:
                    return
            eos_cpu_pause()
        if eos_monotonic_ns() >= until:
            return

cdef bint arm_all(proxy_t *p) noexcept nogil:
    # False: do not sleep, something came.
    cdef bint sleep = True
    cdef uint32_t i
    cdef int result
    cdef worker_t *worker
    for i in range(p.workers_high):
        worker = p.worker[i]
        if worker == NULL or worker.state == W_BROKEN:
            continue
        if worker.blocked:
            result = ring_wait_for_room(&worker.to_enclave, FRAME_HEADER_SIZE + p.read_size)
            if result == RING_POISONED:
                broke(p, worker)
                continue
            if result == RING_READY:
                worker.blocked = False
                sleep = False
        result = ring_arm(&worker.to_host)
        if result == RING_POISONED:
            broke(p, worker)
        elif result == RING_EMPTY:
            worker.armed = True
        else:
            sleep = False
    return sleep

cdef void disarm_all(proxy_t *p) noexcept nogil:
    cdef uint32_t i
    for i in range(p.workers_high):
        if p.worker[i] != NULL and p.worker[i].armed:
            p.worker[i].armed = False
            ring_disarm(&p.worker[i].to_host)

cdef void look_for_room(proxy_t *p, worker_t *worker) noexcept nogil:
    # A blocked worker: whatever woke us, the enclave may have taken something.
    cdef int result = ring_wait_for_room(&worker.to_enclave, FRAME_HEADER_SIZE + p.read_size)
    if result == RING_POISONED:
        broke(p, worker)
    elif result == RING_READY:
        worker.blocked = False

cdef void turn(proxy_t *p) noexcept nogil:
    cdef uint32_t i
    cdef worker_t *worker
    p.more = False
    p.forwarded = False
    count(&p.count.turns, 1)
    for i in range(p.workers_high):
        worker = p.worker[i]
        if worker != NULL and worker.state != W_BROKEN and worker.blocked:
            look_for_room(p, worker)
    accept_all(p)
    for i in range(p.workers_high):
        worker = p.worker[i]
        if worker == NULL or worker.state == W_BROKEN:
            continue
        put_all_owed(p, worker)
        read_sockets(p, worker)
        if worker.state == W_BROKEN:
            continue
        publish(p, worker)
        ring_doorbell(p, worker)
    for i in range(p.workers_high):
        worker = p.worker[i]
        if worker != NULL and worker.state != W_BROKEN:
            drain_to_host(p, worker)
    expire(p)
    for i in range(p.workers_high):
        worker = p.worker[i]
        if worker == NULL or worker.state == W_BROKEN:
            continue
        put_all_owed(p, worker)
        publish(p, worker)
        ring_doorbell(p, worker)
        if worker.ready.first != NULL and not worker.blocked:
            p.more = True       # RESUME queued it

cdef void on_event(proxy_t *p, uint32_t events, uint64_t tag) noexcept nogil:
    cdef uint32_t high = <uint32_t>(tag >> 32), low = <uint32_t>tag
    cdef worker_t *worker
    cdef connection_t *connection
    if high >= CONTROL_TAG:
        if high == LISTENER_TAG:
            p.listener_ready[low] = True
        return      # commands and rings are looked at in every turn
    worker = p.worker[high & 0xFF]
    if worker == NULL or worker.state == W_BROKEN or worker_tag(worker) != high:
        return
    connection = find(worker, low)
    if connection == NULL or connection.fd < 0:
        return
    if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        connection.flags |= C_HANGUP
    if events & EPOLLERR and connection.flags & (C_STOPPED | C_SENT_EOF | C_GOT_CLOSE) and not (
        connection.flags & C_LINGER
    ):
        # A reset that no read would find.
        count(&p.count.resets, 1)
        end(p, connection, 1, True)
        return
    if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        connection.flags |= C_READABLE
        queue_ready(connection)
    if events & EPOLLOUT:
        flush(p, connection)

cdef int add(proxy_t *p, worker_t *worker) noexcept nogil:
    cdef epoll_event_t event
    p.next_life += 1
    worker.life = p.next_life
    event.events = EPOLLIN | EPOLLET
    event.data.u64 = (<uint64_t>DOORBELL_TAG << 32) | worker.index
    if epoll_ctl(p.epoll, EPOLL_CTL_ADD, worker.host_doorbell, &event) < 0:
        return errno
    p.worker[worker.index] = worker
    if worker.index >= p.workers_high:
        p.workers_high = worker.index + 1
    return 0

cdef void remove(proxy_t *p, uint32_t index) noexcept nogil:
    cdef worker_t *worker = p.worker[index]
    drop_all(p, worker)
    epoll_ctl(p.epoll, EPOLL_CTL_DEL, worker.host_doorbell, NULL)
    p.connections -= worker.live
    count(&p.count.closed, worker.live)
    p.worker[index] = NULL
    while p.workers_high and p.worker[p.workers_high - 1] == NULL:
        p.workers_high -= 1
    free_worker(worker)

cdef void free_worker(worker_t *worker) noexcept nogil:
    cdef uint32_t i
    for i in range(worker.slots >> CHUNK_BITS):
        free(worker.chunk[i])
    free(worker.chunk)
    free(worker)

cdef void start_drain(proxy_t *p) noexcept nogil:
    cdef uint32_t i
    if p.draining:
        return
    p.draining = True
    p.accepting = False
    for i in range(p.listeners):
        epoll_ctl(p.epoll, EPOLL_CTL_DEL, p.listener[i], NULL)
        p.listener_ready[i] = False
    for i in range(p.workers_high):
        if p.worker[i] != NULL and p.worker[i].state == W_READY:
            p.worker[i].drain_owed = True

cdef void obey(proxy_t *p) noexcept nogil:
    # The command that waits, if one does. Run by the loop, or by the caller itself when no loop runs.
    cdef uint64_t command
    if eos_load_relaxed(&p.command) == COMMAND_NONE:
        return
    command = eos_exchange(&p.command, COMMAND_NONE)
    p.command_result = 0
    if command == COMMAND_ADD:
        p.command_result = add(p, p.command_worker)
    elif command == COMMAND_DETACH:
        remove(p, p.command_index)
    elif command == COMMAND_DRAIN:
        start_drain(p)
    elif command == COMMAND_STOP:
        p.stopping = True
    else:
        return
    write_one(p.answer)

cdef int loop(proxy_t *p) noexcept nogil:
    # Until stopped: 0, or the errno that ended it.
    cdef epoll_event_t events[EVENTS_PER_TURN_MAX]
    cdef int timeout, got, i, error = 0
    cdef uint32_t index
    while True:
        p.now_ns = eos_monotonic_ns()
        obey(p)
        if p.stopping:
            break
        turn(p)
        timeout = 0
        if not p.more:
            if p.spin_ns and p.forwarded:
                spin(p)
            if arm_all(p):
                timeout = sleep_ms(p)
                count(&p.count.sleeps, 1)
        got = epoll_wait(p.epoll, events, EVENTS_PER_TURN_MAX, timeout)
        disarm_all(p)
        if got < 0 and errno != EINTR:
            error = errno
            break
        for i in range(got):
            on_event(p, events[i].events, events[i].data.u64)
    for index in range(p.workers_high):
        if p.worker[index] != NULL:
            drop_all(p, p.worker[index])
    return error


# -- Python's end ---------------------------------------------------------------------------------------------------------

@cython.final
cdef class Proxy:
    """One thread that moves bytes between client sockets and the data channels of the workers."""

    cdef proxy_t p
    cdef object _lock
    cdef dict _regions

    def __cinit__(self, listeners, *, connections_max, pause_above, resume_below, idle_ms, stall_ms, linger_ms,
                  spin_us=0, read_size=TCP_READ_SIZE_MAX):
        cdef epoll_event_t event
        cdef uint32_t i
        self.p.epoll = self.p.control = self.p.answer = self.p.event = self.p.reserve = -1
        listeners = tuple(listeners)
        if len(listeners) > LISTENERS_MAX:
            raise UsageError(f"{len(listeners)} listening sockets are more than {LISTENERS_MAX}")
        for name, value, low, high in (
            ("connections_max", connections_max, 1, 1 << 20), ("pause_above", pause_above, 1, 1 << 26),
            ("resume_below", resume_below, 1, pause_above), ("idle_ms", idle_ms, 1, 1 << 31),
            ("stall_ms", stall_ms, 1, 1 << 31), ("linger_ms", linger_ms, 1, 1 << 31), ("spin_us", spin_us, 0, 1000000),
            ("read_size", read_size, 1, TCP_READ_SIZE_MAX),
        ):
            if not low <= value <= high:
                raise UsageError(f"{name}: {value} is not in {low} .. {high}")
        self._lock = threading.Lock()
        self._regions = {}
        self.p.connections_max = connections_max
        self.p.pause_above = pause_above
        self.p.resume_below = resume_below
        self.p.read_size = read_size
        self.p.spin_ns = <uint64_t>spin_us * 1000
        self.p.deadline[DEADLINE_IDLE].after_ns = <uint64_t>idle_ms * 1000000
        self.p.deadline[DEADLINE_STALL].after_ns = <uint64_t>stall_ms * 1000000
        self.p.deadline[DEADLINE_LINGER].after_ns = <uint64_t>linger_ms * 1000000
        self.p.accepting = True
        self.p.epoll = checked(epoll_create1(EPOLL_CLOEXEC))
        self.p.control = checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
        self.p.answer = checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
        self.p.event = checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
        self.p.reserve = checked(open("/dev/null", O_RDONLY | O_CLOEXEC))
        event.events = EPOLLIN | EPOLLET
        event.data.u64 = <uint64_t>CONTROL_TAG << 32
        checked(epoll_ctl(self.p.epoll, EPOLL_CTL_ADD, self.p.control, &event))
        for i in range(<uint32_t>len(listeners)):
            self.p.listener[i] = listeners[i]
            event.data.u64 = (<uint64_t>LISTENER_TAG << 32) | i
            checked(epoll_ctl(self.p.epoll, EPOLL_CTL_ADD, self.p.listener[i], &event))
            self.p.listeners = i + 1

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(WORKERS_MAX):
            if self.p.worker[i] != NULL:
                drop_all(&self.p, self.p.worker[i])
                free_worker(self.p.worker[i])
        for fd in (self.p.epoll, self.p.control, self.p.answer, self.p.event, self.p.reserve):
            if fd >= 0:
                close(fd)

    @property
    def event_fd(self):
        """Readable when `events` has something to say. Owned by the proxy."""
        return self.p.event

    def run(self):
        """Serve until `stop`; the GIL is released throughout. Then every client socket is closed.

        Raises: UsageError: it runs already. OSError: epoll failed.
        """
        cdef int error
        if eos_exchange(&self.p.running, 1):
            raise UsageError("the proxy runs already")
        self.p.stopping = False
        with nogil:
            error = loop(&self.p)
            # A command that came too late is obeyed here, or taken back by its caller: one of the two sees it.
            eos_store_release(&self.p.running, 0)
            eos_fence()
            obey(&self.p)
        if error:
            raise OSError(error, os.strerror(error))

    def add_worker(self, index, region, data_to_enclave, data_to_host, enclave_doorbell, host_doorbell):
        """Attach a worker's data channel; clients are accepted for it from its READY on.

        Args:
            index: 0 <= index < 64, not in use.
            region: writable buffer of the whole region; held until `detach_worker`.
            data_to_enclave, data_to_host: (header offset, data offset, capacity) in the region, in bytes.
            enclave_doorbell, host_doorbell: eventfds, non-blocking, borrowed until `detach_worker`.
        Raises: UsageError: index in use or geometry outside the region. OSError: epoll refused the doorbell.
        """
        cdef unsigned char[::1] view = region
        cdef uint8_t *base = &view[0]
        cdef worker_t *worker
        cdef uint64_t size = view.shape[0]
        cdef int lie
        for header, data, capacity in (data_to_enclave, data_to_host):
            if (
                header % 8 or data % 8 or capacity & (capacity - 1) or capacity < 2 * (FRAME_HEADER_SIZE + 8 +
                self.p.read_size) or header + RING_HEADER_SIZE > size or data + capacity > size
            ):
                raise UsageError(f"a ring at {header:#x}, {data:#x} of {capacity} bytes does not fit")
        if not 0 <= index < WORKERS_MAX:
            raise UsageError(f"worker {index} is not in 0 .. {WORKERS_MAX - 1}")
        with self._lock:
            if index in self._regions:
                raise UsageError(f"worker {index} is attached already")
            worker = <worker_t *>calloc(1, sizeof(worker_t))
            if worker == NULL:
                raise MemoryError
            worker.chunk = <connection_t **>calloc(CHUNKS_MAX, sizeof(connection_t *))
            if worker.chunk == NULL:
                free(worker)
                raise MemoryError
            worker.index = index
            worker.enclave_doorbell = enclave_doorbell
            worker.host_doorbell = host_doorbell
            header, data, capacity = data_to_enclave
            lie = ring_producer_attach(&worker.to_enclave, base + <size_t>header, base + <size_t>data, capacity, False)
            header, data, capacity = data_to_host
            if not lie:
                lie = ring_consumer_attach(&worker.to_host, base + <size_t>header, base + <size_t>data, capacity)
            if lie:
                free_worker(worker)
                raise UsageError(f"the rings of worker {index} are not fresh: {Lie(lie).name}")
            self.p.command_worker = worker
            try:
                self._command(COMMAND_ADD)
            except OSError:
                free_worker(worker)
                raise
            self._regions[index] = view

    def detach_worker(self, index):
        """Reset every client of this worker and forget its region; returns when nothing touches it any more.

        Raises: UsageError: no such worker.
        """
        with self._lock:
            if index not in self._regions:
                raise UsageError(f"worker {index} is not attached")
            self.p.command_index = index
            self._command(COMMAND_DETACH)
            del self._regions[index]

    def drain(self):
        """Accept nothing more and ask every ready worker to drain; each one says `drained` in `events` when done."""
        with self._lock:
            self._command(COMMAND_DRAIN)

    def stop(self):
        """End `run`: it returns within one turn."""
        with self._lock:
            self._command(COMMAND_STOP)

    def events(self):
        """What happened since the last call: (worker index, "ready" | "drained" | "broken") in that order each."""
        cdef uint64_t drop = 0, bits
        cdef uint32_t i
        happened = []
        if read(self.p.event, &drop, sizeof(drop)) < 0 and errno != EAGAIN:
            raise OSError(errno, os.strerror(errno))
        with self._lock:
            for i in range(WORKERS_MAX):
                if self.p.worker[i] == NULL:
                    continue
                bits = eos_exchange(&self.p.worker[i].events, 0)
                for bit, name in ((EVENT_READY, "ready"), (EVENT_DRAINED, "drained"), (EVENT_BROKEN, "broken")):
                    if bits & bit:
                        happened.append((i, name))
        return happened

    def worker_lie(self, index):
        """How a broken worker broke the contract: (ring's name, Lie); Lie.NONE if it did not."""
        with self._lock:
            if index not in self._regions:
                raise UsageError(f"worker {index} is not attached")
            if self.p.worker[index].to_enclave.lie:
                return "data.to_enclave", Lie(self.p.worker[index].to_enclave.lie)
            return "data.to_host", Lie(self.p.worker[index].to_host.lie)

    def worker_connections(self, index):
        """Slots in use of one worker."""
        with self._lock:
            if index not in self._regions:
                raise UsageError(f"worker {index} is not attached")
            return self.p.worker[index].live

    def stats(self):
        """Free-running counters and present amounts by name; each is read by itself, so sums may be off by a few."""
        counters = dict(self.p.count)
        counters["connections"] = self.p.connections
        counters["sockets"] = self.p.sockets
        counters["unsent_connections"] = self.p.unsent_connections
        counters["unsent_bytes"] = self.p.unsent_bytes
        return counters

    cdef int _command(self, uint64_t command) except -1:
        # Under the lock. The loop obeys and answers; without a loop we obey ourselves. `running` and `command` are a
        # store and a load of the other on both sides, so both need the fence (see the wake-up protocol of _ring.pxd);
        # if both sides see the command, the exchange in `obey` gives it to one, and that one answers.
        cdef pollfd_t wait
        cdef uint64_t drop = 0, until = eos_monotonic_ns() + COMMAND_WAIT_NS
        cdef int ready = 0
        eos_exchange(&self.p.command, command)
        eos_fence()
        if eos_load_acquire(&self.p.running):
            write_one(self.p.control)
        else:
            obey(&self.p)
        wait.fd = self.p.answer
        wait.events = POLLIN
        with nogil:
            while ready <= 0:       # a signal handler of the main thread may interrupt it
                ready = poll(&wait, 1, 1000)
                if eos_monotonic_ns() >= until:
                    break
        if ready <= 0 and eos_exchange(&self.p.command, COMMAND_NONE) == command:
            raise TimeoutError(f"the proxy's loop did not answer within {COMMAND_WAIT_NS // 1000000} ms")
        if read(self.p.answer, &drop, sizeof(drop)) < 0 and errno != EAGAIN:
            raise OSError(errno, os.strerror(errno))
        if self.p.command_result:
            raise OSError(self.p.command_result, os.strerror(self.p.command_result))
        return 0


cdef int checked(int result) except -1:
    if result < 0:
        raise OSError(errno, os.strerror(errno))
    return result
