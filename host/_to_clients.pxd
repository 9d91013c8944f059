# From the enclave to clients: draining data.to_host, sending straight from it, keeping what a slow client leaves.
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from enclave_os._codec cimport (
    FRAME_CLOSE, FRAME_CONNECT, FRAME_DATA, FRAME_DRAIN, FRAME_EOF, FRAME_PAUSE, FRAME_READY, FRAME_RESUME,
    frame_decode, frame_t,
)
from enclave_os._limits cimport (
    CONN_ID_INGRESS_MAX, CONNECT_TARGET_SIZE_MAX, FRAME_HEADER_SIZE, FRAMES_PER_TURN_MAX,
)
from enclave_os._native cimport eos_load_relaxed
from enclave_os._ring cimport LIE_FRAME, RING_POISONED, RING_READY, ring_advance, ring_look_for_records, ring_peek
from host._connections cimport (
    count, deadline_set, deadline_touch, find, give_back_slot, owe, queue_ready, unsent_free, unsent_reserve,
    unsent_size,
)
from host._ends cimport (
    REASON_FLOOD, REASON_INTERNAL, REASON_LIMIT, REASON_NORMAL, REASON_PEER_GONE, REASON_REFUSED, broke, drop_socket,
    end, finish, owe_close, tell,
)
from host._connects cimport ask_connector, never_mind
from host._proxy cimport *
from host._sockets cimport *
from host._to_enclave cimport connection_tag, publish, put_all_owed, release, ring_doorbell

cdef enum:
    FLOOD_RINGS = 4               # capacities of data.to_host that one slow client may have waiting


cdef inline void edge_on_room(proxy_t *p, connection_t *connection) noexcept nogil:
    # Registered at the first partial send and then kept. Modifying polls the socket anew, so room that came meanwhile
    # is reported.
    cdef epoll_event_t event
    if connection.flags & C_OUT_EDGE:
        return
    connection.flags |= C_OUT_EDGE
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
    event.data.u64 = connection_tag(connection)
    epoll_ctl(p.epoll, EPOLL_CTL_MOD, connection.fd, &event)

# PAUSE is a stop, but not an instant one: the enclave reads it behind all that was in data.to_enclave before, and goes
# on sending meanwhile. So the bound leaves several rings of room; an enclave that does not listen ends there.
cdef inline bint hold(proxy_t *p, connection_t *connection, const iovec_t *pieces, int pieces_count, size_t skip,
               size_t size) noexcept nogil:
    # Keeps `size` bytes after the first `skip` of the pieces in `unsent`. False: flood or no memory, and it is ended.
    cdef worker_t *worker = connection.worker
    cdef uint64_t bound = p.pause_above + FLOOD_RINGS * worker.to_host.capacity
    cdef bint first = connection.unsent == NULL
    cdef size_t part
    cdef int i
    if unsent_size(connection) + size > bound:
        count(&p.count.floods, 1)
        end(p, connection, REASON_FLOOD, True)
        return False
    if not unsent_reserve(connection, <uint32_t>size):
        end(p, connection, REASON_LIMIT, True)
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

cdef inline void deliver(proxy_t *p, worker_t *worker, uint32_t conn_id, iovec_t *pieces, int pieces_count,
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
                end(p, connection, REASON_PEER_GONE, True)
                return
            sent = 0
        count(&p.count.bytes_to_clients, sent)
        if <size_t>sent == size:
            deadline_touch(p, connection, DEADLINE_IDLE)
            return
        count(&p.count.partial_sends, 1)
    if hold(p, connection, pieces, pieces_count, sent, size - sent):
        edge_on_room(p, connection)

cdef inline void flush(proxy_t *p, connection_t *connection) noexcept nogil:
    # The socket has room again.
    cdef ssize_t sent
    if connection.unsent == NULL:
        return
    count(&p.count.sends, 1)
    sent = send(connection.fd, connection.unsent + connection.unsent_start, unsent_size(connection), MSG_NOSIGNAL)
    if sent < 0:
        if errno != EAGAIN and errno != EINTR:
            count(&p.count.resets, 1)
            end(p, connection, REASON_PEER_GONE, True)
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

cdef inline void enclave_closed(proxy_t *p, connection_t *connection, uint16_t reason) noexcept nogil:
    if connection.flags & C_GOT_CLOSE:
        count(&p.count.dropped_frames, 1)
        return
    connection.flags |= C_GOT_CLOSE
    owe_close(connection, REASON_NORMAL)
    if connection.flags & C_CONNECTING:
        never_mind(p, connection)
    if connection.fd < 0:
        give_back_slot(p, connection)
    elif (
        reason == REASON_PEER_GONE or reason == REASON_FLOOD or reason == REASON_INTERNAL or reason == REASON_REFUSED
    ):
        # Nothing whole is on its way.
        drop_socket(p, connection, True)
        give_back_slot(p, connection)
    elif connection.unsent == NULL:
        finish(p, connection)

cdef inline void lied(proxy_t *p, worker_t *worker) noexcept nogil:
    worker.to_host.lie = LIE_FRAME
    broke(p, worker)

cdef inline void frame_to_host(proxy_t *p, worker_t *worker, frame_t frame, const uint8_t *payload,
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
        if frame.conn_id <= CONN_ID_INGRESS_MAX or not 5 <= size <= <uint32_t>CONNECT_TARGET_SIZE_MAX:
            lied(p, worker)
        elif not ask_connector(p, worker, frame.conn_id, payload, size):
            lied(p, worker)
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

cdef inline void look_behind(proxy_t *p, worker_t *worker, bint left_some) noexcept nogil:
    # After a drain. What the enclave has said until now is heard before sockets are read again, and what it says meanwhile
    # after that: one that never stops must not stop its clients.
    if left_some:
        p.more = True
    if worker.behind:
        worker.behind = <int64_t>(worker.to_host.consumed - worker.behind_until) < 0
        return
    if not left_some:
        return
    if ring_look_for_records(&worker.to_host) == RING_POISONED:
        broke(p, worker)
        return
    worker.behind = worker.to_host.produced_seen != worker.to_host.consumed
    worker.behind_until = worker.to_host.produced_seen

cdef inline void drain_to_host(proxy_t *p, worker_t *worker) noexcept nogil:
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
    look_behind(p, worker, budget == 0)
    if worker.drain_got and not worker.flushing:
        worker.drain_got = False
        tell(p, worker, EVENT_DRAINED)
