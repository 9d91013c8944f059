# The TCP proxy's loop: sockets <-> data channel, for all workers, in one thread that never holds the GIL.
#
# Read straight into the claimed ring space, sent straight from the ring: no copy of our own unless a client is slow.
# Per request: one recv, one send, a share of one epoll_wait, and a doorbell only if the enclave sleeps. Structures and
# states: _proxy.pxd. Memory of a connection: _connections.pxd. The two directions: _to_enclave.pxd, _to_clients.pxd;
# how connections end: _ends.pxd; those that the enclave asks for: _connects.pxd. Listening sockets are made by tcp_proxy.py,
# sockets to servers by connector.py.
#
# A turn: accept and read sockets (bounded), publish, drain data.to_host (bounded), deadlines, publish, release, ring
# doorbells; then arm the rings, look once more, and sleep in epoll_wait. data.to_host is drained in every turn, also
# while data.to_enclave is full, so that two full rings never wait for each other.
#
# The enclave is trusted with its own clients only: a ring or a frame that breaks the contract costs the worker, one
# that names no connection is counted and dropped.
cimport cython
from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock, WAIT_LOCK,
)
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from enclave_os._limits cimport FRAME_HEADER_SIZE, PEER_ADDRESS_SIZE_MAX, RING_HEADER_SIZE, TCP_READ_SIZE_MAX
from enclave_os._native cimport (
    eos_cpu_pause, eos_exchange, eos_fence, eos_load_acquire, eos_load_relaxed, eos_monotonic_ns, eos_store_release,
)
from enclave_os._ring cimport (
    RING_EMPTY, RING_POISONED, RING_READY, ring_arm, ring_consumer_attach, ring_disarm, ring_look_for_records,
    ring_producer_attach, ring_wait_for_room,
)
from host._connections cimport count, find, queue_ready
from host._connects cimport append, drop_connects, take_all, take_answers
from host._ends cimport REASON_PEER_GONE, broke, drop_all, end, expire, sleep_ms
from host._proxy cimport *
from host._sockets cimport *
from host._to_clients cimport drain_to_host, flush
from host._to_enclave cimport accept_all, publish, put_all_owed, read_sockets, ring_doorbell, take_rings, worker_tag

import os
import threading

from enclave_os.wire.errors import Lie, UsageError

cdef enum:
    COMMAND_WAIT_NS = 5000000000  # a turn is bounded, so a live loop answers in milliseconds


# -- the turn ---------------------------------------------------------------------------------------------------------

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
    take_answers(p)
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
        elif high == DOORBELL_TAG:
            take_rings(p.worker[low])
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
        end(p, connection, REASON_PEER_GONE, True)
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
    p.egress -= worker.egress_live
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
    if worker.egress != NULL:
        for i in range(EGRESS_SLOTS):
            free(worker.egress[i])
        free(worker.egress)
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
    p.now_ns = eos_monotonic_ns()
    while True:
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
        if got < 0 and errno != EINTR:
            error = errno
            break
        # Before the events: what they move counts from now, not from before the sleep.
        p.now_ns = eos_monotonic_ns()
        disarm_all(p)
        for i in range(got):
            on_event(p, events[i].events, events[i].data.u64)
    for index in range(p.workers_high):
        if p.worker[index] != NULL:
            drop_all(p, p.worker[index])
    return error


# -- Python's end -----------------------------------------------------------------------------------------------------

@cython.final
cdef class Proxy:
    """One thread that moves bytes between client sockets and the data channels of the workers."""

    cdef proxy_t p
    cdef object _lock
    cdef dict _regions

    def __cinit__(self, listeners, *, connections_max, pause_above, resume_below, idle_ms, stall_ms, linger_ms,
                  spin_us=0, read_size=TCP_READ_SIZE_MAX, egress_max=0, fronts=(), front_ms=5000):
        cdef epoll_event_t event
        cdef uint32_t i
        self.p.epoll = self.p.control = self.p.answer = self.p.event = self.p.reserve = self.p.asked_bell = -1
        self.p.lock = PyThread_allocate_lock()
        if self.p.lock == NULL:
            raise MemoryError
        listeners = tuple(listeners)
        if len(listeners) > LISTENERS_MAX:
            raise UsageError(f"{len(listeners)} listening sockets are more than {LISTENERS_MAX}")
        for name, value, low, high in (
            ("connections_max", connections_max, 1, 1 << 20), ("pause_above", pause_above, 1, 1 << 26),
            ("resume_below", resume_below, 1, pause_above), ("idle_ms", idle_ms, 1, 1 << 31),
            ("stall_ms", stall_ms, 1, 1 << 31), ("linger_ms", linger_ms, 1, 1 << 31), ("spin_us", spin_us, 0, 1000000),
            ("read_size", read_size, 1, TCP_READ_SIZE_MAX), ("egress_max", egress_max, 0, EGRESS_SLOTS),
            ("front_ms", front_ms, 1, 1 << 31), ("fronts", len(fronts), 0, FRONTS_MAX),
        ):
            if not low <= value <= high:
                raise UsageError(f"{name}: {value} is not in {low} .. {high}")
        self._lock = threading.Lock()
        self._regions = {}
        self.p.connections_max = connections_max
        self.p.pause_above = pause_above
        self.p.resume_below = resume_below
        self.p.read_size = read_size
        self.p.egress_max = egress_max
        self.p.spin_ns = <uint64_t>spin_us * 1000
        self.p.deadline[DEADLINE_IDLE].after_ns = <uint64_t>idle_ms * 1000000
        self.p.deadline[DEADLINE_STALL].after_ns = <uint64_t>stall_ms * 1000000
        self.p.deadline[DEADLINE_LINGER].after_ns = <uint64_t>linger_ms * 1000000
        self.p.deadline[DEADLINE_FRONT].after_ns = <uint64_t>front_ms * 1000000
        for network, bits in fronts:
            if len(network) != 16 or not 0 <= bits <= 128:
                raise UsageError("a network of fronts is 16 bytes and a prefix of 0 .. 128 bits")
            memcpy(self.p.front[self.p.fronts].address, <const char *><bytes>network, 16)
            self.p.front[self.p.fronts].bits = bits
            self.p.fronts += 1
        self.p.accepting = True
        self.p.epoll = checked(epoll_create1(EPOLL_CLOEXEC))
        self.p.control = checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
        self.p.answer = checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
        self.p.event = checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
        self.p.asked_bell = checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
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
        if self.p.lock != NULL:
            drop_connects(&self.p, &self.p.asked)
            drop_connects(&self.p, &self.p.answered)
            PyThread_free_lock(self.p.lock)
        for fd in (self.p.epoll, self.p.control, self.p.answer, self.p.event, self.p.reserve, self.p.asked_bell):
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

    def add_worker(self, index, region, data_to_enclave, data_to_host, enclave_doorbell, host_doorbell, relay=None):
        """Attach a worker's data channel; clients are accepted for it from its READY on.

        Args:
            index: 0 <= index < 64, not in use.
            region: writable buffer of the whole region; held until `detach_worker`.
            data_to_enclave, data_to_host: (header offset, data offset, capacity) in the region, in bytes.
            enclave_doorbell, host_doorbell: eventfds, non-blocking, borrowed until `detach_worker`.
            relay: when `host_doorbell` is the pipe of an enclave under Gramine, which nobody else may read: the
                dispatcher's eventfd, rung with it, and where the text goes that comes with the rings.
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
            worker.rpc_doorbell, worker.text = (-1, -1) if relay is None else relay
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

    # -- for the connector's thread ------------------------------------------------------------------------------------

    @property
    def connects_fd(self):
        """Readable when `take_connects` has something to say. Owned by the proxy."""
        return self.p.asked_bell

    def take_connects(self):
        """The enclaves' wishes since the last call, in order: (ticket, deadline in ms, target).

        A ticket names one connection, and is what `connected` or `connect_failed` answers, once. An empty target: the
        answer to this ticket is awaited no longer.
        """
        cdef connect_t *item
        cdef connect_t *next
        cdef uint64_t drop = 0
        if read(self.p.asked_bell, &drop, sizeof(drop)) < 0 and errno != EAGAIN:
            raise OSError(errno, os.strerror(errno))
        item = take_all(&self.p, &self.p.asked)
        taken = []
        while item != NULL:
            next = item.next
            taken.append(((item.worker, item.life, item.conn_id), item.deadline_ms, item.text[:item.size]))
            free(item)
            item = next
        return taken

    def connected(self, ticket, int fd, bytes address not None):
        """Hand over a connected, non-blocking socket, which is the proxy's from here on.

        Args: address: `ip:port` reached, 1 to 64 bytes.
        """
        if not 1 <= len(address) <= PEER_ADDRESS_SIZE_MAX:
            raise UsageError(f"an address has 1 to {PEER_ADDRESS_SIZE_MAX} bytes")
        self._answer_connect(ticket, fd, 0, address)

    def connect_failed(self, ticket, uint32_t reason):
        """Nobody was reached. Args: reason: a CloseReason."""
        self._answer_connect(ticket, -1, reason, b"")

    cdef int _answer_connect(self, ticket, int fd, uint32_t reason, bytes address) except -1:
        cdef connect_t *item
        cdef uint32_t worker, life, conn_id
        worker, life, conn_id = ticket
        if worker >= WORKERS_MAX:
            raise UsageError(f"there is no worker {worker}")
        item = <connect_t *>malloc(sizeof(connect_t))
        if item == NULL:
            raise MemoryError
        item.worker, item.life, item.conn_id = worker, life, conn_id
        item.fd, item.reason, item.size = fd, reason, <uint32_t>len(address)
        memcpy(item.text, <const char *>address, item.size)
        PyThread_acquire_lock(self.p.lock, WAIT_LOCK)
        append(&self.p.answered, item)
        PyThread_release_lock(self.p.lock)
        write_one(self.p.control)
        return 0

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
        counters["egress"] = self.p.egress
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
